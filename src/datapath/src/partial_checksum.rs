// SPDX-License-Identifier: Apache-2.0

//! Partial checksums: packets whose checksum, and maybe segmentation, the kernel has left to
//! hardware (CHECKSUM_PARTIAL, GSO), and that are passed on in that state.

use clat_packet::checksum::Sum;
use clat_tun::{GsoType, VirtioHeader};
use clat_xlat::Gso;
use crc::{Crc, CRC_32_ISCSI};

/// SCTP's CRC-32C (RFC 9260 Appendix A).
const CASTAGNOLI: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Offset of SCTP's CRC in its header; no other protocol has its checksum there.
const SCTP_CRC: u16 = 8;

pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// The longest IPv4 packet without DF that need not be fragmented (RFC 7915 §4.1).
pub(crate) const MOST_WITHOUT_DF: usize = 1260;

/// A TCP or UDP packet with a partial checksum and maybe to be segmented, without options or
/// extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    udp: bool,
    l4_header: usize,
    l4_len: usize,
    vnet: VirtioHeader,
}

impl PartialChecksum {
    /// What to remember of an IPv4 or IPv6 packet while it is translated. `None` for a packet
    /// without partial checksum, one that has to be fragmented, and one whose headers contradict
    /// `vnet`: these take the slow path.
    ///
    /// A verified checksum becomes a partial one, so that it is not verified again.
    #[must_use]
    pub fn of(packet: &[u8], vnet: &VirtioHeader) -> Option<Self> {
        let whole = vnet.gso_type == GsoType::None;
        if whole && !vnet.needs_csum && !vnet.data_valid {
            return None;
        }
        let version = packet.first()? >> 4;
        let (header, protocol, len) = match version {
            4 => (IPV4_HEADER, *packet.get(9)?, be16(packet, 2)?),
            6 => (IPV6_HEADER, *packet.get(6)?, IPV6_HEADER + be16(packet, 4)?),
            _ => return None,
        };
        let l4 = packet.get(header..).filter(|_| len == packet.len())?;
        let udp = protocol == UDP;
        let l4_header = match protocol {
            UDP if be16(l4, 4)? == l4.len() => UDP_HEADER,
            TCP => usize::from(*l4.get(12)? >> 4) * 4,
            _ => return None,
        };
        let known = match vnet.gso_type {
            GsoType::None => true,
            GsoType::TcpV4 => version == 4 && !udp,
            GsoType::TcpV6 => version == 6 && !udp,
            GsoType::UdpL4 => udp,
            GsoType::Other(_) => false,
        };
        let partial = Self { udp, l4_header, l4_len: l4.len(), vnet: *vnet };
        // UDP without a checksum has no partial one.
        let has_checksum = vnet.needs_csum || !udp || be16(l4, 6)? != 0;
        let sound = known
            && has_checksum
            && l4_header >= if udp { UDP_HEADER } else { TCP_HEADER }
            && l4_header <= l4.len()
            && (whole || vnet.gso_size > 0 && l4_header < l4.len())
            && (!vnet.needs_csum
                || usize::from(vnet.csum_start) == header
                    && vnet.csum_offset == partial.checksum_offset());
        let plain =
            version == 6 || packet[0] == 0x45 && stays_whole(packet, partial.longest(header));
        (sound && plain).then_some(partial)
    }

    /// Its segmentation, for an IP header of `header` bytes.
    #[must_use]
    pub fn gso(&self, header: usize) -> Option<Gso> {
        let size = usize::from(self.vnet.gso_size);
        (self.vnet.gso_type != GsoType::None)
            .then_some(Gso { headers: header + self.l4_header, size })
    }

    /// Number of segments.
    #[must_use]
    pub fn count(&self) -> usize {
        match self.vnet.gso_type {
            GsoType::None => 1,
            _ => (self.l4_len - self.l4_header).div_ceil(self.vnet.gso_size.into()),
        }
    }

    /// Whether this is a single UDP datagram.
    #[must_use]
    pub fn is_datagram(&self) -> bool {
        self.udp && self.vnet.gso_type == GsoType::None
    }

    fn longest(&self, header: usize) -> usize {
        let whole = header + self.l4_len;
        self.gso(header).map_or(whole, |gso| whole.min(gso.headers + gso.size))
    }

    fn checksum_offset(&self) -> u16 {
        if self.udp {
            6
        } else {
            16
        }
    }

