//! Wire formats, one file a protocol: what stands where, and what may.

pub(crate) mod icmp;
pub(crate) mod ipv4;
pub(crate) mod ipv6;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Protocol numbers that translation has to tell apart.
pub(crate) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const IGMP: u8 = 2;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const DCCP: u8 = 33;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const AUTHENTICATION: u8 = 51;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION_OPTIONS: u8 = 60;
    pub(crate) const UDP_LITE: u8 = 136;
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// Place in the packet, in units of 8 bytes.
    pub(crate) offset: u16,
    /// Whether more follow.
    pub(crate) more: bool,
    /// Identification; IPv4's has 16 bits.
    pub(crate) id: u32,
}

impl Fragment {
    /// Whether it is the whole packet after all (an atomic fragment, RFC 6946).
    pub(crate) fn is_atomic(self) -> bool {
        self.offset == 0 && !self.more
    }

    /// Whether `len` bytes at this place end beyond what a packet can hold.
    pub(crate) fn overruns(self, len: usize) -> bool {
        usize::from(self.offset) * 8 + len > 0xffff
    }
}

/// What an IP header says, extension headers walked, whichever the family.
///
/// Addresses are `u32` and `u128`, the numbers that they stand for: in registers, where the byte arrays of
/// [`core::net`] would go through memory piece by piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ip<A> {
    pub(crate) src: A,
    pub(crate) dst: A,
    /// TOS or traffic class, ECN included.
    pub(crate) class: u8,
    /// TTL or hop limit.
    pub(crate) hops: u8,
    /// What stands behind the headers.
    pub(crate) protocol: u8,
    /// `None` where there is no Fragment Header, or IPv4 has neither offset nor MF.
    pub(crate) fragment: Option<Fragment>,
    /// IPv4's DF; true for IPv6.
    pub(crate) dont_fragment: bool,
    /// Length of all headers in front of the payload.
    pub(crate) header_len: usize,
    /// Length of the packet, as its header says. A quoted one may have been cut shorter.
    pub(crate) len: usize,
}

impl<A> Ip<A> {
    /// Whether this is a fragment without the start of the payload.
    pub(crate) fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|f| f.offset != 0)
    }

    /// Whether the payload is all there.
    pub(crate) fn is_whole(&self) -> bool {
        self.fragment.is_none_or(Fragment::is_atomic)
    }

    /// Length of the payload, as the header says.
    pub(crate) fn payload_len(&self) -> usize {
        self.len - self.header_len
    }
}

/// The header at the start of `bytes`.
fn prefix<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Option<&T> {
    T::ref_from_prefix(bytes).ok().map(|(header, _)| header)
}

/// Two bytes at `at`, as a checksum field; `None` where they are cut off.
pub(crate) fn field_at(bytes: &mut [u8], at: usize) -> Option<&mut [u8; 2]> {
    bytes.get_mut(at..at + 2)?.try_into().ok()
}
