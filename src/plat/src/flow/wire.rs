// SPDX-License-Identifier: Apache-2.0

//! Parses packets of guests, and builds packets for them. IPv4 addresses are IPv4-mapped IPv6
//! addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use clat_packet::checksum::Sum;
use clat_packet::{ipv4, ipv6, protocol, Fragment};
use clat_tun::{GsoType, VirtioHeader};

use super::tcp::{self, flag, Incoming, Segment};
use super::Sink;
use crate::frame::{Mac, ETHERNET};

pub const ICMP4: u8 = protocol::ICMP;
pub const TCP: u8 = protocol::TCP;
pub const UDP: u8 = protocol::UDP;
pub const ICMP6: u8 = protocol::ICMPV6;

/// Bytes of an IPv6 header.
pub const IPV6: usize = ipv6::HEADER;
/// Bytes of Ethernet, IPv6, Fragment and TCP headers with all options.
const HEADERS: usize = ETHERNET + IPV6 + ipv6::FRAGMENT_HEADER + 60;

/// A parsed IP packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub protocol: u8,
    pub hop_limit: u8,
    /// Traffic class, or TOS.
    pub class: u8,
    pub fragment: Option<Fragment>,
    /// Whether the payload may be fragmented: it already is, or IPv4's DF is clear.
    pub may_cut: bool,
    /// The payload behind all IP headers.
    pub payload: &'a [u8],
    /// The packet from its IP header on, without padding.
    pub whole: &'a [u8],
}

/// Parses an IP packet of either version. `None` if it is malformed.
pub fn parse(bytes: &[u8]) -> Option<Packet<'_>> {
    match bytes.first()? >> 4 {
        6 => parse6(bytes),
        4 => parse4(bytes),
        _ => None,
    }
}

/// The length of an IP packet by its header; padding may follow.
pub fn length(bytes: &[u8]) -> usize {
    match bytes {
        [first, _, a, b, ..] if first >> 4 == 4 => usize::from(u16::from_be_bytes([*a, *b])),
        [_, _, _, _, a, b, ..] => IPV6 + usize::from(u16::from_be_bytes([*a, *b])),
        _ => 0,
    }
}

fn parse6(bytes: &[u8]) -> Option<Packet<'_>> {
    let ipv6::Parsed { ip, segments_left_at } = ipv6::parse(bytes).ok()?;
    let (src, dst) = (Ipv6Addr::from_bits(ip.src), Ipv6Addr::from_bits(ip.dst));
    // Mapped addresses mean IPv4 in this program; no IPv6 packet may have one.
    let mapped = src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some();
    // Source routes are not followed.
    if segments_left_at.is_some() || mapped {
        return None;
    }
    // An atomic fragment is a whole packet (RFC 6946).
    let fragment = ip.fragment.filter(|fragment| !fragment.is_atomic());
    let whole = bytes.get(..ip.len)?;
    Some(Packet {
        src,
        dst,
        protocol: ip.protocol,
        hop_limit: ip.hops,
        class: ip.class,
        fragment,
        may_cut: fragment.is_some(),
        payload: whole.get(ip.header_len..)?,
        whole,
    })
}

fn parse4(bytes: &[u8]) -> Option<Packet<'_>> {
    let ip = ipv4::parse(bytes).ok()?;
    let whole = bytes.get(..ip.len)?;
    Some(Packet {
        src: Ipv4Addr::from_bits(ip.src).to_ipv6_mapped(),
        dst: Ipv4Addr::from_bits(ip.dst).to_ipv6_mapped(),
        protocol: ip.protocol,
        hop_limit: ip.hops,
        class: ip.class,
        fragment: ip.fragment,
        may_cut: !ip.dont_fragment || ip.fragment.is_some(),
        payload: whole.get(ip.header_len..)?,
        whole,
    })
}

/// The sum of the pseudo-header.
pub fn pseudo(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: usize) -> Sum {
    match src.to_ipv4_mapped().zip(dst.to_ipv4_mapped()) {
        Some((src, dst)) => Sum::pseudo4(src.to_bits(), dst.to_bits(), len, protocol),
        None => Sum::pseudo6(src.to_bits(), dst.to_bits(), len, protocol),
    }
}

