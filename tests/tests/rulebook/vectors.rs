// SPDX-License-Identifier: Apache-2.0

//! The packets: a handmade one of every kind with its expected result, and generated ones.

use clat_offload::OffloadCounters;
use clat_xlat::{Local, Prefix};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, Index};

use super::common::*;
use super::programs::reason;
use super::{agree, Outcome};

/// A packet and the expected result.
pub(crate) struct Vector {
    name: String,
    pub(crate) packet: Vec<u8>,
    /// Size and number of a GSO packet's segments.
    pub(crate) gso: Option<(u32, u32)>,
    /// `None`: translate it.
    pub(crate) passed: Option<&'static str>,
}

impl Vector {
    /// Checks the result, and that exactly this was counted.
    pub(crate) fn check(
        &self,
        local: Local,
        outcome: &Outcome,
        before: &OffloadCounters,
        after: &OffloadCounters,
    ) {
        let name = &self.name;
        let mut expected = *before;
        match self.passed {
            Some(why) => {
                assert_eq!(*outcome, Outcome::Passed, "{name}");
                expected.passed[reason(why)] += 1;
            }
            // Before 5.13 the kernel resizes only TCP's, and a test run cannot say that it is.
            None if self.gso.is_some() && after.passed[reason("kernel")] > 0 => {
                assert_eq!(*outcome, Outcome::Passed, "{name}");
                expected.passed[reason("kernel")] += 1;
            }
            None => {
                assert_ne!(*outcome, Outcome::Passed, "{name}: {:?}", after.passed);
                expected.packets += u64::from(self.gso.map_or(1, |(_, segments)| segments));
                expected.bytes += self.packet.len() as u64;
                expected.super_packets += u64::from(self.gso.is_some());
            }
        }
        // Whether the neighbour is resolved depends on the interface, not on the packet.
        expected.neighbour = after.neighbour;
        assert_eq!(*after, expected, "{name}");
        if let Err(e) = self.gso.map_or_else(|| agree(local, &self.packet, outcome), |_| Ok(())) {
            panic!("{name}: {e}");
        }
    }
}

/// One of each kind, in both directions.
pub(crate) fn by_hand(local: Local) -> Vec<Vector> {
    let mut all = Vec::new();
    let mut add = |name: &str, packet: Vec<u8>, passed: Option<&'static str>| {
        all.push(Vector { name: name.to_owned(), packet, gso: None, passed });
    };
    outward(&mut add);
    inward(local, &mut add);

    let mut gso = |name: &str, packet: Vec<u8>, gso, passed| {
        all.push(Vector { name: name.to_owned(), packet, gso: Some(gso), passed });
    };
    let tcp4 = V4 { protocol: TCP, df: true, ..V4::default() };
    let six = |protocol| V6 { protocol, dst: local.v6, ..V6::default() };
    gso("TCP, super-packet out", tcp4.build(&tcp(2800)), (1400, 2), None);
    // In a test run the checksum is not partial, unlike that of a GSO packet.
    let df = V4 { df: true, ..V4::default() };
    gso("UDP_SEGMENT out", df.build(&udp(2400)), (1200, 2), Some("gso"));
    let cut = V4::default().build(&udp(2600));
    gso("UDP_SEGMENT out, to be cut", cut, (1300, 2), Some("size"));
    gso(
        "SCTP, super-packet out",
        V4 { protocol: 132, ..tcp4 }.build(&data(2000)),
        (1000, 2),
        Some("gso"),
    );
    gso("TCP, super-packet in", six(TCP).build(&tcp(2800)), (1400, 2), None);
    gso("UDP, super-packet in", six(UDP).build(&udp(2400)), (1200, 2), Some("gso"));
    let options = V6 { extensions: vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])], ..six(TCP) };
    gso("TCP, super-packet with options in", options.build(&tcp(2800)), (1400, 2), Some("options"));
    all
}

