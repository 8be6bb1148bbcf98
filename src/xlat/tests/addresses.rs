// SPDX-License-Identifier: Apache-2.0

//! Prefixes (RFC 6052), explicit mappings (RFC 7757) and checksum-neutral addresses.
#![allow(missing_docs, clippy::cast_possible_truncation)]

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};

use clat_xlat::{
    Addresses, AddressesError, Config, Eam, EamError, HopPolicy, Local, Pool, PoolError, Prefix,
    PrefixError, Reason, Rule, Translator,
};
use common::*;
use proptest::prelude::*;

fn prefix(text: &str) -> Prefix {
    text.parse().expect(text)
}

#[test]
fn rfc6052_s2_4_text_representation() {
    // The table of RFC 6052 §2.4.
    let v4 = Ipv4Addr::new(192, 0, 2, 33);
    for (net, want) in [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
    ] {
        let want: Ipv6Addr = want.parse().unwrap();
        assert_eq!(prefix(net).embed(v4), want, "{net}");
        assert_eq!(prefix(net).extract(want), Some(v4), "{net}");
        assert_eq!(prefix(net).to_string(), net);
    }
}

#[test]
fn rfc6052_s2_2_suffix_and_u_octet_are_ignored() {
    let v6: Ipv6Addr = "2001:db8:122:344:ffc0:2:21ff:ffff".parse().unwrap();
    assert_eq!(prefix("2001:db8:122:344::/64").extract(v6), Some(Ipv4Addr::new(192, 0, 2, 33)));
    assert_eq!(prefix("2001:db8:122:345::/64").extract(v6), None);
}

#[test]
fn prefixes_that_are_none() {
    for (text, want) in [
        ("", PrefixError::Syntax),
        ("64:ff9b::", PrefixError::Syntax),
        ("64:ff9b::/", PrefixError::Syntax),
        ("64:ff9b::/+96", PrefixError::Syntax),
        ("64:ff9b::/96 ", PrefixError::Syntax),
        ("64:ff9b::/960", PrefixError::Syntax),
        ("64:ff9b::%lo/96", PrefixError::Syntax),
        ("hello/96", PrefixError::Syntax),
        ("192.0.2.0/24", PrefixError::Ipv4),
        ("64:ff9b::/95", PrefixError::Length),
        ("64:ff9b::/128", PrefixError::Length),
        ("64:ff9b::1/96", PrefixError::HostBits),
        ("2001:db8:0:0:100::/96", PrefixError::UOctet),
    ] {
        assert_eq!(text.parse::<Prefix>(), Err(want), "{text}");
    }
}

#[test]
fn rfc7757_s3_mappings() {
    // The table of RFC 7757 §3.2, and an address out of each.
    for (eam, v4, v6) in [
        ("192.0.2.1=2001:db8:aaaa::", "192.0.2.1", "2001:db8:aaaa::"),
        ("192.0.2.2/32=2001:db8:bbbb::b/128", "192.0.2.2", "2001:db8:bbbb::b"),
        ("192.0.2.16/28=2001:db8:cccc::/124", "192.0.2.18", "2001:db8:cccc::2"),
        ("192.0.2.128/26=2001:db8:dddd::/64", "192.0.2.183", "2001:db8:dddd:0:dc00::"),
        ("192.0.2.192/29=2001:db8:eeee:8::/62", "192.0.2.195", "2001:db8:eeee:9:8000::"),
        ("192.0.2.224/31=64:ff9b::/127", "192.0.2.225", "64:ff9b::1"),
        ("0.0.0.0/0=2001:db8::/96", "1.2.3.4", "2001:db8::102:304"),
    ] {
        let siit = Addresses {
            eams: vec![eam.parse::<Eam>().unwrap()],
            prefixes: vec![prefix("2001:db8:ffff::/96")],
            ..Addresses::default()
        };
        let (v4, v6): (Ipv4Addr, Ipv6Addr) = (v4.parse().unwrap(), v6.parse().unwrap());
        let mut t = translator_of(config(), siit, 1);
        let out = run(&mut t, &V4 { src: v4, ..V4::default() }.build(&udp(3))).one();
        assert_eq!(check(&out).src, v6.octets(), "{eam}");
        let back = check(&run(&mut t, &out).one());
        assert_eq!(back.src, v4.octets(), "{eam}");
    }
}

