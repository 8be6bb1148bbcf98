// SPDX-License-Identifier: Apache-2.0

//! Router advertisements, neighbour discovery, ARP.

use std::net::Ipv6Addr;
use std::time::Duration;

use clat_plat::frame::{Mac, Out};
use clat_plat::network::Handled;
use clat_plat::settings::Settings;
use smoltcp::wire::{EthernetProtocol, IpProtocol};

use crate::guest::{
    ethernet, icmp6, options, read, udp6, Got, Lab, ALL_NODES, ALL_ROUTERS, DNS, GLOBAL, GUEST4,
    LINK_LOCAL, MAC, ROUTER, ROUTER4, ROUTER_GLOBAL,
};

const SOLICIT_ROUTER: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];
const PREFIX: [u8; 8] = [0x20, 0x01, 0x0d, 0xb8, 0x04, 0x64, 0, 0];

fn with_address(message: &[u8]) -> Vec<u8> {
    [message, &[1, 1], &MAC.0].concat()
}

fn solicit(target: Ipv6Addr) -> Vec<u8> {
    [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}

fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    Ipv6Addr::from_bits(
        0xff02 << 112 | 0x1_ff00_0000 | u128::from(u32::from_be_bytes([0, a, b, c])),
    )
}

fn is_advertisement(got: &Got) -> bool {
    got.src == ROUTER && got.hops == 255 && got.payload[..2] == [134, 0]
}

#[test]
fn a_solicited_advertisement() {
    let mut lab = Lab::new(Settings::default());
    let got =
        lab.ask(&icmp6(LINK_LOCAL, ALL_ROUTERS, 255, &with_address(&SOLICIT_ROUTER))).unwrap();
    assert!(is_advertisement(&got));
    assert_eq!((got.dst, got.to), (LINK_LOCAL.into(), MAC));
    // Hop limit 64; O but not M; 1800 s router lifetime; timers unspecified.
    assert_eq!(got.payload[4..16], [64, 0x40, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0]);
    let lifetimes = [0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40];
    assert_eq!(
        options(&got.payload, 16),
        [
            (1, Settings::default().mac.0.to_vec()),
            (5, vec![0, 0, 0, 0, 0x05, 0xdc]),
            // /64, autonomous, not on-link
            (3, [&[64, 0x40], &lifetimes[..], &[0; 4], &PREFIX, &[0; 8]].concat()),
            (25, [&[0, 0, 0, 0, 0x07, 0x08][..], &DNS.octets()].concat()),
            // 225 times 8 s, /96
            (38, [&[0x07, 0x08, 0, 0x64, 0xff, 0x9b][..], &[0; 8]].concat()),
        ]
    );
}

/// RFC 8106 §5.2; and a network that tells nobody of a DNS server.
#[test]
fn a_search_list_and_no_dns_server() {
    const RDNSS: u8 = 25;
    const DNSSL: u8 = 31;
    let search = ["corp.example.", "b."].map(|name| name.parse().unwrap()).to_vec();
    let mut lab = Lab::new(Settings { dns: false, search, ..Settings::default() });
    let solicitation = icmp6(LINK_LOCAL, ALL_ROUTERS, 255, &with_address(&SOLICIT_ROUTER));
    let got = lab.ask(&solicitation).unwrap();
    let options = options(&got.payload, 16);
    assert!(options.iter().all(|(kind, _)| *kind != RDNSS));
    let names = b"\x04corp\x07example\0\x01b\0";
    let (_, list) = options.iter().find(|(kind, _)| *kind == DNSSL).unwrap();
    // 1800 s, and zeros up to a multiple of 8 bytes.
    assert_eq!(list[..6 + names.len()], [&[0, 0, 0, 0, 7, 8], &names[..]].concat());
    assert_eq!(list[6 + names.len()..], [0; 24 - 17]);
}

