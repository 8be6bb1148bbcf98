//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use core::net::{Ipv4Addr, Ipv6Addr};

/// A one's-complement sum of 16-bit words, not yet folded.
///
/// Words are taken in memory order: the sum comes out the same on either endianness (RFC 1071 §2(B)), and
/// [`Sum::fold`] gives it in memory order again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Sums bytes; an odd last one counts as if a zero followed.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks_exact4();
        let mut sum = 0u64;
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut tail = [0; 4];
        tail[..rest.len()].copy_from_slice(rest);
        Self(sum + u64::from(u32::from_ne_bytes(tail)))
    }

    /// Adds one word, given as the number that it stands for.
    pub(crate) fn word(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// The addresses and the rest of a pseudo-header (RFC 8200 §8.1).
    pub(crate) fn pseudo6(src: Ipv6Addr, dst: Ipv6Addr, len: usize, protocol: u8) -> Self {
        #[allow(clippy::cast_possible_truncation)] // both halves are taken
        let (high, low) = ((len >> 16) as u16, len as u16);
        Self::addresses6(src, dst).word(high).word(low).word(protocol.into())
    }

    /// The two addresses of a pseudo-header.
    pub(crate) fn addresses6(src: Ipv6Addr, dst: Ipv6Addr) -> Self {
        Self::of(&src.octets()) + Self::of(&dst.octets())
    }

    /// The two addresses of a pseudo-header.
    pub(crate) fn addresses4(src: Ipv4Addr, dst: Ipv4Addr) -> Self {
        Self::of(&src.octets()) + Self::of(&dst.octets())
    }

    /// The sum as one word in memory order; zero only if every word was.
    pub(crate) fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        #[allow(clippy::cast_possible_truncation)] // the loop has seen to it
        let word = sum as u16;
        word
    }

    /// The checksum field that goes with this sum.
    pub(crate) fn field(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }
}

impl core::ops::Add for Sum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

/// Updates a checksum field when words that summed to `old` are replaced by words that sum to `new` (RFC 1624 §3,
/// equation 3). An unchanged sum leaves the field as it is, and a wrong one stays exactly as wrong.
pub(crate) fn adjust(field: [u8; 2], old: Sum, new: Sum) -> [u8; 2] {
    let (old, new) = (old.fold(), new.fold());
    // 0 and 0xffff are the same number here.
    if old % 0xffff == new % 0xffff {
        return field;
    }
    let sum = u64::from(!u16::from_ne_bytes(field)) + u64::from(!old) + u64::from(new);
    Sum(sum).field()
}

/// The bytes as arrays of four, and the rest. (`slice::as_chunks` is newer than our compiler.)
trait Chunks {
    fn as_chunks_exact4(&self) -> (impl Iterator<Item = &[u8; 4]>, &[u8]);
}

impl Chunks for [u8] {
    fn as_chunks_exact4(&self) -> (impl Iterator<Item = &[u8; 4]>, &[u8]) {
        let chunks = self.chunks_exact(4);
        let rest = chunks.remainder();
        (chunks.filter_map(|c| c.try_into().ok()), rest)
    }
}
