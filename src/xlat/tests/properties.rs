// SPDX-License-Identifier: Apache-2.0

//! Properties of every packet: round trips, well-formed output, no panic.
#![allow(missing_docs, clippy::cast_possible_truncation)]

mod common;

use clat_xlat::{Config, HopPolicy, Translator, UdpZero};
use common::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// A transport and its payload, checksum zero.
fn payload() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let len = prop_oneof![0usize..90, 1180usize..1300, 2000usize..5000];
    (select(vec![TCP, UDP, 33, 136, 47, 50, 132, 253]), len).prop_map(|(protocol, len)| {
        let body = match protocol {
            TCP => tcp(len),
            UDP | 33 | 136 => udp(len),
            _ => data(len),
        };
        (protocol, body)
    })
}

fn echo() -> impl Strategy<Value = (bool, [u8; 4], Vec<u8>)> {
    (any::<bool>(), any::<[u8; 4]>(), vec(any::<u8>(), 0..1400))
}

fn v4() -> impl Strategy<Value = V4> {
    let options = select(vec![
        vec![],
        vec![1, 1, 1, 0],
        vec![7, 7, 4, 0, 0, 0, 0, 0],
        vec![131, 7, 8, 1, 2, 3, 4, 0],
    ]);
    (any::<u8>(), any::<u8>(), any::<u16>(), any::<bool>(), options)
        .prop_map(|(tos, ttl, id, df, options)| V4 { tos, ttl, id, df, options, ..V4::default() })
}

fn v6() -> impl Strategy<Value = V6> {
    let extensions = select(vec![
        vec![],
        vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0])],
        vec![
            (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (43, vec![0, 0, 4, 0, 0, 0, 0, 0]),
        ],
    ]);
    (any::<u8>(), any::<u8>(), 0u32..0x10_0000, extensions).prop_map(
        |(class, hops, flow, extensions)| V6 { class, hops, flow, extensions, ..V6::default() },
    )
}

/// A translator whose links take packets of any size.
fn wide() -> Translator {
    translator_of(
        Config { mtu4: 65535, mtu6: 65575, lowest_ipv6_mtu: 65575, ..config() },
        clat(),
        1,
    )
}

