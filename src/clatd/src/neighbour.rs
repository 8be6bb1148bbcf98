//! Duplicate address detection for the CLAT's IPv6 address (RFC 4862 §5.4), in the optimistic way of RFC 4429: the
//! address is used at once, but an answer ends the daemon.
//!
//! The kernel has the address as anycast, which it defends without the Override flag, as RFC 4429 asks, but does not
//! probe for.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::checksum::{add, finish, fold, pseudo_header};
use crate::socket::NeighbourSocket;

/// RetransTimer (RFC 4861 §10): how long an answer may take.
const RETRANS_TIMER: Duration = Duration::from_secs(1);
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const NONCE_OPTION: u8 = 14;
/// IPv6 header, solicitation, nonce option.
const PROBE: usize = 40 + 24 + 8;

/// Another node has the address, or wants it at the same moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is in use by another node on the uplink; start again with another address")]
pub struct Duplicate(pub Ipv6Addr);

/// A probe that is under way.
#[derive(Debug)]
pub struct Probe {
    socket: NeighbourSocket,
    address: Ipv6Addr,
    nonce: [u8; 6],
    until: Instant,
}

impl Probe {
    /// Asks the Ethernet interface `index` who has `address`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn start(index: u32, address: Ipv6Addr) -> io::Result<Self> {
        let socket = NeighbourSocket::open(index, address)?;
        let nonce = nonce();
        socket.send_multicast(&solicitation(address, nonce), solicited_node(address))?;
        Ok(Self { socket, address, nonce, until: Instant::now() + RETRANS_TIMER })
    }

    /// Until when answers may come. If none did, the address is ours.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.until
    }

    /// Reads what has come.
    ///
    /// # Errors
    /// [`Duplicate`] when it was an answer.
    pub fn check(&self) -> Result<(), Duplicate> {
        let mut buf = [0; 1500];
        loop {
            match self.socket.recv(&mut buf) {
                Ok(len) if claims(&buf[..len], self.address, self.nonce) => {
                    return Err(Duplicate(self.address))
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Ok(()),
            }
        }
    }
}

impl AsFd for Probe {
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

/// RFC 4861 §4.3 from the unspecified address, with the nonce of RFC 7527 §4.1, by which a probe that the network
/// reflects is known as ours.
fn solicitation(address: Ipv6Addr, nonce: [u8; 6]) -> [u8; PROBE] {
    let mut packet = [0; PROBE];
    packet[0] = 0x60;
    packet[5] = 32;
    packet[6] = ICMPV6;
    packet[7] = 255;
    packet[24..40].copy_from_slice(&solicited_node(address).octets());
    packet[40] = SOLICITATION;
    packet[48..64].copy_from_slice(&address.octets());
    packet[64] = NONCE_OPTION;
    packet[65] = 1;
    packet[66..72].copy_from_slice(&nonce);
    let sum = finish(add(pseudo_header(&packet, ICMPV6, PROBE - 40), &packet[40..]));
    packet[42..44].copy_from_slice(&sum);
    packet
}

/// Whether a packet says that another node has `address` or is probing for it (RFC 4862 §5.4.3, §5.4.4).
fn claims(packet: &[u8], address: Ipv6Addr, nonce: [u8; 6]) -> bool {
    let Some(len) = packet.get(4..6).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]]))) else {
        return false;
    };
    // Behind the Ethernet header there may be padding.
    let Some(packet) = packet.get(..40 + len) else { return false };
    let sound = len >= 24
        && packet[0] >> 4 == 6
        && packet[6] == ICMPV6
        && packet[7] == 255
        && packet[41] == 0
        && packet[48..64] == address.octets()
        && fold(add(pseudo_header(packet, ICMPV6, len), &packet[40..])) == 0xffff;
    if !sound {
        return false;
    }
    match packet[40] {
        ADVERTISEMENT => true,
        // With a source it only resolves the address; without one it probes for it, unless it is our own probe.
        SOLICITATION => packet[8..24] == [0; 16] && !has_nonce(&packet[64..], nonce),
        _ => false,
    }
}

fn has_nonce(mut options: &[u8], nonce: [u8; 6]) -> bool {
    while let &[kind, units, ..] = options {
        let Some((option, rest)) = options.split_at_checked(usize::from(units) * 8) else {
            return false;
        };
        if kind == NONCE_OPTION && option.get(2..) == Some(&nonce) {
            return true;
        }
        if units == 0 {
            return false;
        }
        options = rest;
    }
    false
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
    fn changed(changes: &[(usize, u8)]) -> [u8; PROBE] {
        let mut packet = solicitation(address(), NONCE);
        for (at, value) in changes {
            packet[*at] = *value;
        }
        packet[42..44].fill(0);
        let sum = finish(add(pseudo_header(&packet, ICMPV6, PROBE - 40), &packet[40..]));
        packet[42..44].copy_from_slice(&sum);
        packet
    }

    #[test]
    fn who_claims_it() {
        let claims = |packet: &[u8]| claims(packet, address(), NONCE);
        assert!(!claims(&solicitation(address(), NONCE)), "our own, reflected");
        assert!(claims(&solicitation(address(), [9; 6])), "another's probe");
        assert!(!claims(&changed(&[(8, 0xfe), (71, 9)])), "address resolution");
        assert!(claims(&changed(&[(40, ADVERTISEMENT)])), "an advertisement");
        assert!(!claims(&changed(&[(40, ADVERTISEMENT), (63, 0)])), "of another address");
        assert!(!claims(&changed(&[(40, ADVERTISEMENT), (7, 254)])), "from afar (RFC 4861 §7.1)");
        let mut broken = changed(&[(40, ADVERTISEMENT)]);
        broken[42] ^= 1;
        assert!(!claims(&broken), "with a wrong checksum");
        assert_eq!(solicited_node(address()).to_string(), "ff02::1:ff78:9abc");
    }

    proptest! {
        #[test]
        fn hostile_input(bytes in proptest::collection::vec(any::<u8>(), 0..120), len in 0usize..=PROBE) {
            let _ = claims(&bytes, address(), NONCE);
            prop_assert!(!claims(&changed(&[(40, ADVERTISEMENT)])[..len.min(PROBE - 1)], address(), NONCE));
            let _ = has_nonce(&bytes, NONCE);
        }
    }
}
