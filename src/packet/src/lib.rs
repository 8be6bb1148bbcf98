// SPDX-License-Identifier: Apache-2.0

//! Parsers and writers of IP packets, one file for each protocol.
//!
//! Nothing allocates, blocks or reads a clock. Addresses and lengths are integers in host byte
//! order; checksum fields are bytes as in the packet.
//!
//! Feature `std` adds [`reassembly`], which allocates, and [`rate_limit`]; both are told the time.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]

pub mod checksum;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod nd;
pub mod ra;
#[cfg(any(feature = "std", test))]
pub mod rate_limit;
#[cfg(any(feature = "std", test))]
pub mod reassembly;

use core::fmt;
use core::net::IpAddr;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Protocol numbers: the Protocol field of IPv4, the Next Header field of IPv6 (IANA, "Assigned
/// Internet Protocol Numbers").
pub mod protocol {
    /// IPv6 Hop-by-Hop Options (RFC 8200 §4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// Internet Group Management (RFC 3376).
    pub const IGMP: u8 = 2;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// IPv6 Routing Header (RFC 8200 §4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 Fragment Header (RFC 8200 §4.5).
    pub const FRAGMENT: u8 = 44;
    /// Authentication Header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6 Destination Options (RFC 8200 §4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;

    /// Whether this is an IPv6 extension header that the parser skips. AH and ESP are not skipped:
    /// they protect what follows them from change.
    #[must_use]
    pub const fn is_extension(protocol: u8) -> bool {
        matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
    }
}

/// Why bytes are not a valid packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Neither IPv4 nor IPv6, or not the version that was expected.
    NotIp,
    /// Shorter than its headers say (RFC 1812 §5.2.2).
    Truncated,
    /// An impossible header length (RFC 1812 §5.2.2).
    BadHeader,
    /// A wrong IPv4 header checksum (RFC 1812 §5.2.2).
    BadHeaderChecksum,
    /// Extension headers that do not end inside the packet (RFC 8200 §4).
    BadExtension,
    /// A fragment that ends beyond the longest packet (RFC 791 §3.2, RFC 8200 §4.5).
    BadFragment,
}

impl core::error::Error for Malformed {}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotIp => "not an IP packet",
            Self::Truncated => "shorter than its headers say",
            Self::BadHeader => "impossible header length",
            Self::BadHeaderChecksum => "wrong IPv4 header checksum",
            Self::BadExtension => "extension headers that do not end inside the packet",
            Self::BadFragment => "fragment that ends beyond the longest packet",
        })
    }
}

/// Where a fragment belongs in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in the packet, in units of 8 bytes.
    pub offset: u16,
    /// Whether more follow: IPv4's MF, IPv6's M flag.
    pub more: bool,
    /// Identification; IPv4's has 16 bits.
    pub id: u32,
}

impl Fragment {
    /// Whether it is a whole packet (an atomic fragment, RFC 6946).
    #[must_use]
    pub fn is_atomic(self) -> bool {
        self.offset == 0 && !self.more
    }

    /// Whether `len` bytes of payload at this offset end beyond the longest packet (65,535 bytes).
    #[must_use]
    pub fn overruns(self, len: usize) -> bool {
        usize::from(self.offset) * 8 + len > 0xffff
    }
}

/// The fields of an IPv4 header, or of an IPv6 header and its extension headers.
///
/// Addresses are integers in host byte order, which stay in registers; the byte arrays of
/// [`core::net`] would be moved through memory.
#[derive(Clone, Copy, Debug)]
pub struct Ip<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// TOS or traffic class, ECN included.
    pub class: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// Protocol number of the payload ([`protocol`]).
    pub protocol: u8,
    /// `None` without a Fragment Header; in IPv4, without offset and MF.
    pub fragment: Option<Fragment>,
    /// IPv4's DF; true for IPv6.
    pub dont_fragment: bool,
    /// Length of all headers in front of the payload.
    pub header_len: usize,
    /// Length of the packet, as its header says. A quoted one may have been cut shorter.
    pub len: usize,
}

impl<A> Ip<A> {
    /// Whether this is a fragment without the start of the payload.
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|f| f.offset != 0)
    }

    /// Whether the packet has all of its payload: it is no fragment, or an atomic one.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.fragment.map_or(true, Fragment::is_atomic)
    }

    /// Length of the payload, as the header says.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        self.len.saturating_sub(self.header_len)
    }
}

/// Source and destination address of an IPv4 or IPv6 packet, which need not be valid; `None` if its
/// fixed header is cut off.
#[must_use]
pub fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    fn both<const N: usize>(bytes: &[u8]) -> Option<(IpAddr, IpAddr)>
    where
        IpAddr: From<[u8; N]>,
    {
        let (source, rest) = bytes.split_first_chunk::<N>()?;
        Some(((*source).into(), (*rest.first_chunk::<N>()?).into()))
    }
    match packet.first()? >> 4 {
        4 => both::<4>(packet.get(12..)?),
        6 => both::<16>(packet.get(8..)?),
        _ => None,
    }
}

/// The header at the start of `bytes`.
fn prefix<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Option<&T> {
    T::ref_from_prefix(bytes).ok().map(|(header, _)| header)
}

/// Two bytes at `at`, such as a checksum field; `None` if they are cut off.
#[must_use]
pub fn field_at(bytes: &mut [u8], at: usize) -> Option<&mut [u8; 2]> {
    bytes.get_mut(at..at + 2)?.try_into().ok()
}
