// SPDX-License-Identifier: Apache-2.0

//! Errors about packets, as in ICMPv6 (RFC 4443) and ICMP (RFC 792).

use nix::errno::Errno;

use crate::settings::LEAST_MTU;

/// Bytes by which an IPv4 header is shorter than an IPv6 header.
const SHORTER: u32 = 20;

/// What is wrong with a packet or its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No route to the destination.
    NoRoute,
    /// The destination is not allowed.
    Prohibited,
    /// The source is link-local, the destination is not.
    BeyondScope,
    /// No host answers for the destination's address.
    AddressUnreachable,
    /// No program listens on the port.
    PortUnreachable,
    /// The source is not of the guest's network (RFC 4443 §3.1 code 5).
    ForeignSource,
    /// It is longer than this MTU in bytes, of IPv6; for IPv4 packets it is 20 less.
    TooBig(u32),
    /// Its hop limit or TTL has expired.
    HopLimit,
    /// A field is invalid: the code of RFC 4443 §3.4, and the field's offset in the packet.
    Parameter {
        /// 0: a field, 1: a next header, 2: an option.
        code: u8,
        /// In bytes from the start of the IP header.
        pointer: u32,
    },
}

impl IcmpError {
    /// An unknown protocol in the fixed header.
    pub const PROTOCOL: Self = Self::Parameter { code: 1, pointer: 6 };

    /// The error for a system call's errno.
    pub(crate) fn from_errno(errno: Errno) -> Option<Self> {
        Some(match errno {
            Errno::ENETUNREACH | Errno::ENETDOWN | Errno::EADDRNOTAVAIL => Self::NoRoute,
            Errno::EHOSTUNREACH | Errno::ETIMEDOUT | Errno::EHOSTDOWN => Self::AddressUnreachable,
            Errno::ECONNREFUSED => Self::PortUnreachable,
            Errno::EACCES | Errno::EPERM => Self::Prohibited,
            Errno::ENOPROTOOPT => Self::PROTOCOL,
            _ => return None,
        })
    }

    /// The packet is longer than the path MTU `mtu`, which is of IPv6 or of IPv4.
    #[must_use]
    pub fn too_big(ipv6: bool, mtu: u32) -> Self {
        Self::TooBig(mtu.saturating_add(if ipv6 { 0 } else { SHORTER }).max(LEAST_MTU.into()))
    }

    /// The error of an ICMP message (RFC 7915 §4.2).
    #[must_use]
    pub fn from_icmp4(kind: u8, code: u8, info: u32) -> Option<Self> {
        Some(match (kind, code) {
            (3, 0 | 1 | 5..=8 | 11 | 12) => Self::NoRoute,
            (3, 2) => Self::PROTOCOL,
            (3, 3) => Self::PortUnreachable,
            (3, 4) => Self::too_big(false, info),
            (3, 9 | 10 | 13 | 15) => Self::Prohibited,
            (11, 0) => Self::HopLimit,
            _ => return None,
        })
    }

    /// The error of an ICMPv6 message.
    #[must_use]
    pub fn from_icmp6(kind: u8, code: u8, info: u32) -> Option<Self> {
        Some(match (kind, code) {
            (1, 0 | 2 | 6) => Self::NoRoute,
            (1, 1 | 5) => Self::Prohibited,
            (1, 3) => Self::AddressUnreachable,
            (1, 4) => Self::PortUnreachable,
            (2, _) => Self::too_big(true, info),
            (3, 0) => Self::HopLimit,
            (4, 1) => Self::PROTOCOL,
            _ => return None,
        })
    }

    /// Type, code and the 32 bits behind the checksum.
    pub(crate) fn icmp6(self) -> (u8, u8, u32) {
        match self {
            Self::NoRoute => (1, 0, 0),
            Self::Prohibited => (1, 1, 0),
            Self::BeyondScope => (1, 2, 0),
            Self::AddressUnreachable => (1, 3, 0),
            Self::PortUnreachable => (1, 4, 0),
            Self::ForeignSource => (1, 5, 0),
            Self::TooBig(mtu) => (2, 0, mtu),
            Self::HopLimit => (3, 0, 0),
            Self::Parameter { code, pointer } => (4, code, pointer),
        }
    }

    /// The same for ICMP.
    pub(crate) fn icmp4(self) -> (u8, u8, u32) {
        match self {
            Self::NoRoute => (3, 0, 0),
            Self::Prohibited | Self::ForeignSource => (3, 13, 0),
            Self::BeyondScope | Self::AddressUnreachable => (3, 1, 0),
            Self::PortUnreachable => (3, 3, 0),
            // The field has 16 bits.
            Self::TooBig(mtu) => (3, 4, mtu.saturating_sub(SHORTER).min(0xffff)),
            Self::HopLimit => (11, 0, 0),
            // Only the protocol field is checked.
            Self::Parameter { code: 1, .. } => (3, 2, 0),
            Self::Parameter { pointer, .. } => (12, 0, pointer << 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each family gets the MTU that it counts, without wrapping around.
    #[test]
    fn an_mtu_is_that_of_the_guests_protocol() {
        for (told, mtu4, mtu6) in [(1400, 1400, 1420), (65535, 65535, 65555), (576, 1260, 1280)] {
            let error = IcmpError::from_icmp4(3, 4, told).unwrap();
            assert_eq!(error.icmp4(), (3, 4, mtu4));
            assert_eq!(error.icmp6(), (2, 0, mtu6));
        }
        let error = IcmpError::from_icmp4(3, 4, u32::MAX).unwrap();
        assert_eq!(error.icmp4(), (3, 4, 0xffff));
    }
}
