// SPDX-License-Identifier: Apache-2.0

//! Packets through the whole program: addresses, checksums and lengths of the output.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, Ipv4Header, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice,
};

use crate::support::*;

const CLAT: &str = "--local4 192.0.0.4 --local6 2001:db8::4 --prefix 64:ff9b::/96";
const LOCAL4: &str = "192.0.0.4";
const LOCAL6: &str = "2001:db8::4";

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// UDP over IPv4 that may be fragmented.
fn udp4(from: &str, to: &str, ttl: u8, len: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(v4(from).octets(), v4(to).octets(), ttl).udp(1234, 53);
    builder.write(&mut packet, &vec![0xa5; len]).unwrap();
    set_df(&mut packet, false);
    packet
}

fn set_df(packet: &mut [u8], df: bool) {
    let mut header = Ipv4Header::from_slice(packet).unwrap().0;
    header.dont_fragment = df;
    header.header_checksum = header.calc_header_checksum();
    packet[..20].copy_from_slice(&header.to_bytes());
}

fn udp6(from: &str, to: &str, hops: u8, len: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(v6(from).octets(), v6(to).octets(), hops).udp(53, 1234);
    builder.write(&mut packet, &vec![0x5a; len]).unwrap();
    packet
}

/// Source, destination and hop limit of an IPv6 packet with valid length and UDP checksum.
#[track_caller]
fn check6(packet: &[u8]) -> (Ipv6Addr, Ipv6Addr, u8) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let Some(NetSlice::Ipv6(net)) = &sliced.net else { panic!("not IPv6: {packet:02x?}") };
    let header: Ipv6Header = net.header().to_header();
    assert_eq!(usize::from(header.payload_length) + 40, packet.len());
    if let Some(TransportSlice::Udp(udp)) = &sliced.transport {
        assert_eq!(
            udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap(),
            udp.checksum()
        );
    }
    (net.header().source_addr(), net.header().destination_addr(), header.hop_limit)
}

/// The same of an IPv4 packet, with a valid header checksum.
#[track_caller]
fn check4(packet: &[u8]) -> (Ipv4Addr, Ipv4Addr, u8) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let Some(NetSlice::Ipv4(net)) = &sliced.net else { panic!("not IPv4: {packet:02x?}") };
    let header: Ipv4Header = net.header().to_header();
    assert_eq!(usize::from(header.total_len), packet.len());
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    if let Some(TransportSlice::Udp(udp)) = &sliced.transport {
        assert_eq!(
            udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap(),
            udp.checksum()
        );
    }
    (net.header().source_addr(), net.header().destination_addr(), header.time_to_live)
}

/// Runs these packets, as LINKTYPE_RAW, through `clatctl translate WORDS --explain`; returns the
/// output and the report.
#[track_caller]
fn translate(words: &str, packets: &[Vec<u8>]) -> (Vec<Vec<u8>>, String) {
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, packets));
    let output = folder.translate(&format!("{words} --explain in out"));
    assert_ok(&output);
    (frames(&folder.read("out")), stdout(&output))
}

#[test]
fn a_clat_translates_both_ways_in_one_file_and_in_order() {
    let server6 = "64:ff9b::c633:6401";
    let (out, text) = translate(
        CLAT,
        &[
            udp4(LOCAL4, "198.51.100.1", 64, 8),
            udp6(server6, LOCAL6, 50, 9),
            udp4(LOCAL4, "198.51.100.2", 63, 0),
        ],
    );
    assert_eq!(check6(&out[0]), (v6(LOCAL6), v6(server6), 64));
    assert_eq!(check4(&out[1]), (v4("198.51.100.1"), v4(LOCAL4), 50));
    assert_eq!(check6(&out[2]), (v6(LOCAL6), v6("64:ff9b::c633:6402"), 63));
    assert_eq!(out.len(), 3);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[0],
        "1: 4>6 UDP 192.0.0.4:1234 > 198.51.100.1:53, 36 bytes: forwarded as 1 packet of 56 \
         bytes: to6, header translated (RFC 7915 §4.1)"
    );
    assert_eq!(
        lines[1],
        "2: 6>4 UDP [64:ff9b::c633:6401]:53 > [2001:db8::4]:1234, 57 bytes: forwarded as 1 packet \
         of 37 bytes: to4, header translated (RFC 7915 §5.1)"
    );
    assert_eq!(
        lines[3],
        "3 packets: 3 forwarded (to4 1, to6 2), 0 replied, 0 dropped, 0 skipped; 3 packets written"
    );
}

