//! What the CLAT's IPv6 address is to its neighbours, where the kernel, which has it as anycast, does too little:
//!
//! - It does not look for duplicates. This does (RFC 4862 §5.4), in the optimistic way of RFC 4429: the address is used at
//!   once, but an answer ends the daemon.
//! - It answers who asks for an anycast address after up to 0.8 s (`proxy_delay`), lest all that have it answer at once
//!   (RFC 4861 §7.2.7). Nobody else has this one, and the first packet of the first connection is waiting for the answer:
//!   so this answers at once. The kernel's answer says the same when it comes.
//!
//! Neither sets the Override flag, as RFC 4429 asks.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use clat_datapath::checksum::{add, finish, fold, pseudo_header};
use clat_datapath::socket::NeighbourSocket;
use nix::errno::Errno;

/// RetransTimer (RFC 4861 §10): how long an answer may take.
const RETRANS_TIMER: Duration = Duration::from_secs(1);
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The Solicited flag of an advertisement.
const SOLICITED: u8 = 0x40;
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;
const NONCE_OPTION: u8 = 14;
/// IPv6 header, solicitation or advertisement, an option of six bytes.
const MESSAGE: usize = 40 + 24 + 8;
/// Packets that are read before others get their turn.
const BATCH: usize = 16;

/// Another node has the address, or wants it at the same moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is in use by another node on the uplink; start again with another address")]
pub struct Duplicate(pub Ipv6Addr);

/// Speaks for the address on the link.
#[derive(Debug)]
pub struct Neighbour {
    socket: NeighbourSocket,
    address: Ipv6Addr,
    nonce: [u8; 6],
    probing: Option<Instant>,
}

impl Neighbour {
    /// Asks on the Ethernet interface `index` who has `address`, and answers who asks for it from then on.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn start(index: u32, address: Ipv6Addr) -> io::Result<Self> {
        let socket = NeighbourSocket::open(index, address)?;
        let nonce = nonce();
        let group = solicited_node(address);
        socket.send(&solicitation(address, nonce), multicast(group))?;
        Ok(Self { socket, address, nonce, probing: Some(Instant::now() + RETRANS_TIMER) })
    }

    /// Until when another node may say that it has the address; `None` once none did.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.probing
    }

    /// Reads what has come, and answers it.
    ///
    /// # Errors
    /// [`Duplicate`] when another node has the address.
    pub fn turn(&mut self, now: Instant) -> Result<(), Duplicate> {
        let mut buf = [0; 1500];
        for _ in 0..BATCH {
            let packet = match self.socket.recv(&mut buf) {
                Ok(len) => sound(&buf[..len], self.address),
                Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            let Some(packet) = packet else { continue };
            if self.probing.is_some() && claims(packet, self.nonce) {
                return Err(Duplicate(self.address));
            }
            if let Some((asker, to)) = asks(packet) {
                // Without it, the kernel's answer remains.
                let _ = self
                    .socket
                    .own_address()
                    .and_then(|own| self.socket.send(&advertisement(self.address, own, asker), to));
            }
        }
        self.probing = self.probing.filter(|until| *until > now);
        Ok(())
    }
}

impl AsFd for Neighbour {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// RFC 4291 §2.7.1.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&[a, b, c]);
    group.into()
}

/// The Ethernet address of an IPv6 multicast group (RFC 2464 §7).
fn multicast(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// RFC 4861 §4.3 from the unspecified address, with the nonce of RFC 7527 §4.1, by which a probe that the network
/// reflects is known as ours.
fn solicitation(address: Ipv6Addr, nonce: [u8; 6]) -> [u8; MESSAGE] {
    let group = solicited_node(address);
    message(Ipv6Addr::UNSPECIFIED, group, [SOLICITATION, 0], address, (NONCE_OPTION, nonce))
}

/// RFC 4861 §4.4 to who has asked.
fn advertisement(address: Ipv6Addr, own: [u8; 6], asker: Ipv6Addr) -> [u8; MESSAGE] {
    message(address, asker, [ADVERTISEMENT, SOLICITED], address, (TARGET_OPTION, own))
}

fn message(
    from: Ipv6Addr,
    to: Ipv6Addr,
    [kind, flags]: [u8; 2],
    target: Ipv6Addr,
    (option, value): (u8, [u8; 6]),
) -> [u8; MESSAGE] {
    let mut packet = [0; MESSAGE];
    packet[0] = 0x60;
    packet[5] = 32;
    packet[6] = ICMPV6;
    packet[7] = 255;
    packet[8..24].copy_from_slice(&from.octets());
    packet[24..40].copy_from_slice(&to.octets());
    packet[40] = kind;
    packet[44] = flags;
    packet[48..64].copy_from_slice(&target.octets());
    packet[64] = option;
    packet[65] = 1;
    packet[66..72].copy_from_slice(&value);
    let sum = finish(add(pseudo_header(&packet, ICMPV6, MESSAGE - 40), &packet[40..]));
    packet[42..44].copy_from_slice(&sum);
    packet
}

/// The packet without padding, if it is a solicitation or an advertisement about `address` that may be believed
/// (RFC 4861 §7.1).
fn sound(packet: &[u8], address: Ipv6Addr) -> Option<&[u8]> {
    let len = packet.get(4..6).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))?;
    // Behind the Ethernet header there may be padding.
    let packet = packet.get(..40 + len)?;
    let sound = len >= 24
        && packet[0] >> 4 == 6
        && packet[6] == ICMPV6
        && packet[7] == 255
        && packet[41] == 0
        && packet[48..64] == address.octets()
        && fold(add(pseudo_header(packet, ICMPV6, len), &packet[40..])) == 0xffff;
    sound.then_some(packet)
}

