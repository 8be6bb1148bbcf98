// SPDX-License-Identifier: Apache-2.0

//! The packets that go through both translators.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clat_tests::packet::{self, fragment_header, icmp, icmpv6, proto, tcp, udp, udplite, V4, V6};
use clat_tests::{SERVER4, SERVER6};

/// The CLAT's addresses; not checksum-neutral, so that checksums have to be adjusted.
pub(crate) const LOCAL4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 4);
/// Its IPv6 form.
pub(crate) const LOCAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xc1a7);
/// A router that has no IPv4 form.
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 1);

/// A packet with a name.
#[derive(Debug)]
pub(crate) struct Case {
    /// For the table of differences.
    pub(crate) name: String,
    /// From the IP header on.
    pub(crate) packet: Vec<u8>,
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 253).unwrap_or(0)).collect()
}

/// Every case, both directions.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    to_ipv6(&mut cases);
    to_ipv6_errors(&mut cases);
    to_ipv4(&mut cases);
    to_ipv4_errors(&mut cases);
    cases
}

fn case(cases: &mut Vec<Case>, name: impl Into<String>, packet: Vec<u8>) {
    cases.push(Case { name: name.into(), packet });
}

fn v4(proto: u8) -> V4 {
    V4 { id: 0x1234, ..V4::new(LOCAL4, SERVER4, proto) }
}

fn udp4(len: usize) -> Vec<u8> {
    udp(LOCAL4.into(), 1000, SERVER4.into(), 2000, &data(len))
}

fn to_ipv6(c: &mut Vec<Case>) {
    let (src, dst): (IpAddr, IpAddr) = (LOCAL4.into(), SERVER4.into());
    for len in [0, 1, 2, 33, 512, 1231, 1232, 1233, 1400, 1444] {
        case(c, format!("46 udp {len} df"), v4(proto::UDP).packet(&udp4(len)));
    }
    // Without DF: unfragmented up to 1280 bytes of IPv6, which is 1260 of IPv4 without a Fragment
    // Header.
    for total in [100, 1252, 1253, 1260, 1261, 1280, 1400, 1472] {
        let header = V4 { frag: 0, ..v4(proto::UDP) };
        case(c, format!("46 udp total {total}"), header.packet(&udp4(total - 28)));
    }
    case(c, "46 udp tos", V4 { tos: 0xb9, ..v4(proto::UDP) }.packet(&udp4(20)));
    case(c, "46 udp ttl 1", V4 { ttl: 1, ..v4(proto::UDP) }.packet(&udp4(20)));
    case(c, "46 udp ttl 2", V4 { ttl: 2, ..v4(proto::UDP) }.packet(&udp4(20)));
    let mut zero = udp4(21);
    zero[6..8].fill(0);
    case(c, "46 udp checksum 0", v4(proto::UDP).packet(&zero));
    let mut wrong = udp4(20);
    wrong[6] ^= 0x55;
    case(c, "46 udp checksum wrong", v4(proto::UDP).packet(&wrong));
    for (name, options) in [
        ("nop", vec![1, 1, 1, 1]),
        ("record route", vec![7, 7, 4, 0, 0, 0, 0, 0]),
        ("router alert", vec![0x94, 4, 0, 0]),
        ("lsrr unexpired", vec![0x83, 7, 4, 10, 0, 0, 1, 0]),
        ("ssrr unexpired", vec![0x89, 7, 4, 10, 0, 0, 1, 0]),
        ("lsrr expired", vec![0x83, 7, 8, 10, 0, 0, 1, 0]),
    ] {
        case(c, format!("46 options {name}"), V4 { options, ..v4(proto::UDP) }.packet(&udp4(20)));
    }
    case(c, "46 tcp syn", v4(proto::TCP).packet(&tcp(src, 1000, dst, 80, 2, &[])));
    case(c, "46 tcp data", v4(proto::TCP).packet(&tcp(src, 1000, dst, 80, 16, &data(777))));
    for (name, number) in [
        ("gre", proto::GRE),
        ("esp", proto::ESP),
        ("ah", proto::AH),
        ("sctp", proto::SCTP),
        ("unassigned", proto::UNASSIGNED),
        ("ipv6 in ipv4", 41),
        ("igmp", 2),
        ("hop-by-hop", 0),
        ("fragment header", proto::FRAGMENT),
        ("icmpv6", proto::ICMPV6),
    ] {
        case(c, format!("46 protocol {name}"), v4(number).packet(&data(40)));
    }
    let lite = udplite(src, 1000, dst, 2000, &data(30));
    case(c, "46 udplite", v4(proto::UDPLITE).packet(&lite));
    for (name, kind) in
        [("request", 8), ("reply", 0), ("timestamp", 13), ("quench", 4), ("redirect", 5)]
    {
        let message = icmp(kind, 0, 0x0007_0001, &data(40));
        case(c, format!("46 icmp {name}"), v4(proto::ICMP).packet(&message));
    }
    case(c, "46 icmp empty echo", v4(proto::ICMP).packet(&icmp(8, 0, 0x0007_0001, &[])));
    let whole = udp4(2000);
    for (name, frag, part) in [
        ("first", 0x2000, &whole[..1200]),
        ("middle", 0x2000 | 150, &whole[1200..1600]),
        ("last", 200, &whole[1600..]),
    ] {
        case(c, format!("46 fragment {name}"), V4 { frag, ..v4(proto::UDP) }.packet(part));
    }
    let echo = icmp(8, 0, 0x0007_0001, &data(1000));
    case(c, "46 fragment icmp", V4 { frag: 0x2000, ..v4(proto::ICMP) }.packet(&echo[..800]));
    case(
        c,
        "46 foreign source",
        V4 { src: Ipv4Addr::new(8, 9, 10, 11), ..v4(proto::GRE) }.packet(&data(20)),
    );
}

