// SPDX-License-Identifier: Apache-2.0

//! IP packets on the wire, one file a protocol: what stands where, and what may.
//!
//! Nothing here allocates, blocks or asks the time. Addresses and lengths are numbers of the host's
//! byte order, checksum fields are bytes as they stand in the packet.
//!
//! Feature `std` adds what does need memory and time: [`reassembly`] and [`rate_limit`].
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

    /// Whether it is an IPv6 extension header that can be skipped. AH and ESP are not: what they
    /// cover must not change.
    #[must_use]
    pub const fn is_extension(protocol: u8) -> bool {
        matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
    }
}

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Neither IPv4 nor IPv6, or not the version that was expected.
    NotIp,
    /// Shorter than its headers say (RFC 1812 §5.2.2).
    Truncated,
    /// A header length that cannot be (RFC 1812 §5.2.2).
    BadHeader,
    /// A wrong IPv4 header checksum (RFC 1812 §5.2.2).
    BadHeaderChecksum,
    /// Extension headers that do not end inside the packet (RFC 8200 §4).
    BadExtension,
    /// A fragment that ends beyond what a packet can hold (RFC 791 §3.2, RFC 8200 §4.5).
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

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Place in the packet, in units of 8 bytes.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
    /// Identification; IPv4's has 16 bits.
    pub id: u32,
}

impl Fragment {
    /// Whether it is the whole packet after all (an atomic fragment, RFC 6946).
    #[must_use]
    pub fn is_atomic(self) -> bool {
        self.offset == 0 && !self.more
    }

    /// Whether `len` bytes at this place end beyond what a packet can hold.
    #[must_use]
    pub fn overruns(self, len: usize) -> bool {
        usize::from(self.offset) * 8 + len > 0xffff
    }
}

/// What an IP header says, extension headers walked, whichever the family.
///
/// Addresses are `u32` and `u128`, the numbers that they stand for: in registers, where the byte
/// arrays of [`core::net`] would go through memory piece by piece.
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
    /// What stands behind the headers.
    pub protocol: u8,
    /// `None` where there is no Fragment Header, or IPv4 has neither offset nor MF.
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

    /// Whether the payload is all there.
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

/// Source and destination address of a packet, IPv4 or IPv6, whatever else is wrong with it; `None`
/// where its fixed header is cut off.
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

/// Two bytes at `at`, as a checksum field; `None` where they are cut off.
#[must_use]
pub fn field_at(bytes: &mut [u8], at: usize) -> Option<&mut [u8; 2]> {
    bytes.get_mut(at..at + 2)?.try_into().ok()
}
