// SPDX-License-Identifier: Apache-2.0

//! Neighbour discovery for the CLAT's IPv6 address. The kernel does not know the address (or, on
//! Android, has it as anycast), so a node's duties for its address are done here:
//!
//! - Duplicate address detection (RFC 4862 §5.4), optimistic (RFC 4429): the address is used at
//!   once. Another node that has it ends the daemon, at any time.
//! - Answers to solicitations, sent at once and from the solicited address (RFC 4861 §7.2.4): some
//!   networks drop an address if the answers come from another one.
//! - Advertisements to routers before the address is used (RFC 9131).
//!
//! The Override flag is set only once no duplicate has been found (RFC 4429 §2.2).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use clat_datapath::socket::NeighbourSocket;
use clat_packet::checksum::Sum;
use clat_packet::icmp::v6::{NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};
use clat_packet::nd::{self, option};
use clat_packet::protocol::ICMPV6;
use clat_packet::{ipv6, Ip};
use nix::errno::Errno;

/// RetransTimer (RFC 4861 §10): how long another node has to object.
const RETRANS_TIMER: Duration = Duration::from_secs(1);
/// IPv6 header, solicitation or advertisement, and one option of 8 bytes.
const MESSAGE: usize = ipv6::HEADER + nd::LEN;
/// Offset of the options.
const OPTIONS: usize = ipv6::HEADER + nd::HEADER;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Most packets read before the loop serves other descriptors.
const BATCH: usize = 16;

/// Another node has the address, or probes for it at the same time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is in use by another node on the uplink; start again with another address")]
pub struct Duplicate(pub Ipv6Addr);

/// Answers solicitations for the address, and watches for duplicates.
#[derive(Debug)]
pub struct Neighbour {
    socket: NeighbourSocket,
    address: Ipv6Addr,
    nonce: [u8; 6],
    probing: Option<Instant>,
}

impl Neighbour {
    /// Probes for duplicates of `address` on the Ethernet interface `index`, announces it to
    /// routers, and answers solicitations from then on.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn start(index: u32, address: Ipv6Addr) -> io::Result<Self> {
        let socket = NeighbourSocket::open(index, address)?;
        let nonce = nonce();
        let group = nd::ethernet_group(nd::solicited_node(address));
        socket.send(&solicitation(address, nonce), group)?;
        let neighbour =
            Self { socket, address, nonce, probing: Some(Instant::now() + RETRANS_TIMER) };
        neighbour.announce(ALL_ROUTERS);
        Ok(neighbour)
    }

    /// The end of duplicate address detection; `None` once it has found none.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.probing
    }

    /// Reads and answers the messages that have arrived.
    ///
    /// # Errors
    /// [`Duplicate`] if another node has the address.
    pub fn poll(&mut self, now: Instant) -> Result<(), Duplicate> {
        let mut buf = [0; 1500];
        for _ in 0..BATCH {
            let packet = match self.socket.recv(&mut buf) {
                Ok(len) => sound(&buf[..len], self.address),
                Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            let Some(packet) = packet else { continue };
            // An interface without a link-layer address is down; an answer could not be sent.
            let Ok(own) = self.socket.own_address() else { continue };
            if claims(packet, own) || self.probing.is_some() && probes(packet, self.nonce) {
                return Err(Duplicate(self.address));
            }
            if probes(packet, self.nonce) {
                self.announce(ALL_NODES);
            } else if let Some((asker, to)) = asks(packet) {
                let answer = advertisement(self.address, nd::SOLICITED | self.flag(), own, asker);
                self.send(&answer, to);
            }
        }
        if self.probing.is_some_and(|until| until <= now) {
            self.probing = None;
            self.announce(ALL_ROUTERS);
        }
        Ok(())
    }

    /// OVERRIDE, once no duplicate has been found.
    fn flag(&self) -> u8 {
        if self.probing.is_some() {
            0
        } else {
            nd::OVERRIDE
        }
    }

    /// Sends an unsolicited advertisement to a group.
    fn announce(&self, group: Ipv6Addr) {
        if let Ok(own) = self.socket.own_address() {
            let message = advertisement(self.address, self.flag(), own, group);
            self.send(&message, nd::ethernet_group(group));
        }
    }

    /// Sends a message. An error is ignored: neighbours ask again.
    fn send(&self, packet: &[u8], to: [u8; 6]) {
        if let Err(error) = self.socket.send(packet, to) {
            log::debug!("cannot advertise {}: {error}", self.address);
        }
    }
}