/// IPv4, egress.
fn outward(add: &mut impl FnMut(&str, Vec<u8>, Option<&'static str>)) {
    let udp4 = V4::default;
    let of = |protocol| V4 { protocol, ..V4::default() };
    for len in [0, 1, 2, 3, 1231, 1232] {
        add(&format!("UDP out, {len} bytes"), udp4().build(&udp(len)), None);
    }
    add("UDP out, too large without DF", udp4().build(&udp(1233)), Some("size"));
    add("UDP out, large with DF", V4 { df: true, ..udp4() }.build(&udp(1400)), None);
    for (name, protocol, body) in [
        ("TCP", TCP, tcp(777)),
        ("UDP-Lite", 136, udp(100)),
        ("DCCP", 33, udp(100)),
        ("GRE", 47, data(100)),
        ("ESP", 50, data(101)),
        ("SCTP", 132, data(64)),
        ("IPIP", 4, data(64)),
        ("unassigned", 253, data(9)),
        ("no next header", 59, vec![]),
    ] {
        let header = V4 { tos: 0xb9, ttl: 3, df: true, ..of(protocol) };
        add(&format!("{name} out"), header.build(&body), None);
        let header = V4 { options: vec![7, 7, 4, 0, 0, 0, 0, 0], ..header };
        add(&format!("{name} out with options"), header.build(&body), Some("options"));
    }
    for len in [4, 12, 40] {
        let header = V4 { options: vec![1; len], ..of(TCP) };
        let packet = header.build(&tcp(20));
        add(&format!("{len} bytes of options"), packet, Some("options"));
    }
    for route in [131, 137] {
        let options = vec![1, route, 7, 4, 192, 0, 2, 1];
        add("source route", V4 { options, ..udp4() }.build(&udp(9)), Some("options"));
    }
    for kind in [0, 8] {
        add("echo out", of(ICMP).build(&icmp(kind, 0, [1, 2, 3, 4], &data(57))), None);
        add("echo without data out", of(ICMP).build(&icmp(kind, 0, [0, 0, 3, 4], &[])), None);
    }
    let quoted = V4::inward().build(&udp(20));
    let error = of(ICMP).build(&icmp(3, 3, [0; 4], &quoted));
    add("port unreachable out", error, Some("icmp"));
    add("timestamp out", of(ICMP).build(&icmp(13, 0, [1, 2, 3, 4], &data(12))), Some("icmp"));

    for (name, mf, offset, len) in
        [("first", true, 0, 1224), ("middle", true, 1480, 800), ("last", false, 1480, 5)]
    {
        let header = V4 { mf, offset, ..udp4() };
        let body = if offset == 0 { [udp(0), data(len - 8)].concat() } else { data(len) };
        let fragment = header.build(&if offset == 0 { body } else { [vec![0; 8], body].concat() });
        add(&format!("{name} fragment out"), fragment, Some("fragment"));
        let icmp = V4 { protocol: ICMP, ..header.clone() }.raw(&icmp(8, 0, [1; 4], &data(64)));
        add(&format!("{name} fragment of ICMP out"), icmp, Some("fragment"));
        let large = V4 { protocol: 253, ..header.clone() }.raw(&data(1240));
        add(&format!("{name} fragment out, to be cut"), large, Some("fragment"));
        let optional = V4 { protocol: 253, options: vec![1; 8], ..header };
        let packet = optional.raw(&data(64));
        add(&format!("{name} fragment with options out"), packet, Some("options"));
    }
    let beyond = V4 { offset: 65528, protocol: 253, ..udp4() };
    add("fragment beyond the end", beyond.raw(&data(16)), Some("fragment"));

    add("UDP without checksum", udp4().raw(&udp(300)), None);
    for len in [0, 1, 2, 3, 503, 504, 505, 1023, 1527, 1528, 1529] {
        let packet = V4 { df: true, ..udp4() }.raw(&udp(len));
        let long = (len > 1528).then_some("checksum");
        add(&format!("UDP without checksum, {len} bytes"), packet, long);
    }
    let first = V4 { mf: true, ..udp4() }.raw(&udp(24));
    add("first fragment of UDP without checksum", first, Some("fragment"));
    add("UDP-Lite without checksum", of(136).raw(&udp(24)), None);

    add(
        "foreign source",
        V4 { src: [192, 0, 0, 5].into(), ..udp4() }.build(&udp(9)),
        Some("foreign-source"),
    );
    for dst in MARTIANS.into_iter().chain([[192, 0, 0, 4]]) {
        let packet = V4 { dst: dst.into(), ..udp4() }.build(&udp(9));
        add(&format!("to {dst:?}"), packet, Some("address"));
    }
    for protocol in [0, 2, 43, 44, 51, 58, 60] {
        add(&format!("protocol {protocol} out"), of(protocol).raw(&data(40)), Some("protocol"));
    }
    let good = udp4().build(&udp(40));
    let mut wrong = good.clone();
    wrong[10] ^= 1;
    add("header checksum", wrong, Some("header"));
    add("truncated", good[..good.len() - 1].to_vec(), Some("header"));
    add("padded", [&good[..], &[0]].concat(), Some("header"));
    add("TCP cut short", of(TCP).raw(&data(17)), Some("header"));
    let mut long = udp(40);
    long[5] += 1;
    add("UDP that promises more", udp4().build(&long), Some("header"));
    // With options, checksums are not verified.
    for (wrong, passed) in [(0x46, "options"), (0x41, "header")] {
        let mut packet = good.clone();
        packet[0] = wrong;
        add(&format!("begins with {wrong:#x}"), packet, Some(passed));
    }
    let mut damaged = good;
    damaged[40] ^= 0x10;
    add("a wrong UDP checksum stays as wrong", damaged, None);
}

/// Martians, one of each kind.
const MARTIANS: [[u8; 4]; 5] =
    [[224, 0, 0, 1], [0, 1, 2, 3], [127, 0, 0, 1], [169, 254, 169, 254], [255; 4]];

/// IPv6, ingress.
fn inward(local: Local, add: &mut impl FnMut(&str, Vec<u8>, Option<&'static str>)) {
    let of = |protocol| V6 { protocol, dst: local.v6, ..V6::default() };
    let with = |protocol, extensions| V6 { extensions, ..of(protocol) };
    for len in [0, 1, 2, 3, 1232, 1233, 2000] {
        add(&format!("UDP in, {len} bytes"), of(UDP).build(&udp(len)), None);
    }
    for (name, protocol, body) in [
        ("TCP", TCP, tcp(777)),
        ("UDP-Lite", 136, udp(100)),
        ("DCCP", 33, udp(100)),
        ("GRE", 47, data(100)),
        ("ESP", 50, data(1501)),
        ("SCTP", 132, data(64)),
        ("unassigned", 253, data(9)),
        ("no next header", 59, vec![]),
    ] {
        let header = V6 { class: 0xb9, flow: 0xabcde, hops: 3, ..of(protocol) };
        add(&format!("{name} in"), header.build(&body), None);
        for extensions in [
            vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0])],
            vec![(60, [&[0, 3], &[0; 30][..]].concat()), (43, vec![0, 0, 4, 0, 0, 0, 0, 0])],
        ] {
            let header = V6 { extensions, ..header.clone() };
            let packet = header.build(&body);
            add(&format!("{name} in with extensions"), packet, Some("options"));
        }
    }
    let route = vec![(43, vec![0, 0, 4, 1, 0, 0, 0, 0])];
    add("segments left", with(UDP, route).build(&udp(9)), Some("options"));

    for kind in [128, 129] {
        add("echo in", of(ICMPV6).build(&icmp(kind, 0, [1, 2, 3, 4], &data(57))), None);
        add("large echo in", of(ICMPV6).build(&icmp(kind, 0, [1, 2, 3, 4], &data(1400))), None);
    }
    add("MLD in", of(ICMPV6).build(&icmp(130, 0, [1; 4], &data(16))), Some("icmp"));
    errors(local, add);

    for (name, more, offset) in
        [("first", true, 0), ("middle", true, 1448), ("last", false, 1448), ("atomic", false, 0)]
    {
        for id in [0x1234_5678, 0x1234_0000] {
            let header = with(253, vec![V6::fragment(offset, more, id)]);
            add(&format!("{name} fragment in"), header.raw(&data(1400)), None);
            let mut header = header;
            header.extensions.insert(0, (60, vec![0, 0, 1, 4, 0, 0, 0, 0]));
            let packet = header.raw(&data(80));
            add(&format!("{name} fragment with options in"), packet, Some("options"));
        }
        let icmp6 = with(ICMPV6, vec![V6::fragment(offset, more, 7)]);
        let passed = (more || offset > 0).then_some("fragment");
        add(
            &format!("{name} fragment of ICMPv6"),
            icmp6.build(&icmp(128, 0, [1; 4], &data(64))),
            passed,
        );
        let behind =
            with(253, vec![V6::fragment(offset, more, 7), (60, vec![0, 0, 1, 4, 0, 0, 0, 0])]);
        add("an extension behind a fragment header", behind.raw(&data(80)), Some("options"));
    }
    let first = with(UDP, vec![V6::fragment(0, true, 7)]);
    add("first fragment of UDP", first.build(&udp(80)), None);
    add("fragment cut in its transport header", first.raw(&data(7)), Some("header"));
    let beyond = with(253, vec![V6::fragment(65528, false, 7)]);
    add("fragment beyond the end", beyond.raw(&data(16)), Some("fragment"));

    for src in MARTIANS.into_iter().chain([[192, 0, 0, 4]]) {
        let src = Prefix::WELL_KNOWN.embed(src.into());
        let packet = V6 { src, ..of(UDP) }.build(&udp(9));
        add(&format!("from {src}"), packet, Some("martian"));
    }
    add("UDP without checksum in", of(UDP).raw(&udp(30)), None);
    for protocol in [1, 2, 51] {
        add(&format!("protocol {protocol} in"), of(protocol).raw(&data(40)), Some("protocol"));
    }
    let good = of(UDP).build(&udp(40));
    add("truncated", good[..good.len() - 1].to_vec(), Some("header"));
    add("padded", [&good[..], &[0]].concat(), Some("header"));
    let mut long = udp(40);
    long[5] += 1;
    add("UDP that promises more", of(UDP).build(&long), Some("header"));
}