#[test]
fn times_are_the_packets_own() {
    let folder = Folder::new();
    let big = udp4(LOCAL4, "198.51.100.1", 64, 1400);
    folder.write("in", &pcap(RAW, &[big, udp4(LOCAL4, "198.51.100.1", 64, 1)]));
    assert_ok(&folder.translate(&format!("{CLAT} in out")));
    let (_, packets) = parse(&folder.read("out"));
    let times: Vec<_> =
        packets.iter().map(|(seconds, fraction, _)| (*seconds, *fraction)).collect();
    assert_eq!(times, [(1000, 7), (1000, 7), (1001, 7)], "the first left as two fragments");
    assert!(packets.iter().all(|(.., bytes)| bytes.len() <= 1280));
}

#[test]
fn the_same_input_gives_the_same_output() {
    let folder = Folder::new();
    // Small and without a Fragment Header, so that they get identifications.
    folder.write("in", &pcap(RAW, &vec![udp6("64:ff9b::c633:6401", LOCAL6, 50, 100); 5]));
    assert_ok(&folder.translate(&format!("{CLAT} in a")));
    assert_ok(&folder.translate(&format!("{CLAT} in b")));
    assert!(!frames(&folder.read("a")).is_empty());
    assert_eq!(folder.read("a"), folder.read("b"));
}

#[test]
fn in_and_out_may_be_one_file() {
    let folder = Folder::new();
    let packets = [udp4(LOCAL4, "198.51.100.1", 64, 8)];
    folder.write("in", &pcap(RAW, &packets));
    assert_ok(&folder.translate(&format!("{CLAT} in out")));
    assert_ok(&folder.translate(&format!("{CLAT} in in")));
    assert_eq!(folder.read("in"), folder.read("out"));
}

#[test]
fn ethernet_keeps_macs_and_tags_and_loses_padding() {
    let macs = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let tag = [0x81, 0, 0x20, 7];
    let folder = Folder::new();
    let out4 = udp4(LOCAL4, "198.51.100.1", 64, 1);
    let in6 = udp6("64:ff9b::c633:6401", LOCAL6, 50, 1);
    folder.write(
        "in",
        &pcap(
            ETHERNET,
            &[
                [&macs[..], &[0x08, 0], &out4, &[0; 17]].concat(),
                [&macs[..], &[0x08, 0x06], &[0; 28]].concat(),
                [&macs[..], &tag, &[0x86, 0xdd], &in6].concat(),
            ],
        ),
    );
    let output = folder.translate(&format!("{CLAT} --explain in out"));
    assert_ok(&output);
    let bytes = folder.read("out");
    assert_eq!(u32::from(parse(&bytes).0.datalink), ETHERNET);
    let out = frames(&bytes);
    assert_eq!(out.len(), 2);
    assert_eq!(out[0][..14], [&macs[..], &[0x86, 0xdd]].concat());
    assert_eq!(check6(&out[0][14..]).0, v6(LOCAL6));
    assert_eq!(out[1][..18], [&macs[..], &tag, &[0x08, 0]].concat());
    assert_eq!(check4(&out[1][18..]).1, v4(LOCAL4));
    assert!(stdout(&output).contains("2: skipped: not-ip-frame"));
}

#[test]
fn ipv4_only_and_ipv6_only_links_come_out_as_raw() {
    let packets = [
        (228, udp4(LOCAL4, "198.51.100.1", 64, 1)),
        (229, udp6("64:ff9b::c633:6401", LOCAL6, 50, 1)),
    ];
    for (link, packet) in packets {
        let folder = Folder::new();
        folder.write("in", &pcap(link, &[packet]));
        assert_ok(&folder.translate(&format!("{CLAT} in out")));
        let bytes = folder.read("out");
        assert_eq!(u32::from(parse(&bytes).0.datalink), RAW);
        assert_eq!(frames(&bytes).len(), 1, "{link}");
    }
}

#[test]
fn rfc_6052_prefixes_of_every_length() {
    // RFC 6052 §2.4, with the destination mapped by hand.
    for (prefix, server) in [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
    ] {
        let words = format!("--local4 {LOCAL4} --local6 2001:db9::4 --prefix {prefix}");
        let (out, _) = translate(
            &words,
            &[udp4(LOCAL4, "192.0.2.33", 9, 4), udp6(server, "2001:db9::4", 8, 4)],
        );
        assert_eq!(check6(&out[0]), (v6("2001:db9::4"), v6(server), 9), "{prefix}");
        assert_eq!(check4(&out[1]), (v4("192.0.2.33"), v4(LOCAL4), 8), "{prefix}");
    }
}

