// SPDX-License-Identifier: Apache-2.0

//! Segmentation of GSO packets in software.

use clat_packet::checksum::Sum;
use clat_tun::{GsoType, VirtioHeader};

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// The segments of one packet, one after the other.
#[derive(Debug)]
pub struct Segments<'p> {
    packet: &'p [u8],
    protocol: u8,
    /// Offsets of the L4 header and of its payload.
    l4: usize,
    payload: usize,
    /// Bytes of payload in each segment but the last.
    size: usize,
    /// Number of segments returned.
    given: u32,
}

impl<'p> Segments<'p> {
    /// Prepares to segment `packet`, which begins with its IP header, according to `vnet`, whose
    /// offsets count from there. `None` if the two disagree, or for types other than TCP and
    /// UDP_SEGMENT.
    #[must_use]
    pub fn new(packet: &'p [u8], vnet: &VirtioHeader) -> Option<Self> {
        let version = packet.first()? >> 4;
        let (header, declared) = match version {
            4 => (usize::from(packet[0] & 0xf) * 4, *packet.get(9)?),
            6 => (40, *packet.get(6)?),
            _ => return None,
        };
        let protocol = match (vnet.gso_type, version) {
            (GsoType::TcpV4, 4) | (GsoType::TcpV6, 6) => TCP,
            (GsoType::UdpL4, _) => UDP,
            _ => return None,
        };
        // With extension headers, only `csum_start` tells where L4 begins.
        let l4 = if vnet.needs_csum { usize::from(vnet.csum_start) } else { header };
        let l4_len = match protocol {
            TCP => usize::from(packet.get(l4 + 12)? >> 4) * 4,
            _ => 8,
        };
        let payload = l4 + l4_len;
        let sound = header >= 20
            && (l4 > header || l4 == header && declared == protocol)
            && (l4_len >= 20 || protocol == UDP)
            && payload < packet.len()
            && vnet.gso_size > 0;
        sound.then_some(Self {
            packet,
            protocol,
            l4,
            payload,
            size: vnet.gso_size.into(),
            given: 0,
        })
    }

    /// The same, without the first `given` segments.
    #[must_use]
    pub fn behind(packet: &'p [u8], vnet: &VirtioHeader, given: u32) -> Option<Self> {
        Self::new(packet, vnet).map(|segments| Self { given, ..segments })
    }

    /// Writes the next segment, checksums included, to the start of `out` and returns its length in
    /// bytes; `None` after the last, or if `out` is too small.
    pub fn next(&mut self, out: &mut [u8]) -> Option<usize> {
        let from = self.payload + self.given as usize * self.size;
        let data = self.packet.get(from..)?;
        let (first, last) = (self.given == 0, data.len() <= self.size);
        let data = &data[..data.len().min(self.size)];
        let len = self.payload + data.len();
        if data.is_empty() || out.len() < len {
            return None;
        }
        let out = &mut out[..len];
        out[..self.payload].copy_from_slice(&self.packet[..self.payload]);
        out[self.payload..].copy_from_slice(data);

        if out[0] >> 4 == 4 {
            out[2..4].copy_from_slice(&low16(len));
            let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(count16(self.given));
            out[4..6].copy_from_slice(&id.to_be_bytes());
            out[10..12].fill(0);
            let header = usize::from(out[0] & 0xf) * 4;
            let field = Sum::of(&out[..header]).field();
            out[10..12].copy_from_slice(&field);
        } else {
            out[4..6].copy_from_slice(&low16(len - 40));
        }

        let pseudo = Sum::pseudo_header(out, self.protocol, len - self.l4);
        let l4 = &mut out[self.l4..];
        let at = if self.protocol == TCP {
            let seq = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            // The offset is inside a packet, so below 64 KiB.
            let seq = seq.wrapping_add(u32::try_from(from - self.payload).ok()?);
            l4[4..8].copy_from_slice(&seq.to_be_bytes());
            if !last {
                l4[13] &= !FIN_PSH;
            }
            if !first {
                l4[13] &= !CWR;
            }
            16
        } else {
            let len = low16(l4.len());
            l4[4..6].copy_from_slice(&len);
            6
        };
        l4[at..at + 2].fill(0);
        let field = (pseudo + Sum::of(l4)).nonzero_field();
        l4[at..at + 2].copy_from_slice(&field);
        self.given += 1;
        Some(len)
    }
}

/// A length as a header field; segments are shorter than the packet, whose length fits 16 bits.
fn low16(len: usize) -> [u8; 2] {
    let [.., high, low] = len.to_be_bytes();
    [high, low]
}