    /// Passes checksum and segmentation on in the translated packet: puts the folded sum of the
    /// pseudo-header into the checksum field, as CHECKSUM_PARTIAL requires, and returns the virtio
    /// header. `None` if the packet does not have the expected length.
    #[must_use]
    pub fn carry_over(&self, frame: &mut [u8]) -> Option<VirtioHeader> {
        let (header, protocol) = match frame.first()? >> 4 {
            4 => (usize::from(frame[0] & 0xf) * 4, *frame.get(9)?),
            _ => (IPV6_HEADER, *frame.get(6)?),
        };
        if frame.len() != header + self.l4_len {
            return None;
        }
        let at = header + usize::from(self.checksum_offset());
        let field = Sum::pseudo_header(frame, protocol, self.l4_len).partial_field();
        frame.get_mut(at..at + 2)?.copy_from_slice(&field);
        let gso_type = match self.vnet.gso_type {
            // The kernel rejects GSO packets of one segment.
            _ if self.count() == 1 => GsoType::None,
            GsoType::TcpV4 => GsoType::TcpV6,
            GsoType::TcpV6 => GsoType::TcpV4,
            other => other,
        };
        let cut = gso_type != GsoType::None;
        Some(VirtioHeader {
            needs_csum: true,
            data_valid: false,
            gso_type,
            gso_ecn: cut && self.vnet.gso_ecn,
            hdr_len: u16::try_from(header + self.l4_header).ok()?,
            gso_size: if cut { self.vnet.gso_size } else { 0 },
            csum_start: u16::try_from(header).ok()?,
            csum_offset: self.checksum_offset(),
        })
    }
}

/// Computes the checksum that `vnet` leaves open. Returns whether the offsets were inside the
/// packet.
///
/// The field holds the folded sum of the pseudo-header. A checksum of 0 becomes 0xffff, which is
/// equal for TCP and does not mean "none" for UDP. SCTP, for which the kernel uses the same virtio
/// fields, gets its CRC.
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
    let field = Sum::of(l4).nonzero_field();
    l4[at..at + 2].copy_from_slice(&field);
    true
}