#[test]
fn pref64_of_every_length_and_none() {
    for (text, code) in [
        ("64:ff9b::/96", 0),
        ("2001:db8:64::/64", 1),
        ("2001:db8:64::/56", 2),
        ("2001:db8:64::/48", 3),
        ("2001:db8::/40", 4),
        ("2001:db8::/32", 5),
    ] {
        let prefix64 = text.parse().unwrap();
        let mut lab = Lab::new(Settings { prefix64, ..Settings::default() });
        let got = lab.ask(&icmp6(LINK_LOCAL, ALL_ROUTERS, 255, &SOLICIT_ROUTER)).unwrap();
        let (_, option) = options(&got.payload, 16).into_iter().find(|o| o.0 == 38).unwrap();
        assert_eq!(u16::from_be_bytes([option[0], option[1]]), 1800 | code, "{text}");
        assert_eq!(option[2..], prefix64.addr().octets()[..12], "{text}");
    }
    let mut lab = Lab::new(Settings { pref64: false, ..Settings::default() });
    let got = lab.ask(&icmp6(LINK_LOCAL, ALL_ROUTERS, 255, &SOLICIT_ROUTER)).unwrap();
    assert!(options(&got.payload, 16).iter().all(|option| option.0 != 38));
}

#[test]
fn who_has_no_address_yet_is_answered_with_everybody() {
    let mut lab = Lab::new(Settings::default());
    let nobody = Ipv6Addr::UNSPECIFIED;
    let got = lab.ask(&icmp6(nobody, ALL_ROUTERS, 255, &SOLICIT_ROUTER)).unwrap();
    assert!(is_advertisement(&got));
    assert_eq!((got.dst, got.to), (ALL_NODES.into(), Mac([0x33, 0x33, 0, 0, 0, 1])));
}

#[test]
fn invalid_messages_are_dropped() {
    let mut lab = Lab::new(Settings::default());
    let nobody = Ipv6Addr::UNSPECIFIED;
    let group = solicited_node(ROUTER);
    let with_code = |mut message: Vec<u8>| {
        message[1] = 1;
        message
    };
    let mut empty_option = solicit(ROUTER);
    empty_option.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    for (what, frame) in [
        ("forwarded", icmp6(LINK_LOCAL, ALL_ROUTERS, 254, &SOLICIT_ROUTER)),
        ("with a code", icmp6(LINK_LOCAL, ALL_ROUTERS, 255, &with_code(SOLICIT_ROUTER.to_vec()))),
        (
            "from nobody, with an address",
            icmp6(nobody, ALL_ROUTERS, 255, &with_address(&SOLICIT_ROUTER)),
        ),
        ("forwarded", icmp6(LINK_LOCAL, group, 254, &solicit(ROUTER))),
        ("for a group", icmp6(LINK_LOCAL, group, 255, &solicit(ALL_NODES))),
        ("with an empty option", icmp6(LINK_LOCAL, group, 255, &empty_option)),
        ("truncated", icmp6(LINK_LOCAL, group, 255, &solicit(ROUTER)[..20])),
        ("DAD to us alone", icmp6(nobody, ROUTER, 255, &solicit(ROUTER))),
        ("DAD with an address", icmp6(nobody, group, 255, &with_address(&solicit(ROUTER)))),
    ] {
        assert_eq!(lab.ask(&frame), None, "{what}");
    }
    let mut frame = icmp6(LINK_LOCAL, group, 255, &solicit(ROUTER));
    *frame.last_mut().unwrap() ^= 1;
    assert_eq!(lab.ask(&frame), None, "wrong checksum");
}

