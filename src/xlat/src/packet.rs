// SPDX-License-Identifier: Apache-2.0

//! A packet in a buffer with room around it, so that headers can grow and shrink without moving the
//! payload.

use core::ops::Range;

/// Bytes that must be free in front of a packet: the outer header and one quoted header each grow
/// by up to 28 bytes (IPv4 20 to IPv6 40 plus a Fragment Header), and an ICMP error puts up to 48
/// in front of what it quotes.
pub const HEADROOM: usize = 64;

/// Bytes that must be free behind a packet: an ICMP error may gain padding up to 128 bytes of quote
/// (RFC 4884) and an extension structure of 28.
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

/// How a packet is to be cut into several behind the translator: generic segmentation offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Bytes of IP and L4 header, which each of them will have.
    pub headers: usize,
    /// Bytes of L4 payload in each but the last; at least 1.
    pub size: usize,
}

/// The buffer has fewer than [`HEADROOM`] bytes in front of the packet or [`TAILROOM`] behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl<'b> Packet<'b> {
    /// Takes the bytes `range` of `buf` as a packet that begins with its IP header.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is too small around or for that range.
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

    /// Says that it stands for several. What it becomes is to be cut in the same way: limits of
    /// length are those of the longest, and each is counted. Fragments cannot be made of such a
    /// packet; a caller who would have it fragmented (IPv4 without DF, longer than
    /// [`crate::Config::lowest_ipv6_mtu`]) cuts it first.
    #[must_use]
    pub fn with_gso(mut self, gso: Gso) -> Self {
        self.gso = Some(gso);
        self
    }

    /// Says that it was put together of fragments, of which the first had `len` bytes with its IP
    /// header: an ICMPv6 error about it quotes that one, as it came. No ICMPv4 error is about such
    /// a packet, since what can be refused of it is refused of its fragments.
    #[must_use]
    pub fn with_first_fragment(mut self, len: usize) -> Self {
        self.first_fragment = Some(len);
        self
    }

    /// The length of its first fragment, if it was put together.
    pub(crate) fn first_fragment(&self) -> Option<usize> {
        self.first_fragment
    }

    /// By how many bytes it is longer than the longest packet on the wire.
    #[inline(always)]
    pub(crate) fn excess(&self) -> usize {
        self.gso.map_or(0, |gso| self.len().saturating_sub(gso.headers + gso.size))
    }

    /// How many packets it stands for, and their bytes of IP.
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

    /// Whether no byte is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}