#[test]
fn rfc7757_s3_3_longest_match_first() {
    let eams: Vec<Eam> = [
        "192.0.2.0/24=2001:db8:1::/120",
        "192.0.2.7=2001:db8:2::7",
        "192.0.0.0/16=2001:db8:3::/112",
    ]
    .map(|e| e.parse().unwrap())
    .to_vec();
    for order in [vec![0, 1, 2], vec![2, 1, 0], vec![1, 2, 0]] {
        let eams: Vec<Eam> = order.into_iter().map(|i| eams[i]).collect();
        let prefixes = vec![Prefix::WELL_KNOWN];
        let mut siit =
            translator_of(config(), Addresses { eams, prefixes, ..Addresses::default() }, 1);
        for (v4, want) in [
            ([192, 0, 2, 7], "2001:db8:2::7"),
            ([192, 0, 2, 8], "2001:db8:1::8"),
            ([192, 0, 3, 8], "2001:db8:3::308"),
            ([198, 0, 3, 8], "64:ff9b::198.0.3.8"),
        ] {
            let packet = V4 { src: v4.into(), ..V4::default() }.build(&udp(3));
            let seen = check(&run(&mut siit, &packet).one());
            assert_eq!(seen.src, want.parse::<Ipv6Addr>().unwrap().octets());
        }
    }
}

#[test]
fn mappings_that_are_none() {
    for (text, want) in [
        ("192.0.2.1", EamError::Syntax),
        ("192.0.2.1=", EamError::Syntax),
        ("2001:db8::=192.0.2.1", EamError::Syntax),
        ("192.0.2.0/33=2001:db8::", EamError::Length),
        ("192.0.2.0/24=2001:db8::/129", EamError::Length),
        ("192.0.2.1/24=2001:db8::/120", EamError::HostBits),
        ("192.0.2.0/24=2001:db8::1/120", EamError::HostBits),
        ("192.0.2.0/24=2001:db8::/121", EamError::Suffix),
        ("224.0.0.1=2001:db8::1", EamError::NoHost),
        ("224.0.0.0/4=2001:db8::/100", EamError::NoHost),
        ("255.255.255.255=2001:db8::1", EamError::NoHost),
        ("127.0.0.0/8=2001:db8::/104", EamError::NoHost),
        ("192.0.2.1=ff02::1", EamError::NoHost),
        ("192.0.2.0/24=ff00::/8", EamError::NoHost),
        ("192.0.2.1=::1", EamError::NoHost),
    ] {
        assert_eq!(text.parse::<Eam>(), Err(want), "{text}");
    }
}

/// Two nodes with mappings that send to each other's IPv4 address in the prefix.
const A: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xaaaa, 0, 0, 0, 0, 0);
const B: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xbbbb, 0, 0, 0, 0, 0xb);

fn siit(config: Config) -> Translator {
    let eams = ["192.0.2.1=2001:db8:aaaa::", "192.0.2.2=2001:db8:bbbb::b"];
    let eams = eams.map(|eam| eam.parse().expect("a mapping")).to_vec();
    let prefixes = vec![Prefix::WELL_KNOWN];
    translator_of(config, Addresses { eams, prefixes, ..Addresses::default() }, 1)
}

fn embedded(last: u8) -> Ipv6Addr {
    Prefix::WELL_KNOWN.embed([192, 0, 2, last].into())
}