/// ICMP errors of the phone's kernel about a packet from outside.
fn to_ipv6_errors(c: &mut Vec<Case>) {
    let inner = |header: V4, len: usize| {
        let datagram = udp(SERVER4.into(), 2000, LOCAL4.into(), 1000, &data(len));
        V4 { src: SERVER4, dst: LOCAL4, id: 0x4321, ..header }.packet(&datagram)
    };
    let plain = inner(v4(proto::UDP), 40);
    let mut error = |name: String, kind: u8, code: u8, word: u32, quote: &[u8]| {
        case(c, name, v4(proto::ICMP).packet(&icmp(kind, code, word, quote)));
    };
    for code in 0..=15 {
        let word = if code == 4 { 1400 } else { 0 };
        error(format!("46 unreachable {code}"), 3, code, word, &plain);
    }
    error("46 unreachable 4 mtu 0".into(), 3, 4, 0, &inner(v4(proto::UDP), 1000));
    error("46 unreachable 4 mtu 68".into(), 3, 4, 68, &plain);
    error("46 time exceeded 0".into(), 11, 0, 0, &plain);
    error("46 time exceeded 1".into(), 11, 1, 0, &plain);
    for pointer in [0_u32, 1, 2, 4, 6, 8, 9, 10, 12, 16, 20] {
        error(format!("46 parameter problem at {pointer}"), 12, 0, pointer << 24, &plain);
    }
    error("46 parameter problem 1".into(), 12, 1, 0, &plain);
    error("46 parameter problem 2".into(), 12, 2, 0, &plain);
    error("46 error cut to 8 bytes".into(), 3, 3, 0, &plain[..28]);
    error("46 error cut in its header".into(), 3, 3, 0, &plain[..16]);
    error("46 error about no df".into(), 3, 3, 0, &inner(V4 { frag: 0, ..v4(proto::UDP) }, 40));
    let first = inner(V4 { frag: 0x2000, ..v4(proto::UDP) }, 400);
    error("46 error about a fragment".into(), 11, 1, 0, &first);
    let own = V4 { src: SERVER4, dst: LOCAL4, ..v4(proto::ICMP) };
    error("46 error about echo".into(), 3, 1, 0, &own.packet(&icmp(8, 0, 0x0007_0001, &data(20))));
    error("46 error about an error".into(), 3, 1, 0, &own.packet(&icmp(3, 1, 0, &plain)));
    let mut extended = plain.clone();
    extended.resize(128, 0);
    extended.extend(extension());
    error("46 error with extension".into(), 11, 0, 32 << 16, &extended);
}

