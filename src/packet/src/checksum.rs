// SPDX-License-Identifier: Apache-2.0

//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// A one's-complement sum of 16-bit words, not yet folded.
///
/// Words are taken in memory order: the sum comes out the same on either endianness (RFC 1071
/// §2(B)), and [`Sum::fold`] returns it in memory order.
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

    /// Adds one word, an integer in host byte order.
    #[must_use]
    #[inline(always)]
    pub fn word(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// The sum of data that begins at an odd offset of the message: its words count byte-swapped
    /// (RFC 1071 §2(B)).
    #[must_use]
    pub fn at_odd_byte(self) -> Self {
        Self(self.fold().swap_bytes().into())
    }

    /// A pseudo-header for `len` bytes of a protocol (RFC 9293 §3.1, RFC 8200 §8.1), with the
    /// addresses of the IPv4 or IPv6 header at the start of `packet`; zero if that is cut off.
    #[must_use]
    #[inline]
    pub fn pseudo_header(packet: &[u8], protocol: u8, len: usize) -> Self {
        let addresses = match packet {
            [first, ..] if first >> 4 == 4 => packet.get(12..20),
            _ => packet.get(8..40),
        };
        addresses
            .map_or(Self::default(), |addresses| Self::of(addresses) + Self::length(len, protocol))
    }

    /// An IPv4 pseudo-header for `len` bytes of a protocol (RFC 9293 §3.1).
    #[must_use]
    pub fn pseudo4(src: u32, dst: u32, len: usize, protocol: u8) -> Self {
        Self::addresses4(src, dst) + Self::length(len, protocol)
    }

    /// An IPv6 pseudo-header for `len` bytes of a protocol (RFC 8200 §8.1).
    #[must_use]
    #[inline]
    pub fn pseudo6(src: u128, dst: u128, len: usize, protocol: u8) -> Self {
        Self::addresses6(src, dst) + Self::length(len, protocol)
    }

    /// Length and protocol of a pseudo-header. The upper half of an IPv4 length is zero and adds
    /// nothing.
    #[inline(always)]
    fn length(len: usize, protocol: u8) -> Self {
        #[allow(clippy::cast_possible_truncation)] // both halves are taken
        let (high, low) = ((len >> 16) as u16, len as u16);
        Self::default().word(high).word(low).word(protocol.into())
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

    /// An IPv6 address, an integer in host byte order.
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

    /// An IPv4 address, an integer in host byte order.
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

    /// Whether a message that sums to this, checksum field included, has the right checksum.
    #[must_use]
    #[inline]
    pub fn is_right(self) -> bool {
        self.fold() == 0xffff
    }

    /// The folded sum, not inverted: the checksum field of a packet whose checksum is left to
    /// hardware (the kernel's `CHECKSUM_PARTIAL`).
    #[must_use]
    #[inline]
    pub fn partial_field(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// As [`Self::field`], but 0xffff instead of zero, which means "no checksum" in UDP (RFC 768).
    #[must_use]
    #[inline]
    pub fn nonzero_field(self) -> [u8; 2] {
        match self.field() {
            [0, 0] => [0xff, 0xff],
            field => field,
        }
    }

    /// The checksum field for this sum: its complement, as bytes of the packet.
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

/// Updates a checksum field when words that summed to `old` are replaced by words that sum to `new`
/// (RFC 1624 §3, equation 3). A wrong checksum stays wrong by the same amount.
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

/// Whether two folded sums are equal; 0 and 0xffff are both zero in one's complement.
#[must_use]
pub const fn same(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §4.1, word by word.
    fn by_the_book(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap().to_be_bytes()
    }

    proptest! {
        #[test]
        fn sums_as_rfc_1071(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Sum::of(&bytes).partial_field(), by_the_book(&bytes));
        }

        #[test]
        fn sums_go_on(bytes in proptest::collection::vec(any::<u8>(), 0..300), start: [u8; 4]) {
            let whole = by_the_book(&[&start[..], &bytes].concat());
            prop_assert_eq!((Sum::of(&start) + Sum::of(&bytes)).partial_field(), whole);
        }

        #[test]
        fn pieces_sum_to_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 1..200),
            cut: prop::sample::Index,
        ) {
            let (a, b) = bytes.split_at(cut.index(bytes.len()));
            let b = if a.len() % 2 == 0 { Sum::of(b) } else { Sum::of(b).at_odd_byte() };
            let (sum, whole) = ((Sum::of(a) + b).fold(), Sum::of(&bytes).fold());
            prop_assert!(same(sum, whole), "{sum} {whole}");
        }

        #[test]
        fn pseudo_headers(src: u128, dst: u128, protocol: u8, len in 0usize..0x10000) {
            let mut header = [0x60; 40];
            header[8..24].copy_from_slice(&src.to_be_bytes());
            header[24..].copy_from_slice(&dst.to_be_bytes());
            let sum = Sum::pseudo6(src, dst, len, protocol).fold();
            prop_assert_eq!(sum, Sum::pseudo_header(&header, protocol, len).fold());
            let [src, dst] = [src, dst].map(|a| u32::try_from(a >> 96).unwrap());
            header[0] = 0x45;
            header[12..16].copy_from_slice(&src.to_be_bytes());
            header[16..20].copy_from_slice(&dst.to_be_bytes());
            let sum = Sum::pseudo4(src, dst, len, protocol).fold();
            prop_assert_eq!(sum, Sum::pseudo_header(&header, protocol, len).fold());
        }
    }

    #[test]
    fn sums_do_not_overflow() {
        assert_eq!(Sum(u64::MAX).fold(), 0xffff);
        assert_eq!(Sum::of(&[0xff; 65535]).partial_field(), by_the_book(&[0xff; 65535]));
    }

    #[test]
    fn no_checksum_is_not_one_of_zero() {
        let sum = Sum::default().word(0xffff);
        assert_eq!((sum.field(), sum.nonzero_field()), ([0, 0], [0xff, 0xff]));
        assert!(sum.is_right() && !Sum::default().is_right());
    }
}