#[test]
fn rfc_7757_the_longest_match_wins_and_before_the_prefix() {
    let words = "--eam 192.0.2.0/24=2001:db8::/120 --eam 192.0.2.128/25=2001:db8:1::/121 \
                 --eam 192.0.2.200=2001:db8:2::1 --prefix 2001:db8:64::/96";
    let (out, _) = translate(
        words,
        &[
            udp4("192.0.2.1", "192.0.2.129", 64, 4),
            udp4("192.0.2.200", "203.0.114.1", 64, 4),
            udp6("2001:db8:2::1", "2001:db8::7", 64, 4),
        ],
    );
    assert_eq!(check6(&out[0]), (v6("2001:db8::1"), v6("2001:db8:1::1"), 64));
    assert_eq!(check6(&out[1]), (v6("2001:db8:2::1"), v6("2001:db8:64::203.0.114.1"), 64));
    assert_eq!(check4(&out[2]), (v4("192.0.2.200"), v4("192.0.2.7"), 64));
}

#[test]
fn rfc_6052_strict_well_known_prefix_refuses_private_addresses() {
    let words = "--eam 192.0.2.0/24=2001:db8::/120 --prefix 64:ff9b::/96";
    let packet = [udp4("192.0.2.1", "10.1.2.3", 64, 4)];
    let (out, _) = translate(words, &packet);
    assert_eq!(check6(&out[0]).1, v6("64:ff9b::10.1.2.3"));
    let (out, text) = translate(&format!("{words} --strict-wkp"), &packet);
    assert!(text.contains("non-global-in-wkp") && text.contains("RFC 6052 §3.1"), "{text}");
    assert!(out.iter().all(|packet| packet[0] >> 4 == 4), "nothing goes to IPv6");
}

#[test]
fn a_foreign_source_is_never_let_out() {
    let (out, text) = translate(CLAT, &[udp4("192.168.1.1", "198.51.100.1", 64, 4)]);
    assert!(out.is_empty());
    assert!(
        text.contains(
            "1: 4>6 UDP 192.168.1.1:1234 > 198.51.100.1:53, 32 bytes: dropped: foreign-source"
        ),
        "{text}"
    );
}

#[test]
fn a_router_decrements_and_answers_time_exceeded() {
    let words = format!("{CLAT} --ttl decrement --router4 192.0.2.254 --router6 2001:db8::fe");
    let packets = [
        udp4(LOCAL4, "198.51.100.1", 64, 8),
        udp4(LOCAL4, "198.51.100.1", 1, 8),
        udp6("64:ff9b::c633:6401", LOCAL6, 1, 8),
    ];
    let (out, text) = translate(&words, &packets);
    assert_eq!(check6(&out[0]).2, 63);
    assert_eq!((check4(&out[1]).0, check4(&out[1]).1), (v4("192.0.2.254"), v4(LOCAL4)));
    let sliced = SlicedPacket::from_ip(&out[1]).unwrap();
    let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("no ICMP") };
    assert!(matches!(icmp.icmp_type(), Icmpv4Type::TimeExceeded(_)));
    // It quotes the packet as received.
    assert_eq!(icmp.payload()[..28], packets[1][..28]);
    assert_eq!(
        (check6(&out[2]).0, check6(&out[2]).1),
        (v6("2001:db8::fe"), v6("64:ff9b::c633:6401"))
    );
    let sliced = SlicedPacket::from_ip(&out[2]).unwrap();
    let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("no ICMPv6") };
    assert!(matches!(icmp.icmp_type(), Icmpv6Type::TimeExceeded(_)));
    assert!(
        text.contains(
            "2: 4>6 UDP 192.0.0.4:1234 > 198.51.100.1:53, 36 bytes: replied with an ICMP error of"
        ),
        "{text}"
    );
    assert!(text.contains("2 replied (hop-limit 2)"), "{text}");
    // A host's CLAT copies.
    assert_eq!(check6(&translate(CLAT, &packets[1..2]).0[0]).2, 1);
}

#[test]
fn the_traffic_class_is_copied_or_set() {
    let packets = [udp4(LOCAL4, "198.51.100.1", 64, 8), udp6("64:ff9b::c633:6401", LOCAL6, 64, 8)];
    let (out, _) = translate(&format!("{CLAT} --traffic-class 184"), &packets);
    assert_eq!((&out[0][..2], out[1][1]), (&[0x6b, 0x80][..], 184));
    let (out, _) = translate(CLAT, &packets);
    assert_eq!((&out[0][..2], out[1][1]), (&[0x60, 0][..], 0));
}

