// SPDX-License-Identifier: Apache-2.0

//! Handmade packets, and a check of results that shares no code with the translator.
// Each test uses a part of this.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::net::{Ipv4Addr, Ipv6Addr};

use clat_xlat::{
    Addresses, Config, Local, Packet, Prefix, Reason, Rule, Translator, Verdict, HEADROOM, TAILROOM,
};

pub const LOCAL4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 4);
pub const REMOTE4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Not checksum-neutral, so that checksums change.
pub const LOCAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0x11, 0x22, 0x33, 0x44);
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

pub fn remote6() -> Ipv6Addr {
    Prefix::WELL_KNOWN.embed(REMOTE4)
}

pub fn clat() -> Addresses {
    Addresses {
        local: Some(Local { v4: LOCAL4, v6: LOCAL6 }),
        prefixes: vec![Prefix::WELL_KNOWN],
        ..Addresses::default()
    }
}

pub fn config() -> Config {
    Config { router6: ROUTER6, ..Config::default() }
}

pub fn translator() -> Translator {
    translator_of(config(), clat(), 1)
}

/// A translator between valid addresses.
pub fn translator_of(config: Config, addresses: Addresses, first_id: u16) -> Translator {
    Translator::new(config, addresses, first_id).expect("right addresses")
}

/// The result of a translation, on the heap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    Forward(Rule, Vec<Vec<u8>>),
    Reply(Reason, Vec<u8>),
    Drop(Reason),
}

impl Out {
    /// The one packet that was forwarded.
    pub fn one(self) -> Vec<u8> {
        match self {
            Out::Forward(_, mut frames) if frames.len() == 1 => frames.remove(0),
            other => panic!("not one packet: {other:?}"),
        }
    }

    pub fn many(self) -> Vec<Vec<u8>> {
        match self {
            Out::Forward(_, frames) => frames,
            other => panic!("not forwarded: {other:?}"),
        }
    }

    pub fn reply(self) -> (Reason, Vec<u8>) {
        match self {
            Out::Reply(reason, error) => (reason, error),
            other => panic!("not answered: {other:?}"),
        }
    }
}

pub fn run(t: &mut Translator, input: &[u8]) -> Out {
    let mut buf = vec![0xa5; HEADROOM + input.len() + TAILROOM];
    buf[HEADROOM..HEADROOM + input.len()].copy_from_slice(input);
    let mut packet = Packet::new(&mut buf, HEADROOM..HEADROOM + input.len()).unwrap();
    let out = match t.translate(&mut packet) {
        Verdict::Forward { rule, mut frames } => {
            let mut all = Vec::new();
            let mut ranges = Vec::new();
            while let Some(frame) = frames.next() {
                all.push(frame.bytes.to_vec());
                ranges.push(frame.range);
            }
            // The last is at the range returned with it.
            assert_eq!(all.last().map(|last| &last[..]), ranges.last().map(|at| &buf[at.clone()]));
            assert!(all.iter().map(Vec::len).eq(ranges.iter().map(ExactSizeIterator::len)));
            Out::Forward(rule, all)
        }
        Verdict::Reply { reason, error } => Out::Reply(reason, error.to_vec()),
        Verdict::Drop(reason) => {
            assert_eq!(packet.bytes(), input, "a dropped packet must stay as it was");
            Out::Drop(reason)
        }
    };
    out
}

/// RFC 1071, word by word.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Fields of an IPv4 packet; the defaults are those of a packet from the CLAT.
#[derive(Clone, Debug)]
pub struct V4 {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    pub df: bool,
    pub mf: bool,
    /// In bytes.
    pub offset: usize,
    pub protocol: u8,
    pub options: Vec<u8>,
}

impl Default for V4 {
    fn default() -> Self {
        Self {
            src: LOCAL4,
            dst: REMOTE4,
            tos: 0,
            ttl: 64,
            id: 0x1234,
            df: false,
            mf: false,
            offset: 0,
            protocol: UDP,
            options: vec![],
        }
    }
}

