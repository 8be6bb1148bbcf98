// SPDX-License-Identifier: Apache-2.0

//! Invariants for any input of a guest: for property tests and for fuzz targets, which supply the
//! bytes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Ipv6Addr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use clat_tun::VirtioHeader;

use clat_plat::dns_server::DnsServer;
use clat_plat::fairness::Buckets;
use clat_plat::flow::errors;
use clat_plat::flow::fragments::Fragments;
use clat_plat::flow::tcp::{Segment, Tcp};
use clat_plat::flow::wire;
use clat_plat::flow::{Context, Sink};
use clat_plat::frame::{Mac, Out, ETHERNET};
use clat_plat::icmp_error::IcmpError;
use clat_plat::network::{is_question, Network, MAX_QUESTION};
use clat_plat::settings::{DualStack, Settings};

#[path = "../packets/mod.rs"]
mod packets;

pub(crate) use packets::fragment;

/// The bytes of a UDP header.
const UDP_HEADER: usize = 8;
/// Most payload of a GSO packet.
const SUPER_PACKET: usize = 1 << 16;

/// A sink that keeps each frame with its virtio header.
#[derive(Debug, Default)]
pub(crate) struct Frames(pub(crate) Vec<(VirtioHeader, Vec<u8>)>);

impl Sink for Frames {
    fn frame(&mut self, vnet: &VirtioHeader, parts: &[&[u8]]) {
        self.0.push((*vnet, parts.concat()));
    }

    fn next_id(&mut self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(0)
    }
}

impl Frames {
    /// The IP packets in them.
    pub(crate) fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(_, frame)| &frame[ETHERNET..])
    }
}

/// Discards segments.
struct Nowhere;