#[test]
fn rfc7757_s4_2_2_hairpin() {
    let mut t = siit(Config { hop: HopPolicy::Decrement, ..config() });
    for (protocol, payload) in
        [(UDP, udp(30)), (TCP, tcp(1400)), (ICMPV6, icmp(128, 0, [1, 2, 3, 4], &data(20)))]
    {
        for (src, dst, new_src, new_dst) in
            [(A, embedded(2), embedded(1), B), (B, embedded(1), embedded(2), A)]
        {
            let packet = V6 { src, dst, protocol, class: 0x2e, ..V6::default() }.build(&payload);
            let Out::Forward(rule, frames) = run(&mut t, &packet) else { panic!("{protocol}") };
            assert_eq!(rule, Rule::Hairpin);
            let want =
                V6 { src: new_src, dst: new_dst, protocol, class: 0x2e, hops: 63, ..V6::default() };
            assert_eq!(frames, [want.build(&payload)], "{protocol}");
        }
    }
    // A fragment stays one.
    let header = V6 { src: A, dst: embedded(2), ..V6::default() };
    let fragment = |id| vec![V6::fragment(8, true, id)];
    let packet = V6 { extensions: fragment(0x1_0007), ..header }.raw(&data(64));
    let header = V6 { src: embedded(1), dst: B, hops: 63, ..V6::default() };
    let want = V6 { extensions: fragment(7), ..header }.raw(&data(64));
    assert_eq!(run(&mut t, &packet).one(), want);
    // All others become IPv4.
    let out = run(&mut t, &V6 { src: A, dst: remote6(), ..V6::default() }.build(&udp(1))).one();
    assert_eq!(check(&out).src, [192, 0, 2, 1]);
    let out = run(&mut t, &V6 { src: A, dst: B, ..V6::default() }.build(&udp(1))).one();
    assert_eq!(check(&out).dst, [192, 0, 2, 2]);
}

/// The quoted packet is as sent, and its destination sends the error.
#[test]
fn rfc7757_s4_2_1_hairpinned_errors() {
    let quoted = V6 { src: embedded(1), dst: B, ..V6::outward() }.build(&udp(40));
    let sent = V6 { src: A, dst: embedded(2), ..V6::outward() }.build(&udp(40));
    let router: Ipv6Addr = "2001:db8:5::1".parse().unwrap();
    let dummy = Prefix::WELL_KNOWN.embed([192, 0, 0, 8].into());
    for (src, want) in [(B, embedded(2)), (router, dummy)] {
        let message = icmp(1, 4, [0; 4], &quoted);
        let error = V6 { src, dst: embedded(1), protocol: ICMPV6, ..V6::default() };
        let out = run(&mut siit(config()), &error.build(&message)).one();
        let seen = check(&out);
        assert_eq!((seen.src, seen.dst), (want.octets().to_vec(), A.octets().to_vec()));
        assert_eq!(seen.payload[..2], [1, 4]);
        assert_eq!(seen.payload[8..][..sent.len()], sent);
    }
}

#[test]
fn rfc7757_s4_2_2_what_cannot_come_back() {
    // In IPv6, as sent.
    let mut narrow = siit(Config { mtu6: 1280, mtu4: 576, ..config() });
    let header = V6 { src: A, dst: embedded(2), protocol: TCP, ..V6::default() };
    let packet = header.build(&tcp(1221));
    let (reason, error) = run(&mut narrow, &packet).reply();
    let seen = check(&error);
    assert_eq!((reason, seen.dst), (Reason::TooBigForIpv6, A.octets().to_vec()));
    assert_eq!(seen.payload[..2], [2, 0]);
    assert_eq!(seen.payload[4..8], 1280u32.to_be_bytes());
    assert_eq!(seen.payload[8..], packet[..1232]);
    // No IPv4 link limits the size.
    assert_eq!(run(&mut narrow, &header.build(&tcp(1220))).one().len(), 1280);

    let mut router = siit(Config { hop: HopPolicy::Decrement, ..config() });
    let packet = V6 { hops: 1, ..header }.build(&tcp(1));
    assert_eq!(run(&mut router, &packet).reply().0, Reason::HopLimit);
    // A CLAT has no such nodes.
    let eams = vec!["192.0.2.2=2001:db8:bbbb::b".parse().unwrap()];
    let mut t = translator_of(config(), Addresses { eams, ..clat() }, 1);
    let packet = V6 { src: B, dst: embedded(2), ..V6::default() }.build(&udp(1));
    assert_eq!(run(&mut t, &packet), Out::Drop(Reason::DestinationUnmapped));
}

