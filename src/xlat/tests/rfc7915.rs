// SPDX-License-Identifier: Apache-2.0

//! RFC 7915, section by section.
#![allow(missing_docs, clippy::cast_possible_truncation, clippy::type_complexity)]

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};

use clat_xlat::{
    Addresses, Config, HopPolicy, Packet, Prefix, Reason, Rule, UdpZero, Verdict, HEADROOM,
    TAILROOM,
};
use common::*;

fn to6(input: &[u8]) -> Out {
    run(&mut translator(), input)
}

fn to4(input: &[u8]) -> Out {
    run(&mut translator(), input)
}

/// Asserts an error as in RFC 7915 §4.4 and §5.4, which quotes the packet as received.
#[track_caller]
fn assert_prohibited(out: Out, want: Reason, packet: &[u8]) {
    let (reason, error) = out.reply();
    let seen = check(&error);
    let code = if seen.v6 { [1, 1] } else { [3, 13] };
    assert_eq!((reason, &seen.payload[..2]), (want, &code[..]));
    assert_eq!(seen.payload[8..], packet[..seen.payload.len() - 8]);
    let (at, len) = if seen.v6 { (8, 16) } else { (12, 4) };
    assert_eq!(seen.dst, packet[at..at + len], "back to the sender");
}

// §4.1 Translating IPv4 Headers into IPv6 Headers

#[test]
fn s4_1_header_fields() {
    let out = to6(&V4 { tos: 0xb9, ttl: 7, ..V4::default() }.build(&udp(11))).one();
    let seen = check(&out);
    assert_eq!((seen.class, seen.flow, seen.hops, seen.protocol), (0xb9, 0, 7, UDP));
    assert_eq!((seen.src, seen.dst), (LOCAL6.octets().to_vec(), remote6().octets().to_vec()));
    assert!(!seen.fragment_header);
}

#[test]
fn s4_1_df_clear_is_whole_up_to_1260_and_split_from_1261() {
    for df in [true, false] {
        let fits = to6(&V4 { df, protocol: TCP, ..V4::default() }.build(&tcp(1220))).one();
        assert_eq!(fits.len(), 1280);
        assert!(!check(&fits).fragment_header);
    }
    let whole = to6(&V4 { df: true, protocol: TCP, ..V4::default() }.build(&tcp(1221))).one();
    assert_eq!(whole.len(), 1281);

    let Out::Forward(rule, frames) =
        to6(&V4 { id: 1234, protocol: TCP, ..V4::default() }.build(&tcp(1221)))
    else {
        panic!("dropped")
    };
    assert_eq!(rule, Rule::To6Split);
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [1280, 57]);
    let (first, last) = (check(&frames[0]), check(&frames[1]));
    assert_eq!((first.id, first.offset, first.mf), (1234, 0, true));
    assert_eq!((last.id, last.offset, last.mf, last.protocol), (1234, 1232, false, TCP));
    assert_eq!(reassemble(&frames).payload, check(&whole).payload);
}

#[test]
fn s4_1_lowest_ipv6_mtu_is_adjustable() {
    let config = Config { lowest_ipv6_mtu: 1402, ..config() };
    let mut t = translator_of(config, clat(), 1);
    let frames = run(&mut t, &V4::default().build(&udp(1355))).many();
    // 1402 leaves room for 1352 bytes in multiples of 8.
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [1400, 59]);
}

#[test]
fn s4_1_fragments_keep_their_place() {
    for df in [true, false] {
        let first = V4 { mf: true, id: 1234, df, protocol: TCP, ..V4::default() }.raw(&tcp(1212));
        let out = to6(&first).one();
        let seen = check(&out);
        assert_eq!((out.len(), seen.fragment_header, seen.mf, seen.id), (1280, true, true, 1234));
    }
    let later = V4 { offset: 1480, id: 0xffff, ..V4::default() }.raw(&data(101));
    let seen = check(&to6(&later).one());
    assert_eq!((seen.offset, seen.mf, seen.id, seen.payload), (1480, false, 0xffff, data(101)));
}

#[test]
fn s4_1_fragments_are_split_further() {
    let frames =
        to6(&V4 { mf: true, offset: 8, id: 4321, ..V4::default() }.raw(&data(1248))).many();
    let seen: Vec<_> = frames.iter().map(|f| check(f)).collect();
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [1280, 64]);
    assert_eq!((seen[0].offset, seen[0].mf, seen[1].offset, seen[1].mf), (8, true, 1240, true));
}

#[test]
fn s4_1_too_big_with_df_is_answered() {
    let config = Config { mtu6: 1280, ..config() };
    for (packet, mtu) in [
        (V4 { df: true, protocol: TCP, ..V4::default() }.build(&tcp(1221)), 1260),
        // The Fragment Header takes 8 bytes.
        (V4 { df: true, mf: true, protocol: TCP, ..V4::default() }.raw(&tcp(1220)), 1252),
    ] {
        let (reason, error) = run(&mut translator_of(config, clat(), 1), &packet).reply();
        assert_eq!(reason, Reason::TooBigForIpv6);
        assert_eq!(error.len(), 576);
        let seen = check(&error);
        assert_eq!(seen.src, [192, 0, 0, 8]);
        assert_eq!(seen.dst, LOCAL4.octets());
        assert_eq!((seen.payload[0], seen.payload[1], be16(&seen.payload, 6)), (3, 4, mtu));
        assert_eq!(seen.payload[8..], packet[..548]);
    }
}

#[test]
fn s4_1_options_are_skipped_unless_a_source_route_is_left() {
    let bare = to6(&V4::default().build(&udp(5))).one();
    // Expired source routes, record route, timestamp, and garbage.
    for options in [
        vec![131, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8, 0],
        vec![137, 7, 8, 1, 2, 3, 4, 1],
        vec![7, 7, 4, 0, 0, 0, 0, 0],
        vec![68, 4, 5, 0],
        vec![1, 1, 1, 0],
        vec![9, 0, 0, 0],
        vec![9, 40, 0, 0],
    ] {
        assert_eq!(to6(&V4 { options, ..V4::default() }.build(&udp(5))).one(), bare);
    }
    for options in [vec![131, 7, 4, 1, 2, 3, 4, 0], vec![1, 137, 7, 4, 1, 2, 3, 4]] {
        let packet = V4 { options, ..V4::default() }.build(&udp(5));
        let (reason, error) = to6(&packet).reply();
        assert_eq!(reason, Reason::SourceRoute);
        let seen = check(&error);
        assert_eq!((seen.payload[0], seen.payload[1]), (3, 5));
        assert_eq!(seen.payload[8..], packet);
    }
}

#[test]
fn s4_1_illegal_addresses() {
    let from = |src: [u8; 4]| V4 { src: src.into(), ..V4::default() }.build(&udp(5));
    assert_eq!(to6(&from([0, 0, 0, 0])), Out::Drop(Reason::IllegalSource));
    assert_eq!(to6(&from([127, 0, 0, 1])), Out::Drop(Reason::IllegalSource));
    assert_eq!(to6(&from([224, 0, 0, 1])), Out::Drop(Reason::IllegalSource));
    assert_eq!(to6(&from([192, 0, 2, 1])), Out::Drop(Reason::ForeignSource));
    let to = |dst: [u8; 4]| V4 { dst: dst.into(), ..V4::default() }.build(&udp(5));
    assert_eq!(to6(&to([224, 0, 0, 251])), Out::Drop(Reason::Multicast));
    assert_eq!(to6(&to([255, 255, 255, 255])), Out::Drop(Reason::IllegalDestination));
    assert_eq!(to6(&to([127, 0, 0, 1])), Out::Drop(Reason::IllegalDestination));
}

/// Martians (RFC 1812 §5.3.7), and link-local addresses (RFC 3927 §2.7).
const MARTIANS: [[u8; 4]; 5] =
    [[0, 1, 2, 3], [127, 0, 0, 1], [169, 254, 1, 1], [224, 0, 0, 1], [255, 255, 255, 255]];