/// Whether a sound packet says that another node has the address or is probing for it (RFC 4862 §5.4.3, §5.4.4).
fn claims(packet: &[u8], nonce: [u8; 6]) -> bool {
    match packet[40] {
        ADVERTISEMENT => true,
        // With a source it only resolves the address; without one it probes for it, unless it is our own probe.
        SOLICITATION => {
            packet[8..24] == [0; 16]
                && !options(packet).any(|option| option == (NONCE_OPTION, &nonce[..]))
        }
        _ => false,
    }
}

/// Who looks for the address with a sound packet, and at which Ethernet address it waits for the answer. To the address
/// itself (RFC 4861 §7.3.3) only the kernel answers, which does so at once.
fn asks(packet: &[u8]) -> Option<(Ipv6Addr, [u8; 6])> {
    let asker = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[8..24]).ok()?);
    if packet[40] != SOLICITATION
        || packet[24] != 0xff
        || asker.is_unspecified()
        || asker.is_multicast()
    {
        return None;
    }
    let (_, to) = options(packet).find(|(kind, _)| *kind == SOURCE_OPTION)?;
    let to = <[u8; 6]>::try_from(to).ok()?;
    // Not to a group.
    (to[0] & 1 == 0).then_some((asker, to))
}

/// The options of a solicitation or an advertisement: kind and value (RFC 4861 §4.6).
fn options(packet: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = &packet[64..];
    std::iter::from_fn(move || {
        let (&[kind, units], _) = rest.split_first_chunk()?;
        let (option, behind) = rest.split_at_checked(usize::from(units) * 8)?;
        rest = behind;
        // One without length ends them.
        Some((kind, option.get(2..)?))
    })
}

/// Six bytes that no other node has: the standard library's hash keys are random.
fn nonce() -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: &str = "2001:db8::1234:5678:9abc";
    const NONCE: [u8; 6] = [1, 2, 3, 4, 5, 6];

    fn address() -> Ipv6Addr {
        ADDRESS.parse().unwrap()
    }

    /// Changes some bytes and mends the checksum.
    fn changed(changes: &[(usize, u8)]) -> [u8; MESSAGE] {
        let mut packet = solicitation(address(), NONCE);
        for (at, value) in changes {
            packet[*at] = *value;
        }
        packet[42..44].fill(0);
        let sum = finish(add(pseudo_header(&packet, ICMPV6, MESSAGE - 40), &packet[40..]));
        packet[42..44].copy_from_slice(&sum);
        packet
    }

    fn claimed(packet: &[u8]) -> bool {
        sound(packet, address()).is_some_and(|packet| claims(packet, NONCE))
    }

    #[test]
    fn who_claims_it() {
        assert!(!claimed(&solicitation(address(), NONCE)), "our own, reflected");
        assert!(claimed(&solicitation(address(), [9; 6])), "another's probe");
        assert!(!claimed(&changed(&[(8, 0xfe), (71, 9)])), "address resolution");
        assert!(claimed(&changed(&[(40, ADVERTISEMENT)])), "an advertisement");
        assert!(!claimed(&changed(&[(40, ADVERTISEMENT), (63, 0)])), "of another address");
        assert!(!claimed(&changed(&[(40, ADVERTISEMENT), (7, 254)])), "from afar (RFC 4861 §7.1)");
        let mut broken = changed(&[(40, ADVERTISEMENT)]);
        broken[42] ^= 1;
        assert!(!claimed(&broken), "with a wrong checksum");
        assert_eq!(solicited_node(address()).to_string(), "ff02::1:ff78:9abc");
        assert_eq!(multicast(solicited_node(address())), [0x33, 0x33, 0xff, 0x78, 0x9a, 0xbc]);
    }

    #[test]
    fn who_asks_for_it() {
        let router: Ipv6Addr = "fe80::1".parse().unwrap();
        let (group, at) = (solicited_node(address()), [2, 0, 0, 0, 0, 1]);
        let asked = |from, to, option| {
            let packet = message(from, to, [SOLICITATION, 0], address(), option);
            asks(sound(&packet, address()).expect("sound"))
        };
        assert_eq!(asked(router, group, (SOURCE_OPTION, at)), Some((router, at)));
        assert_eq!(asked(router, address(), (SOURCE_OPTION, at)), None, "the kernel answers that");
        assert_eq!(asked(Ipv6Addr::UNSPECIFIED, group, (SOURCE_OPTION, at)), None, "a probe");
        assert_eq!(asked(group, group, (SOURCE_OPTION, at)), None, "from a group");
        assert_eq!(asked(router, group, (NONCE_OPTION, at)), None, "from nowhere");
        assert_eq!(asked(router, group, (SOURCE_OPTION, [0xff; 6])), None, "for everybody");

        let answer = advertisement(address(), at, router);
        let answer = sound(&answer, address()).expect("sound");
        assert_eq!(asks(answer), None);
        assert_eq!(answer[8..24], address().octets());
        assert_eq!(answer[24..40], router.octets());
        assert_eq!(answer[40..42], [ADVERTISEMENT, 0]);
        assert_eq!(answer[44..48], [SOLICITED, 0, 0, 0]);
        assert_eq!(options(answer).collect::<Vec<_>>(), [(TARGET_OPTION, &at[..])]);
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
            prop_assert!(!claimed(&changed(&[(40, ADVERTISEMENT)])[..len.min(MESSAGE - 1)]));
            // Whatever the options are.
            bytes.resize(bytes.len().max(64), 0);
            prop_assert!(options(&bytes).count() <= (bytes.len() - 64) / 8);
        }
    }
}