#[test]
fn rfc7757_s5_contradictions() {
    let check = |eams: &[&str]| {
        let eams = eams.iter().map(|eam| eam.parse().expect(eam)).collect();
        Translator::new(config(), Addresses { eams, ..clat() }, 1).map(drop)
    };
    for eams in [
        ["192.0.2.0/24=2001:db8:1::/120", "192.0.2.0/24=2001:db8:2::/120"],
        ["198.51.100.8=2001:db8::1", "198.51.100.9=2001:db8::1"],
        ["192.0.2.0/24=2001:db8:1::/120", "192.0.3.0/24=2001:db8:1::/120"],
        ["192.0.2.0/24=2001:db8:1::/120", "192.0.2.0/25=2001:db8:1::/120"],
        ["192.0.0.4=2001:db8::1", "192.0.2.1=2001:db8::2"],
        ["192.0.2.9=2001:db8::1", "192.0.2.1=2001:db8:1:2:11:22:33:44"],
    ] {
        let error = check(&eams).expect_err(eams[0]);
        assert!(matches!(error, AddressesError::Contradiction(..)), "{error}");
        assert!(error.to_string().contains("contradicts"));
    }
    for eams in [
        // One is an exception to the other, or equal.
        ["192.0.2.0/24=2001:db8:1::/120", "192.0.2.7=2001:db8:2::7"],
        ["192.0.2.7=2001:db8:2::7", "192.0.2.7/32=2001:db8:2::7/128"],
        ["192.0.0.4=2001:db8:1:2:11:22:33:44", "192.0.2.1=2001:db8::2"],
    ] {
        assert_eq!(check(&eams), Ok(()), "{}", eams[0]);
    }
}

#[test]
fn own_addresses_are_those_of_a_host() {
    let check = |v4: &str, v6: &str| {
        let local = Local { v4: v4.parse().expect(v4), v6: v6.parse().expect(v6) };
        Translator::new(config(), Addresses { local: Some(local), ..clat() }, 1).map(drop)
    };
    assert_eq!(check("192.0.0.4", "2001:db8::4"), Ok(()));
    for (v4, v6) in [
        ("224.0.0.1", "2001:db8::4"),
        ("255.255.255.255", "2001:db8::4"),
        ("127.0.0.1", "2001:db8::4"),
        ("0.0.0.0", "2001:db8::4"),
        ("169.254.1.1", "2001:db8::4"),
        ("192.0.0.4", "ff02::1"),
        ("192.0.0.4", "::"),
        ("192.0.0.4", "::1"),
    ] {
        assert_eq!(check(v4, v6), Err(AddressesError::NoHost), "{v4} {v6}");
    }
}

#[test]
fn rfc6791_s5_pool() {
    let pool = |text: &str| text.parse::<Pool>().expect(text);
    for (text, want) in [
        ("", PoolError::Syntax),
        ("192.0.2.0/", PoolError::Syntax),
        ("192.0.2.0/33", PoolError::Syntax),
        ("2001:db8::/64", PoolError::Syntax),
        ("192.0.2.1/24", PoolError::HostBits),
        ("224.0.0.0/8", PoolError::NoHost),
        ("255.255.255.255", PoolError::NoHost),
    ] {
        assert_eq!(text.parse::<Pool>(), Err(want), "{text}");
    }
    let routers: Vec<Ipv6Addr> = (0..1000u128)
        .flat_map(|i| [0x2001_0db8 << 96 | i, 0x2001_0db8 << 96 | i << 64 | 1])
        .map(Ipv6Addr::from)
        .collect();
    for (text, first, last) in [
        ("198.51.100.7", [198, 51, 100, 7], [198, 51, 100, 7]),
        ("198.51.100.6/31", [198, 51, 100, 6], [198, 51, 100, 7]),
        ("198.51.100.4/30", [198, 51, 100, 5], [198, 51, 100, 6]),
        ("198.51.100.0/24", [198, 51, 100, 1], [198, 51, 100, 254]),
    ] {
        let seen: std::collections::BTreeSet<_> =
            routers.iter().map(|router| pool(text).of(*router)).collect();
        assert_eq!(seen.first(), Some(&first.into()), "{text}");
        assert_eq!(seen.last(), Some(&last.into()), "{text}");
        assert_eq!(pool(text).own(), Ipv4Addr::from(first));
        // All of them are used.
        let count = u32::from(Ipv4Addr::from(last)) - u32::from(Ipv4Addr::from(first)) + 1;
        assert_eq!(seen.len(), count as usize, "{text}");
    }
    // Adjacent addresses differ, and each is always the same.
    let [a, b] = [0, 1].map(|i| pool("198.51.100.0/24").of(routers[i]));
    assert_ne!(a, b);
    let quoted = V6::outward().build(&udp(9));
    let config = Config { router4: pool("198.51.100.0/24"), ..config() };
    let mut t = translator_of(config, clat(), 1);
    for router in [routers[4], routers[8], routers[4]] {
        let error = V6 { src: router, protocol: ICMPV6, ..V6::default() };
        let out = run(&mut t, &error.build(&icmp(3, 0, [0; 4], &quoted))).one();
        assert_eq!(check(&out).src, pool("198.51.100.0/24").of(router).octets());
    }
}