#[test]
fn s4_1_martians_go_no_further() {
    for martian in MARTIANS.map(Ipv4Addr::from) {
        let to = to6(&V4 { dst: martian, ..V4::default() }.build(&udp(5)));
        let multicast = martian.is_multicast();
        let reason = if multicast { Reason::Multicast } else { Reason::IllegalDestination };
        assert_eq!(to, Out::Drop(reason), "{martian}");
        let from = to6(&V4 { src: martian, ..V4::default() }.build(&udp(5)));
        assert_eq!(from, Out::Drop(Reason::IllegalSource), "{martian}");
        let quoted = V4 { src: martian, ..V4::inward() }.build(&udp(5));
        let error = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(3, 1, [0; 4], &quoted));
        assert_eq!(to6(&error), Out::Drop(Reason::QuotedAddress), "{martian}");
    }
}

/// A SIIT sends an error for an unmapped address; a CLAT does not, since such packets are not for
/// it.
#[test]
fn s4_4_s5_4_unmapped_addresses_are_answered() {
    let eams = vec!["192.0.2.0/24=2001:db8:a::/120".parse().unwrap()];
    let mut siit = translator_of(config(), Addresses { eams, ..Addresses::default() }, 1);
    let [known, unknown] = [[192, 0, 2, 7], [198, 51, 100, 7]].map(Ipv4Addr::from);
    for (src, dst, want) in
        [(unknown, known, Reason::SourceUnmapped), (known, unknown, Reason::DestinationUnmapped)]
    {
        let packet = V4 { src, dst, ..V4::default() }.build(&udp(9));
        let (reason, error) = run(&mut siit, &packet).reply();
        let seen = check(&error);
        assert_eq!((reason, seen.dst), (want, src.octets().to_vec()));
        assert_eq!(seen.payload[..2], [3, 13]);
        assert_eq!(seen.payload[8..], packet);
    }
    let [known, unknown] = ["2001:db8:a::7", "2001:db8:b::7"].map(|a| a.parse().unwrap());
    for (src, dst, want) in
        [(unknown, known, Reason::SourceUnmapped), (known, unknown, Reason::DestinationUnmapped)]
    {
        let packet = V6 { src, dst, ..V6::default() }.build(&udp(9));
        let (reason, error) = run(&mut siit, &packet).reply();
        let seen = check(&error);
        assert_eq!((reason, seen.dst), (want, src.octets().to_vec()));
        assert_eq!(seen.payload[..2], [1, 1]);
        // No error about an error.
        let error = V6 { src: unknown, dst: unknown, protocol: ICMPV6, ..V6::default() }
            .build(&icmp(1, 4, [0; 4], &packet));
        assert!(matches!(run(&mut siit, &error), Out::Drop(_)));
    }
    let foreign = V6 { src: unknown, ..V6::default() }.build(&udp(9));
    assert_eq!(to4(&foreign), Out::Drop(Reason::SourceUnmapped));
}

#[test]
fn s5_1_martians_go_no_further() {
    let addresses = Addresses { prefixes: vec![Prefix::WELL_KNOWN], ..Addresses::default() };
    let mut siit = translator_of(config(), addresses, 1);
    for martian in MARTIANS {
        let embedded = Prefix::WELL_KNOWN.embed(martian.into());
        let from = to4(&V6 { src: embedded, ..V6::default() }.build(&udp(5)));
        assert_eq!(from, Out::Drop(Reason::IllegalSource), "{embedded}");
        let quoted = V6 { dst: embedded, ..V6::outward() }.build(&udp(5));
        let error = V6 { protocol: ICMPV6, ..V6::default() }.build(&icmp(1, 4, [0; 4], &quoted));
        assert_eq!(to4(&error), Out::Drop(Reason::QuotedAddress), "{embedded}");
        let to = run(&mut siit, &V6 { dst: embedded, ..V6::default() }.build(&udp(5)));
        assert_eq!(to, Out::Drop(Reason::IllegalDestination), "{embedded}");
    }
    // Only the CLAT has its address.
    let own = V6 { src: Prefix::WELL_KNOWN.embed(LOCAL4), ..V6::default() }.build(&udp(5));
    assert_eq!(to4(&own), Out::Drop(Reason::IllegalSource));
}

#[test]
fn s4_1_icmp_errors_may_come_from_illegal_sources() {
    let prefixes = vec![Prefix::WELL_KNOWN];
    let siit = Addresses { prefixes, ..Addresses::default() };
    let mut siit = translator_of(config(), siit, 1);
    let inner = V4::inward().build(&udp(5));
    for src in [[0, 0, 0, 0], [127, 0, 0, 1]] {
        let packet = V4 { src: src.into(), protocol: ICMP, ..V4::default() }
            .build(&icmp(11, 0, [0; 4], &inner));
        let seen = check(&run(&mut siit, &packet).one());
        assert_eq!(seen.src[12..], src);
    }
}

#[test]
fn s4_1_ttl_is_copied_or_counted() {
    let packet = |ttl| V4 { ttl, ..V4::default() }.build(&udp(5));
    assert_eq!(check(&to6(&packet(1)).one()).hops, 1);
    let router = || translator_of(Config { hop: HopPolicy::Decrement, ..config() }, clat(), 1);
    assert_eq!(check(&run(&mut router(), &packet(2)).one()).hops, 1);
    for ttl in [0, 1] {
        let (reason, error) = run(&mut router(), &packet(ttl)).reply();
        assert_eq!((reason, &check(&error).payload[..2]), (Reason::HopLimit, &[11, 0][..]));
    }
    let (reason, error) =
        run(&mut router(), &V6 { hops: 1, ..V6::default() }.build(&udp(5))).reply();
    assert_eq!((reason, &check(&error).payload[..2]), (Reason::HopLimit, &[3, 0][..]));
}

/// By default both are copied: `s4_1_header_fields`, `s5_1_header_fields_and_df_by_size`.
#[test]
fn s4_1_s5_1_traffic_class_may_be_set() {
    for class in [0, 0xb8] {
        let config = Config { class: Some(class), ..config() };
        let mut t = translator_of(config, clat(), 1);
        let seen = check(&run(&mut t, &V4 { tos: 0x2f, ..V4::default() }.build(&udp(5))).one());
        assert_eq!(seen.class, class);
        let quoted = V6 { class: 0x2e, ..V6::outward() }.build(&udp(20));
        let error = V6 { class: 0x2f, protocol: ICMPV6, ..V6::default() };
        let seen = check(&run(&mut t, &error.build(&icmp(1, 4, [0; 4], &quoted))).one());
        // It quotes the packet as its sender sent it.
        assert_eq!((seen.class, seen.payload[9]), (class, 0x2e));
    }
}

// §4.2, §4.3 ICMPv4

#[test]
fn s4_2_echo() {
    for (kind4, kind6) in [(8, 128), (0, 129)] {
        let packet =
            V4 { protocol: ICMP, ..V4::default() }.build(&icmp(kind4, 0, [1, 2, 3, 4], &data(57)));
        let seen = check(&to6(&packet).one());
        assert_eq!((seen.protocol, seen.payload[0], seen.payload[1]), (ICMPV6, kind6, 0));
        assert_eq!(seen.payload[4..8], [1, 2, 3, 4]);
        assert_eq!(seen.payload[8..], data(57));
    }
}

#[test]
fn s4_2_large_echo_is_split_with_one_checksum() {
    let frames = to6(&V4 { protocol: ICMP, id: 77, ..V4::default() }.build(&icmp(
        8,
        0,
        [0; 4],
        &data(4000),
    )))
    .many();
    assert_eq!(frames.len(), 4);
    assert_eq!(reassemble(&frames).transport_sum(), 0xffff);
}

#[test]
fn s4_2_echo_reply_of_zeros() {
    let mut zeros = V6 { protocol: ICMPV6, ..V6::default() }.build(&icmp(129, 0, [0; 4], &[0; 8]));
    let seen = check(&to4(&zeros).one());
    assert_eq!(seen.payload[2..4], [0xff, 0xff]);
    // A wrong checksum stays wrong by the same amount.
    zeros[42] ^= 0x10;
    assert_ne!(see(&to4(&zeros).one()).transport_sum(), 0xffff);
}