impl V4 {
    pub fn inward() -> Self {
        Self { src: REMOTE4, dst: LOCAL4, ..Self::default() }
    }

    /// The packet with this payload, unchanged.
    pub fn raw(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut out = vec![0x40 | (header / 4) as u8, self.tos];
        out.extend(((header + payload.len()) as u16).to_be_bytes());
        out.extend(self.id.to_be_bytes());
        let flags = (self.offset / 8) as u16 | u16::from(self.mf) << 13 | u16::from(self.df) << 14;
        out.extend(flags.to_be_bytes());
        out.extend([self.ttl, self.protocol, 0, 0]);
        out.extend(self.src.octets());
        out.extend(self.dst.octets());
        out.extend(&self.options);
        let check = !sum(&[&out]);
        out[10..12].copy_from_slice(&check.to_be_bytes());
        out.extend(payload);
        out
    }

    fn pseudo(&self, len: usize) -> Vec<u8> {
        let mut out = self.src.octets().to_vec();
        out.extend(self.dst.octets());
        out.extend([0, self.protocol]);
        out.extend((len as u16).to_be_bytes());
        out
    }

    /// Fills in the transport checksum, then [`Self::raw`].
    pub fn build(&self, payload: &[u8]) -> Vec<u8> {
        let mut payload = payload.to_vec();
        let pseudo = if self.protocol == ICMP { vec![] } else { self.pseudo(payload.len()) };
        fill_checksum(self.protocol, &mut payload, &pseudo);
        self.raw(&payload)
    }
}

/// Fields of an IPv6 packet; the defaults are those of a packet to the CLAT.
#[derive(Clone, Debug)]
pub struct V6 {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub class: u8,
    pub flow: u32,
    pub hops: u8,
    pub protocol: u8,
    /// Extension headers with their numbers, in order; next header fields are filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
}

impl Default for V6 {
    fn default() -> Self {
        Self {
            src: remote6(),
            dst: LOCAL6,
            class: 0,
            flow: 0,
            hops: 64,
            protocol: UDP,
            extensions: vec![],
        }
    }
}

impl V6 {
    pub fn outward() -> Self {
        Self { src: LOCAL6, dst: remote6(), ..Self::default() }
    }

    pub fn fragment(offset: usize, more: bool, id: u32) -> (u8, Vec<u8>) {
        let mut header = vec![0, 0];
        header.extend((offset as u16 | u16::from(more)).to_be_bytes());
        header.extend(id.to_be_bytes());
        (44, header)
    }

    pub fn raw(&self, payload: &[u8]) -> Vec<u8> {
        let mut numbers: Vec<u8> = self.extensions.iter().map(|(n, _)| *n).collect();
        numbers.push(self.protocol);
        let len = self.extensions.iter().map(|(_, e)| e.len()).sum::<usize>() + payload.len();
        let mut out = (6 << 28 | u32::from(self.class) << 20 | self.flow).to_be_bytes().to_vec();
        out.extend((len as u16).to_be_bytes());
        out.extend([numbers[0], self.hops]);
        out.extend(self.src.octets());
        out.extend(self.dst.octets());
        for (at, (_, header)) in self.extensions.iter().enumerate() {
            out.push(numbers[at + 1]);
            out.extend(&header[1..]);
        }
        out.extend(payload);
        out
    }

    fn pseudo(&self, len: usize) -> Vec<u8> {
        let mut out = self.src.octets().to_vec();
        out.extend(self.dst.octets());
        out.extend((len as u32).to_be_bytes());
        out.extend([0, 0, 0, self.protocol]);
        out
    }

    pub fn build(&self, payload: &[u8]) -> Vec<u8> {
        let mut payload = payload.to_vec();
        let pseudo = self.pseudo(payload.len());
        fill_checksum(self.protocol, &mut payload, &pseudo);
        self.raw(&payload)
    }
}