#[test]
fn rfc6052_s3_1_well_known_prefix_is_for_global_addresses() {
    let prefixes = vec![Prefix::WELL_KNOWN];
    let strict = Addresses { strict_wkp: true, ..clat() };
    let siit = Addresses { strict_wkp: true, prefixes, ..Addresses::default() };
    let mut strict = translator_of(config(), strict, 1);
    let mut siit = translator_of(config(), siit, 1);
    for (v4, global) in [
        ([8, 8, 8, 8], true),
        ([9, 255, 255, 255], true),
        ([10, 0, 0, 1], false),
        ([11, 0, 0, 0], true),
        ([172, 15, 0, 1], true),
        ([172, 31, 255, 255], false),
        ([192, 168, 1, 1], false),
        ([100, 64, 0, 1], false),
        ([198, 18, 0, 1], false),
    ] {
        let dst = Ipv4Addr::from(v4);
        let out = run(&mut strict, &V4 { dst, ..V4::default() }.build(&udp(1)));
        let inward = V6 { src: Prefix::WELL_KNOWN.embed(dst), ..V6::default() }.build(&udp(1));
        let back = run(&mut strict, &inward);
        let source = run(
            &mut siit,
            &V4 { src: dst, dst: Ipv4Addr::new(8, 8, 4, 4), ..V4::default() }.build(&udp(1)),
        );
        for out in [out, back, source] {
            if global {
                out.one();
            } else {
                assert_eq!(out, Out::Drop(Reason::NonGlobalInWellKnownPrefix), "{dst}");
            }
        }
        // Other prefixes may carry it, and so may the well-known one without strictness.
        run(&mut translator(), &V4 { dst, ..V4::default() }.build(&udp(1))).one();
    }
}

/// Also as the source of an ICMPv6 error.
#[test]
fn rfc6052_s3_1_errors_from_non_global_addresses() {
    let src = Prefix::WELL_KNOWN.embed([10, 1, 2, 3].into());
    let quoted = V6::outward().build(&udp(9));
    let error = V6 { src, protocol: ICMPV6, ..V6::default() }.build(&icmp(3, 0, [0; 4], &quoted));
    let addresses = Addresses { strict_wkp: true, ..clat() };
    let out = run(&mut translator_of(config(), addresses, 1), &error);
    assert_eq!(out, Out::Drop(Reason::NonGlobalInWellKnownPrefix));
    run(&mut translator(), &error).one();
}

#[test]
fn neutral_addresses_are_neutral_random_and_in_their_net() {
    let net: Ipv6Addr = "2001:db8:1:2::9".parse().unwrap();
    let prefixes = [Prefix::WELL_KNOWN, prefix("2001:db8:ffff:ffff:0:ffff::/96")];
    let mut seen = std::collections::HashSet::new();
    let mut ones = [0u32; 64];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for i in 0..100_000u32 {
        // splitmix64, which is uniform enough for this test.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let random = (z ^ (z >> 31)).to_be_bytes();
        let v4 = Ipv4Addr::from(0xc000_0000 + i % 8);
        let prefix = &prefixes[(i % 2) as usize];
        let local = Local::neutral(v4, net, prefix, random);
        assert!(local.is_neutral(prefix));
        assert_eq!(local.v6.octets()[..8], net.octets()[..8]);
        let iid = local.v6.to_bits() as u64;
        assert!(seen.insert(iid), "no two alike");
        for (bit, count) in ones.iter_mut().enumerate() {
            *count += (iid >> bit & 1) as u32;
        }
    }
    // Six standard deviations of 100,000 fair bits.
    for (bit, count) in ones.iter().enumerate() {
        assert!(count.abs_diff(50_000) < 950, "bit {bit}: {count}");
    }
}