/// The count modulo 65,536, to add to the identification.
fn count16(count: u32) -> u16 {
    let [.., high, low] = count.to_be_bytes();
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A GSO packet of `payload` bytes of counting data, as from the kernel.
    fn super_packet(
        version: u8,
        gso_type: GsoType,
        payload: usize,
        size: u16,
    ) -> (Vec<u8>, VirtioHeader) {
        let (header, tcp) = (if version == 4 { 20 } else { 40 }, gso_type != GsoType::UdpL4);
        let l4 = if tcp { 32 } else { 8 };
        let mut packet = vec![0; header + l4 + payload];
        let len = packet.len();
        packet[0] = if version == 4 { 0x45 } else { 0x60 };
        let protocol = if tcp { TCP } else { UDP };
        if version == 4 {
            packet[2..4].copy_from_slice(&low16(len));
            packet[4..6].copy_from_slice(&0xffff_u16.to_be_bytes());
            packet[9] = protocol;
            packet[12..20].copy_from_slice(&[192, 0, 0, 4, 8, 8, 8, 8]);
        } else {
            packet[4..6].copy_from_slice(&low16(len - 40));
            packet[6] = protocol;
            packet[8..40].fill(0x22);
        }
        if tcp {
            packet[header + 4..header + 8].copy_from_slice(&0xffff_ff00_u32.to_be_bytes());
            packet[header + 12] = 0x80;
            packet[header + 13] = 0x10 | FIN_PSH | CWR;
        }
        for (byte, value) in packet[header + l4..].iter_mut().zip((0..=255).cycle()) {
            *byte = value;
        }
        let vnet = VirtioHeader {
            needs_csum: true,
            gso_type,
            gso_size: size,
            csum_start: header.try_into().unwrap(),
            csum_offset: if tcp { 16 } else { 6 },
            ..Default::default()
        };
        (packet, vnet)
    }

    fn cut(packet: &[u8], vnet: &VirtioHeader) -> Vec<Vec<u8>> {
        let mut segments = Segments::new(packet, vnet).unwrap();
        let mut out = vec![0; 65535];
        std::iter::from_fn(|| segments.next(&mut out).map(|len| out[..len].to_vec())).collect()
    }

    proptest! {
        #[test]
        fn segments_are_whole_packets(
            (version, gso_type) in prop_oneof![
                Just((4, GsoType::TcpV4)), Just((6, GsoType::TcpV6)),
                Just((4, GsoType::UdpL4)), Just((6, GsoType::UdpL4)),
            ],
            payload in 1usize..20_000,
            size in 100u16..9000,
        ) {
            let (packet, vnet) = super_packet(version, gso_type, payload, size);
            let segments = cut(&packet, &vnet);
            prop_assert_eq!(segments.len(), payload.div_ceil(size.into()));
            let l4 = usize::from(vnet.csum_start);
            let mut data = Vec::<u8>::new();
            for (i, segment) in segments.iter().enumerate() {
                let tcp = gso_type != GsoType::UdpL4;
                let length = |at: usize| {
                    usize::from(u16::from_be_bytes([segment[at], segment[at + 1]]))
                };
                if version == 4 {
                    prop_assert_eq!(length(2), segment.len());
                    prop_assert_eq!(length(4), (0xffff + i) & 0xffff);
                    prop_assert_eq!(Sum::of(&segment[..20]).fold(), 0xffff);
                } else {
                    prop_assert_eq!(length(4) + 40, segment.len());
                }
                let protocol = if tcp { TCP } else { UDP };
                let pseudo = Sum::pseudo_header(segment, protocol, segment.len() - l4);
                prop_assert_eq!((pseudo + Sum::of(&segment[l4..])).fold(), 0xffff);
                if tcp {
                    let seq = 0xffff_ff00_u32.wrapping_add(u32::try_from(data.len()).unwrap());
                    prop_assert_eq!(&segment[l4 + 4..l4 + 8], &seq.to_be_bytes());
                    let (first, last) = (i == 0, i + 1 == segments.len());
                    prop_assert_eq!(segment[l4 + 13] & CWR != 0, first);
                    prop_assert_eq!(segment[l4 + 13] & FIN_PSH, if last { FIN_PSH } else { 0 });
                    data.extend(&segment[l4 + 32..]);
                } else {
                    prop_assert_eq!(length(l4 + 4), segment.len() - l4);
                    data.extend(&segment[l4 + 8..]);
                }
            }
            let headers = packet.len() - payload;
            prop_assert_eq!(data, &packet[headers..]);
        }

        #[test]
        fn hostile_input(
            packet in proptest::collection::vec(any::<u8>(), 0..120),
            version in prop_oneof![Just(0x45u8), Just(0x60u8), any::<u8>()],
            vnet in proptest::array::uniform10(any::<u8>()),
            gso in 0u8..6,
        ) {
            let mut packet = packet;
            if let Some(first) = packet.first_mut() {
                *first = version;
            }
            let mut vnet = vnet;
            vnet[1] = gso;
            let vnet = VirtioHeader::from_bytes(&vnet).unwrap();
            if let Some(mut segments) = Segments::new(&packet, &vnet) {
                let mut out = [0; 100];
                while segments.next(&mut out).is_some() {}
            }
        }
    }

    #[test]
    fn what_does_not_agree_is_refused() {
        let (packet, vnet) = super_packet(6, GsoType::TcpV6, 3000, 1400);
        for gso_type in [GsoType::None, GsoType::TcpV4, GsoType::UdpL4, GsoType::Other(3)] {
            assert!(Segments::new(&packet, &VirtioHeader { gso_type, ..vnet }).is_none());
        }
        assert!(Segments::new(&packet, &VirtioHeader { gso_size: 0, ..vnet }).is_none());
        assert!(Segments::new(&packet[..72], &vnet).is_none());
    }
}