/// An RFC 4884 structure with one object of class 3, c-type 2.
fn extension() -> Vec<u8> {
    let mut e = vec![0x20, 0, 0, 0, 0, 8, 3, 2, 0xde, 0xad, 0xbe, 0xef];
    let sum = packet::icmp_sum(&e);
    e[2..4].copy_from_slice(&sum.to_be_bytes());
    e
}

fn v6(next: u8) -> V6 {
    V6::new(SERVER6, LOCAL6, next)
}

fn udp6(len: usize) -> Vec<u8> {
    udp(SERVER6.into(), 2000, LOCAL6.into(), 1000, &data(len))
}

fn to_ipv4(c: &mut Vec<Case>) {
    let (src, dst): (IpAddr, IpAddr) = (SERVER6.into(), LOCAL6.into());
    for len in [0, 1, 2, 33, 512] {
        case(c, format!("64 udp {len}"), v6(proto::UDP).packet(&udp6(len)));
    }
    for total in [1279, 1280, 1281, 1288, 1400, 1500] {
        case(c, format!("64 udp total {total}"), v6(proto::UDP).packet(&udp6(total - 48)));
    }
    case(c, "64 udp class", V6 { class: 0xb9, ..v6(proto::UDP) }.packet(&udp6(20)));
    case(c, "64 udp flow", V6 { flow: 0xabcde, ..v6(proto::UDP) }.packet(&udp6(20)));
    case(c, "64 udp hops 1", V6 { hops: 1, ..v6(proto::UDP) }.packet(&udp6(20)));
    let mut zero = udp6(21);
    zero[6..8].fill(0);
    case(c, "64 udp checksum 0", v6(proto::UDP).packet(&zero));
    let mut wrong = udp6(20);
    wrong[6] ^= 0x55;
    case(c, "64 udp checksum wrong", v6(proto::UDP).packet(&wrong));
    case(c, "64 tcp syn", v6(proto::TCP).packet(&tcp(src, 80, dst, 1000, 2, &[])));
    case(c, "64 tcp data", v6(proto::TCP).packet(&tcp(src, 80, dst, 1000, 16, &data(777))));
    for (name, number) in [
        ("gre", proto::GRE),
        ("esp", proto::ESP),
        ("ah", proto::AH),
        ("sctp", proto::SCTP),
        ("unassigned", proto::UNASSIGNED),
        ("ipv4 in ipv6", 4),
        ("icmp", proto::ICMP),
        ("none", 59),
    ] {
        case(c, format!("64 protocol {name}"), v6(number).packet(&data(40)));
    }
    case(c, "64 udplite", v6(proto::UDPLITE).packet(&udplite(src, 2000, dst, 1000, &data(30))));
    for (name, kind) in
        [("request", 128), ("reply", 129), ("mld", 131), ("solicitation", 135), ("unknown", 200)]
    {
        let message = icmpv6(SERVER6, LOCAL6, kind, 0, 0x0007_0001, &data(40));
        case(c, format!("64 icmp {name}"), v6(proto::ICMPV6).packet(&message));
    }
    for (name, next, header) in [
        ("hop-by-hop", 0, [proto::UDP, 0, 1, 4, 0, 0, 0, 0]),
        ("destination options", 60, [proto::UDP, 0, 1, 4, 0, 0, 0, 0]),
        ("routing done", 43, [proto::UDP, 0, 0, 0, 0, 0, 0, 0]),
        ("segments left", 43, [proto::UDP, 0, 0, 1, 0, 0, 0, 0]),
    ] {
        case(c, format!("64 {name}"), v6(next).packet(&[&header[..], &udp6(20)].concat()));
    }
    let whole = udp6(2000);
    for (name, offset, more, part) in [
        ("first", 0, true, &whole[..1200]),
        ("middle", 1200, true, &whole[1200..1600]),
        ("last", 1600, false, &whole[1600..]),
    ] {
        let header = fragment_header(proto::UDP, offset, more, 0x89ab_cdef);
        case(
            c,
            format!("64 fragment {name}"),
            v6(proto::FRAGMENT).packet(&[&header[..], part].concat()),
        );
    }
    let atomic = fragment_header(proto::UDP, 0, false, 0x89ab_cdef);
    case(c, "64 fragment alone", v6(proto::FRAGMENT).packet(&[&atomic[..], &udp6(20)].concat()));
    let echo = icmpv6(SERVER6, LOCAL6, 128, 0, 0x0007_0001, &data(1000));
    let header = fragment_header(proto::ICMPV6, 0, true, 0x89ab_cdef);
    case(c, "64 fragment icmp", v6(proto::FRAGMENT).packet(&[&header[..], &echo[..800]].concat()));
    case(c, "64 source without a form", V6 { src: ROUTER6, ..v6(proto::GRE) }.packet(&data(20)));
}