#[test]
fn a_reply_on_ethernet_goes_back_to_the_sender() {
    let folder = Folder::new();
    let packet = udp4(LOCAL4, "198.51.100.1", 1, 8);
    folder.write(
        "in",
        &pcap(ETHERNET, &[[&[4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 8, 0][..], &packet].concat()]),
    );
    assert_ok(&folder.translate(&format!("{CLAT} --ttl decrement in out")));
    let out = frames(&folder.read("out"));
    assert_eq!(out[0][..14], [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 0]);
    assert_eq!(check4(&out[0][14..]).1, v4(LOCAL4));
}

#[test]
fn rfc_1812_4_3_2_7_no_answers_to_broadcasts_of_the_link() {
    let packet = udp4(LOCAL4, "198.51.100.1", 1, 8);
    let ethernet = |to: u8| [&[to; 6][..], &[2; 6], &[8, 0], &packet].concat();
    let cooked = |kind: u8| [&[0, kind, 0, 1, 0, 6][..], &[2; 6], &[0, 0, 8, 0], &packet].concat();
    for (link, frames_in) in [
        (ETHERNET, [ethernet(0xff), ethernet(0x33), ethernet(4)]),
        (COOKED, [cooked(1), cooked(2), cooked(0)]),
    ] {
        let folder = Folder::new();
        folder.write("in", &pcap(link, &frames_in));
        let output = folder.translate(&format!("{CLAT} --ttl decrement --explain in out"));
        assert_ok(&output);
        let text = stdout(&output);
        for line in text.lines().take(2) {
            assert!(line.contains("dropped without an ICMP error: hop-limit"), "{text}");
        }
        assert!(text.contains("1 replied (hop-limit 1), 2 dropped (hop-limit 2)"), "{text}");
        assert_eq!(frames(&folder.read("out")).len(), 1);
    }
}

/// RFC 7915 §4.4 and §5.4 leave it to configuration.
#[test]
fn icmp_errors_are_sent_limited_or_not() {
    let packets: Vec<_> = std::iter::repeat(udp4(LOCAL4, "198.51.100.1", 1, 8)).take(70).collect();
    let words = format!("{CLAT} --ttl decrement --icmp-errors");
    for (policy, count) in [("sent", 70), ("none", 0)] {
        let (out, text) = translate(&format!("{words} {policy}"), &packets);
        assert_eq!(out.len(), count, "{text}");
        let dropped = 70 - count;
        assert!(text.contains(&format!(" {count} replied")), "{text}");
        assert!(text.contains(&format!(" {dropped} dropped")), "{text}");
    }
    // All in the same microsecond of the capture.
    let folder = Folder::new();
    let mut bytes = pcap(RAW, &packets);
    for at in (24..bytes.len()).step_by(16 + packets[0].len()) {
        bytes[at..at + 4].copy_from_slice(&1000_u32.to_le_bytes());
    }
    folder.write("in", &bytes);
    assert_ok(&folder.translate(&format!("{words} limited in out")));
    assert_eq!(frames(&folder.read("out")).len(), 50);
    // One second apart, all are sent.
    assert_eq!(translate(&format!("{words} limited"), &packets).0.len(), 70);
}

#[test]
fn rfc_6791_a_pool_for_routers_without_an_ipv4_form() {
    let quoted = udp6(LOCAL6, "64:ff9b::c633:6401", 1, 8);
    let error = |router: &str| {
        let mut packet = Vec::new();
        PacketBuilder::ipv6(v6(router).octets(), v6(LOCAL6).octets(), 60)
            .icmpv6(Icmpv6Type::TimeExceeded(
                etherparse::icmpv6::TimeExceededCode::HopLimitExceeded,
            ))
            .write(&mut packet, &quoted)
            .unwrap();
        packet
    };
    let errors = ["2001:db8:5::1", "2001:db8:6::1", "2001:db8:5::1"].map(error);
    let (out, _) = translate(&format!("{CLAT} --router4 203.0.113.0/24"), &errors);
    let sources: Vec<_> = out.iter().map(|packet| check4(packet).0).collect();
    assert!(sources.iter().all(|source| source.octets()[..3] == [203, 0, 113]), "{sources:?}");
    assert_eq!(sources[0], sources[2]);
    assert_ne!(sources[0], sources[1]);
    let (out, _) = translate(CLAT, &errors);
    assert!(out.iter().all(|packet| check4(packet).0 == v4("192.0.0.8")));
}