#[test]
fn the_routers_addresses_are_advertised_and_no_others() {
    let mut lab = Lab::new(Settings::default());
    for target in [ROUTER, ROUTER_GLOBAL, DNS] {
        for dst in [solicited_node(target), target] {
            let got =
                lab.ask(&icmp6(LINK_LOCAL, dst, 255, &with_address(&solicit(target)))).unwrap();
            assert_eq!((got.src, got.dst, got.hops), (target.into(), LINK_LOCAL.into(), 255));
            assert_eq!(got.to, MAC);
            // Router, solicited, override.
            assert_eq!(got.payload[..2], [136, 0]);
            assert_eq!(got.payload[4..8], [0xe0, 0, 0, 0]);
            assert_eq!(got.payload[8..24], target.octets());
            assert_eq!(options(&got.payload, 24), [(2, Settings::default().mac.0.to_vec())]);
        }
    }
    for target in [GLOBAL, LINK_LOCAL, "2001:db8:465::1".parse().unwrap()] {
        let frame = icmp6(LINK_LOCAL, solicited_node(target), 255, &solicit(target));
        assert_eq!(lab.ask(&frame), None, "{target}");
    }
}

#[test]
fn duplicate_address_detection_is_defended_against_and_left_alone() {
    let mut lab = Lab::new(Settings::default());
    let nobody = Ipv6Addr::UNSPECIFIED;
    let got = lab.ask(&icmp6(nobody, solicited_node(ROUTER), 255, &solicit(ROUTER))).unwrap();
    assert_eq!((got.dst, got.payload[4]), (ALL_NODES.into(), 0xa0), "to all, unsolicited");
    assert_eq!(lab.ask(&icmp6(nobody, solicited_node(GLOBAL), 255, &solicit(GLOBAL))), None);
}

#[test]
fn neighbours_are_asked_for_and_remembered() {
    let mut lab = Lab::new(Settings::default());
    assert_eq!(lab.network.neighbour(GLOBAL), None);
    let mut out = Out::default();
    lab.network.solicit(GLOBAL, &mut out);
    let got = read(&out).remove(0);
    assert_eq!((got.src, got.hops), (ROUTER.into(), 255));
    assert_eq!(got.dst, solicited_node(GLOBAL));
    assert_eq!(got.to, Mac([0x33, 0x33, 0xff, 0, 0, 9]));
    assert_eq!(got.payload[8..24], GLOBAL.octets());
    let other = Mac([2, 0, 0, 0, 0, 10]);
    let answer = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &GLOBAL.octets(), &[2, 1], &other.0].concat();
    assert_eq!(lab.ask(&icmp6(GLOBAL, ROUTER, 255, &answer)), None);
    assert_eq!(lab.network.neighbour(GLOBAL), Some(other));
    lab.ask(&icmp6(LINK_LOCAL, ROUTER, 255, &with_address(&solicit(ROUTER))));
    assert_eq!(lab.network.neighbour(LINK_LOCAL), Some(MAC));
    // Many addresses neither fill the memory nor evict others.
    for n in 0..5000_u128 {
        let addr = Ipv6Addr::from_bits(GLOBAL.to_bits() + 0x1000 + n);
        let mut frame = icmp6(addr, ROUTER, 255, &with_address(&solicit(ROUTER)));
        frame[11] ^= 4;
        lab.ask(&frame);
        assert_eq!(lab.network.neighbour(addr), Some(MAC));
    }
    assert_eq!(lab.network.neighbour(GLOBAL), Some(other));
}

#[test]
fn unsolicited_advertisements_are_fast_at_first_then_rare() {
    let mut lab = Lab::new(Settings::default());
    let mut at = Vec::new();
    for _ in 0..8 {
        let due = lab.network.next_timer().unwrap();
        let wait = due - lab.now;
        if !wait.is_zero() {
            assert!(lab.sleep(wait - Duration::from_millis(1)).is_empty(), "too soon");
        }
        let got = lab.sleep(due - lab.now);
        assert_eq!(got.len(), 1);
        assert!(is_advertisement(&got[0]) && got[0].dst == ALL_NODES);
        at.push(wait.as_secs());
    }
    assert_eq!(at[..3], [0, 16, 16]);
    assert!(at[3..].iter().all(|secs| (200..=600).contains(secs)), "{at:?}");
}