#[test]
fn s4_2_error_types_and_codes() {
    let inner = V4::inward().build(&udp(20));
    let word = |n: u32| n.to_be_bytes();
    let table: &[(u8, u8, [u8; 4], Option<(u8, u8, [u8; 4])>)] = &[
        (3, 0, [0; 4], Some((1, 0, [0; 4]))),
        (3, 1, [0; 4], Some((1, 0, [0; 4]))),
        (3, 2, [0; 4], Some((4, 1, word(6)))),
        (3, 3, [0; 4], Some((1, 4, [0; 4]))),
        (3, 5, [0; 4], Some((1, 0, [0; 4]))),
        (3, 6, [0; 4], Some((1, 0, [0; 4]))),
        (3, 7, [0; 4], Some((1, 0, [0; 4]))),
        (3, 8, [0; 4], Some((1, 0, [0; 4]))),
        (3, 9, [0; 4], Some((1, 1, [0; 4]))),
        (3, 10, [0; 4], Some((1, 1, [0; 4]))),
        (3, 11, [0; 4], Some((1, 0, [0; 4]))),
        (3, 12, [0; 4], Some((1, 0, [0; 4]))),
        (3, 13, [0; 4], Some((1, 1, [0; 4]))),
        (3, 14, [0; 4], None),
        (3, 15, [0; 4], Some((1, 1, [0; 4]))),
        (3, 16, [0; 4], None),
        (4, 0, [0; 4], None),
        (5, 0, [0; 4], None),
        (9, 0, [0; 4], None),
        (10, 0, [0; 4], None),
        (11, 0, [0; 4], Some((3, 0, [0; 4]))),
        (11, 1, [0; 4], Some((3, 1, [0; 4]))),
        (12, 1, [0; 4], None),
        (13, 0, [0; 4], None),
        (17, 0, [0; 4], None),
        (255, 0, [0; 4], None),
    ];
    for (kind, code, rest, want) in table {
        let packet =
            V4 { protocol: ICMP, ..V4::default() }.build(&icmp(*kind, *code, *rest, &inner));
        match (to6(&packet), want) {
            (Out::Drop(reason), None) => assert_eq!(reason, Reason::IcmpType, "{kind}/{code}"),
            (Out::Forward(Rule::To6Error, frames), Some((kind6, code6, rest6))) => {
                let seen = check(&frames[0]);
                assert_eq!((seen.payload[0], seen.payload[1]), (*kind6, *code6), "{kind}/{code}");
                assert_eq!(seen.payload[4..8], *rest6, "{kind}/{code}");
            }
            (other, _) => panic!("{kind}/{code}: {other:?}"),
        }
    }
}

#[test]
fn s4_2_parameter_problem_pointers() {
    let want = [
        Some(0),
        Some(1),
        Some(4),
        Some(4),
        None,
        None,
        None,
        None,
        Some(7),
        Some(6),
        None,
        None,
        Some(8),
        Some(8),
        Some(8),
        Some(8),
        Some(24),
        Some(24),
        Some(24),
        Some(24),
        None,
    ];
    for code in [0, 2] {
        for (pointer, want) in (0u8..).zip(want) {
            let inner = V4::inward().build(&udp(20));
            let packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(
                12,
                code,
                [pointer, 0, 0, 0],
                &inner,
            ));
            match (to6(&packet), want) {
                (Out::Drop(Reason::IcmpPointer), None) => {}
                (out, Some(want)) => {
                    let seen = check(&out.one());
                    assert_eq!(
                        (&seen.payload[..2], &seen.payload[4..8]),
                        (&[4, 0][..], &[0, 0, 0, want][..])
                    );
                }
                (other, None) => panic!("{pointer}: {other:?}"),
            }
        }
    }
}

#[test]
fn s4_2_fragmentation_needed_mtu() {
    let mtu_of = |config: Config, mtu: u16, inner: &[u8]| {
        let [high, low] = mtu.to_be_bytes();
        let packet =
            V4 { protocol: ICMP, ..V4::default() }.build(&icmp(3, 4, [0, 0, high, low], inner));
        let seen = check(&run(&mut translator_of(config, clat(), 1), &packet).one());
        assert_eq!(seen.payload[..2], [2, 0]);
        u32::from_be_bytes(seen.payload[4..8].try_into().unwrap())
    };
    let inner = V4 { df: true, ..V4::inward() }.build(&udp(1234));
    assert_eq!(mtu_of(config(), 1261, &inner), 1281);
    assert_eq!(mtu_of(config(), 1260, &inner), 1280);
    assert_eq!(mtu_of(config(), 576, &inner), 1280);
    assert_eq!(mtu_of(config(), 9000, &inner), 1500);
    assert_eq!(mtu_of(Config { mtu6: 9000, mtu4: 1400, ..config() }, 9000, &inner), 1420);
    // Plateaus of RFC 1191 where the router gave no MTU: 1006 below 1262, 1492 below 1500.
    assert_eq!(mtu_of(config(), 0, &inner), 1280);
    let inner = V4 { df: true, ..V4::inward() }.build(&udp(1472));
    assert_eq!(mtu_of(Config { mtu6: 9000, mtu4: 9000, ..config() }, 0, &inner), 1512);
}

#[test]
fn s4_3_quoted_packet_is_translated_whole() {
    let inner = V4 { tos: 0x2e, ttl: 3, ..V4::inward() };
    for payload in [udp(344), tcp(344)] {
        let protocol = if payload.len() == 352 { UDP } else { TCP };
        let quoted = V4 { protocol, ..inner.clone() }.build(&payload);
        let packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(3, 1, [0; 4], &quoted));
        let seen = check(&to6(&packet).one());
        let want = V6 { class: 0x2e, hops: 3, protocol, ..V6::default() }.build(&payload);
        assert_eq!(seen.payload[8..], want);
    }
    // A quoted fragment keeps its Fragment Header.
    let quoted = V4 { mf: true, offset: 1480, id: 99, ..V4::inward() }.raw(&data(64));
    let packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(11, 1, [0; 4], &quoted));
    let seen = check(&to6(&packet).one());
    let want =
        V6 { extensions: vec![V6::fragment(1480, true, 99)], ..V6::default() }.raw(&data(64));
    assert_eq!(seen.payload[8..], want);
    // A quoted echo message is translated, too.
    let quoted = V4 { protocol: ICMP, ..V4::inward() }.build(&icmp(8, 0, [9, 9, 0, 1], &data(9)));
    let packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(11, 0, [0; 4], &quoted));
    let seen = check(&to6(&packet).one());
    assert_eq!(
        seen.payload[8..],
        V6 { protocol: ICMPV6, ..V6::default() }.build(&icmp(128, 0, [9, 9, 0, 1], &data(9)))
    );
}

#[test]
fn s4_3_errors_stay_within_1280_bytes() {
    for (len, want) in
        [(1224, 1280), (1225, 1280), (1444, 1280), (1192 - 8, 1280), (1192 - 9, 1279)]
    {
        let quoted = V4::inward().build(&udp(len));
        let packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(11, 0, [0; 4], &quoted));
        let out = to6(&packet).one();
        check(&out);
        assert_eq!(out.len(), want, "{len}");
        let whole = V6::default().build(&udp(len));
        assert_eq!(out[48..], whole[..want - 48]);
    }
}

#[test]
fn s4_3_quote_cut_anywhere() {
    let quoted = V4 { protocol: TCP, ..V4::inward() }.build(&tcp(30));
    let want = V6 { protocol: TCP, ..V6::default() }.build(&tcp(30));
    for len in 0..=quoted.len() {
        let packet =
            V4 { protocol: ICMP, ..V4::default() }.build(&icmp(3, 1, [0; 4], &quoted[..len]));
        let out = to6(&packet);
        if len < 20 {
            assert_eq!(out, Out::Drop(Reason::QuotedPacket), "{len}");
            continue;
        }
        let seen = check(&out.one());
        let mut want = want[..len + 20].to_vec();
        if len < 20 + 18 {
            // The checksum, or half of it, is cut off; what is left cannot be updated.
            let from = want.len().min(40 + 16);
            want.truncate(from);
        }
        assert_eq!(seen.payload[8..][..want.len()], want, "{len}");
    }
}