pub fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP | 33 | 136 => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

pub fn fill_checksum(protocol: u8, payload: &mut [u8], pseudo: &[u8]) {
    let Some(at) = checksum_at(protocol) else { return };
    payload[at..at + 2].fill(0);
    let check = match !sum(&[pseudo, payload]) {
        0 if matches!(protocol, UDP | 136) => 0xffff,
        check => check,
    };
    payload[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

pub fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + 3) as u8).collect()
}

/// A UDP datagram, checksum zero.
pub fn udp(len: usize) -> Vec<u8> {
    let mut out = vec![0x30, 0x39, 0, 53];
    out.extend(((8 + len) as u16).to_be_bytes());
    out.extend([0, 0]);
    out.extend(data(len));
    out
}

/// A TCP segment, checksum zero.
pub fn tcp(len: usize) -> Vec<u8> {
    let mut out =
        vec![0x30, 0x39, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0];
    out.extend(data(len));
    out
}

/// An ICMP message, checksum zero.
pub fn icmp(kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, code, 0, 0];
    out.extend(rest);
    out.extend(body);
    out
}

/// An RFC 4884 extension structure with one object of `len` bytes.
pub fn extension(len: usize) -> Vec<u8> {
    let mut out = vec![0x20, 0, 0, 0];
    out.extend(((4 + len) as u16).to_be_bytes());
    out.extend([1, 1]);
    out.extend(data(len));
    let check = !sum(&[&out]);
    out[2..4].copy_from_slice(&check.to_be_bytes());
    out
}

/// A packet parsed independently.
#[derive(Debug, Clone)]
pub struct Seen {
    pub v6: bool,
    pub src: Vec<u8>,
    pub dst: Vec<u8>,
    pub class: u8,
    pub flow: u32,
    pub hops: u8,
    pub protocol: u8,
    pub id: u32,
    pub df: bool,
    pub mf: bool,
    pub offset: usize,
    pub fragment_header: bool,
    pub payload: Vec<u8>,
}

/// Parses a packet, and checks all lengths and header checksums.
pub fn see(bytes: &[u8]) -> Seen {
    if bytes[0] >> 4 == 4 {
        assert_eq!(bytes[0], 0x45, "no options leave the translator");
        assert_eq!(usize::from(be16(bytes, 2)), bytes.len(), "total length");
        assert_eq!(sum(&[&bytes[..20]]), 0xffff, "header checksum");
        let flags = be16(bytes, 6);
        Seen {
            v6: false,
            src: bytes[12..16].to_vec(),
            dst: bytes[16..20].to_vec(),
            class: bytes[1],
            flow: 0,
            hops: bytes[8],
            protocol: bytes[9],
            id: be16(bytes, 4).into(),
            df: flags & 0x4000 != 0,
            mf: flags & 0x2000 != 0,
            offset: usize::from(flags & 0x1fff) * 8,
            fragment_header: false,
            payload: bytes[20..].to_vec(),
        }
    } else {
        assert_eq!(bytes[0] >> 4, 6);
        assert_eq!(usize::from(be16(bytes, 4)) + 40, bytes.len(), "payload length");
        let first = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let fragment = bytes[6] == 44;
        let (mut protocol, mut id, mut mf, mut offset) = (bytes[6], 0, false, 0);
        if fragment {
            protocol = bytes[40];
            let field = be16(bytes, 42);
            (mf, offset) = (field & 1 != 0, usize::from(field & !7));
            assert_eq!((bytes[41], field & 6), (0, 0), "reserved bits");
            id = u32::from_be_bytes([bytes[44], bytes[45], bytes[46], bytes[47]]);
        }
        Seen {
            v6: true,
            src: bytes[8..24].to_vec(),
            dst: bytes[24..40].to_vec(),
            class: (first >> 20) as u8,
            flow: first & 0xf_ffff,
            hops: bytes[7],
            protocol,
            id,
            df: true,
            mf,
            offset,
            fragment_header: fragment,
            payload: bytes[if fragment { 48 } else { 40 }..].to_vec(),
        }
    }
}