#[test]
fn renumbering_takes_the_old_prefix_back_and_keeps_its_addresses() {
    let mut lab = Lab::new(Settings::default());
    lab.sleep(Duration::ZERO);
    let new: Ipv6Addr = "2001:db8:464:1::".parse().unwrap();
    let mut out = Out::default();
    lab.network.renumber(new, lab.now, &mut out);
    let got = read(&out).remove(0);
    assert!(is_advertisement(&got) && got.dst == ALL_NODES);
    let options = options(&got.payload, 16);
    let prefixes: Vec<_> = options.iter().filter(|o| o.0 == 3).map(|o| &o.1).collect();
    assert_eq!(prefixes[0][14..], new.octets());
    assert_ne!(prefixes[0][2..10], [0; 8]);
    assert_eq!(prefixes[1][14..22], PREFIX);
    assert_eq!(prefixes[1][2..10], [0; 8], "no lifetime");
    let servers: Vec<_> = options.iter().filter(|o| o.0 == 25).map(|o| &o.1).collect();
    assert_eq!(servers[0][6..], lab.network.settings().dns().octets());
    assert_eq!((&servers[1][2..6], &servers[1][6..]), (&[0; 4][..], &DNS.octets()[..]));
    // Soon again, in case it was lost.
    assert!(lab.network.next_timer().unwrap() - lab.now <= Duration::from_secs(16));
    let got = lab.ask(&icmp6(GLOBAL, ROUTER_GLOBAL, 64, &[128, 0, 0, 0, 0, 1, 0, 1])).unwrap();
    assert_eq!(got.src, ROUTER_GLOBAL);
    assert_eq!(lab.network.settings().prefix, new);
}

#[test]
fn a_router_that_goes_says_so() {
    let lab = Lab::new(Settings::default());
    let mut out = Out::default();
    lab.network.farewell(&mut out);
    let got = read(&out).remove(0);
    assert!(is_advertisement(&got) && got.dst == ALL_NODES);
    assert_eq!(got.payload[6..8], [0, 0], "lifetime");
    // Nor a NAT64 any more (RFC 8781 §4).
    let (_, pref64) = got.payload.split_at(got.payload.len() - 16);
    let prefix = Settings::default().prefix64;
    assert_eq!(pref64[..2], [38, 2]);
    assert_eq!(clat_packet::ra::read_pref64(&pref64[2..]), Some((prefix.addr(), prefix.bits(), 0)));
}

#[test]
fn arp_for_the_router_alone_and_only_with_dual_stack() {
    let request = |target: [u8; 4]| {
        let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1];
        message.extend_from_slice(&MAC.0);
        message.extend_from_slice(&GUEST4.octets());
        message.extend_from_slice(&[0; 6]);
        message.extend_from_slice(&target);
        ethernet(Mac::BROADCAST, EthernetProtocol::Arp, &message)
    };
    let mut lab = Lab::dual_stack();
    let got = lab.ask(&request(ROUTER4.octets())).unwrap();
    let router = Settings::default().mac.0;
    assert_eq!(got.protocol, IpProtocol::Unknown(6));
    assert_eq!(got.to, MAC);
    let expected =
        [&[0, 1, 8, 0, 6, 4, 0, 2][..], &router, &ROUTER4.octets(), &MAC.0, &GUEST4.octets()]
            .concat();
    assert_eq!(got.payload, expected);
    assert_eq!(lab.ask(&request([192, 168, 64, 7])), None);
    assert_eq!(lab.ask(&request(ROUTER4.octets())[..40]), None);
    assert_eq!(Lab::new(Settings::default()).ask(&request(ROUTER4.octets())), None);
}

/// The same from another station.
fn as_station(mac: Mac, mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&mac.0);
    frame
}