impl clat_plat::flow::tcp::Wire for Nowhere {
    fn send(&mut self, _: &Segment<'_>) {}
}

/// A frame for the guest: its lengths are valid, it fits the link, its checksums are right or
/// partial.
pub(crate) fn frame(vnet: &VirtioHeader, frame: &[u8], mtu: usize) {
    let packet = wire::parse(&frame[ETHERNET..]).expect("a packet that can be read");
    assert_eq!(packet.whole.len(), frame.len() - ETHERNET, "no padding");
    assert_eq!(frame[12..14] == [8, 0], packet.src.to_ipv4_mapped().is_some());
    let most = if vnet.gso_size > 0 { SUPER_PACKET } else { mtu };
    assert!(packet.whole.len() <= most, "{} bytes", packet.whole.len());
    if packet.fragment.is_some() {
        return;
    }
    if vnet.needs_csum {
        let pseudo = wire::pseudo(packet.src, packet.dst, packet.protocol, packet.payload.len());
        let start = usize::from(vnet.csum_start);
        assert_eq!(frame.len() - start, packet.payload.len());
        let field = start + usize::from(vnet.csum_offset);
        assert_eq!(frame[field..field + 2], pseudo.partial_field());
    } else {
        assert!(wire::verifies(&packet));
    }
    match packet.protocol {
        wire::TCP => assert!(wire::parse_tcp(packet.payload).is_some()),
        wire::UDP => {
            let (_, _, data) = wire::parse_udp(packet.payload, false).expect("a datagram");
            assert_eq!(UDP_HEADER + data.len(), packet.payload.len());
        }
        wire::ICMP4 | wire::ICMP6 => assert!(packet.payload.len() >= 8),
        other => panic!("protocol {other}"),
    }
}

/// Any bytes as a packet of the guest: what is parsed lies in it, and is the same without padding.
pub(crate) fn packet(bytes: &[u8]) {
    let Some(packet) = wire::parse(bytes) else { return };
    assert_eq!(packet.whole, &bytes[..wire::length(bytes)]);
    assert!(packet.whole.ends_with(packet.payload));
    assert!(packet.fragment.is_none_or(|f| f.more || f.offset > 0));
    let again = wire::parse(packet.whole).expect("the same");
    assert_eq!(
        (again.src, again.dst, again.protocol, again.fragment, again.payload),
        (packet.src, packet.dst, packet.protocol, packet.fragment, packet.payload)
    );
    let ipv4 = bytes[0] >> 4 == 4;
    for address in [packet.src, packet.dst] {
        assert_eq!(address.to_ipv4_mapped().is_some(), ipv4);
    }
    let _ = wire::verifies(&packet);
    if let Some((_, _, data)) = wire::parse_udp(packet.payload, false) {
        assert!(UDP_HEADER + data.len() <= packet.payload.len());
    }
    if let Some((_, _, segment)) = wire::parse_tcp(packet.payload) {
        assert_eq!(20 + segment.options.len() + segment.payload.len(), packet.payload.len());
        let now = Instant::now();
        let mut tcp = Tcp::accept(&segment, 1, 1440, now);
        assert!((64..=1440).contains(&tcp.mss()));
        tcp.break_off(&mut Nowhere);
    }
}

/// An error quotes the packet to its sender only; nothing is answered to an error.
pub(crate) fn error(kind: u8, code: u8, info: u32, router: Option<Ipv6Addr>, bytes: &[u8]) {
    let ipv4 = bytes.first().is_some_and(|first| first >> 4 == 4);
    let error = if ipv4 {
        IcmpError::from_icmp4(kind, code, info)
    } else {
        IcmpError::from_icmp6(kind, code, info)
    };
    let Some(error) = error else { return };
    let settings = Settings { dual_stack: Some(DualStack::default()), ..Settings::default() };
    let mut frames = Frames::default();
    let now = Instant::now();
    let cx = Context { settings: &settings, now };
    let guest = Mac([2, 0, 0, 0, 0, 9]);
    let sent = errors::send(cx, &mut frames, &Buckets::default(), error, bytes, guest, router);
    assert_eq!(frames.0.len(), usize::from(sent));
    let Some((vnet, frame)) = frames.0.first() else { return };
    self::frame(vnet, frame, if ipv4 { 576 } else { 1280 });
    assert_eq!(frame[..6], guest.0);
    let (asked, answer) = (wire::parse(bytes).unwrap(), wire::parse(&frame[ETHERNET..]).unwrap());
    assert_eq!(answer.dst, asked.src);
    assert!(asked.whole.starts_with(&answer.payload[8..]));
    assert!(answer.payload.len() >= 8 + asked.whole.len().min(500));
    // An error about it is an error about an error.
    let mut nowhere = Frames::default();
    let packet = &frame[ETHERNET..];
    assert!(!errors::send(cx, &mut nowhere, &Buckets::default(), error, packet, guest, router));
}

/// Fragments in any order, each after three bytes: its guest, whether more follow and the time
/// since the last; its offset; its length. Complete datagrams consist of adjacent fragments, none
/// of them older than allowed.
pub(crate) fn fragments(bytes: &[u8]) {
    let mut now = Instant::now();
    let mut all = Fragments::default();
    let mut offered: Vec<(u32, usize, Vec<u8>, Instant)> = Vec::new();
    let mut rest = bytes;
    while let Some((&[what, offset, len], more)) = rest.split_first_chunk() {
        now += Duration::from_secs(u64::from(what >> 5 & 3) * 5);
        let id = u32::from(what & 7);
        let last = what & 0x10 != 0;
        // Also far ones.
        let offset = usize::from(offset & 0x7f) * if offset & 0x80 == 0 { 8 } else { 512 };
        let len = if last { usize::from(len) } else { usize::from(len) & !7 };
        let (payload, more) = more.split_at(len.min(more.len()));
        rest = more;
        let packet = fragment(id, offset, !last, payload);
        offered.push((id, offset, payload.to_vec(), now));
        let Some((_, whole)) = all.offer(Mac([2; 6]), &packet, now) else { continue };
        // Up to the end of what can be reassembled.
        let mut ends = BTreeSet::from([0]);
        let mut at = 0;
        while at < whole.len() {
            for (whose, start, data, since) in &offered {
                let fresh = now - *since < Duration::from_secs(30);
                if *whose == id && fresh && *start == at && whole[at..].starts_with(data) {
                    ends.insert(at + data.len());
                }
            }
            at = *ends.range(at + 1..).next().expect("it is made of what came");
        }
        assert_eq!(whole.len(), at);
    }
}

/// Questions of a guest over TCP, cut before each of `cuts`, have the same answers as if they had
/// arrived at once. Those before a message that is no question may have theirs, or not.
pub(crate) fn dns_over_tcp(stream: &[u8], cuts: &[u16]) {
    let sound = &stream[..questions(stream)];
    let all = answers(sound, &[]);
    assert_eq!(answers(sound, cuts), all);
    if sound.len() < stream.len() {
        assert!(answers(stream, cuts).iter().all(|answer| all.contains(answer)));
    }
}

/// The leading questions; the last may be incomplete.
fn questions(stream: &[u8]) -> usize {
    let mut at = 0;
    while let Some((length, rest)) = stream[at..].split_first_chunk() {
        let len = usize::from(u16::from_be_bytes(*length));
        match rest.get(..len) {
            _ if len > MAX_QUESTION => return at,
            None => break,
            Some(message) if !is_question(message) => return at,
            Some(_) => at += 2 + len,
        }
    }
    stream.len()
}

/// The DNS server's answers to a stream of questions, sorted: those that wait for a resolver are
/// overtaken.
pub(crate) fn answers(stream: &[u8], cuts: &[u16]) -> Vec<Vec<u8>> {
    let now = Instant::now();
    let resolvers = vec![([192, 0, 2, 1], 53).into()];
    let mut network = Network::new(Settings { resolvers, ..Settings::default() }, now);
    let mut server = DnsServer::default();
    let (theirs, mut guest) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    guest.set_nonblocking(true).unwrap();
    let (number, _) = server.accept(Mac([2; 6]), theirs, now);
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut).min(stream.len())).collect();
    cuts.sort_unstable();
    cuts.push(stream.len());
    let (mut answers, mut at) = (Vec::new(), 0);
    for end in cuts {
        // A server that has closed the connection takes no more.
        let _ = guest.write_all(&stream[at..end]);
        at = end;
        server.event(number, now, &mut |guest, question| {
            network.dns_question(number, guest, &question, now);
        });
        loop {
            let queries = network.take_queries();
            for query in &queries {
                // NXDOMAIN.
                let mut answer = query.message.clone();
                (answer[2], answer[3]) = (answer[2] | 0x80, 3);
                network.dns_answer(query.token, &answer, now, &mut Out::default());
            }
            let given = network.take_dns_answers();
            if queries.is_empty() && given.is_empty() {
                break;
            }
            for (number, answer) in given {
                server.answer(number, &answer, now, &mut |guest, question| {
                    network.dns_question(number, guest, &question, now);
                });
            }
        }
        let _ = guest.read_to_end(&mut answers);
    }
    let (mut messages, mut rest) = (Vec::new(), &answers[..]);
    while let Some((length, more)) = rest.split_first_chunk() {
        let (message, more) = more.split_at(usize::from(u16::from_be_bytes(*length)));
        messages.push(message.to_vec());
        rest = more;
    }
    messages.sort();
    messages
}
