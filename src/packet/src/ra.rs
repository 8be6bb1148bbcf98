// SPDX-License-Identifier: Apache-2.0

//! Router advertisements (RFC 4861 §4.2): the message and its options, which the caller
//! concatenates.

use core::net::Ipv6Addr;

use crate::icmp::v6;
use crate::nd::option;

/// Flag of [`header`]: addresses are available by DHCPv6 (M).
pub const MANAGED: u8 = 0x80;
/// Flag of [`header`]: other configuration is available by DHCPv6 (O).
pub const OTHER: u8 = 0x40;
/// Flag of [`prefix_information`]: its addresses are on the link (L).
pub const ON_LINK: u8 = 0x80;
/// Flag of [`prefix_information`]: hosts make addresses of it (A; RFC 4862).
pub const AUTONOMOUS: u8 = 0x40;

/// The message without options, its checksum zero. `lifetime` is the Router Lifetime in seconds;
/// Reachable Time and Retrans Timer are zero, that is unspecified.
#[must_use]
pub fn header(hop_limit: u8, flags: u8, lifetime: u16) -> [u8; 16] {
    let [high, low] = lifetime.to_be_bytes();
    let mut header = [0; 16];
    header[0] = v6::ROUTER_ADVERTISEMENT;
    header[4..8].copy_from_slice(&[hop_limit, flags, high, low]);
    header
}

/// Source Link-Layer Address option with an Ethernet address (RFC 4861 §4.6.1).
#[must_use]
pub fn source_address([a, b, c, d, e, f]: [u8; 6]) -> [u8; 8] {
    [option::SOURCE, 1, a, b, c, d, e, f]
}

/// MTU option (RFC 4861 §4.6.4).
#[must_use]
pub fn mtu(mtu: u32) -> [u8; 8] {
    let [a, b, c, d] = mtu.to_be_bytes();
    [option::MTU, 1, 0, 0, a, b, c, d]
}

/// Prefix Information option for a prefix of `bits` bits; lifetimes in seconds (RFC 4861 §4.6.2).
#[must_use]
pub fn prefix_information(
    prefix: Ipv6Addr,
    bits: u8,
    flags: u8,
    valid: u32,
    preferred: u32,
) -> [u8; 32] {
    let mut option = [0; 32];
    option[..4].copy_from_slice(&[option::PREFIX, 4, bits, flags]);
    option[4..8].copy_from_slice(&valid.to_be_bytes());
    option[8..12].copy_from_slice(&preferred.to_be_bytes());
    option[16..].copy_from_slice(&prefix.octets());
    option
}

/// RDNSS option with one server; `lifetime` in seconds (RFC 8106 §5.1).
#[must_use]
pub fn rdnss(server: Ipv6Addr, lifetime: u32) -> [u8; 24] {
    let mut option = [0; 24];
    option[..2].copy_from_slice(&[option::RDNSS, 3]);
    option[4..8].copy_from_slice(&lifetime.to_be_bytes());
    option[8..].copy_from_slice(&server.octets());
    option
}

/// Parses the value of an RDNSS option: lifetime in seconds, and servers; `None` if it is cut off.
#[must_use]
pub fn read_rdnss(value: &[u8]) -> Option<(u32, impl Iterator<Item = Ipv6Addr> + '_)> {
    let lifetime = u32::from_be_bytes(*value.get(2..)?.first_chunk()?);
    let servers = value.get(6..)?.chunks_exact(16);
    let servers = servers.filter_map(|server| server.first_chunk().copied().map(Ipv6Addr::from));
    Some((lifetime, servers))
}

/// Default Router Preference in the flags of an advertisement: 1 high, 0 medium, -1 low (RFC 4191
/// §2.1). The reserved value reads as medium.
#[must_use]
pub fn preference(flags: u8) -> i8 {
    match flags >> 3 & 3 {
        1 => 1,
        3 => -1,
        _ => 0,
    }
}