/// Whether an IPv4 packet that is segmented to `longest` bytes needs no fragmentation and is no
/// fragment.
#[must_use]
pub fn stays_whole(packet: &[u8], longest: usize) -> bool {
    let Some(flags) = be16(packet, 6) else { return false };
    let (dont_fragment, fragment) = (flags & 0x4000 != 0, flags & 0x3fff != 0);
    !fragment && (dont_fragment || longest <= MOST_WITHOUT_DF)
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at + 2)?;
    Some(usize::from(field[0]) << 8 | usize::from(field[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Segments;
    use proptest::prelude::*;

    /// An IPv4 packet with DF, and its segmentation.
    fn super_packet(udp: bool, payload: usize, size: u16) -> (Vec<u8>, VirtioHeader) {
        let l4_header = if udp { 8 } else { 32 };
        let mut packet = vec![0x5a; 20 + l4_header + payload];
        let len = u16::try_from(packet.len()).unwrap();
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[6..8].copy_from_slice(&[0x40, 0]);
        packet[9] = if udp { UDP } else { TCP };
        if udp {
            packet[24..26].copy_from_slice(&(len - 20).to_be_bytes());
        } else {
            packet[32] = 0x80;
        }
        let vnet = VirtioHeader {
            needs_csum: true,
            gso_type: if udp { GsoType::UdpL4 } else { GsoType::TcpV4 },
            gso_ecn: !udp,
            gso_size: size,
            csum_start: 20,
            csum_offset: if udp { 6 } else { 16 },
            ..Default::default()
        };
        (packet, vnet)
    }

    /// The same with an IPv6 header.
    fn to_ipv6(packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0x33; 40];
        out[0] = 0x60;
        out[4..6].copy_from_slice(&u16::try_from(packet.len() - 20).unwrap().to_be_bytes());
        out[6] = packet[9];
        out.extend(&packet[20..]);
        out
    }

    /// A checksum left open with IPv4 addresses is completed with IPv6 addresses, and the reverse.
    #[test]
    fn what_is_left_open_verifies() {
        for udp in [false, true] {
            let (packet4, vnet4) = super_packet(udp, 3001, 1000);
            let l4_header = if udp { 8 } else { 32 };
            let partial = PartialChecksum::of(&packet4, &vnet4).unwrap();
            assert_eq!(partial.gso(20), Some(Gso { headers: 20 + l4_header, size: 1000 }));
            assert_eq!(partial.count(), 4);

            let mut packet6 = to_ipv6(&packet4);
            let vnet6 = partial.carry_over(&mut packet6).unwrap();
            assert_eq!((vnet6.csum_start, usize::from(vnet6.hdr_len)), (40, 40 + l4_header));
            assert_eq!(vnet6.gso_type, if udp { GsoType::UdpL4 } else { GsoType::TcpV6 });
            assert_eq!(vnet6.gso_ecn, !udp);
            let back = PartialChecksum::of(&packet6, &vnet6).unwrap();
            let mut packet4 = packet4;
            let again = back.carry_over(&mut packet4).unwrap();
            assert_eq!(VirtioHeader { hdr_len: 0, ..again }, vnet4);

            for (mut packet, vnet) in [(packet4, vnet4), (packet6, vnet6)] {
                let mut segments = Segments::new(&packet, &vnet).unwrap();
                let mut out = [0; 2000];
                let first = segments.next(&mut out).unwrap();
                let header = usize::from(vnet.csum_start);
                assert_eq!(first, header + l4_header + 1000);
                assert!(complete(&mut packet, &vnet));
                let protocol = if udp { UDP } else { TCP };
                let l4 = &packet[header..];
                let sum = Sum::pseudo_header(&packet, protocol, l4.len()) + Sum::of(l4);
                assert_eq!(sum.fold(), 0xffff);
            }
        }
    }

    #[test]
    fn what_takes_the_long_way() {
        for udp in [false, true] {
            let (packet, vnet) = super_packet(udp, 3001, 1300);
            assert!(PartialChecksum::of(&packet, &vnet).is_some());
            let with = |at: usize, value: u8| {
                let mut packet = packet.clone();
                packet[at] = value;
                PartialChecksum::of(&packet, &vnet)
            };
            assert_eq!(with(0, 0x46), None, "options");
            assert_eq!(with(6, 0), None, "to be fragmented");
            assert_eq!(with(6, 0x60), None, "a fragment");
            assert_eq!(with(9, 132), None, "another protocol");
            assert_eq!(with(3, 1), None, "another length");
            assert_eq!(PartialChecksum::of(&packet[..60], &vnet), None);
            let nothing = VirtioHeader::default();
            assert_eq!(PartialChecksum::of(&packet, &nothing), None, "nothing is open");
            for vnet in [
                VirtioHeader { csum_start: 24, ..vnet },
                VirtioHeader { csum_offset: 8, ..vnet },
                VirtioHeader { gso_size: 0, ..vnet },
                VirtioHeader { gso_type: GsoType::TcpV6, ..vnet },
                VirtioHeader { gso_type: GsoType::Other(3), ..vnet },
            ] {
                assert_eq!(PartialChecksum::of(&packet, &vnet), None);
            }
        }
        // Segments that are small enough are never fragmented.
        let (mut packet, vnet) = super_packet(true, 3001, 1232);
        packet[6] = 0;
        assert!(PartialChecksum::of(&packet, &vnet).is_some());
    }

    #[test]
    fn one_that_need_not_be_cut() {
        let (packet, vnet) = super_packet(false, 1000, 1000);
        let partial = PartialChecksum::of(&packet, &vnet).unwrap();
        let out = partial.carry_over(&mut to_ipv6(&packet)).unwrap();
        assert_eq!((partial.count(), out.gso_type, out.gso_size), (1, GsoType::None, 0));
        assert!(out.needs_csum && !out.gso_ecn);
    }

    proptest! {
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
            prop_assert!((Sum::default().word(pseudo) + Sum::of(&packet[20..])).is_right());
        }

        #[test]
        fn hostile_offsets(len in 0usize..50, csum_start: u16, csum_offset: u16) {
            let mut packet = vec![1; len];
            let vnet = VirtioHeader { csum_start, csum_offset, ..Default::default() };
            let end = usize::from(csum_start) + usize::from(csum_offset)
                + if csum_offset == SCTP_CRC { 4 } else { 2 };
            prop_assert_eq!(complete(&mut packet, &vnet), end <= len);
        }

        #[test]
        fn hostile_input(
            packet in proptest::collection::vec(any::<u8>(), 0..120),
            version in prop_oneof![Just(0x45u8), Just(0x60u8), any::<u8>()],
            protocol in prop_oneof![Just(6u8), Just(17u8), any::<u8>()],
            vnet in proptest::array::uniform10(any::<u8>()),
            gso in 0u8..6,
        ) {
            let mut packet = packet;
            for (at, value) in [(0, version), (6, protocol), (9, protocol)] {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = value;
                }
            }
            let mut vnet = vnet;
            vnet[1] = gso;
            let vnet = VirtioHeader::from_bytes(&vnet).unwrap();
            if let Some(partial) = PartialChecksum::of(&packet, &vnet) {
                prop_assert!(partial.count() > 0);
                prop_assert!(partial.carry_over(&mut packet).is_some());
            }
        }
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