/// ICMPv6 errors, ingress, from routers inside and outside of the prefix.
fn errors(local: Local, add: &mut impl FnMut(&str, Vec<u8>, Option<&'static str>)) {
    let sent = V6 { src: local.v6, protocol: UDP, hops: 1, ..V6::outward() };
    for src in [V6::default().src, ROUTER6] {
        let header = V6 { src, dst: local.v6, protocol: ICMPV6, ..V6::default() };
        for (kind, rest) in [(1, 0), (2, 1280), (3, 0), (4, 6_u32), (5, 0), (127, 0)] {
            let error = icmp(kind, 0, rest.to_be_bytes(), &sent.build(&udp(40)));
            add(&format!("error {kind} of {src}"), header.build(&error), Some("icmp"));
        }
    }
}

/// Packets of every kind, most of them valid, some damaged.
pub(crate) fn generated(local: Local) -> impl Strategy<Value = Vec<u8>> {
    (prop_oneof![4 => v4().boxed(), 4 => v6(local).boxed(), 1 => error6(local).boxed()], damage())
        .prop_map(|(packet, damage)| {
            let mut packet = packet;
            let near = packet.len().min(100);
            let Some((edits, cut, mend)) = damage else { return packet };
            for (at, value) in edits {
                packet[at.index(near)] = value;
            }
            // Test runs refuse packets that are too short for their header.
            let least = if packet[0] >> 4 == 4 { 20 } else { 40 };
            packet.resize(packet.len().saturating_sub(cut).max(least), 0);
            if mend {
                mend_ipv4_checksum(&mut packet);
            }
            packet
        })
}

type Damage = (Vec<(Index, u8)>, usize, bool);

fn damage() -> impl Strategy<Value = Option<Damage>> {
    let edits = vec((any::<Index>(), any::<u8>()), 0..4);
    let cut = prop_oneof![3 => Just(0), 1 => 0usize..60];
    prop_oneof![3 => Just(None), 1 => (edits, cut, any::<bool>()).prop_map(Some)]
}

fn body() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let len = prop_oneof![0usize..90, 1150usize..1300, 1300usize..1480];
    let protocol = prop_oneof![
        6 => select(vec![TCP, UDP, ICMP]),
        2 => select(vec![33u8, 136, 47, 50, 132, 253]),
        1 => any::<u8>(),
    ];
    (protocol, len, any::<u64>()).prop_map(|(protocol, len, seed)| {
        let mut rest = data(len);
        // Other bytes each time, for all kinds of sums.
        for (byte, key) in rest.iter_mut().zip(seed.to_le_bytes().iter().cycle()) {
            *byte ^= key;
        }
        let body = match protocol {
            TCP => [tcp(0), rest].concat(),
            UDP | 33 | 136 => {
                let mut body = [udp(0), rest].concat();
                let len = body.len() as u16;
                body[4..6].copy_from_slice(&len.to_be_bytes());
                body
            }
            ICMP | ICMPV6 => {
                let kind = [8, 0, 8, 0, 128, 129, 3, 11][(seed >> 32) as usize % 8];
                icmp(kind, 0, (seed as u32).to_be_bytes(), &rest)
            }
            _ => rest,
        };
        (protocol, body)
    })
}