/// Whether the checksum of an L4 packet is right. UDP over IPv4 may have none (RFC 768).
pub fn verifies(packet: &Packet<'_>) -> bool {
    match (packet.protocol, packet.payload) {
        (ICMP4, message) => return Sum::of(message).is_right(),
        (UDP, [_, _, _, _, _, _, 0, 0, ..]) => return packet.src.to_ipv4_mapped().is_some(),
        _ => {}
    }
    let pseudo = pseudo(packet.src, packet.dst, packet.protocol, packet.payload.len());
    (pseudo + Sum::of(packet.payload)).is_right()
}

/// Parses a TCP segment: ports and the rest.
pub fn parse_tcp(payload: &[u8]) -> Option<(u16, u16, Incoming<'_>)> {
    let head: &[u8; 20] = payload.first_chunk()?;
    let header_len = usize::from(head[12] >> 4) * 4;
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
    let incoming = Incoming {
        seq: long(4),
        ack: long(8),
        flags: head[13],
        window: word(14),
        options: payload.get(20..header_len)?,
        payload: payload.get(header_len..)?,
    };
    Some((word(0), word(2), incoming))
}

/// Parses a UDP datagram: ports and data. The length in its header counts, except in a GSO packet.
pub fn parse_udp(payload: &[u8], whole: bool) -> Option<(u16, u16, &[u8])> {
    let head: &[u8; 8] = payload.first_chunk()?;
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let len = if whole { payload.len() } else { usize::from(word(4)) };
    Some((word(0), word(2), payload.get(8..len)?))
}

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub guest_mac: Mac,
    pub mac: Mac,
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    /// The traffic class (IPv4's TOS).
    pub class: u8,
}

/// The headers of a packet being built.
struct Head {
    bytes: [u8; HEADERS],
    len: usize,
}

impl Head {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    /// Ethernet and IP headers, for `len` bytes behind them.
    fn new(addresses: &Addresses, protocol: u8, len: usize, hop_limit: u8) -> Self {
        let mut head = Self { bytes: [0; HEADERS], len: 0 };
        head.put(&addresses.guest_mac.0);
        head.put(&addresses.mac.0);
        if let Some((src, dst)) = addresses.src.to_ipv4_mapped().zip(addresses.dst.to_ipv4_mapped())
        {
            head.put(&[8, 0, 0x45, addresses.class]);
            head.put(&u16::try_from(len + 20).unwrap_or(u16::MAX).to_be_bytes());
            let protocol = if protocol == ICMP6 { ICMP4 } else { protocol };
            head.put(&[0, 0, 0x40, 0, hop_limit, protocol, 0, 0]);
            head.put(&src.octets());
            head.put(&dst.octets());
            let check = Sum::of(&head.bytes[ETHERNET..ETHERNET + 20]).field();
            head.bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&check);
        } else {
            head.put(&[0x86, 0xdd, 0x60 | addresses.class >> 4, addresses.class << 4, 0, 0]);
            head.put(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
            head.put(&[protocol, hop_limit]);
            head.put(&addresses.src.octets());
            head.put(&addresses.dst.octets());
        }
        head
    }

    fn is_ipv4(&self) -> bool {
        self.bytes[12] == 8
    }
}

/// What the receiver of frames can complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Checksums and TCP segmentation.
    pub tso: bool,
    /// UDP_SEGMENT.
    pub uso: bool,
}