/// All configurations that matter here.
fn any_config() -> impl Strategy<Value = Config> {
    let mtu = || prop_oneof![Just(1280u32), Just(1500), 1280u32..2000, Just(65535)];
    let udp_zero = select(vec![UdpZero::Compute, UdpZero::Drop, UdpZero::Forward]);
    let hop = select(vec![HopPolicy::Copy, HopPolicy::Decrement]);
    (prop_oneof![68u32..2000, Just(65535)], mtu(), mtu(), udp_zero, hop).prop_map(
        |(mtu4, mtu6, lowest_ipv6_mtu, udp_zero, hop)| Config {
            mtu4,
            mtu6,
            lowest_ipv6_mtu,
            udp_zero,
            hop,
            ..config()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn round_trip_4_6_4(header in v4(), (protocol, body) in payload()) {
        let packet = V4 { protocol, ..header.clone() }.build(&body);
        let mut t = wide();
        let middle = run(&mut t, &packet).one();
        let seen = check(&middle);
        // The packet comes back from the network: swap its addresses.
        let back = turn(&middle);
        let end = check(&run(&mut t, &back).one());
        prop_assert_eq!((end.class, end.hops, end.protocol), (header.tos, header.ttl, protocol));
        let ends = [REMOTE4, LOCAL4].map(|end| end.octets().to_vec());
        prop_assert_eq!([end.src, end.dst], ends);
        prop_assert_eq!(&end.payload, &packet[20 + header.options.len()..]);
        prop_assert_eq!(seen.payload.len(), end.payload.len());
    }

    #[test]
    fn round_trip_6_4_6(header in v6(), (protocol, body) in payload()) {
        let packet = V6 { protocol, ..header.clone() }.build(&body);
        let mut t = wide();
        let middle = run(&mut t, &packet).one();
        check(&middle);
        let end = check(&run(&mut t, &turn(&middle)).one());
        prop_assert_eq!((end.class, end.hops, end.protocol), (header.class, header.hops, protocol));
        prop_assert_eq!(&end.payload[..], &packet[packet.len() - body.len()..]);
    }

    #[test]
    fn round_trip_of_echo((reply, rest, body) in echo(), header in v4()) {
        let message = icmp(if reply { 0 } else { 8 }, 0, rest, &body);
        let packet = V4 { protocol: ICMP, ..header }.build(&message);
        let mut t = wide();
        let middle = run(&mut t, &packet).one();
        check(&middle);
        let end = check(&run(&mut t, &turn(&middle)).one());
        prop_assert_eq!(&end.payload[..], &packet[packet.len() - body.len() - 8..]);
    }

    #[test]
    fn round_trip_of_fragments(
        header in v4(),
        mf: bool,
        offset in 0usize..8000,
        len in 24usize..1200,
    ) {
        prop_assume!(mf || offset > 0);
        let packet = V4 { mf, offset: offset * 8, protocol: 253, ..header.clone() }.raw(&data(len));
        let mut t = wide();
        let middle = run(&mut t, &packet).one();
        let end = check(&run(&mut t, &turn(&middle)).one());
        prop_assert_eq!((end.mf, end.offset, end.id), (mf, offset * 8, u32::from(header.id)));
        prop_assert_eq!(end.payload, data(len));
    }

    #[test]
    fn split_packets_are_whole_again(
        header in v4(),
        (protocol, body) in payload(),
        lowest in 1280u32..1600,
    ) {
        let header = V4 { df: false, protocol, ..header };
        let packet = header.build(&body);
        let config = Config { lowest_ipv6_mtu: lowest, mtu6: 65575, ..config() };
        let frames = run(&mut translator_of(config, clat(), 1), &packet).many();
        for frame in &frames {
            prop_assert!(frame.len() <= lowest as usize);
            check(frame);
        }
        let whole = check(&run(&mut wide(), &packet).one());
        prop_assert_eq!(reassemble(&frames).payload, whole.payload);
    }

    #[test]
    fn errors_come_out_right(
        (protocol, body) in payload(),
        (kind, code, rest) in (select(vec![3u8, 11, 12]), 0u8..16, any::<[u8; 4]>()),
        cut in 0usize..1400,
        extension_len in prop_oneof![Just(0usize), 1usize..300],
        config in any_config(),
    ) {
        let quoted = V4 { protocol, ..V4::inward() }.build(&body);
        let mut quoted = quoted[..quoted.len().min(cut.max(20))].to_vec();
        let mut rest = rest;
        rest[1] = 0;
        if extension_len > 0 {
            quoted.resize(quoted.len().next_multiple_of(4).clamp(128, 1020), 0);
            rest[1] = (quoted.len() / 4) as u8;
            quoted.extend(extension(extension_len * 4));
        }
        let packet = V4 { protocol: ICMP, ..V4::default() }.build(&icmp(kind, code, rest, &quoted));
        if let Out::Forward(_, frames) = run(&mut translator_of(config, clat(), 1), &packet) {
            let seen = check(&frames[0]);
            prop_assert_eq!(seen.payload[8] >> 4, 6);
            if seen.payload[4] > 0 && seen.payload[0] != 2 && seen.payload[0] != 4 {
                let at = 8 + usize::from(seen.payload[4]) * 8;
                prop_assert_eq!(&seen.payload[at..], &extension(extension_len * 4)[..]);
            }
        }
    }

    #[test]
    fn errors_come_back_right(
        (protocol, body) in payload(),
        (kind, code, rest) in (1u8..5, 0u8..6, any::<[u8; 4]>()),
        cut in 0usize..1400,
        extension_len in prop_oneof![Just(0usize), 1usize..100],
        mapped: bool,
        config in any_config(),
    ) {
        let quoted = V6 { protocol, ..V6::outward() }.build(&body);
        let mut quoted = quoted[..quoted.len().min(cut.max(40))].to_vec();
        let mut rest = rest;
        if matches!(kind, 1 | 3) {
            rest = [0; 4];
            if extension_len > 0 {
                quoted.resize(quoted.len().next_multiple_of(8).clamp(128, 1200), 0);
                rest[0] = (quoted.len() / 8) as u8;
                quoted.extend(extension(extension_len * 4));
            }
        }
        let src = if mapped { remote6() } else { "2001:db8:7::7".parse().unwrap() };
        let message = icmp(kind, code, rest, &quoted);
        let packet = V6 { src, protocol: ICMPV6, ..V6::default() }.build(&message);
        let config = Config { mtu4: 1500, ..config };
        if let Out::Forward(_, frames) = run(&mut translator_of(config, clat(), 1), &packet) {
            let seen = check(&frames[0]);
            prop_assert_eq!(seen.payload[8] >> 4, 4);
            if seen.payload[5] > 0 {
                let at = 8 + usize::from(seen.payload[5]) * 4;
                prop_assert_eq!(sum(&[&seen.payload[at..]]), 0xffff);
            }
        }
    }

    #[test]
    fn wrong_checksums_stay_equally_wrong(
        header in v4(),
        (protocol, body) in payload(),
        at: prop::sample::Index,
        flip in 1u8..,
    ) {
        let header = V4 { protocol, options: vec![], ..header };
        let mut packet = header.build(&body);
        prop_assume!(checksum_at(protocol).is_some() && protocol != 136 && body.len() > 8);
        // Not the UDP length nor the checksum, which have their own rules.
        let at = 20 + 8 + at.index(body.len() - 7).min(body.len() - 9);
        prop_assume!(at < packet.len() && !(protocol == TCP && (36..38).contains(&at)));
        packet[at] ^= flip;
        let before = see(&packet).transport_sum();
        let after = see(&run(&mut wide(), &packet).one()).transport_sum();
        prop_assert_eq!(after % 0xffff, before % 0xffff);
    }

    #[test]
    fn mutated_packets_never_panic(
        v6first: bool,
        (header4, header6) in (v4(), v6()),
        (protocol, body) in payload(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: prop::sample::Index,
        config in any_config(),
    ) {
        let mut packet = if v6first {
            V6 { protocol, ..header6 }.build(&body)
        } else {
            V4 { protocol, ..header4 }.build(&body)
        };
        let near = packet.len().min(120);
        for (at, value) in edits {
            packet[at.index(near)] = value;
        }
        packet.truncate(packet.len().saturating_sub(cut.index(40)));
        mend_ipv4_checksum(&mut packet);
        survive(config, &packet);
    }

    #[test]
    fn noise_never_panics(
        bytes in vec(any::<u8>(), 0..400),
        version in select(vec![0x45u8, 0x4f, 0x60]),
        config in any_config(),
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        // With our addresses.
        if version == 0x60 && bytes.len() >= 40 {
            bytes[8..24].copy_from_slice(&remote6().octets());
            bytes[24..40].copy_from_slice(&LOCAL6.octets());
        } else if bytes.len() >= 20 {
            bytes[12..16].copy_from_slice(&LOCAL4.octets());
        }
        mend_ipv4_checksum(&mut bytes);
        survive(config, &bytes);
    }
}

/// The packet with addresses swapped, which leaves sums unchanged.
fn turn(packet: &[u8]) -> Vec<u8> {
    let mut out = packet.to_vec();
    let (at, len) = if packet[0] >> 4 == 6 { (8, 16) } else { (12, 4) };
    out[at..at + len].copy_from_slice(&packet[at + len..at + 2 * len]);
    out[at + len..at + 2 * len].copy_from_slice(&packet[at..at + len]);
    out
}
