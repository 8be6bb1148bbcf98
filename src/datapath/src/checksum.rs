//! Internet checksums (RFC 1071), and completing those that a sender has left to its hardware.

use clat_tun::VirtioHeader;
use crc::{Crc, CRC_32_ISCSI};

/// SCTP's CRC-32C (RFC 9260 Appendix A).
const CASTAGNOLI: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Where SCTP's CRC stands in its header; no checksum of another protocol stands there.
const SCTP_CRC: u16 = 8;

/// Adds big-endian words to a sum; an odd byte at the end counts as if a zero followed.
#[must_use]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let mut sum = sum;
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum to 16 bits, not inverted.
#[must_use]
pub fn fold(sum: u64) -> u16 {
    // After the first step at most 17 bits of carry remain, after the second one bit.
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let [.., high, low] = ((sum >> 16) + (sum & 0xffff)).to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// The sum of the pseudo-header of an L4 packet of `len` bytes (RFC 9293 §3.1, RFC 8200 §8.1). `ip` begins with a whole
/// IPv4 or IPv6 header.
#[must_use]
pub fn pseudo_header(ip: &[u8], protocol: u8, len: usize) -> u64 {
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
    add(u64::from(protocol) + len as u64, addresses)
}

/// Computes the checksum that `vnet` leaves open. Returns whether the offsets were inside the packet.
///
/// The field holds the folded sum of the pseudo-header. A checksum of 0 becomes 0xffff, which means the same to TCP
/// and not "none" to UDP. For SCTP, whose CRC the kernel leaves open by the same means, it is that which is computed.
#[must_use]
pub fn complete(packet: &mut [u8], vnet: &VirtioHeader) -> bool {
    let at = usize::from(vnet.csum_offset);
    let Some(l4) = packet.get_mut(usize::from(vnet.csum_start)..) else { return false };
    if vnet.csum_offset == SCTP_CRC {
        let Some(field) = l4.get_mut(at..at + 4) else { return false };
        field.fill(0);
        let crc = CASTAGNOLI.checksum(l4);
        l4[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        return true;
    }
    if l4.len() < at + 2 {
        return false;
    }
    let sum = finish(add(0, l4));
    l4[at..at + 2].copy_from_slice(&sum);
    true
}

/// The bytes of a checksum over what was summed; never zero.
#[must_use]
pub fn finish(sum: u64) -> [u8; 2] {
    match !fold(sum) {
        0 => [0xff, 0xff],
        sum => sum.to_be_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §4.1, word by word.
    fn by_the_book(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn sums_as_rfc_1071(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(fold(add(0, &bytes)), by_the_book(&bytes));
        }

        #[test]
        fn completed_checksums_verify(
            bytes in proptest::collection::vec(any::<u8>(), 28..100),
            pseudo in 1u16..,
        ) {
            let mut packet = bytes;
            let vnet = VirtioHeader { csum_start: 20, csum_offset: 6, ..Default::default() };
            packet[26..28].copy_from_slice(&pseudo.to_be_bytes());
            prop_assert!(complete(&mut packet, &vnet));
            prop_assert_ne!(&packet[26..28], &[0, 0]);
            prop_assert_eq!(fold(add(u64::from(pseudo), &packet[20..])), 0xffff);
        }

        #[test]
        fn hostile_offsets(len in 0usize..50, csum_start: u16, csum_offset: u16) {
            let mut packet = vec![1; len];
            let vnet = VirtioHeader { csum_start, csum_offset, ..Default::default() };
            let end = usize::from(csum_start) + usize::from(csum_offset)
                + if csum_offset == SCTP_CRC { 4 } else { 2 };
            prop_assert_eq!(complete(&mut packet, &vnet), end <= len);
        }
    }

    #[test]
    fn sums_do_not_overflow() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(add(0, &[0xff; 65535])), by_the_book(&[0xff; 65535]));
    }

    #[test]
    fn zero_becomes_ffff() {
        let mut packet = [0xff, 0xff, 0, 0];
        let vnet = VirtioHeader { csum_offset: 2, ..Default::default() };
        assert!(complete(&mut packet, &vnet));
        assert_eq!(packet, [0xff; 4]);
    }

    /// RFC 9260 Appendix A; the check value of CRC-32C over "123456789".
    #[test]
    fn sctp_has_a_crc() {
        assert_eq!(CASTAGNOLI.checksum(b"123456789"), 0xe306_9283);
        let mut packet = *b"12345678????9";
        let vnet = VirtioHeader { csum_offset: SCTP_CRC, ..Default::default() };
        assert!(complete(&mut packet, &vnet));
        let crc = CASTAGNOLI.checksum(b"12345678\0\0\0\x009");
        assert_eq!(packet[8..12], crc.to_le_bytes());
    }
}