/// Sends a TCP segment, as a GSO packet or split here.
pub fn send_tcp(
    sink: &mut dyn Sink,
    addresses: &Addresses,
    ports: (u16, u16),
    segment: &Segment<'_>,
    offload: Offload,
) {
    let mss = usize::from(segment.mss);
    let [a, b] = segment.payload;
    let total = a.len() + b.len();
    if offload.tso || total <= mss {
        return send_segment(sink, addresses, ports, segment, offload);
    }
    let mut at = 0;
    while at < total {
        let len = mss.min(total - at);
        let from_a = a.len().saturating_sub(at).min(len);
        let start_b = (at + from_a).saturating_sub(a.len());
        let payload = [
            a.get(at..at + from_a).unwrap_or_default(),
            b.get(start_b..start_b + len - from_a).unwrap_or_default(),
        ];
        at += len;
        let last = at == total;
        let flags = if last { segment.flags } else { segment.flags & !(flag::FIN | flag::PSH) };
        // at - len fits: a segment has at most 64 KiB.
        let seq = segment.seq.wrapping_add(u32::try_from(at - len).unwrap_or(0));
        send_segment(sink, addresses, ports, &Segment { seq, flags, payload, ..*segment }, offload);
    }
}

fn send_segment(
    sink: &mut dyn Sink,
    addresses: &Addresses,
    (from, to): (u16, u16),
    segment: &Segment<'_>,
    offload: Offload,
) {
    let [a, b] = segment.payload;
    let header = 20 + segment.options.len();
    let len = header + a.len() + b.len();
    let mut head = Head::new(addresses, TCP, len, 64);
    let start = head.len;
    head.put(&from.to_be_bytes());
    head.put(&to.to_be_bytes());
    head.put(&segment.seq.to_be_bytes());
    head.put(&segment.ack.to_be_bytes());
    let words = u8::try_from(header / 4).unwrap_or(15);
    head.put(&[words << 4, segment.flags]);
    head.put(&segment.window.to_be_bytes());
    head.put(&[0; 4]);
    head.put(segment.options);
    let super_packet = a.len() + b.len() > usize::from(segment.mss);
    let gso_type = match (super_packet, head.is_ipv4()) {
        (false, _) => GsoType::None,
        (true, true) => GsoType::TcpV4,
        (true, false) => GsoType::TcpV6,
    };
    let gso_size = if super_packet { segment.mss } else { 0 };
    finish(sink, addresses, head, start, (TCP, 16), [a, b], gso_type, gso_size, offload.tso);
}

/// Completes the checksum, or leaves it to the link, and sends.
#[allow(clippy::too_many_arguments)] // all that makes a packet
fn finish(
    sink: &mut dyn Sink,
    addresses: &Addresses,
    mut head: Head,
    start: usize,
    (protocol, csum_at): (u8, usize),
    [a, b]: [&[u8]; 2],
    gso_type: GsoType,
    gso_size: u16,
    partial: bool,
) {
    let len = head.len - start + a.len() + b.len();
    let mut vnet = VirtioHeader::default();
    let pseudo = match protocol {
        ICMP4 => Sum::default(),
        protocol => pseudo(addresses.src, addresses.dst, protocol, len),
    };
    let check = if partial {
        let short = |n: usize| u16::try_from(n).unwrap_or(0);
        vnet = VirtioHeader {
            needs_csum: true,
            data_valid: false,
            gso_type,
            gso_ecn: false,
            hdr_len: short(head.len),
            gso_size,
            csum_start: short(start),
            csum_offset: short(csum_at),
        };
        pseudo.partial_field()
    } else {
        let b = if a.len() % 2 == 0 { Sum::of(b) } else { Sum::of(b).at_odd_byte() };
        let total = pseudo + Sum::of(&head.bytes[start..head.len]) + Sum::of(a) + b;
        if protocol == UDP {
            total.nonzero_field()
        } else {
            total.field()
        }
    };
    head.bytes[start + csum_at..start + csum_at + 2].copy_from_slice(&check);
    sink.frame(&vnet, &[&head.bytes[..head.len], a, b]);
}