/// Prefix lengths in bits, in the order of their codes (RFC 8781 §4).
const PREF64_BITS: [u8; 6] = [96, 64, 56, 48, 40, 32];

/// PREF64 option for a prefix of `bits` bits; `lifetime` in seconds, rounded down to a multiple of
/// 8 (RFC 8781 §4). `None` for a length that RFC 6052 does not have.
#[must_use]
pub fn pref64(prefix: Ipv6Addr, bits: u8, lifetime: u16) -> Option<[u8; 16]> {
    let code = PREF64_BITS.iter().zip(0..).find(|(known, _)| **known == bits)?.1;
    let mut option = [0; 16];
    option[..2].copy_from_slice(&[option::PREF64, 2]);
    option[2..4].copy_from_slice(&(lifetime & !7 | code).to_be_bytes());
    option[4..].copy_from_slice(&prefix.octets()[..12]);
    Some(option)
}

/// Parses the value of a PREF64 option: prefix, length in bits, lifetime in seconds; `None` if it
/// is cut off or its length code is reserved (RFC 8781 §4: to be ignored).
#[must_use]
pub fn read_pref64(value: &[u8]) -> Option<(Ipv6Addr, u8, u16)> {
    let (&[high, low], rest) = value.split_first_chunk()?;
    let field = u16::from_be_bytes([high, low]);
    let bits = *PREF64_BITS.get(usize::from(field & 7))?;
    let mut prefix = [0; 16];
    prefix[..12].copy_from_slice(rest.get(..12)?);
    Some((prefix.into(), bits, field & !7))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nd::{options, Message};

    #[test]
    fn what_is_written_is_read() {
        let prefix = "2001:db8:64::".parse().unwrap();
        let message = [
            &header(64, OTHER, 1800)[..],
            &source_address([2, 0, 0, 0, 0, 1]),
            &mtu(1400),
            &prefix_information(prefix, 64, AUTONOMOUS, 86400, 14400),
            &rdnss(prefix, 600),
            &pref64(prefix, 48, 1801).unwrap(),
        ]
        .concat();
        let Some(Message::RouterAdvertisement { flags: OTHER, lifetime: 1800, options: rest }) =
            Message::read(&message, 255)
        else {
            panic!("{message:?}")
        };
        let (_, servers) = options(rest).find(|(kind, _)| *kind == option::RDNSS).unwrap();
        let (lifetime, servers) = read_rdnss(servers).unwrap();
        assert_eq!((lifetime, servers.collect::<Vec<_>>()), (600, vec![prefix]));
        let kinds: Vec<_> = options(rest).map(|(kind, value)| (kind, value.len())).collect();
        assert_eq!(kinds, [(1, 6), (5, 6), (3, 30), (25, 22), (38, 14)]);
        let (_, value) = options(rest).last().unwrap();
        assert_eq!(read_pref64(value), Some((prefix, 48, 1800)));
        assert_eq!(pref64(prefix, 80, 1800), None);
    }

    #[test]
    fn rfc_4191_2_1_preferences() {
        let read = [0x00, 0x08, 0x10, 0x18, 0xe7, 0xff].map(preference);
        assert_eq!(read, [0, 1, 0, -1, 0, -1]);
    }

    /// The figure of RFC 8781 §4: 13 bits of lifetime, 3 of the length's code.
    #[test]
    fn rfc_8781_4_codes() {
        for (code, bits) in [(0, 96), (1, 64), (2, 56), (3, 48), (4, 40), (5, 32)] {
            let option = pref64(Ipv6Addr::UNSPECIFIED, bits, 0xffff).unwrap();
            assert_eq!(option[..4], [38, 2, 0xff, 0xf8 | code]);
            assert_eq!(read_pref64(&option[2..]).map(|read| read.1), Some(bits));
        }
        assert_eq!(read_pref64(&[0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(read_pref64(&[0, 0, 1]), None);
    }
}
