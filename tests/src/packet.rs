// SPDX-License-Identifier: Apache-2.0

//! Handmade packets, and fields of captured ones that tests check. Independent of `clat_xlat` on
//! purpose: a test that shares code with its subject proves nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers.
pub mod proto {
    #![allow(missing_docs)]
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const ESP: u8 = 50;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const UDPLITE: u8 = 136;
    pub const UNASSIGNED: u8 = 200;
}

/// An IPv4 header; [`V4::packet`] adds a payload.
#[derive(Clone, Debug)]
pub struct V4 {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Protocol.
    pub proto: u8,
    /// Type of service.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset as on the wire: 0x4000 DF, 0x2000 MF, offset in units of 8 bytes.
    pub frag: u16,
    /// Time to live.
    pub ttl: u8,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
}

impl V4 {
    /// A plain header with DF.
    #[must_use]
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, proto: u8) -> Self {
        Self { src, dst, proto, tos: 0, id: 0, frag: 0x4000, ttl: 64, options: Vec::new() }
    }

    /// The header and `payload` behind it.
    #[must_use]
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut p = vec![0x40 | low_byte(header / 4), self.tos];
        p.extend(low_word(header + payload.len()).to_be_bytes());
        p.extend(self.id.to_be_bytes());
        p.extend(self.frag.to_be_bytes());
        p.extend([self.ttl, self.proto, 0, 0]);
        p.extend(self.src.octets());
        p.extend(self.dst.octets());
        p.extend(&self.options);
        let sum = !fold(sum(&p));
        p[10..12].copy_from_slice(&sum.to_be_bytes());
        p.extend(payload);
        p
    }
}

/// An IPv6 header; [`V6::packet`] adds a payload.
#[derive(Clone, Debug)]
pub struct V6 {
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
    /// Next header.
    pub next: u8,
    /// Traffic class.
    pub class: u8,
    /// Flow label, 20 bits.
    pub flow: u32,
    /// Hop limit.
    pub hops: u8,
}

impl V6 {
    /// A plain header.
    #[must_use]
    pub fn new(src: Ipv6Addr, dst: Ipv6Addr, next: u8) -> Self {
        Self { src, dst, next, class: 0, flow: 0, hops: 64 }
    }

    /// The header and `payload` behind it.
    #[must_use]
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let first = 6 << 28 | u32::from(self.class) << 20 | self.flow;
        let mut p = first.to_be_bytes().to_vec();
        p.extend(low_word(payload.len()).to_be_bytes());
        p.extend([self.next, self.hops]);
        p.extend(self.src.octets());
        p.extend(self.dst.octets());
        p.extend(payload);
        p
    }
}

/// A Fragment Header: `offset` in bytes.
#[must_use]
pub fn fragment_header(next: u8, offset: u16, more: bool, id: u32) -> Vec<u8> {
    let mut h = vec![next, 0];
    h.extend((offset & !7 | u16::from(more)).to_be_bytes());
    h.extend(id.to_be_bytes());
    h
}

/// A UDP datagram between two addresses of one family, checksum included.
#[must_use]
pub fn udp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16, data: &[u8]) -> Vec<u8> {
    let mut p = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    p.extend(low_word(8 + data.len()).to_be_bytes());
    p.extend([0, 0]);
    p.extend(data);
    let sum = match checksum(src, dst, proto::UDP, &p) {
        0 => 0xffff,
        sum => sum,
    };
    p[6..8].copy_from_slice(&sum.to_be_bytes());
    p
}

/// A UDP-Lite packet whose checksum covers all of it (RFC 3828).
#[must_use]
pub fn udplite(src: IpAddr, sport: u16, dst: IpAddr, dport: u16, data: &[u8]) -> Vec<u8> {
    let mut p = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    p.extend([0, 0, 0, 0]); // coverage 0: all
    p.extend(data);
    let sum = checksum(src, dst, proto::UDPLITE, &p);
    p[6..8].copy_from_slice(&sum.to_be_bytes());
    p
}

/// A TCP segment without options, checksum included. `flags`: 2 SYN, 16 ACK.
#[must_use]
pub fn tcp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut p = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    p.extend(0x1234_5678_u32.to_be_bytes());
    p.extend(0_u32.to_be_bytes());
    p.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    p.extend(data);
    let sum = checksum(src, dst, proto::TCP, &p);
    p[16..18].copy_from_slice(&sum.to_be_bytes());
    p
}