/// Whether a fragment, and which: more follow, offset in bytes.
fn fragment() -> impl Strategy<Value = Option<(bool, usize)>> {
    let some = (any::<bool>(), prop_oneof![Just(0usize), 1usize..8190]);
    prop_oneof![4 => Just(None), 1 => some.prop_map(|(more, at)| Some((more, at * 8)))]
}

fn v4() -> impl Strategy<Value = Vec<u8>> {
    let options = prop_oneof![
        18 => Just(vec![]),
        1 => select(vec![
            vec![1, 1, 1, 0],
            vec![7, 7, 4, 0, 0, 0, 0, 0],
            vec![131, 7, 8, 1, 2, 3, 4, 0],
        ]),
        1 => vec(any::<u8>(), 0..40).prop_map(|mut o| { o.resize(o.len() / 4 * 4, 0); o }),
    ];
    let dst = prop_oneof![4 => Just(REMOTE4), 1 => any::<u32>().prop_map(Into::into)];
    let header = (any::<u8>(), any::<u8>(), any::<u16>(), any::<bool>(), options, dst);
    // All are left to the daemon.
    let fragment = prop_oneof![3 => Just(None), 1 => fragment()];
    (header, fragment, body(), 0u8..8).prop_map(
        |((tos, ttl, id, df, options, dst), fragment, (protocol, body), zero)| {
            let (mf, offset) = fragment.unwrap_or_default();
            let header =
                V4 { dst, tos, ttl, id, df, mf, offset, protocol, options, ..V4::default() };
            // Some without a checksum, which is wrong except for UDP.
            let enough = checksum_at(protocol).is_none_or(|at| body.len() >= at + 2);
            if zero == 0 || !enough {
                header.raw(&body)
            } else {
                header.build(&body)
            }
        },
    )
}

