// SPDX-License-Identifier: Apache-2.0

//! A packet in a buffer with room around it, so that headers can grow and shrink while the payload
//! stays in place.

use core::ops::Range;

/// Bytes that must be free in front of a packet. The outer header and a quoted header each grow by
/// up to 28 bytes (IPv4's 20 to IPv6's 40 and a Fragment Header of 8); an ICMP error that is sent
/// back puts up to 48 in front.
pub const HEADROOM: usize = 64;

/// Bytes that must be free behind a packet: padding of a quoted packet to 128 bytes (RFC 4884), and
/// an extension structure of 28.
pub const TAILROOM: usize = 192;

/// A packet inside a larger buffer.
#[derive(Debug)]
pub struct Packet<'b> {
    buf: &'b mut [u8],
    start: usize,
    end: usize,
    gso: Option<Gso>,
    first_fragment: Option<usize>,
}

/// How a packet is to be segmented behind the translator (generic segmentation offload).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Bytes of IP and L4 headers, which each segment gets.
    pub headers: usize,
    /// Bytes of L4 payload in each segment but the last; at least 1.
    pub size: usize,
}

/// The buffer has fewer than [`HEADROOM`] bytes in front of the packet or [`TAILROOM`] behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl<'b> Packet<'b> {
    /// Takes the bytes `range` of `buf` as a packet that begins with its IP header.
    ///
    /// # Errors
    /// [`NoRoom`] if the buffer is too small for the range and the room around it.
    pub fn new(buf: &'b mut [u8], range: Range<usize>) -> Result<Self, NoRoom> {
        let room = range.start >= HEADROOM
            && range.start <= range.end
            && range.end.checked_add(TAILROOM).is_some_and(|end| end <= buf.len());
        if room {
            let Range { start, end } = range;
            Ok(Self { buf, start, end, gso: None, first_fragment: None })
        } else {
            Err(NoRoom)
        }
    }

    /// Says that this is a GSO packet. The result is to be segmented in the same way: length limits
    /// apply to the longest segment, and each segment is counted. A GSO packet cannot be
    /// fragmented; one that needs it (IPv4 without DF, longer than
    /// [`crate::Config::lowest_ipv6_mtu`]) has to be segmented by the caller first.
    #[must_use]
    pub fn with_gso(mut self, gso: Gso) -> Self {
        self.gso = Some(gso);
        self
    }

    /// Says that the packet was reassembled, and that its first fragment had `len` bytes with IP
    /// header: an ICMPv6 error about it quotes that fragment. There is no ICMPv4 error about a
    /// reassembled packet, since every reason for one already applies to its fragments.
    #[must_use]
    pub fn with_first_fragment(mut self, len: usize) -> Self {
        self.first_fragment = Some(len);
        self
    }

    /// Length of the first fragment, if it was reassembled.
    pub(crate) fn first_fragment(&self) -> Option<usize> {
        self.first_fragment
    }

    /// By how many bytes it is longer than its longest segment; 0 without GSO.
    #[inline(always)]
    pub(crate) fn excess(&self) -> usize {
        self.gso.map_or(0, |gso| self.len().saturating_sub(gso.headers + gso.size))
    }

    /// Number of segments, and their bytes with IP headers.
    #[inline(always)]
    pub(crate) fn tally(&self) -> (u64, u64) {
        match self.gso {
            None => (1, self.len() as u64),
            Some(gso) => {
                let payload = self.len().saturating_sub(gso.headers);
                let count = payload.div_ceil(gso.size.max(1)).max(1);
                (count as u64, (payload + count * gso.headers) as u64)
            }
        }
    }

    /// The packet as it is now.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// The packet as it is now, to write to.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.start..self.end]
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// The whole buffer, and where in it the packet lies.
    pub(crate) fn parts(&mut self) -> (&mut [u8], usize, usize) {
        (self.buf, self.start, self.end)
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}