#[test]
fn a_neutral_clat_that_sends_to_itself() {
    // A packet to its own address: the prefix is not in it, so sums differ.
    let local = Local::neutral(LOCAL4, LOCAL6, &Prefix::WELL_KNOWN, [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut t = translator_of(config(), Addresses { local: Some(local), ..clat() }, 1);
    let out = run(&mut t, &V4 { dst: LOCAL4, protocol: TCP, ..V4::default() }.build(&tcp(9))).one();
    check(&out);
    check(&run(&mut t, &out).one());
}

#[test]
fn neutral_at_the_edges() {
    // Sums of 0 or 0xffff, and sums that carry twice.
    for net in ["2001:db8::", "ffff:ffff:ffff:ffff::", "0:0:0:1::", "c004::", "::"] {
        for byte in [0x00, 0x01, 0x7f, 0x80, 0xfe, 0xff] {
            let local =
                Local::neutral(LOCAL4, net.parse().expect(net), &Prefix::WELL_KNOWN, [byte; 8]);
            assert!(local.is_neutral(&Prefix::WELL_KNOWN), "{net} {byte:#x}");
            assert_eq!((local.v6.octets()[10], local.v6.octets()[13]), (byte, byte));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn neutral_checksums_are_left_alone(
        random: [u8; 8],
        net: u64,
        len in 0usize..64,
        inward: bool,
    ) {
        let net = Ipv6Addr::from(u128::from(net) << 64);
        prop_assume!(!net.is_multicast());
        let local = Local::neutral(LOCAL4, net, &Prefix::WELL_KNOWN, random);
        let clat = Addresses { local: Some(local), ..clat() };
        let mut t = translator_of(config(), clat, 1);
        let (packet, before) = if inward {
            let packet = V6 { dst: local.v6, protocol: TCP, ..V6::default() }.build(&tcp(len));
            let field = be16(&packet, 40 + 16);
            (packet, field)
        } else {
            let packet = V4 { protocol: TCP, ..V4::default() }.build(&tcp(len));
            let field = be16(&packet, 20 + 16);
            (packet, field)
        };
        prop_assume!(!local.v6.is_unspecified() && !local.v6.is_loopback());
        let seen = check(&run(&mut t, &packet).one());
        prop_assert_eq!(be16(&seen.payload, 16), before);
    }

    #[test]
    fn prefixes_give_back_what_they_hold(
        v4: u32,
        net: u128,
        len in prop::sample::select(vec![32u8, 40, 48, 56, 64, 96]),
    ) {
        let net = net >> (128 - len) << (128 - len) & !(0xff << 56);
        let prefix = Prefix::new(net.into(), len).unwrap();
        let v6 = prefix.embed(v4.into());
        prop_assert_eq!(v6.octets()[8], 0);
        prop_assert_eq!(prefix.extract(v6), Some(v4.into()));
        prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }

    #[test]
    fn hairpinned_packets_never_panic(
        is_error: bool,
        (kind, code, rest) in (1u8..5, 0u8..6, any::<[u8; 4]>()),
        len in 0usize..1500,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        cut: prop::sample::Index,
        (mtu6, decrement) in (1280u32..1600, any::<bool>()),
    ) {
        let mut packet = if is_error {
            let quoted = V6 { src: embedded(1), dst: B, ..V6::outward() }.build(&udp(len));
            let message = icmp(kind, code, rest, &quoted);
            V6 { src: B, dst: embedded(1), protocol: ICMPV6, ..V6::default() }.build(&message)
        } else {
            V6 { src: A, dst: embedded(2), ..V6::default() }.build(&udp(len))
        };
        let near = packet.len().min(100);
        for (at, value) in edits {
            packet[1 + at.index(near - 1)] = value;
        }
        packet.truncate(packet.len() - cut.index(packet.len()).min(40));
        let hop = if decrement { HopPolicy::Decrement } else { HopPolicy::Copy };
        // run() checks that dropped packets are unchanged.
        match run(&mut siit(Config { mtu6, hop, ..config() }), &packet) {
            Out::Forward(rule, frames) => {
                for frame in frames {
                    prop_assert_eq!(see(&frame).v6, rule == Rule::Hairpin);
                    prop_assert!(frame.len() <= 1600);
                }
            }
            Out::Reply(_, error) => prop_assert!(check(&error).v6),
            Out::Drop(_) => {}
        }
    }

    #[test]
    fn text_never_panics(text in "\\PC{0,40}") {
        let _ = text.parse::<Prefix>();
        let _ = text.parse::<Eam>();
    }
}