/// An ICMP message: type, code, the second four bytes, the rest; checksum included.
#[must_use]
pub fn icmp(kind: u8, code: u8, word: u32, data: &[u8]) -> Vec<u8> {
    let mut p = vec![kind, code, 0, 0];
    p.extend(word.to_be_bytes());
    p.extend(data);
    let sum = !fold(sum(&p));
    p[2..4].copy_from_slice(&sum.to_be_bytes());
    p
}

/// The same for ICMPv6, whose checksum covers a pseudo header.
#[must_use]
pub fn icmpv6(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, code: u8, word: u32, data: &[u8]) -> Vec<u8> {
    let mut p = vec![kind, code, 0, 0];
    p.extend(word.to_be_bytes());
    p.extend(data);
    let sum = checksum(src.into(), dst.into(), proto::ICMPV6, &p);
    p[2..4].copy_from_slice(&sum.to_be_bytes());
    p
}

/// The checksum of an ICMP message or extension structure whose checksum field is zero.
#[must_use]
pub fn icmp_sum(message: &[u8]) -> u16 {
    !fold(sum(message))
}

/// The checksum for `segment`, whose checksum field is zero; 0 if the field is already right.
#[must_use]
pub fn checksum(src: IpAddr, dst: IpAddr, proto: u8, segment: &[u8]) -> u16 {
    let addrs = match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum(&s.octets()) + sum(&d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum(&s.octets()) + sum(&d.octets()),
        _ => 0,
    };
    !fold(addrs + u64::from(proto) + segment.len() as u64 + sum(segment))
}

fn sum(bytes: &[u8]) -> u64 {
    let word = |c: &[u8]| u64::from(c[0]) << 8 | u64::from(c.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    low_word(usize::try_from(sum).unwrap_or(0))
}

#[allow(clippy::cast_possible_truncation)] // lengths that lie are wanted
fn low_word(n: usize) -> u16 {
    n as u16
}

#[allow(clippy::cast_possible_truncation)]
fn low_byte(n: usize) -> u8 {
    n as u8
}

/// The big-endian word at `at`, or 0 behind the end.
#[must_use]
pub fn word(p: &[u8], at: usize) -> u16 {
    p.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

/// The fields of a captured packet that tests check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// TOS or traffic class.
    pub class: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// The transport protocol, behind any extension headers.
    pub proto: u8,
    /// The payload from the transport header on.
    pub payload: Vec<u8>,
    /// Whether it is a fragment, but not an atomic one.
    pub fragment: bool,
}

impl Seen {
    /// Parses a packet from its IP header on; `None` if it is not IP.
    #[must_use]
    pub fn read(p: &[u8]) -> Option<Self> {
        match p.first()? >> 4 {
            4 => {
                let header = usize::from(p[0] & 15) * 4;
                let end = usize::from(word(p, 2)).min(p.len());
                Some(Self {
                    src: <[u8; 4]>::try_from(p.get(12..16)?).ok()?.into(),
                    dst: <[u8; 4]>::try_from(p.get(16..20)?).ok()?.into(),
                    class: p[1],
                    hops: p[8],
                    proto: p[9],
                    payload: p.get(header..end)?.to_vec(),
                    fragment: word(p, 6) & 0x3fff != 0,
                })
            }
            6 => {
                let src = <[u8; 16]>::try_from(p.get(8..24)?).ok()?.into();
                let dst = <[u8; 16]>::try_from(p.get(24..40)?).ok()?.into();
                let end = (40 + usize::from(word(p, 4))).min(p.len());
                let (mut next, mut at, mut fragment) = (p[6], 40, false);
                loop {
                    let len = match next {
                        0 | 43 | 60 => 8 + usize::from(*p.get(at + 1)?) * 8,
                        proto::FRAGMENT => {
                            fragment |= word(p, at + 2) & 0xfff9 != 0;
                            8
                        }
                        _ => break,
                    };
                    next = *p.get(at)?;
                    at += len;
                }
                let class = u8::try_from(word(p, 0) >> 4 & 0xff).ok()?;
                let payload = p.get(at..end)?.to_vec();
                Some(Self { src, dst, class, hops: p[7], proto: next, payload, fragment })
            }
            _ => None,
        }
    }

    /// Whether its transport checksum is right (or is none that this can check).
    #[must_use]
    pub fn checksum_ok(&self) -> bool {
        match self.proto {
            proto::TCP | proto::UDP | proto::UDPLITE | proto::ICMPV6 => {
                checksum(self.src, self.dst, self.proto, &self.payload) == 0
            }
            proto::ICMP => fold(sum(&self.payload)) == 0xffff,
            _ => true,
        }
    }
}
