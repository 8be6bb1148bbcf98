// SPDX-License-Identifier: Apache-2.0

//! Neighbour discovery (RFC 4861): solicitations, advertisements, and the options of its messages.

use core::net::Ipv6Addr;

use crate::icmp::v6;

/// The hop limit of every message. A router would have decremented it, so it proves that the sender
/// is on the link (RFC 4861 §7.1).
pub const HOP_LIMIT: u8 = 255;

/// Bytes of a neighbour solicitation or advertisement, without options.
pub const HEADER: usize = 24;
/// The same with one option of 8 bytes, as made by [`solicitation`] and [`advertisement`].
pub const LEN: usize = HEADER + 8;

/// Flag of a neighbour advertisement: its sender is a router.
pub const ROUTER: u8 = 0x80;
/// Flag of a neighbour advertisement: it answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// Flag of a neighbour advertisement: a cached link-layer address is to be replaced.
pub const OVERRIDE: u8 = 0x20;

/// Option types (IANA, "IPv6 Neighbor Discovery Option Formats").
pub mod option {
    /// Source link-layer address (RFC 4861 §4.6.1).
    pub const SOURCE: u8 = 1;
    /// Target link-layer address (RFC 4861 §4.6.1).
    pub const TARGET: u8 = 2;
    /// Prefix information (RFC 4861 §4.6.2).
    pub const PREFIX: u8 = 3;
    /// MTU (RFC 4861 §4.6.4).
    pub const MTU: u8 = 5;
    /// Nonce (RFC 3971 §5.3.2, RFC 7527 §4.1).
    pub const NONCE: u8 = 14;
    /// Recursive DNS servers (RFC 8106 §5.1).
    pub const RDNSS: u8 = 25;
    /// The NAT64 prefix (RFC 8781 §4).
    pub const PREF64: u8 = 38;
}

/// A message, from its ICMPv6 header on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'p> {
    /// A host asks for router advertisements (RFC 4861 §4.1).
    RouterSolicitation {
        /// Its options.
        options: &'p [u8],
    },
    /// A router announces itself and its link's parameters (RFC 4861 §4.2).
    RouterAdvertisement {
        /// [`crate::ra::MANAGED`], [`crate::ra::OTHER`], and what [`crate::ra::preference`] reads.
        flags: u8,
        /// Router Lifetime in seconds; 0 for a router that is no default router.
        lifetime: u16,
        /// Its options.
        options: &'p [u8],
    },
    /// A node asks for the link-layer address of `target` (RFC 4861 §4.3).
    NeighbourSolicitation {
        /// The address asked for.
        target: Ipv6Addr,
        /// Its options.
        options: &'p [u8],
    },
    /// A node announces that it has `target` (RFC 4861 §4.4).
    NeighbourAdvertisement {
        /// [`ROUTER`], [`SOLICITED`], [`OVERRIDE`].
        flags: u8,
        /// The address announced.
        target: Ipv6Addr,
        /// Its options.
        options: &'p [u8],
    },
    /// A router names a better first hop (RFC 4861 §4.5).
    Redirect {
        /// Its options.
        options: &'p [u8],
    },
}

impl<'p> Message<'p> {
    /// Parses a message received with `hop_limit`, whose checksum the caller has verified. `None`
    /// for other messages, and for those with a wrong hop limit, code or length, an option of
    /// length zero or a multicast target (RFC 4861 §6.1, §7.1, §8.1). The caller checks the IP
    /// addresses.
    #[must_use]
    pub fn read(message: &'p [u8], hop_limit: u8) -> Option<Self> {
        let &[kind, 0, _, _, flags, ..] = message else { return None };
        if hop_limit != HOP_LIMIT {
            return None;
        }
        let read = |len| message.get(len..).filter(|rest| are_sound(rest));
        let target = || {
            let target = Ipv6Addr::from(*message.get(8..)?.first_chunk::<16>()?);
            (!target.is_multicast()).then_some(target)
        };
        Some(match kind {
            v6::ROUTER_SOLICITATION => Self::RouterSolicitation { options: read(8)? },
            v6::ROUTER_ADVERTISEMENT => {
                let options = read(16)?;
                let lifetime = u16::from_be_bytes(*message.get(6..)?.first_chunk()?);
                Self::RouterAdvertisement { flags: *message.get(5)?, lifetime, options }
            }
            v6::NEIGHBOUR_SOLICITATION => {
                Self::NeighbourSolicitation { target: target()?, options: read(HEADER)? }
            }
            v6::NEIGHBOUR_ADVERTISEMENT => {
                Self::NeighbourAdvertisement { flags, target: target()?, options: read(HEADER)? }
            }
            v6::REDIRECT => Self::Redirect { options: read(40)? },
            _ => return None,
        })
    }
}