impl AsFd for Neighbour {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A DAD probe (RFC 4862 §5.4.2), with a nonce (RFC 7527 §4.1) to recognise it if the network
/// reflects it.
pub(crate) fn solicitation(address: Ipv6Addr, nonce: [u8; 6]) -> [u8; MESSAGE] {
    let group = nd::solicited_node(address);
    let message = nd::solicitation(address, option::NONCE, nonce);
    packet(Ipv6Addr::UNSPECIFIED, group, &message)
}

/// An advertisement (RFC 4861 §4.4) to the soliciting node, or to a group.
fn advertisement(address: Ipv6Addr, flags: u8, own: [u8; 6], to: Ipv6Addr) -> [u8; MESSAGE] {
    packet(address, to, &nd::advertisement(address, flags, own))
}

fn packet(from: Ipv6Addr, to: Ipv6Addr, message: &[u8; nd::LEN]) -> [u8; MESSAGE] {
    let ip = Ip {
        src: from.to_bits(),
        dst: to.to_bits(),
        class: 0,
        hops: nd::HOP_LIMIT,
        protocol: ICMPV6,
        fragment: None,
        dont_fragment: true,
        header_len: ipv6::HEADER,
        len: MESSAGE,
    };
    let mut packet = [0; MESSAGE];
    ipv6::write(&mut packet, &ip, message.len());
    packet[ipv6::HEADER..].copy_from_slice(message);
    let field = sum(&packet).field();
    packet[42..44].copy_from_slice(&field);
    packet
}

/// The checksum of a packet's message with its pseudo-header.
fn sum(packet: &[u8]) -> Sum {
    let message = &packet[ipv6::HEADER..];
    Sum::pseudo_header(packet, ICMPV6, message.len()) + Sum::of(message)
}

/// The packet without padding, if it is a valid solicitation or advertisement for `address` (RFC
/// 4861 §7.1).
fn sound(packet: &[u8], address: Ipv6Addr) -> Option<&[u8]> {
    let ip = ipv6::parse(packet).ok()?.ip;
    // An Ethernet frame may end with padding.
    let packet = packet.get(..ip.len)?;
    if ip.protocol != ICMPV6 || ip.header_len != ipv6::HEADER || !sum(packet).is_right() {
        return None;
    }
    match nd::Message::read(&packet[ipv6::HEADER..], ip.hops)? {
        nd::Message::NeighbourSolicitation { target, .. }
        | nd::Message::NeighbourAdvertisement { target, .. } => {
            (target == address).then_some(packet)
        }
        _ => None,
    }
}

/// Whether a valid packet claims the address for another node (RFC 4862 §5.4.4). Our own
/// advertisements, with the Ethernet address `own`, may be reflected by the network.
fn claims(packet: &[u8], own: [u8; 6]) -> bool {
    packet[40] == NEIGHBOUR_ADVERTISEMENT
        && nd::ethernet_address(&packet[OPTIONS..], option::TARGET) != Some(own)
}

/// Whether a valid packet is another node's DAD probe (RFC 4862 §5.4.3).
fn probes(packet: &[u8], nonce: [u8; 6]) -> bool {
    // A solicitation with a source address is for address resolution.
    packet[40] == NEIGHBOUR_SOLICITATION
        && packet[8..24] == [0; 16]
        && !nd::options(&packet[OPTIONS..]).any(|it| it == (option::NONCE, &nonce[..]))
}

/// The source of a valid solicitation for address resolution, and its Ethernet address.
fn asks(packet: &[u8]) -> Option<(Ipv6Addr, [u8; 6])> {
    let asker = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[8..24]).ok()?);
    if packet[40] != NEIGHBOUR_SOLICITATION || asker.is_unspecified() || asker.is_multicast() {
        return None;
    }
    Some((asker, nd::ethernet_address(&packet[OPTIONS..], option::SOURCE)?))
}