/// Sends datagrams of `size` bytes each in `data`; the last may be shorter.
pub fn send_udp(
    sink: &mut dyn Sink,
    addresses: &Addresses,
    ports: (u16, u16),
    data: &[u8],
    size: usize,
    mtu: usize,
    offload: Offload,
) {
    if data.len() > size && !(offload.uso && size + 8 + IPV6 <= mtu) {
        for datagram in data.chunks(size.max(1)) {
            send_udp(sink, addresses, ports, datagram, datagram.len(), mtu, offload);
        }
        return;
    }
    let len = 8 + data.len();
    let mut udp = [0; 8];
    udp[..2].copy_from_slice(&ports.0.to_be_bytes());
    udp[2..4].copy_from_slice(&ports.1.to_be_bytes());
    udp[4..6].copy_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
    let whole = data.len() <= size;
    if whole && len + IPV6 > mtu {
        let mut l4 = udp.to_vec();
        l4.extend_from_slice(data);
        let pseudo = pseudo(addresses.src, addresses.dst, UDP, len);
        let check = (pseudo + Sum::of(&l4)).nonzero_field();
        l4[6..8].copy_from_slice(&check);
        return send_fragments(sink, addresses, UDP, &l4, mtu);
    }
    let mut head = Head::new(addresses, UDP, len, 64);
    let start = head.len;
    head.put(&udp);
    let (gso, gso_size) =
        if whole { (GsoType::None, 0) } else { (GsoType::UdpL4, u16::try_from(size).unwrap_or(0)) };
    finish(sink, addresses, head, start, (UDP, 6), [data, &[]], gso, gso_size, offload.tso);
}

/// Sends an ICMP message, whose checksum is zero, in fragments if necessary.
pub fn send_icmp(
    sink: &mut dyn Sink,
    addresses: &Addresses,
    message: &mut [u8],
    hops: u8,
    mtu: usize,
) {
    let ipv4 = addresses.dst.to_ipv4_mapped().is_some();
    let pseudo = if ipv4 {
        Sum::default()
    } else {
        pseudo(addresses.src, addresses.dst, ICMP6, message.len())
    };
    let check = (pseudo + Sum::of(message)).field();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&check);
    }
    if message.len() + IPV6 > mtu {
        return send_fragments(sink, addresses, ICMP6, message, mtu);
    }
    let head = Head::new(addresses, ICMP6, message.len(), hops);
    sink.frame(&VirtioHeader::default(), &[&head.bytes[..head.len], message]);
}

/// Sends an L4 packet in fragments with a random identification.
fn send_fragments(sink: &mut dyn Sink, addresses: &Addresses, protocol: u8, l4: &[u8], mtu: usize) {
    let id = sink.next_id();
    let step = (mtu - IPV6 - 8) & !7;
    let mut at = 0;
    while at < l4.len() {
        let piece = &l4[at..l4.len().min(at + step)];
        let more = at + piece.len() < l4.len();
        if addresses.dst.to_ipv4_mapped().is_some() {
            let mut head = Head::new(addresses, protocol, piece.len(), 64);
            let field = u16::try_from(at / 8).unwrap_or(0) | if more { 0x2000 } else { 0 };
            let ip = &mut head.bytes[ETHERNET..ETHERNET + 20];
            ip[4..6].copy_from_slice(&id.to_be_bytes()[2..]);
            ip[6..8].copy_from_slice(&field.to_be_bytes());
            ip[10..12].fill(0);
            let check = Sum::of(ip).field();
            ip[10..12].copy_from_slice(&check);
            sink.frame(&VirtioHeader::default(), &[&head.bytes[..head.len], piece]);
        } else {
            let mut head = Head::new(addresses, protocol::FRAGMENT, 8 + piece.len(), 64);
            let field = u16::try_from(at).unwrap_or(0) | u16::from(more);
            head.put(&[protocol, 0]);
            head.put(&field.to_be_bytes());
            head.put(&id.to_be_bytes());
            sink.frame(&VirtioHeader::default(), &[&head.bytes[..head.len], piece]);
        }
        at += step;
    }
}

/// The adapter between [`tcp::Tcp`] and frames.
pub struct TcpWire<'a> {
    pub sink: &'a mut dyn Sink,
    pub addresses: Addresses,
    pub ports: (u16, u16),
    pub offload: Offload,
}

impl tcp::Wire for TcpWire<'_> {
    fn send(&mut self, segment: &Segment<'_>) {
        send_tcp(self.sink, &self.addresses, self.ports, segment, self.offload);
    }
}