impl Seen {
    pub fn is_fragment(&self) -> bool {
        self.mf || self.offset != 0
    }

    fn pseudo(&self) -> Vec<u8> {
        if !self.v6 && self.protocol == ICMP {
            return vec![];
        }
        let mut out = self.src.clone();
        out.extend(&self.dst);
        out.extend((self.payload.len() as u32).to_be_bytes());
        out.extend([0, self.protocol]);
        out
    }

    /// One's-complement sum of pseudo-header and payload: 0xffff when the checksum is right.
    pub fn transport_sum(&self) -> u16 {
        sum(&[&self.pseudo(), &self.payload])
    }
}

/// Checks everything that must be right in the translation of a valid packet.
pub fn check(bytes: &[u8]) -> Seen {
    let seen = see(bytes);
    if !seen.is_fragment() {
        if let Some(at) = checksum_at(seen.protocol) {
            let none = !seen.v6 && seen.protocol == UDP && be16(&seen.payload, at) == 0;
            if !none {
                assert_eq!(
                    seen.transport_sum(),
                    0xffff,
                    "transport checksum, protocol {}",
                    seen.protocol
                );
            }
            if seen.protocol == UDP {
                assert!(usize::from(be16(&seen.payload, 4)) <= seen.payload.len(), "UDP length");
                assert!(!seen.v6 || be16(&seen.payload, at) != 0, "UDP over IPv6 without checksum");
            }
        }
    }
    if seen.v6 {
        assert!(
            !(seen.protocol == ICMPV6 && seen.payload[0] < 128) || bytes.len() <= 1280,
            "ICMPv6 error too long"
        );
    } else {
        assert!(
            !(seen.protocol == ICMP && seen.payload[0] == 3) || bytes.len() <= 576,
            "ICMP error too long"
        );
    }
    seen
}

/// Reassembles fragments.
pub fn reassemble(frames: &[Vec<u8>]) -> Seen {
    let mut all = see(&frames[0]);
    for frame in &frames[1..] {
        let next = see(frame);
        assert_eq!(next.offset, all.offset + all.payload.len(), "fragments follow one another");
        assert_eq!((next.id, next.protocol), (all.id, all.protocol));
        all.payload.extend(next.payload);
        all.mf = next.mf;
    }
    all
}

/// Translates any input: any result is fine, but output must be well formed, of the right family
/// and fit its link.
pub fn survive(config: Config, input: &[u8]) {
    match run(&mut translator_of(config, clat(), 1), input) {
        Out::Forward(_, frames) => {
            assert!(!frames.is_empty());
            for frame in &frames {
                see(frame);
                let from6 = input[0] >> 4 == 6;
                assert_eq!(frame[0] >> 4, if from6 { 4 } else { 6 }, "the other family");
                let mtu = if from6 { config.mtu4 } else { config.mtu6 };
                assert!(frame.len() <= mtu as usize, "{} > {mtu}", frame.len());
            }
        }
        Out::Reply(_, error) => {
            let seen = check(&error);
            assert_eq!(error[0] >> 4, input[0] >> 4, "the same family");
            let (at, src) = if seen.v6 { (8, 16) } else { (12, 4) };
            assert_eq!(seen.dst, input[at..at + src], "back to the sender");
        }
        Out::Drop(_) => {}
    }
}

/// Corrects the checksum of a modified header, so that it passes the first check.
pub fn mend_ipv4_checksum(packet: &mut [u8]) {
    let Some(first) = packet.first() else { return };
    let header = usize::from(first & 0xf) * 4;
    if first >> 4 == 4 && header >= 20 && packet.len() >= header {
        packet[10..12].fill(0);
        let check = !sum(&[&packet[..header]]);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    }
}