/// An error about a packet of ours.
fn error6(local: Local) -> impl Strategy<Value = Vec<u8>> {
    let rest = prop_oneof![1 => Just(0), 2 => 0u32..45, 4 => 1200u32..1500, 1 => any::<u32>()];
    let shape = (select(vec![1u8, 1, 2, 2, 3, 4]), 0u8..6, rest, 56usize..1300);
    (shape, v6(local), any::<u32>()).prop_map(move |((kind, code, rest, cut), quoted, src)| {
        // A packet from the prefix, turned round.
        let mut quoted = quoted[..quoted.len().min(cut)].to_vec();
        quoted[8..40].rotate_left(16);
        let prefix = Prefix::WELL_KNOWN;
        let src = if src % 2 == 0 { prefix.embed(src.into()) } else { ROUTER6 };
        let header = V6 { src, dst: local.v6, protocol: ICMPV6, ..V6::default() };
        let rest = if matches!(kind, 2 | 4) { rest } else { 0 };
        header.build(&icmp(kind, code, rest.to_be_bytes(), &quoted))
    })
}

fn v6(local: Local) -> impl Strategy<Value = Vec<u8>> {
    let extensions = prop_oneof![
        9 => Just(vec![]),
        1 => select(vec![
            vec![(0u8, vec![0u8, 0, 1, 4, 0, 0, 0, 0])],
            vec![
                (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                (43, vec![0, 0, 4, 0, 0, 0, 0, 0]),
            ],
            vec![(43, vec![0, 0, 4, 2, 0, 0, 0, 0])],
        ]),
    ];
    let header = (any::<u8>(), 0u32..0x10_0000, any::<u8>(), extensions, any::<u32>());
    (header, fragment(), body(), any::<u32>()).prop_map(
        move |((class, flow, hops, extensions, src), fragment, (protocol, body), id)| {
            let protocol = if protocol == ICMP { ICMPV6 } else { protocol };
            let mut body = body;
            if protocol == ICMPV6 && body.len() > 1 {
                body[0] = match body[0] {
                    8 => 128,
                    0 => 129,
                    other => other,
                };
            }
            let mut extensions = extensions;
            extensions.extend(fragment.map(|(more, at)| V6::fragment(at, more, id)));
            let src = Prefix::WELL_KNOWN.embed(src.into());
            let header = V6 { src, dst: local.v6, class, flow, hops, protocol, extensions };
            let enough = checksum_at(protocol).is_none_or(|at| body.len() >= at + 2);
            if enough {
                header.build(&body)
            } else {
                header.raw(&body)
            }
        },
    )
}