/// Six random bytes, from the standard library's hash keys.
pub(crate) fn nonce() -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: &str = "2001:db8::1234:5678:9abc";
    const NONCE: [u8; 6] = [1, 2, 3, 4, 5, 6];
    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn address() -> Ipv6Addr {
        ADDRESS.parse().unwrap()
    }

    /// Changes some bytes and corrects the checksum.
    fn changed(changes: &[(usize, u8)]) -> [u8; MESSAGE] {
        let mut packet = solicitation(address(), NONCE);
        for (at, value) in changes {
            packet[*at] = *value;
        }
        packet[42..44].fill(0);
        let field = sum(&packet).field();
        packet[42..44].copy_from_slice(&field);
        packet
    }

    fn claimed(packet: &[u8]) -> bool {
        sound(packet, address()).is_some_and(|packet| claims(packet, OWN) || probes(packet, NONCE))
    }

    #[test]
    fn who_claims_it() {
        assert!(!claimed(&solicitation(address(), NONCE)), "our own, reflected");
        assert!(claimed(&solicitation(address(), [9; 6])), "another's probe");
        assert!(!claimed(&changed(&[(8, 0xfe), (71, 9)])), "address resolution");
        assert!(claimed(&changed(&[(40, NEIGHBOUR_ADVERTISEMENT)])), "an advertisement");
        assert!(
            !claimed(&changed(&[(40, NEIGHBOUR_ADVERTISEMENT), (63, 0)])),
            "of another address"
        );
        assert!(
            !claimed(&changed(&[(40, NEIGHBOUR_ADVERTISEMENT), (7, 254)])),
            "from afar (RFC 4861 §7.1)"
        );
        let reflected = advertisement(address(), nd::OVERRIDE, OWN, ALL_ROUTERS);
        assert!(!claimed(&reflected), "what we have said ourselves");
        let mut broken = changed(&[(40, NEIGHBOUR_ADVERTISEMENT)]);
        broken[42] ^= 1;
        assert!(!claimed(&broken), "with a wrong checksum");
        assert_eq!(nd::solicited_node(address()).to_string(), "ff02::1:ff78:9abc");
        let group = nd::ethernet_group(nd::solicited_node(address()));
        assert_eq!(group, [0x33, 0x33, 0xff, 0x78, 0x9a, 0xbc]);
    }

    #[test]
    fn who_asks_for_it() {
        let router: Ipv6Addr = "fe80::1".parse().unwrap();
        let (group, at) = (nd::solicited_node(address()), [2, 0, 0, 0, 0, 1]);
        let asked = |from, to, (option, value)| {
            let packet = packet(from, to, &nd::solicitation(address(), option, value));
            asks(sound(&packet, address()).expect("sound"))
        };
        assert_eq!(asked(router, group, (option::SOURCE, at)), Some((router, at)));
        assert_eq!(asked(router, address(), (option::SOURCE, at)), Some((router, at)), "unicast");
        assert_eq!(asked(Ipv6Addr::UNSPECIFIED, group, (option::SOURCE, at)), None, "a probe");
        assert_eq!(asked(group, group, (option::SOURCE, at)), None, "from a group");
        assert_eq!(asked(router, group, (option::NONCE, at)), None, "from nowhere");
        assert_eq!(asked(router, group, (option::SOURCE, [0xff; 6])), None, "for everybody");

        let answer = advertisement(address(), nd::SOLICITED | nd::OVERRIDE, at, router);
        let answer = sound(&answer, address()).expect("sound");
        assert_eq!(asks(answer), None);
        assert_eq!(answer[8..24], address().octets());
        assert_eq!(answer[24..40], router.octets());
        assert_eq!(answer[40..42], [NEIGHBOUR_ADVERTISEMENT, 0]);
        assert_eq!(answer[44..48], [nd::SOLICITED | nd::OVERRIDE, 0, 0, 0]);
        let options: Vec<_> = nd::options(&answer[OPTIONS..]).collect();
        assert_eq!(options, [(option::TARGET, &at[..])]);
    }

    proptest! {
        #[test]
        fn hostile_input(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
            changes in proptest::collection::vec((0..MESSAGE, any::<u8>()), 0..8),
            len in 0usize..=MESSAGE,
        ) {
            let _ = claimed(&bytes);
            let packet = changed(&changes);
            let _ = sound(&packet, address()).map(asks);
            let advertisement = changed(&[(40, NEIGHBOUR_ADVERTISEMENT)]);
            prop_assert!(!claimed(&advertisement[..len.min(MESSAGE - 1)]));
            // Whatever the options contain, each takes at least 8 bytes.
            bytes.resize(bytes.len().max(64), 0);
            prop_assert!(nd::options(&bytes[OPTIONS..]).count() <= (bytes.len() - 64) / 8);
        }
    }
}
