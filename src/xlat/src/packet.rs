//! A packet in a buffer with room around it, so that headers can grow and shrink without moving the payload.

use core::ops::Range;

/// Bytes that must be free in front of a packet: the outer header and one quoted header each grow by up to
/// 28 bytes (IPv4 20 to IPv6 40 plus a Fragment Header), and an ICMP error puts up to 48 in front of what it quotes.
pub const HEADROOM: usize = 64;

/// Bytes that must be free behind a packet: an ICMP error may gain padding up to 128 bytes of quote (RFC 4884)
/// and an extension structure of 28.
pub const TAILROOM: usize = 192;

/// A packet inside a larger buffer.
#[derive(Debug)]
pub struct Packet<'b> {
    buf: &'b mut [u8],
    start: usize,
    end: usize,
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
            Ok(Self { buf, start: range.start, end: range.end })
        } else {
            Err(NoRoom)
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