#[test]
fn rfc_7757_4_two_mapped_nodes_reach_each_other() {
    let words = "--eam 192.0.2.1=2001:db8::1 --eam 192.0.2.2=2001:db8::2 --prefix 64:ff9b::/96 \
                 --ttl decrement";
    let [node1, node2] = ["64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2"];
    let (out, text) =
        translate(words, &[udp6("2001:db8::1", node2, 64, 9), udp6("2001:db8::2", node1, 64, 9)]);
    assert_eq!(check6(&out[0]), (v6(node1), v6("2001:db8::2"), 63));
    assert_eq!(check6(&out[1]), (v6(node2), v6("2001:db8::1"), 63));
    assert!(text.contains("hairpin") && text.contains("RFC 7757 §4.2.2"), "{text}");
}

#[test]
fn too_big_with_df_is_answered_with_the_mtu() {
    let mut packet = udp4(LOCAL4, "198.51.100.1", 64, 1400);
    set_df(&mut packet, true);
    let (out, text) = translate(&format!("{CLAT} --mtu6 1400"), &[packet.clone()]);
    assert_eq!(
        (check4(&out[0]).0, check4(&out[0]).1),
        (v4("192.0.0.8"), v4(LOCAL4)),
        "the default of --router4"
    );
    // RFC 7915 §4.1: the IPv6 MTU less 20.
    assert_eq!((out[0][20], out[0][21], &out[0][26..28]), (3, 4, &1380_u16.to_be_bytes()[..]));
    assert!(text.contains("too-big-for-ipv6"), "{text}");
    // It fits the default MTU.
    assert_eq!(translate(CLAT, &[packet]).0.len(), 1);
}

#[test]
fn too_big_for_ipv4_is_answered_from_the_default_router() {
    for (words, router) in [
        (CLAT, LOCAL6),
        ("--eam 192.0.0.4=2001:db8::4 --prefix 64:ff9b::/96", "64:ff9b::192.0.0.8"),
    ] {
        let (out, text) = translate(
            &format!("{words} --mtu4 1300"),
            &[udp6("64:ff9b::c633:6401", LOCAL6, 64, 1400)],
        );
        assert!(text.contains("too-big-for-ipv4"), "{text}");
        assert_eq!(check6(&out[0]).0, v6(router));
        // Packet Too Big; the IPv4 MTU plus 20 (RFC 7915 §5.1).
        assert_eq!((out[0][40], &out[0][44..48]), (2, &1320_u32.to_be_bytes()[..]));
    }
}

#[test]
fn udp_without_a_checksum_by_choice() {
    let mut packet = udp4(LOCAL4, "198.51.100.1", 64, 8);
    packet[26..28].fill(0);
    let (out, text) = translate(CLAT, &[packet.clone()]);
    check6(&out[0]);
    assert!(text.contains("to6-udp-zero"), "{text}");
    // RFC 7915 §4.4: the sender gets an ICMP error.
    let drop = format!("{CLAT} --udp-zero drop");
    let (out, text) = translate(&drop, &[packet.clone()]);
    assert_eq!((check4(&out[0]).1, &out[0][20..22]), (v4(LOCAL4), &[3, 13][..]));
    assert!(text.contains("replied with an ICMP error of"), "{text}");
    assert!(text.contains("udp-zero-checksum"), "{text}");
    let (out, text) = translate(&format!("{drop} --icmp-errors none"), &[packet.clone()]);
    assert!(out.is_empty(), "{text}");
    assert!(text.contains("dropped without an ICMP error: udp-zero-checksum"), "{text}");
    let (out, _) = translate(&format!("{CLAT} --udp-zero forward"), &[packet]);
    assert_eq!(out[0][46..48], [0, 0]);
}

#[test]
fn json_tells_addresses_and_frames() {
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, &[udp4(LOCAL4, "198.51.100.1", 64, 1400)]));
    let output = folder.translate(&format!("{CLAT} --explain --json in out"));
    assert_ok(&output);
    let text = stdout(&output);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let lengths: Vec<_> = frames(&folder.read("out")).iter().map(Vec::len).collect();
    assert_eq!(lengths.len(), 2);
    let line = serde_json::json!({
        "type": "packet", "packet": 1, "direction": "4to6", "source": LOCAL4,
        "destination": "198.51.100.1", "protocol": 17, "sourcePort": 1234, "destinationPort": 53,
        "icmpType": null, "icmpCode": null, "length": 1428, "action": "forwarded",
        "name": "to6-split", "what": "DF clear and larger than lowest-ipv6-mtu: fragmented",
        "rfc": "RFC 7915 §4.1", "frames": lengths
    });
    assert_eq!(lines[0], line);
    assert_eq!(
        lines[1]["forwarded"],
        serde_json::json!({"packets": 1, "frames": 2, "byRule": {"to6-split": 1}})
    );
}