/// RFC 6620: an address belongs to the first station that uses it, as long as that is present. No
/// other can use it, neither in packets nor in advertisements.
#[test]
fn an_address_belongs_to_its_station() {
    let thief = Mac([2, 0, 0, 0, 0, 66]);
    let mut lab = Lab::new(Settings::default());
    let packet = udp6((GLOBAL, 1), (crate::guest::ELSEWHERE, 2), b"");
    assert_eq!(lab.send(&packet).0, Handled::NotForUs);
    let stolen = as_station(thief, packet.clone());
    let (handled, asked) = lab.send(&stolen);
    assert_eq!((handled, asked.len()), (Handled::ForeignSource, 1));
    // Its owner is solicited, once, and answers.
    let asked = &asked[0];
    assert_eq!(
        (asked.to, asked.payload[0], &asked.payload[8..24]),
        (MAC, 135, &GLOBAL.octets()[..])
    );
    lab.now += Duration::from_millis(100);
    assert_eq!(lab.send(&stolen), (Handled::ForeignSource, vec![]));
    let answer = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &GLOBAL.octets()].concat();
    let forged = as_station(thief, icmp6(LINK_LOCAL, ROUTER, 255, &answer));
    lab.send(&forged);
    assert_eq!(lab.network.neighbour(GLOBAL), Some(MAC));
    assert_eq!(lab.ask(&icmp6(GLOBAL, ROUTER, 255, &answer)), None);
    lab.now += Duration::from_secs(1);
    let (handled, asked) = lab.send(&stolen);
    assert_eq!((handled, asked.len()), (Handled::ForeignSource, 1), "it is asked anew");
    assert!(lab.network.take_moved().is_empty());
    // It no longer answers.
    lab.now += Duration::from_millis(501);
    assert_eq!(lab.send(&stolen).0, Handled::NotForUs);
    let moved = lab.network.take_moved();
    assert_eq!((moved[0].address, moved[0].from, moved[0].to), (GLOBAL, MAC, thief));
    assert_eq!(lab.send(&packet).0, Handled::ForeignSource);
    // A reserved one never moves.
    let reserved = Ipv6Addr::from_bits(GLOBAL.to_bits() + 7);
    lab.network.reserve(reserved, MAC);
    let packet = as_station(thief, udp6((reserved, 1), (crate::guest::ELSEWHERE, 2), b""));
    for _ in 0..3 {
        assert_eq!(lab.send(&packet), (Handled::ForeignSource, vec![]));
        lab.now += Duration::from_secs(1);
    }
}

/// RFC 4861 §6.2.6: solicitations of guests without address are answered by multicast at most every
/// three seconds.
#[test]
fn advertisements_to_everybody_are_rare() {
    let mut lab = Lab::new(Settings::default());
    lab.sleep(Duration::ZERO);
    lab.now += Duration::from_secs(4);
    let nobody = icmp6(Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, 255, &SOLICIT_ROUTER);
    assert!(is_advertisement(&lab.ask(&nobody).unwrap()));
    for _ in 0..100 {
        assert_eq!(lab.ask(&nobody), None);
    }
    let due = lab.network.next_timer().unwrap() - lab.now;
    assert_eq!(due, Duration::from_secs(3));
    assert_eq!(lab.sleep(due).len(), 1);
}

/// A packet for an unknown neighbour waits for its Ethernet address.
#[test]
fn a_neighbour_is_found_for_another() {
    let other = Ipv6Addr::from_bits(GLOBAL.to_bits() + 1);
    let mac = Mac([2, 0, 0, 0, 0, 10]);
    let mut lab = Lab::new(Settings::default());
    let packet = udp6((GLOBAL, 1), (other, 2), b"payload");
    let asked = lab.ask(&packet).unwrap();
    assert_eq!((asked.payload[0], &asked.payload[8..24]), (135, &other.octets()[..]));
    let answer = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &other.octets(), &[2, 1], &mac.0].concat();
    let got = lab.ask(&as_station(mac, icmp6(other, ROUTER, 255, &answer))).unwrap();
    assert_eq!((got.to, got.src, got.dst, got.hops), (mac, GLOBAL.into(), other.into(), 63));
    assert_eq!(got.whole[40..], packet[54..]);
    assert_eq!(lab.send(&packet), (Handled::Neighbour(mac), vec![]));
}