/// A neighbour solicitation for `target` with one option of six bytes (a link-layer address, a
/// nonce), its checksum zero.
#[must_use]
pub fn solicitation(target: Ipv6Addr, option: u8, value: [u8; 6]) -> [u8; LEN] {
    message(v6::NEIGHBOUR_SOLICITATION, 0, target, option, value)
}

/// A neighbour advertisement: `target` has the Ethernet address `address`. Its checksum is zero.
#[must_use]
pub fn advertisement(target: Ipv6Addr, flags: u8, address: [u8; 6]) -> [u8; LEN] {
    message(v6::NEIGHBOUR_ADVERTISEMENT, flags, target, option::TARGET, address)
}

fn message(kind: u8, flags: u8, target: Ipv6Addr, option: u8, value: [u8; 6]) -> [u8; LEN] {
    let mut message = [0; LEN];
    message[0] = kind;
    message[4] = flags;
    message[8..HEADER].copy_from_slice(&target.octets());
    message[HEADER..HEADER + 2].copy_from_slice(&[option, 1]);
    message[HEADER + 2..].copy_from_slice(&value);
    message
}

/// Iterates over the options of a message: type and value (RFC 4861 §4.6). Ends at one that is cut
/// off or has length zero.
pub fn options(mut rest: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    core::iter::from_fn(move || {
        let (&[kind, units], _) = rest.split_first_chunk()?;
        let (option, behind) = rest.split_at_checked(usize::from(units) * 8)?;
        rest = behind;
        Some((kind, option.get(2..)?))
    })
}

/// The Ethernet address in the first option of type `option`; `None` if it is a multicast address.
#[must_use]
pub fn ethernet_address(rest: &[u8], option: u8) -> Option<[u8; 6]> {
    let (_, value) = options(rest).find(|(kind, _)| *kind == option)?;
    let address = *value.first_chunk()?;
    (address[0] & 1 == 0).then_some(address)
}

/// Whether all options have a length, and the message ends with the last (RFC 4861 §4.6).
fn are_sound(rest: &[u8]) -> bool {
    options(rest).map(|(_, value)| value.len() + 2).sum::<usize>() == rest.len()
}

/// The solicited-node multicast address of `address` (RFC 4291 §2.7.1).
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xff02 << 112 | 0x1_ff00_0000 | address.to_bits() & 0xff_ffff)
}

/// The Ethernet address of an IPv6 multicast group (RFC 2464 §7).
#[must_use]
pub fn ethernet_group(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TARGET: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0x1234, 0x5678, 0x9abc);

    #[test]
    fn what_is_written_is_read() {
        let message = solicitation(TARGET, option::NONCE, [1, 2, 3, 4, 5, 6]);
        let options = &message[HEADER..];
        let asked = Message::NeighbourSolicitation { target: TARGET, options };
        assert_eq!(Message::read(&message, 255), Some(asked));
        assert_eq!(super::options(options).collect::<Vec<_>>(), [(14, &[1, 2, 3, 4, 5, 6][..])]);
        let flags = SOLICITED | OVERRIDE;
        let message = advertisement(TARGET, flags, [2, 0, 0, 0, 0, 1]);
        let options = &message[HEADER..];
        let said = Message::NeighbourAdvertisement { flags, target: TARGET, options };
        assert_eq!(Message::read(&message, 255), Some(said));
        assert_eq!(ethernet_address(options, option::TARGET), Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(ethernet_address(options, option::SOURCE), None);
    }

    #[test]
    fn rfc_4861_7_1_what_is_not_valid() {
        let message = solicitation(TARGET, option::SOURCE, [2, 0, 0, 0, 0, 1]);
        assert_eq!(Message::read(&message, 254), None, "from afar");
        for (at, value) in [(1, 1), (8, 0xff), (25, 0), (25, 2), (0, 128)] {
            let mut message = message;
            message[at] = value;
            assert_eq!(Message::read(&message, 255), None, "{at}: {value}");
        }
        assert_eq!(Message::read(&message[..23], 255), None);
        let group = solicitation(TARGET, option::SOURCE, [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(ethernet_address(&group[HEADER..], option::SOURCE), None, "for everybody");
    }

    #[test]
    fn groups() {
        let group = solicited_node(TARGET);
        assert_eq!(group, "ff02::1:ff78:9abc".parse::<Ipv6Addr>().unwrap());
        assert_eq!(ethernet_group(group), [0x33, 0x33, 0xff, 0x78, 0x9a, 0xbc]);
    }

    proptest! {
        #[test]
        fn noise(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 130u8..140) {
            if let [first, code, ..] = &mut bytes[..] {
                (*first, *code) = (kind, 0);
            }
            let _ = Message::read(&bytes, 255);
            prop_assert!(options(&bytes).count() <= bytes.len() / 8);
        }
    }
}