#[test]
fn s4_3_nested_errors_and_foreign_quotes_are_dropped() {
    let inmost = V4::default().build(&udp(5));
    let quoted = V4 { protocol: ICMP, ..V4::inward() }.build(&icmp(3, 3, [0; 4], &inmost));
    let packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(3, 1, [0; 4], &quoted));
    assert_eq!(to6(&packet), Out::Drop(Reason::NestedError));
    let quoted = V4 { dst: Ipv4Addr::new(10, 0, 0, 1), ..V4::inward() }.build(&udp(5));
    let packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(3, 1, [0; 4], &quoted));
    assert_eq!(to6(&packet), Out::Drop(Reason::QuotedAddress));
}

#[test]
fn s4_2_extensions_are_kept_and_padded_anew() {
    // Quote, padding and extension of each row: IPv4 length field, extension; IPv6 length field,
    // padding.
    for (udp_len, units4, ext, units6) in [
        (104, 33, 40, 19),
        (544, 143, 640, 74),
        (992, 255, 192, 130),
        (104, 33, 1080, 19),
        (98, 32, 20, 19),
    ] {
        let mut body = V4::inward().build(&udp(udp_len));
        let len = body.len();
        body.resize(units4 * 4, 0);
        let ext = extension(ext - 8);
        body.extend(&ext);
        let packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(
            3,
            3,
            [0, units4 as u8, 0, 0],
            &body,
        ));
        let seen = check(&to6(&packet).one());
        assert_eq!(seen.payload[4..8], [units6, 0, 0, 0], "{udp_len}");
        let (quote, rest) = seen.payload[8..].split_at(usize::from(units6) * 8);
        let quoted = V6::default().build(&udp(udp_len));
        assert_eq!(quoted.len(), len + 20);
        assert_eq!(&quote[..quoted.len()], quoted);
        assert!(quote[quoted.len()..].iter().all(|b| *b == 0));
        assert_eq!(rest, ext);
    }
}

#[test]
fn s4_2_extensions_make_room_or_go() {
    let build = |udp_len: usize, units: u8, ext: usize| {
        let mut body = V4::inward().build(&udp(udp_len));
        body.resize(usize::from(units) * 4, 0);
        body.extend(extension(ext - 8));
        V4 { protocol: ICMP, ..V4::default() }.build(&icmp(3, 3, [0, units, 0, 0], &body))
    };
    // The quote is cut, down to 128 bytes.
    for (udp_len, units4, ext, units6) in
        [(552, 145, 640, 74), (992, 255, 200, 129), (992, 255, 1104, 16)]
    {
        let out = to6(&build(udp_len, units4, ext)).one();
        let seen = check(&out);
        assert_eq!((out.len(), seen.payload[4]), (1280, units6), "{udp_len} {ext}");
        assert_eq!(seen.payload[8 + usize::from(units6) * 8..], extension(ext - 8));
    }
    // Beyond that, the whole extension is dropped.
    for (udp_len, units4) in [(100, 32), (992, 255)] {
        let seen = check(&to6(&build(udp_len, units4, 1105)).one());
        assert_eq!(seen.payload[4], 0);
        assert_eq!(seen.payload[8..], V6::default().build(&udp(udp_len)));
    }
    // A quote that is too short for an extension is padded.
    let seen = check(&to6(&build(0, 7, 40)).one());
    assert_eq!((seen.payload[4], seen.payload.len()), (16, 8 + 128 + 40));
}

/// An RFC 4884 extension structure with objects of these lengths, headers included.
fn objects(lengths: &[usize]) -> Vec<u8> {
    let mut out = vec![0x20, 0, 0, 0];
    for (number, len) in (0..).zip(lengths) {
        out.extend((*len as u16).to_be_bytes());
        out.extend([1, number]);
        out.extend(data(len - 4));
    }
    let check = !sum(&[&out]);
    out[2..4].copy_from_slice(&check.to_be_bytes());
    out
}

/// Objects that fit are kept, with a checksum that is right for them; a wrong one stays wrong, and
/// none stays none.
#[test]
fn s4_2_extensions_that_are_too_long_are_truncated() {
    let send = |extensions: &[u8]| {
        let mut body = V4::inward().build(&udp(100));
        body.extend(extensions);
        let message = icmp(3, 3, [0, 32, 0, 0], &body);
        let out = to6(&V4 { protocol: ICMP, ..V4::default() }.build(&message)).one();
        let seen = check(&out);
        assert!(out.len() <= 1280);
        (seen.payload[4], seen.payload[8..].to_vec())
    };
    let quoted = V6::default().build(&udp(100));
    // 1,104 bytes are left behind 128 bytes of quote.
    for (lengths, kept) in [
        (&[1100, 8][..], 1),
        (&[8, 1092, 4], 2),
        (&[8, 1096, 4], 1),
        (&[200, 200, 200, 200, 200, 200], 5),
        (&[4, 4, 4, 1100], 3),
    ] {
        let (units, body) = send(&objects(lengths));
        let (quote, rest) = body.split_at(usize::from(units) * 8);
        assert_eq!(rest, objects(&lengths[..kept]), "{lengths:?}");
        assert_eq!(quote[..128], quoted[..128]);
    }
    let mut wrong = objects(&[1000, 200]);
    wrong[2] ^= 1;
    let mut none = objects(&[1000, 200]);
    none[2..4].fill(0);
    for (extensions, checksum) in [(wrong, None), (none, Some([0, 0]))] {
        let before = sum(&[&extensions]);
        let (units, body) = send(&extensions);
        let rest = &body[usize::from(units) * 8..];
        assert_eq!(rest.len(), 4 + 1000);
        match checksum {
            Some(checksum) => assert_eq!(rest[2..4], checksum),
            None => assert_eq!(sum(&[rest]), before),
        }
    }
    // Invalid objects and other versions are dropped as a whole.
    for (at, value) in [(4, 0), (5, 3), (0, 0x10)] {
        let mut extensions = objects(&[8, 1200]);
        extensions[at] = value;
        if at == 4 {
            extensions[5] = 0;
        }
        assert_eq!(send(&extensions), (0, quoted.clone()), "{at} {value}");
    }
}

// §4.5 transport

#[test]
fn s4_5_udp_zero_checksum() {
    let packet = V4::default().raw(&udp(33));
    let Out::Forward(rule, frames) = to6(&packet) else { panic!("dropped") };
    assert_eq!(rule, Rule::To6UdpZero);
    check(&frames[0]);

    let with = |udp_zero| translator_of(Config { udp_zero, ..config() }, clat(), 1);
    assert_prohibited(run(&mut with(UdpZero::Drop), &packet), Reason::UdpZeroChecksum, &packet);
    assert_eq!(see(&run(&mut with(UdpZero::Forward), &packet).one()).payload, udp(33));

    let fragment = V4 { mf: true, ..V4::default() }.raw(&udp(24));
    for udp_zero in [UdpZero::Compute, UdpZero::Drop] {
        let out = run(&mut with(udp_zero), &fragment);
        assert_prohibited(out, Reason::UdpZeroChecksumFragment, &fragment);
    }
    // Larger than a fragment: computed before fragmentation.
    let frames = to6(&V4::default().raw(&udp(3001))).many();
    assert_eq!(reassemble(&frames).transport_sum(), 0xffff);
}

#[test]
fn s4_5_udp_computed_zero_is_sent_as_ffff() {
    // Find data whose checksum is zero.
    for word in 0..=u16::MAX {
        let mut payload = udp(2);
        payload[8..10].copy_from_slice(&word.to_be_bytes());
        let probe = V6::outward().build(&payload);
        if be16(&probe, 46) == 0xffff {
            let seen = check(&to6(&V4::default().raw(&payload)).one());
            assert_eq!(seen.payload[6..8], [0xff, 0xff]);
            let seen = check(&to6(&V4::default().build(&payload)).one());
            assert_eq!(seen.payload[6..8], [0xff, 0xff]);
            return;
        }
    }
    panic!("no such data");
}

