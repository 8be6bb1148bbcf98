// SPDX-License-Identifier: Apache-2.0

//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// A one's-complement sum of 16-bit words, not yet folded.
///
/// Words are taken in memory order: the sum comes out the same on either endianness (RFC 1071 §2(B)), and
/// [`Sum::fold`] gives it in memory order again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Sums bytes; an odd last one counts as if a zero followed.
    #[must_use]
    #[inline(always)]
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = 0u64;
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut tail = [0; 4];
            tail[..rest.len()].copy_from_slice(rest);
            sum += u64::from(u32::from_ne_bytes(tail));
        }
        Self(sum)
    }

    /// Adds one word, given as the number that it stands for.
    #[must_use]
    #[inline(always)]
    pub fn word(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// The addresses and the rest of a pseudo-header (RFC 8200 §8.1).
    #[must_use]
    pub fn pseudo6(src: u128, dst: u128, len: usize, protocol: u8) -> Self {
        #[allow(clippy::cast_possible_truncation)] // both halves are taken
        let (high, low) = ((len >> 16) as u16, len as u16);
        Self::addresses6(src, dst).word(high).word(low).word(protocol.into())
    }

    /// The two addresses of a pseudo-header.
    #[must_use]
    #[inline(always)]
    pub fn addresses6(src: u128, dst: u128) -> Self {
        Self::address6(src) + Self::address6(dst)
    }

    /// The two addresses of a pseudo-header.
    #[must_use]
    #[inline(always)]
    pub fn addresses4(src: u32, dst: u32) -> Self {
        Self::address4(src) + Self::address4(dst)
    }

    /// An IPv6 address, given as the number that it stands for.
    #[must_use]
    #[inline(always)]
    pub fn address6(addr: u128) -> Self {
        let halves = [addr, addr >> 64];
        Self(halves.into_iter().fold(0, |sum, half| {
            #[allow(clippy::cast_possible_truncation)] // both halves are taken
            let half = (half as u64).to_be();
            sum + (half >> 32) + (half & 0xffff_ffff)
        }))
    }

    /// An IPv4 address, given as the number that it stands for.
    #[must_use]
    #[inline(always)]
    pub fn address4(addr: u32) -> Self {
        Self(addr.to_be().into())
    }

    /// The sum as one word in memory order; zero only if every word was.
    #[must_use]
    #[inline(always)]
    pub fn fold(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        // Up to 33 bits, 18 bits, 17 bits, 16 bits.
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        #[allow(clippy::cast_possible_truncation)]
        let word = sum as u16;
        word
    }

    /// The checksum field that goes with this sum.
    #[must_use]
    #[inline(always)]
    pub fn field(self) -> [u8; 2] {
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
#[must_use]
#[inline(always)]
pub fn adjust(field: [u8; 2], old: Sum, new: Sum) -> [u8; 2] {
    let (old, new) = (old.fold(), new.fold());
    if same(old, new) {
        return field;
    }
    let sum = u64::from(!u16::from_ne_bytes(field)) + u64::from(!old) + u64::from(new);
    Sum(sum).field()
}

/// Whether two folded sums are the same number: 0 and 0xffff are.
#[must_use]
pub const fn same(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}
