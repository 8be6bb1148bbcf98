// SPDX-License-Identifier: Apache-2.0

//! The virtio header that the kernel puts in front of packets whose checksum or segmentation is
//! left open.

/// How a packet is to be segmented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GsoType {
    /// Not at all.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either; each segment is a datagram (UDP_SEGMENT).
    UdpL4,
    /// Another type, by its number.
    Other(u8),
}

/// `struct virtio_net_hdr`, in host byte order. Offsets are bytes from the end of this header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// The L4 checksum has to be computed, from [`Self::csum_start`] to the end of the packet; its
    /// field holds the folded sum of the pseudo-header.
    pub needs_csum: bool,
    /// The checksums have been verified.
    pub data_valid: bool,
    /// How the packet is to be segmented.
    pub gso_type: GsoType,
    /// Whether the TCP flow uses ECN: only the first segment gets CWR.
    pub gso_ecn: bool,
    /// Bytes of all headers (a hint).
    pub hdr_len: u16,
    /// Bytes of L4 payload in each segment but the last.
    pub gso_size: u16,
    /// Where the checksum's data begins.
    pub csum_start: u16,
    /// Where the checksum belongs, from [`Self::csum_start`] on.
    pub csum_offset: u16,
}

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

impl VirtioHeader {
    /// Bytes of the header that are read and written; longer headers go on with fields not needed
    /// here.
    pub const LEN: usize = 10;

    /// Reads a header; `None` if there are fewer than [`Self::LEN`] bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let &[flags, gso, h0, h1, s0, s1, c0, c1, o0, o1, ..] = bytes else { return None };
        Some(Self {
            needs_csum: flags & F_NEEDS_CSUM != 0,
            data_valid: flags & F_DATA_VALID != 0,
            gso_type: match gso & !GSO_ECN {
                0 => GsoType::None,
                GSO_TCPV4 => GsoType::TcpV4,
                GSO_TCPV6 => GsoType::TcpV6,
                GSO_UDP_L4 => GsoType::UdpL4,
                other => GsoType::Other(other),
            },
            gso_ecn: gso & GSO_ECN != 0,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([s0, s1]),
            csum_start: u16::from_ne_bytes([c0, c1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// Writes it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let gso = match self.gso_type {
            GsoType::None => 0,
            GsoType::TcpV4 => GSO_TCPV4,
            GsoType::TcpV6 => GSO_TCPV6,
            GsoType::UdpL4 => GSO_UDP_L4,
            GsoType::Other(other) => other,
        };
        let mut out = [0; Self::LEN];
        out[0] = if self.needs_csum { F_NEEDS_CSUM } else { 0 }
            | if self.data_valid { F_DATA_VALID } else { 0 };
        out[1] = gso | if self.gso_ecn { GSO_ECN } else { 0 };
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (to, from) in out[2..].chunks_exact_mut(2).zip(fields) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        for gso in [0, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, 3, GSO_TCPV6 | GSO_ECN] {
            for flags in 0..4 {
                let bytes = [flags, gso, 1, 2, 3, 4, 5, 6, 7, 8];
                let header = VirtioHeader::from_bytes(&bytes).unwrap();
                assert_eq!(header.to_bytes(), bytes);
            }
        }
        assert_eq!(VirtioHeader::from_bytes(&[0; 9]), None);
        assert_eq!(VirtioHeader::from_bytes(&[0; 12]), Some(VirtioHeader::default()));
    }
}