#[test]
fn s4_5_wrong_checksums_stay_equally_wrong() {
    for (protocol, payload) in [
        (TCP, tcp(31)),
        (UDP, udp(31)),
        (33, udp(31)),
        (136, udp(31)),
        (ICMP, icmp(8, 0, [1; 4], &data(31))),
    ] {
        let mut packet = V4 { protocol, ..V4::default() }.build(&payload);
        let end = packet.len() - 1;
        packet[end] ^= 0x40;
        let before = see(&packet).transport_sum();
        assert_ne!(before, 0xffff);
        let after = see(&to6(&packet).one());
        assert_eq!(after.transport_sum(), before, "{protocol}");
    }
    // Also an error whose contents are rearranged.
    let mut packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(
        3,
        1,
        [0; 4],
        &V4::inward().build(&udp(31)),
    ));
    packet[22] ^= 0x55;
    let before = see(&packet).transport_sum();
    assert_eq!(see(&to6(&packet).one()).transport_sum(), before);
}

#[test]
fn s4_5_other_protocols_pass_untouched() {
    for protocol in [47, 50, 132, 4, 41, 59, 253] {
        let seen = check(&to6(&V4 { protocol, ..V4::default() }.raw(&data(41))).one());
        assert_eq!((seen.protocol, seen.payload), (protocol, data(41)));
        let seen = check(&to4(&V6 { protocol, ..V6::default() }.raw(&data(41))).one());
        assert_eq!((seen.protocol, seen.payload), (protocol, data(41)));
    }
}

#[test]
fn s4_4_what_cannot_be_translated_is_refused() {
    let code_of = |out: Out| {
        let (reason, error) = out.reply();
        let seen = check(&error);
        (reason, seen.payload[0], seen.payload[1])
    };
    let out4 = |protocol| to6(&V4 { protocol, ..V4::default() }.raw(&data(40)));
    assert_eq!(code_of(out4(51)), (Reason::AuthenticationHeader, 3, 13));
    for protocol in [0, 43, 44, 58, 60] {
        assert_eq!(code_of(out4(protocol)), (Reason::NoCounterpart, 3, 13));
    }
    assert_eq!(out4(2), Out::Drop(Reason::GroupManagement));
    let out6 = |protocol| to4(&V6 { protocol, ..V6::default() }.raw(&data(40)));
    assert_eq!(code_of(out6(51)), (Reason::AuthenticationHeader, 1, 1));
    assert_eq!(code_of(out6(1)), (Reason::NoCounterpart, 1, 1));
}

// §5.1 Translating IPv6 Headers into IPv4 Headers

#[test]
fn s5_1_header_fields_and_df_by_size() {
    for (len, total, df) in
        [(10, 38, false), (1232, 1260, false), (1233, 1261, true), (1472, 1500, true)]
    {
        let out =
            to4(&V6 { class: 0xb9, flow: 0xabcde, hops: 9, ..V6::default() }.build(&udp(len)))
                .one();
        let seen = check(&out);
        assert_eq!((out.len(), seen.df, seen.mf, seen.offset), (total, df, false, 0));
        assert_eq!(seen.id == 0, df, "an identification exactly where it may be needed");
        assert_eq!((seen.class, seen.hops, seen.protocol), (0xb9, 9, UDP));
        assert_eq!((seen.src, seen.dst), (REMOTE4.octets().to_vec(), LOCAL4.octets().to_vec()));
    }
    let mut t = translator_of(config(), clat(), 0xffff);
    let ids: Vec<_> =
        (0..3).map(|_| see(&run(&mut t, &V6::default().build(&udp(1))).one()).id).collect();
    assert_eq!(ids, [0xffff, 1, 2]);
}

#[test]
fn s5_1_extension_headers_are_skipped() {
    let bare = to4(&V6::default().build(&udp(7))).one();
    let hop = (0, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let options = (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let routing = (43, vec![0, 0, 4, 0, 0, 0, 0, 0]);
    let with = |extensions| to4(&V6 { extensions, ..V6::default() }.build(&udp(7)));
    assert_eq!(with(vec![hop.clone()]).one(), bare);
    assert_eq!(
        with(vec![hop.clone(), options.clone(), routing.clone(), options.clone()]).one(),
        bare
    );
    let seen = check(&with(vec![hop, options, V6::fragment(0, false, 0x0102_0408)]).one());
    assert_eq!((seen.id, seen.df, seen.mf), (0x0408, false, false));
}

#[test]
fn s5_1_segments_left_is_answered_at_that_byte() {
    let routing = (43, vec![0, 0, 4, 1, 0, 0, 0, 0]);
    for (extensions, at) in [
        (vec![routing.clone()], 43),
        (vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0]), routing.clone()], 51),
        (vec![(60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), routing], 59),
    ] {
        let packet = V6 { extensions, ..V6::default() }.build(&udp(7));
        let (reason, error) = to4(&packet).reply();
        assert_eq!(reason, Reason::SegmentsLeft);
        let seen = check(&error);
        assert_eq!(seen.src, ROUTER6.octets());
        assert_eq!(seen.payload[..8], [4, 0, seen.payload[2], seen.payload[3], 0, 0, 0, at]);
        assert_eq!(seen.payload[8..], packet);
    }
}

#[test]
fn s5_1_too_big_for_ipv4() {
    let small = || translator_of(Config { mtu4: 1400, ..config() }, clat(), 1);
    assert_eq!(
        run(&mut small(), &V6 { protocol: TCP, ..V6::default() }.build(&tcp(1360))).one().len(),
        1400
    );
    let fragment = vec![V6::fragment(0, true, 1234)];
    for packet in [
        V6 { protocol: TCP, ..V6::default() }.build(&tcp(1361)),
        V6 { protocol: TCP, extensions: fragment, ..V6::default() }.raw(&tcp(1361)),
    ] {
        let (reason, error) = run(&mut small(), &packet).reply();
        assert_eq!((reason, error.len()), (Reason::TooBigForIpv4, 1280));
        let seen = check(&error);
        assert_eq!(seen.payload[..2], [2, 0]);
        assert_eq!(seen.payload[4..8], 1420u32.to_be_bytes());
        assert_eq!(seen.payload[8..], packet[..1232]);
    }
    // A sender never goes below 1280: smaller packets are fragmented in IPv4.
    let mut tiny = translator_of(Config { mtu4: 576, ..config() }, clat(), 1);
    let (_, error) = run(&mut tiny, &V6::default().build(&udp(1233))).reply();
    assert_eq!(check(&error).payload[4..8], 1280u32.to_be_bytes());
    let frames = run(&mut tiny, &V6::default().build(&udp(1232))).many();
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [572, 572, 156]);
    let whole = reassemble(&frames);
    assert_eq!((whole.transport_sum(), whole.df), (0xffff, false));
}

// §5.1.1 IPv6 Fragment Processing

#[test]
fn s5_1_1_fragments() {
    for (len, more) in [(1239, true), (1239, false), (1240, true), (1240, false)] {
        let extensions = vec![V6::fragment(640, more, 0x0102_0408)];
        let out = to4(&V6 { protocol: TCP, extensions, ..V6::default() }.raw(&data(len))).one();
        let seen = check(&out);
        assert_eq!(
            (out.len(), seen.id, seen.df, seen.mf, seen.offset),
            (len + 20, 0x0408, false, more, 640)
        );
    }
}