/// ICMPv6 errors of routers and servers about a packet that we sent.
fn to_ipv4_errors(c: &mut Vec<Case>) {
    let inner = |next: u8, payload: &[u8]| V6::new(LOCAL6, SERVER6, next).packet(payload);
    let datagram = udp(LOCAL6.into(), 1000, SERVER6.into(), 2000, &data(40));
    let plain = inner(proto::UDP, &datagram);
    let mut error = |name: String, from: Ipv6Addr, kind: u8, code: u8, word: u32, quote: &[u8]| {
        let message = icmpv6(from, LOCAL6, kind, code, word, quote);
        case(c, name, V6::new(from, LOCAL6, proto::ICMPV6).packet(&message));
    };
    for code in 0..=7 {
        error(format!("64 unreachable {code}"), SERVER6, 1, code, 0, &plain);
    }
    for mtu in [1500, 1400, 1280, 1000, 0] {
        error(format!("64 too big {mtu}"), SERVER6, 2, 0, mtu, &plain);
    }
    error("64 time exceeded 0".into(), SERVER6, 3, 0, 0, &plain);
    error("64 time exceeded 1".into(), SERVER6, 3, 1, 0, &plain);
    for pointer in [0, 1, 2, 4, 6, 7, 8, 24, 39, 40] {
        error(format!("64 parameter problem at {pointer}"), SERVER6, 4, 0, pointer, &plain);
    }
    error("64 parameter problem 1".into(), SERVER6, 4, 1, 6, &plain);
    error("64 parameter problem 2".into(), SERVER6, 4, 2, 40, &plain);
    error("64 router without a form".into(), ROUTER6, 3, 0, 0, &plain);
    error("64 error cut to 8 bytes".into(), SERVER6, 1, 4, 0, &plain[..48]);
    error("64 error cut in its header".into(), SERVER6, 1, 4, 0, &plain[..30]);
    let header = fragment_header(proto::UDP, 0, true, 0x0000_4321);
    let fragment = inner(proto::FRAGMENT, &[&header[..], &datagram].concat());
    error("64 error about a fragment".into(), SERVER6, 3, 1, 0, &fragment);
    let echo = inner(proto::ICMPV6, &icmpv6(LOCAL6, SERVER6, 128, 0, 0x0007_0001, &data(20)));
    error("64 error about echo".into(), SERVER6, 1, 0, 0, &echo);
    let nested = inner(proto::ICMPV6, &icmpv6(LOCAL6, SERVER6, 1, 0, 0, &plain));
    error("64 error about an error".into(), SERVER6, 1, 0, 0, &nested);
    let long = inner(proto::UDP, &udp(LOCAL6.into(), 1000, SERVER6.into(), 2000, &data(1150)));
    error("64 error with a long quote".into(), SERVER6, 1, 4, 0, &long[..1184]);
    let mut extended = plain.clone();
    extended.resize(128, 0);
    extended.extend(extension());
    error("64 error with extension".into(), SERVER6, 3, 0, 16 << 24, &extended);
}