#[test]
fn s5_1_1_extension_header_behind_fragment_header() {
    for number in [0, 43, 60] {
        let behind = |more, protocol| {
            let options = (number, vec![0, 0, 1, 0, 0, 0, 0, 0]);
            let extensions = vec![V6::fragment(0, more, 1), options];
            V6 { protocol, extensions, ..V6::default() }
        };
        let packet = behind(true, UDP).raw(&udp(8));
        assert_prohibited(to4(&packet), Reason::ExtensionBehindFragment, &packet);
        // A caller that reassembles fragments wants no error about them.
        let mut t = translator();
        t.expect_reassembly();
        assert_eq!(run(&mut t, &packet), Out::Drop(Reason::ExtensionBehindFragment));
        // Not about an error, nor about what may be the rest of one.
        let error = icmp(1, 0, [0; 4], &V6::outward().build(&udp(20)));
        let packet = behind(true, ICMPV6).raw(&error);
        assert_eq!(to4(&packet), Out::Drop(Reason::ExtensionBehindFragment));
        let extensions = vec![V6::fragment(8, false, 1)];
        let rest = V6 { protocol: number, extensions, ..V6::default() }.raw(&data(64));
        assert_eq!(to4(&rest), Out::Drop(Reason::ExtensionBehindFragment));
        // The extension headers go on in the next fragment.
        let extensions = vec![V6::fragment(0, true, 1)];
        let half =
            V6 { protocol: number, extensions, ..V6::default() }.raw(&[17, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(to4(&half), Out::Drop(Reason::ExtensionBehindFragment));
    }
    let out =
        to4(&V6 { protocol: 51, extensions: vec![V6::fragment(0, true, 1)], ..V6::default() }
            .raw(&data(32)));
    assert_eq!(out.reply().0, Reason::AuthenticationHeader);
}

#[test]
fn s5_1_1_error_in_an_atomic_fragment() {
    let quoted = V6::outward().build(&udp(32));
    let extensions = vec![V6::fragment(0, false, 0xdead_beef)];
    let packet =
        V6 { protocol: ICMPV6, extensions, ..V6::default() }.build(&icmp(1, 4, [0; 4], &quoted));
    let seen = check(&to4(&packet).one());
    assert_eq!((seen.id, seen.df, seen.mf), (0xbeef, false, false));
}

/// A whole packet can be translated with any header behind its Fragment Header; the identification
/// is that header's.
#[test]
fn s5_1_1_extension_header_in_an_atomic_fragment() {
    for number in [0, 43, 60] {
        let options = (number, vec![0, 0, 1, 0, 0, 0, 0, 0]);
        let extensions = vec![V6::fragment(0, false, 0x0102_0408), options];
        let header = V6 { extensions, ..V6::default() };
        let seen = check(&to4(&header.build(&udp(80))).one());
        assert_eq!((seen.id, seen.df, seen.payload.len()), (0x0408, false, 88), "{number}");
    }
}

/// An error about a reassembled packet quotes the first fragment as received: RFC 4443 §2.4 (c), so
/// that the sender recognises it.
#[test]
fn s5_4_errors_quote_the_first_fragment() {
    let hop = (0, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    for (before, at) in [(vec![], 51), (vec![hop], 59)] {
        let header = |fragment| {
            let extensions = [&before[..], &[fragment]].concat();
            V6 { protocol: 43, extensions, ..V6::default() }
        };
        // With reserved bits, which receivers ignore.
        let mut first = V6::fragment(0, true, 0xdead_beef);
        first.1[3] |= 6;
        let mut whole = V6::fragment(0, false, 0xdead_beef);
        whole.1[3] |= 6;
        let behind = [&[17, 0, 4, 1, 0, 0, 0, 0][..], &udp(1000)].concat();
        let first = header(first).raw(&behind[..400]);
        let whole = header(whole).raw(&behind);

        let mut buf = vec![0; HEADROOM + whole.len() + TAILROOM];
        let range = HEADROOM..HEADROOM + whole.len();
        buf[range.clone()].copy_from_slice(&whole);
        let packet = Packet::new(&mut buf, range).unwrap();
        let mut packet = packet.with_first_fragment(first.len());
        let mut t = translator();
        let Verdict::Reply { reason, error } = t.translate(&mut packet) else { panic!("dropped") };
        assert_eq!(reason, Reason::SegmentsLeft);
        let seen = check(error);
        assert_eq!(seen.payload[4..8], [0, 0, 0, at]);
        assert_eq!(seen.payload[8..], first);
    }
}

#[test]
fn two_fragment_headers_are_no_packet() {
    for more in [false, true] {
        let extensions = vec![V6::fragment(0, false, 1), V6::fragment(0, more, 2)];
        let out = to4(&V6 { extensions, ..V6::default() }.raw(&udp(8)));
        assert_eq!(out, Out::Drop(Reason::BadExtension));
    }
}

#[test]
fn s5_1_fragmented_icmp_is_left_to_reassembly() {
    let icmp6 = icmp(128, 0, [0; 4], &data(64));
    let out = |offset, more| {
        to4(&V6 {
            protocol: ICMPV6,
            extensions: vec![V6::fragment(offset, more, 5)],
            ..V6::default()
        }
        .build(&icmp6))
    };
    assert_eq!(out(0, true), Out::Drop(Reason::FragmentedIcmp));
    assert_eq!(out(64, false), Out::Drop(Reason::FragmentedIcmp));
    // An atomic fragment.
    let seen = check(&out(0, false).one());
    assert_eq!((seen.id, seen.payload[0]), (5, 8));
    for v4 in [V4 { mf: true, ..V4::default() }, V4 { offset: 64, ..V4::default() }] {
        let mut t = translator();
        t.expect_reassembly();
        let out = run(&mut t, &V4 { protocol: ICMP, ..v4 }.raw(&icmp6));
        assert_eq!(out, Out::Drop(Reason::FragmentedIcmp));
    }
}

/// RFC 7915 §4.4 allows an error about an ICMPv4 message that is no error, §5.4 none about an
/// ICMPv6 message.
#[test]
fn s4_4_fragmented_icmp_is_answered() {
    let echo = icmp(8, 0, [0; 4], &data(64));
    let first = V4 { mf: true, protocol: ICMP, ..V4::default() };
    let packet = first.raw(&echo);
    assert_prohibited(to6(&packet), Reason::FragmentedIcmp, &packet);
    let error = icmp(3, 1, [0; 4], &V4::inward().build(&udp(36)));
    assert_eq!(to6(&first.raw(&error)), Out::Drop(Reason::FragmentedIcmp));
    let later = V4 { offset: 64, protocol: ICMP, ..V4::default() }.raw(&data(64));
    assert_eq!(to6(&later), Out::Drop(Reason::FragmentedIcmp));
}

// §5.2, §5.3 ICMPv6

#[test]
fn s5_2_error_types_and_codes() {
    let inner = V6::outward().build(&udp(20));
    let word = |n: u32| n.to_be_bytes();
    let table: &[(u8, u8, [u8; 4], Result<(u8, u8, [u8; 4]), Reason>)] = &[
        (1, 0, [0; 4], Ok((3, 1, [0; 4]))),
        (1, 1, [0; 4], Ok((3, 10, [0; 4]))),
        (1, 2, [0; 4], Ok((3, 1, [0; 4]))),
        (1, 3, [0; 4], Ok((3, 1, [0; 4]))),
        (1, 4, [0; 4], Ok((3, 3, [0; 4]))),
        (1, 5, [0; 4], Err(Reason::IcmpType)),
        (2, 0, word(1280), Ok((3, 4, word(1260)))),
        (2, 0, word(1500), Ok((3, 4, word(1480)))),
        (2, 0, word(9000), Ok((3, 4, word(1480)))),
        (2, 0, word(0), Err(Reason::MtuBelowMinimum)),
        (2, 0, word(1279), Err(Reason::MtuBelowMinimum)),
        (2, 0, word(u32::MAX), Ok((3, 4, word(1480)))),
        (3, 0, [0; 4], Ok((11, 0, [0; 4]))),
        (3, 1, [0; 4], Ok((11, 1, [0; 4]))),
        (4, 1, word(6), Ok((3, 2, [0; 4]))),
        (4, 2, word(6), Err(Reason::IcmpType)),
        (5, 0, [0; 4], Err(Reason::IcmpType)),
        (130, 0, [0; 4], Err(Reason::GroupManagement)),
        (143, 0, [0; 4], Err(Reason::GroupManagement)),
        (135, 0, [0; 4], Err(Reason::IcmpType)),
        (137, 0, [0; 4], Err(Reason::IcmpType)),
        (200, 0, [0; 4], Err(Reason::IcmpType)),
    ];
    for (kind, code, rest, want) in table {
        let packet =
            V6 { protocol: ICMPV6, ..V6::default() }.build(&icmp(*kind, *code, *rest, &inner));
        match (to4(&packet), want) {
            (Out::Drop(reason), Err(want)) => assert_eq!(reason, *want, "{kind}/{code}"),
            (Out::Forward(Rule::To4Error, frames), Ok((kind4, code4, rest4))) => {
                let seen = check(&frames[0]);
                assert_eq!((seen.payload[0], seen.payload[1]), (*kind4, *code4), "{kind}/{code}");
                assert_eq!(seen.payload[4..8], *rest4, "{kind}/{code}");
            }
            (other, _) => panic!("{kind}/{code}: {other:?}"),
        }
    }
}

fn packet_too_big(mtu: u32, quoted: &[u8], config: Config) -> Out {
    let message = icmp(2, 0, mtu.to_be_bytes(), quoted);
    let packet = V6 { protocol: ICMPV6, ..V6::default() }.build(&message);
    run(&mut translator_of(config, clat(), 1), &packet)
}

/// The quoted packet loses its Fragment Header on the way back.
#[test]
fn s5_2_packet_too_big_about_a_fragment() {
    let whole = V6::outward().build(&udp(1400));
    let extensions = vec![V6::fragment(0, true, 7)];
    let fragment = V6 { extensions, ..V6::outward() }.raw(&data(1400));
    let mtu_of = |mtu, quoted: &[u8], config| {
        let seen = check(&packet_too_big(mtu, quoted, config).one());
        assert_eq!(seen.payload[..2], [3, 4]);
        be16(&seen.payload, 6)
    };
    for (mtu, of_whole, of_fragment) in
        [(1280, 1260, 1252), (1400, 1380, 1372), (9000, 1480, 1472), (u32::MAX, 1480, 1472)]
    {
        assert_eq!(mtu_of(mtu, &whole, config()), of_whole, "{mtu}");
        assert_eq!(mtu_of(mtu, &fragment, config()), of_fragment, "{mtu}");
    }
    let narrow = Config { mtu4: 1300, ..config() };
    assert_eq!(mtu_of(1400, &fragment, narrow), 1300);

    // A packet of the size that the error tells fits.
    let config = Config { mtu6: 1400, ..config() };
    let mut t = translator_of(config, clat(), 1);
    let mtu = usize::from(mtu_of(1400, &fragment, config));
    let packet = |len| V4 { df: true, mf: true, ..V4::default() }.raw(&data(len / 8 * 8));
    assert!(run(&mut t, &packet(mtu - 20)).one().len() <= 1400);
    assert_eq!(run(&mut t, &packet(mtu - 20 + 8)).reply().0, Reason::TooBigForIpv6);
}

/// RFC 8201 §4: a node must discard such an error, and the CLAT stands for the node. No translator
/// sends one (RFC 7915 §4.2).
#[test]
fn s5_2_packet_too_big_below_1280_is_discarded() {
    let quoted = V6::outward().build(&udp(1400));
    for mtu in [0, 68, 576, 1279] {
        let out = packet_too_big(mtu, &quoted, config());
        assert_eq!(out, Out::Drop(Reason::MtuBelowMinimum), "{mtu}");
    }
    packet_too_big(1280, &quoted, config()).one();
}

#[test]
fn s5_2_parameter_problem_pointers() {
    let inner = V6::outward().build(&udp(20));
    for pointer in 0..48u32 {
        let want = match pointer {
            0 => Some(0),
            1 => Some(1),
            4 | 5 => Some(2),
            6 => Some(9),
            7 => Some(8),
            8..=23 => Some(12),
            24..=39 => Some(16),
            _ => None,
        };
        let packet = V6 { protocol: ICMPV6, ..V6::default() }.build(&icmp(
            4,
            0,
            pointer.to_be_bytes(),
            &inner,
        ));
        match (to4(&packet), want) {
            (Out::Drop(Reason::IcmpPointer), None) => {}
            (out, Some(want)) => {
                let seen = check(&out.one());
                assert_eq!(
                    (&seen.payload[..2], &seen.payload[4..8]),
                    (&[12, 0][..], &[want, 0, 0, 0][..])
                );
            }
            (other, None) => panic!("{pointer}: {other:?}"),
        }
    }
}

#[test]
fn s5_3_quoted_packet_is_translated_whole() {
    for (len, df) in [(304, false), (1232, false), (1233, true)] {
        let quoted = V6 { class: 0x2e, hops: 3, ..V6::outward() }.build(&udp(len));
        let packet = V6 { protocol: ICMPV6, ..V6::default() }.build(&icmp(1, 0, [0; 4], &quoted));
        let out = to4(&packet).one();
        let seen = check(&out);
        let want = V4 { tos: 0x2e, ttl: 3, id: 0, df, ..V4::default() }.build(&udp(len));
        assert_eq!(out.len(), (want.len() + 28).min(576));
        assert_eq!(seen.payload[8..], want[..out.len() - 28]);
        assert!(!seen.df);
    }
    let extensions = vec![V6::fragment(1232, true, 0x1_0063)];
    let quoted = V6 { extensions, ..V6::outward() }.raw(&data(64));
    let packet = V6 { protocol: ICMPV6, ..V6::default() }.build(&icmp(3, 1, [0; 4], &quoted));
    let seen = check(&to4(&packet).one());
    assert_eq!(
        seen.payload[8..],
        V4 { mf: true, offset: 1232, id: 0x63, ..V4::default() }.raw(&data(64))
    );
}

#[test]
fn s5_3_nested_errors_are_dropped() {
    let inmost = V6::default().build(&udp(5));
    let quoted = V6 { protocol: ICMPV6, ..V6::outward() }.build(&icmp(1, 4, [0; 4], &inmost));
    let packet = V6 { protocol: ICMPV6, ..V6::default() }.build(&icmp(1, 0, [0; 4], &quoted));
    assert_eq!(to4(&packet), Out::Drop(Reason::NestedError));
}

#[test]
fn s5_3_routers_without_an_ipv4_form() {
    let router: Ipv6Addr = "2001:db8:5::1".parse().unwrap();
    let quoted = V6 { hops: 1, ..V6::outward() }.build(&udp(32));
    let packet =
        V6 { src: router, protocol: ICMPV6, ..V6::default() }.build(&icmp(3, 0, [0; 4], &quoted));
    let Out::Forward(rule, frames) = to4(&packet) else { panic!("dropped") };
    assert_eq!(rule, Rule::To4ErrorUnmapped);
    let seen = check(&frames[0]);
    assert_eq!(seen.src, [192, 0, 0, 8]);
    assert_eq!(seen.payload[..2], [11, 0]);
    assert_eq!(seen.payload[4..8], [0, 32, 0, 0]);
    let (quote, ext) = seen.payload[8..].split_at(128);
    assert_eq!(quote[..60], V4 { ttl: 1, id: 0, ..V4::default() }.build(&udp(32)));
    assert_eq!(sum(&[ext]), 0xffff);
    assert_eq!(ext[..2], [0x20, 0]);
    assert_eq!(ext[4..12], [0, 24, 5, 4, 0, 2, 0, 0]);
    assert_eq!(ext[12..], router.octets());

    // Behind an existing extension.
    let mut body = quoted.clone();
    body.resize(128, 0);
    body.extend(extension(12));
    let packet = V6 { src: router, protocol: ICMPV6, ..V6::default() }.build(&icmp(
        3,
        0,
        [16, 0, 0, 0],
        &body,
    ));
    let seen = check(&to4(&packet).one());
    let ext = &seen.payload[8 + 128..];
    assert_eq!((ext.len(), sum(&[ext])), (20 + 24, 0xffff));
    assert_eq!(ext[4..20], extension(12)[4..]);
    assert_eq!(ext[28..], router.octets());

    // Only errors may have such a source.
    let packet = V6 { src: router, ..V6::default() }.build(&udp(1));
    assert_eq!(to4(&packet), Out::Drop(Reason::SourceUnmapped));
}

/// RFC 4884 §5.5: routers without it may leave anything in the unused byte. A value below 128 bytes
/// is no length unless extensions follow.
#[test]
fn rfc4884_s5_5_what_is_no_length() {
    let quoted = V6::outward().build(&udp(200));
    for noise in [1, 6, 15] {
        let message = icmp(3, 0, [noise, 0, 0, 0], &quoted);
        let seen = check(&to4(&V6 { protocol: ICMPV6, ..V6::default() }.build(&message)).one());
        assert_eq!(seen.payload[4..8], [0; 4], "{noise}");
        assert_eq!(seen.payload[8..], V4 { id: 0, ..V4::default() }.build(&udp(200)), "{noise}");
    }
    let quoted = V4::inward().build(&udp(200));
    for noise in [5, 9, 31] {
        let message = icmp(11, 0, [0, noise, 0, 0], &quoted);
        let seen = check(&to6(&V4 { protocol: ICMP, ..V4::default() }.build(&message)).one());
        assert_eq!(seen.payload[4..8], [0; 4], "{noise}");
        assert_eq!(seen.payload[8..], V6::default().build(&udp(200)), "{noise}");
    }
}

/// In a message without length attribute, what looks like extensions is part of the quote.
#[test]
fn rfc4884_s4_6_messages_without_extensions() {
    let quoted = [V6::outward().build(&udp(80)), extension(20)].concat();
    for (kind, code, rest, want) in
        [(2, 0, 1400u32.to_be_bytes(), [3, 4, 5, 100]), (4, 1, [16, 0, 0, 0], [3, 2, 0, 0])]
    {
        let message = icmp(kind, code, rest, &quoted);
        let seen = check(&to4(&V6 { protocol: ICMPV6, ..V6::default() }.build(&message)).one());
        assert_eq!([&seen.payload[..2], &seen.payload[6..8]].concat(), want);
        assert_eq!(seen.payload[4..6], [0, 0], "no length");
        assert_eq!(seen.payload.len(), 8 + 108, "what follows the quoted packet is not part of it");
    }
    let mut body = V4::inward().build(&udp(100));
    body.extend(extension(20));
    for (kind, code, rest, want) in [
        // The pointer is where ICMPv6 has the length.
        (3, 4, [0, 32, 5, 100], [2, 0, 0, 0, 5, 120]),
        (3, 2, [0, 32, 0, 0], [4, 1, 0, 0, 0, 6]),
    ] {
        let message = icmp(kind, code, rest, &body);
        let seen = check(&to6(&V4 { protocol: ICMP, ..V4::default() }.build(&message)).one());
        assert_eq!([&seen.payload[..2], &seen.payload[4..8]].concat(), want);
        assert_eq!(seen.payload.len(), 8 + 40 + 108);
    }
}

#[test]
fn s5_2_extensions_are_kept_and_padded_anew() {
    // IPv6 length field, extension length; IPv4 length field, kept or not.
    for (udp_len, units6, ext, units4, kept) in [
        (104, 19, 20, 33, true),
        (74, 16, 20, 32, true),
        (480, 66, 40, 127, true),
        (488, 67, 40, 127, true),
        (1144, 149, 40, 127, true),
        (80, 16, 420, 32, true),
        (80, 16, 424, 0, false),
        (528, 72, 524, 0, false),
        (0, 6, 40, 32, true),
    ] {
        let mut body = V6::outward().build(&udp(udp_len));
        body.resize(units6 * 8, 0);
        body.extend(extension(ext - 8));
        let packet = V6 { protocol: ICMPV6, ..V6::default() }.build(&icmp(
            1,
            4,
            [units6 as u8, 0, 0, 0],
            &body,
        ));
        let out = to4(&packet).one();
        let seen = check(&out);
        assert_eq!(seen.payload[4..8], [0, units4, 0, 0], "{udp_len} {ext}");
        let quoted = V4 { id: 0, df: 28 + udp_len > 1260, ..V4::default() }.build(&udp(udp_len));
        if kept {
            let (quote, rest) = seen.payload[8..].split_at(usize::from(units4) * 4);
            let both = quote.len().min(quoted.len());
            assert_eq!(quote[..both], quoted[..both]);
            assert!(quote[both..].iter().all(|b| *b == 0));
            assert_eq!(rest, extension(ext - 8));
        } else {
            assert_eq!(seen.payload[8..], quoted[..quoted.len().min(548)]);
        }
    }
}

#[test]
fn s5_2_extensions_that_are_too_long_are_truncated() {
    let quoted = V6::outward().build(&udp(80));
    // 420 bytes are left behind 128 bytes of quote.
    for (lengths, kept) in [(&[416, 8][..], 1), (&[200, 216, 4], 2), (&[200, 220], 1)] {
        let body = [&quoted[..], &objects(lengths)].concat();
        let message = icmp(1, 4, [16, 0, 0, 0], &body);
        let out = to4(&V6 { protocol: ICMPV6, ..V6::default() }.build(&message)).one();
        let seen = check(&out);
        assert!(out.len() <= 576);
        let rest = &seen.payload[8 + usize::from(seen.payload[5]) * 4..];
        assert_eq!(rest, objects(&lengths[..kept]), "{lengths:?}");
    }
}

#[test]
fn s5_3_errors_about_errors() {
    // No error is sent about an error, nor about a later fragment.
    let mut router = translator_of(Config { hop: HopPolicy::Decrement, ..config() }, clat(), 1);
    let inner = V4::inward().build(&udp(5));
    let packet = V4 { ttl: 1, protocol: ICMP, ..V4::default() }.build(&icmp(3, 3, [0; 4], &inner));
    assert_eq!(run(&mut router, &packet), Out::Drop(Reason::HopLimit));
    let packet = V4 { ttl: 1, offset: 80, ..V4::default() }.raw(&data(80));
    assert_eq!(run(&mut router, &packet), Out::Drop(Reason::HopLimit));
    let inner = V6::outward().build(&udp(5));
    let packet =
        V6 { hops: 1, protocol: ICMPV6, ..V6::default() }.build(&icmp(1, 4, [0; 4], &inner));
    assert_eq!(run(&mut router, &packet), Out::Drop(Reason::HopLimit));
    assert_eq!(router.counters().drops(Reason::HopLimit), 3);
}

// Hostile input

#[test]
fn truncated_and_lying_input_has_its_reason() {
    let good = V4::default().build(&udp(5));
    for len in 0..good.len() {
        let want = if len == 0 { Reason::NotIp } else { Reason::Truncated };
        assert_eq!(to6(&good[..len]), Out::Drop(want), "{len}");
    }
    let mut padded = good.clone();
    padded.extend([0; 9]);
    assert_eq!(to6(&padded), to6(&good), "what follows the packet is not part of it");

    let edit = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        to6(&bytes)
    };
    assert_eq!(edit(0, 0x44), Out::Drop(Reason::BadHeader));
    assert_eq!(edit(0, 0x35), Out::Drop(Reason::NotIp));
    assert_eq!(edit(3, 19), Out::Drop(Reason::BadHeader));
    assert_eq!(edit(8, 63), Out::Drop(Reason::BadHeaderChecksum));
    let mut lying = udp(5);
    lying[5] = 14;
    assert_eq!(to6(&V4::default().build(&lying)), Out::Drop(Reason::BadLength));
    lying[5] = 7;
    assert_eq!(to6(&V4::default().build(&lying)), Out::Drop(Reason::BadLength));
    assert_eq!(to6(&V4 { mf: true, ..V4::default() }.raw(&[0; 7])), Out::Drop(Reason::BadFragment));
    assert_eq!(
        to6(&V4 { offset: 65528, ..V4::default() }.raw(&[0; 8])),
        Out::Drop(Reason::BadFragment)
    );

    let good = V6::default().build(&udp(5));
    for len in 1..good.len() {
        assert_eq!(to4(&good[..len]), Out::Drop(Reason::Truncated), "{len}");
    }
    let bad = |extensions| to4(&V6 { extensions, ..V6::default() }.raw(&[]));
    assert_eq!(bad(vec![(60, vec![0, 9, 0, 0, 0, 0, 0, 0])]), Out::Drop(Reason::BadExtension));
    assert_eq!(bad(vec![(44, vec![0, 0, 0])]), Out::Drop(Reason::BadExtension));
}
