// SPDX-License-Identifier: Apache-2.0

//! Packets: built ones parse back, cut or altered ones do no harm, fragments give the datagram or
//! nothing.

use std::net::Ipv6Addr;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpAddress, Ipv4Packet, TcpPacket, UdpPacket};

use crate::invariants::{self, Frames};
use clat_plat::flow::errors;
use clat_plat::flow::fragments::Fragments;
use clat_plat::flow::tcp::Segment;
use clat_plat::flow::wire::{self, Addresses, Offload, Packet};
use clat_plat::frame::Mac;

const MTU: usize = 1500;

/// Both ends of a packet, of one family.
fn ends() -> impl Strategy<Value = (Ipv6Addr, Ipv6Addr)> {
    let v6 = (any::<u128>(), any::<u128>()).prop_map(|(a, b)| (a | 1 << 125, b | 1 << 125));
    let v4 = (any::<u32>(), any::<u32>())
        .prop_map(|(a, b)| (0xffff << 32 | u128::from(a), 0xffff << 32 | u128::from(b)));
    prop_oneof![v6, v4].prop_map(|(a, b)| (a.into(), b.into()))
}

fn addresses((src, dst): (Ipv6Addr, Ipv6Addr)) -> Addresses {
    Addresses { guest_mac: Mac([2; 6]), mac: Mac([4; 6]), src, dst, class: 0 }
}

/// Another implementation's check of a packet's checksums.
fn verifies(packet: &[u8]) -> bool {
    let parsed = wire::parse(packet).unwrap();
    let address = |ip: Ipv6Addr| match ip.to_ipv4_mapped() {
        Some(v4) => IpAddress::from(v4),
        None => IpAddress::from(ip),
    };
    let (src, dst) = (address(parsed.src), address(parsed.dst));
    if packet[0] >> 4 == 4 && !Ipv4Packet::new_checked(packet).unwrap().verify_checksum() {
        return false;
    }
    let payload = parsed.payload;
    match (parsed.protocol, parsed.src, parsed.dst) {
        (wire::TCP, ..) => TcpPacket::new_checked(payload).unwrap().verify_checksum(&src, &dst),
        (wire::UDP, ..) => UdpPacket::new_checked(payload).unwrap().verify_checksum(&src, &dst),
        (wire::ICMP4, ..) => Icmpv4Packet::new_unchecked(payload).verify_checksum(),
        (_, src, dst) => Icmpv6Packet::new_unchecked(payload).verify_checksum(&src, &dst),
    }
}

/// Reassembles fragments in the given order.
fn reassemble(frames: &Frames, order: impl Iterator<Item = usize>) -> Option<Vec<u8>> {
    let packets: Vec<&[u8]> = frames.packets().collect();
    let mut fragments = Fragments::default();
    let now = Instant::now();
    let mut whole = None;
    for i in order {
        assert!(whole.is_none(), "whole before the last one");
        whole = fragments.offer(Mac([2; 6]), packets[i], now).map(|(_, l4)| l4);
    }
    whole
}

/// A TCP packet of either family with any contents.
fn tcp_packet() -> impl Strategy<Value = Vec<u8>> {
    (ends(), any::<(u16, u16, u32, u32, u8, u16)>(), 0..11_usize, vec(any::<u8>(), 0..200))
        .prop_map(|(ends, (from, to, seq, ack, flags, window), words, bytes)| {
            let options = &vec![1; words * 4];
            let payload = [&bytes[..], &[]];
            let segment = Segment { seq, ack, flags, window, options, payload, mss: 1440 };
            let mut frames = Frames::default();
            wire::send_tcp(&mut frames, &addresses(ends), (from, to), &segment, Offload::default());
            let packet = frames.packets().next().unwrap().to_vec();
            packet
        })
}

proptest! {
    /// A segment parses back unchanged, in as many packets as needed.
    #[test]
    fn segments_are_read_as_written(
        ends in ends(),
        (from, to, seq, ack, flags, window) in any::<(u16, u16, u32, u32, u8, u16)>(),
        options in (0..11_usize).prop_flat_map(|words| vec(any::<u8>(), words * 4)),
        a in vec(any::<u8>(), 0..4000),
        b in vec(any::<u8>(), 0..4000),
        mss in 64..1400_u16,
        tso in any::<bool>(),
    ) {
        let payload = [&a[..], &b[..]];
        let segment = Segment { seq, ack, flags, window, options: &options, payload, mss };
        let mut frames = Frames::default();
        let offload = Offload { tso, uso: false };
        wire::send_tcp(&mut frames, &addresses(ends), (from, to), &segment, offload);
        let mut data = Vec::new();
        let count = frames.0.len();
        for (i, (vnet, frame)) in frames.0.iter().enumerate() {
            invariants::frame(vnet, frame, MTU);
            prop_assert_eq!(vnet.gso_size > 0, tso && a.len() + b.len() > mss.into());
            let packet = wire::parse(&frame[14..]).unwrap();
            prop_assert_eq!((packet.src, packet.dst), ends);
            prop_assert!(tso || verifies(packet.whole));
            let (got_from, got_to, got) = wire::parse_tcp(packet.payload).unwrap();
            prop_assert_eq!((got_from, got_to, got.ack, got.window), (from, to, ack, window));
            prop_assert_eq!(got.options, &options);
            prop_assert_eq!(got.seq, seq.wrapping_add(u32::try_from(data.len()).unwrap()));
            // FIN and PSH are in the last one.
            prop_assert_eq!(got.flags, if i + 1 == count { flags } else { flags & !9 });
            prop_assert!(tso || got.payload.len() <= mss.into());
            data.extend_from_slice(got.payload);
        }
        prop_assert_eq!(data, [a, b].concat());
    }

    /// So does a datagram, and a GSO packet of them; in fragments if too long for the link.
    #[test]
    fn datagrams_are_read_as_written(
        ends in ends(),
        ports in any::<(u16, u16)>(),
        data in vec(any::<u8>(), 0..5000),
        size in 1..5000_usize,
        uso in any::<bool>(),
    ) {
        let mut frames = Frames::default();
        let offload = Offload { tso: uso, uso };
        wire::send_udp(&mut frames, &addresses(ends), ports, &data, size, MTU, offload);
        let (mut got, mut fragments) = (Vec::new(), Fragments::default());
        for (vnet, frame) in &frames.0 {
            invariants::frame(vnet, frame, MTU);
            let packet = wire::parse(&frame[14..]).unwrap();
            prop_assert_eq!((packet.src, packet.dst), ends);
            let whole;
            let payload = match packet.fragment {
                None => packet.payload,
                Some(_) => match fragments.offer(Mac([2; 6]), packet.whole, Instant::now()) {
                    Some((_, joined)) => {
                        whole = joined;
                        let packet = Packet { fragment: None, payload: &whole, ..packet };
                        prop_assert!(wire::verifies(&packet));
                        &whole
                    }
                    None => continue,
                },
            };
            prop_assert!(uso || packet.fragment.is_some() || verifies(packet.whole));
            let (from, to, part) = wire::parse_udp(payload, false).unwrap();
            prop_assert_eq!((from, to), ports);
            prop_assert!(part.len() <= size || vnet.gso_size > 0);
            got.extend_from_slice(part);
        }
        prop_assert_eq!(got, data);
    }

    /// So does an ICMP message.
    #[test]
    fn echoes_are_read_as_written(
        ends in ends(),
        data in vec(any::<u8>(), 8..4000),
        hops in 1..255_u8,
    ) {
        let mut frames = Frames::default();
        let mut message = data.clone();
        message[2..4].fill(0);
        wire::send_icmp(&mut frames, &addresses(ends), &mut message, hops, MTU);
        for (vnet, frame) in &frames.0 {
            invariants::frame(vnet, frame, MTU);
        }
        let packets: Vec<_> = frames.packets().collect();
        let first = wire::parse(packets[0]).unwrap();
        prop_assert_eq!((first.src, first.dst), ends);
        if packets.len() == 1 {
            prop_assert!(verifies(packets[0]));
            prop_assert_eq!((first.payload, first.hop_limit), (&message[..], hops));
        } else {
            prop_assert_eq!(reassemble(&frames, 0..packets.len()), Some(message));
        }
    }

    /// The rebuilt packet for an error to quote.
    #[test]
    fn what_is_rebuilt_is_a_packet(
        ends in ends(),
        ports in any::<(u16, u16)>(),
        protocol in proptest::sample::select(&[wire::TCP, wire::UDP, wire::ICMP6][..]),
        l4 in vec(any::<u8>(), 20..2000),
    ) {
        let mut l4 = l4;
        match protocol {
            // With a valid header.
            wire::TCP => (l4[12], l4[16], l4[17]) = (0x50, 0, 0),
            wire::UDP => {}
            _ => l4[2..4].fill(0),
        }
        let bytes = errors::rebuild((ends.0, ports.0), (ends.1, ports.1), protocol, &l4);
        let packet = wire::parse(&bytes).unwrap();
        prop_assert_eq!((packet.src, packet.dst, packet.whole), (ends.0, ends.1, &bytes[..]));
        prop_assert!(verifies(&bytes));
        let start = packet.payload.len() - l4.len();
        prop_assert_eq!(start, if protocol == wire::UDP { 8 } else { 0 });
        prop_assert_eq!(&packet.payload[start + 18..], &l4[18..]);
    }

    #[test]
    fn errors_are_told_to_who_sent(
        kind in 0..12_u8,
        code in 0..16_u8,
        info in prop_oneof![any::<u32>(), 0..70_000_u32],
        router in proptest::option::of(ends()),
        packet in tcp_packet(),
        padding in 0..20_usize,
        flip in any::<(u16, u8)>(),
    ) {
        let router = router.map(|(router, _)| router);
        let mut packet = packet;
        packet.resize(packet.len() + padding, 0xee);
        invariants::error(kind, code, info, router, &packet);
        let at = usize::from(flip.0) % packet.len();
        packet[at] ^= flip.1;
        invariants::error(kind, code, info, router, &packet);
    }

    #[test]
    fn anything_can_be_read(
        bytes in vec(any::<u8>(), 0..200),
        version in prop_oneof![Just(0x45_u8), Just(0x60)],
    ) {
        invariants::packet(&bytes);
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        invariants::packet(&bytes);
    }

    /// Cut anywhere, and with any bit flipped: it does not parse, or is another valid packet, or
    /// its checksum is wrong.
    #[test]
    fn what_is_damaged_is_noticed(
        packet in tcp_packet(),
        at in any::<proptest::sample::Index>(),
        bit in 0..8_u8,
    ) {
        prop_assert!(wire::verifies(&wire::parse(&packet).unwrap()));
        let at = at.index(packet.len());
        prop_assert!(wire::parse(&packet[..at]).is_none());
        let mut damaged = packet.clone();
        damaged[at] ^= 1 << bit;
        invariants::packet(&damaged);
        let l4 = wire::parse(&packet).unwrap().payload.len();
        if at >= packet.len() - l4 {
            prop_assert!(!wire::verifies(&wire::parse(&damaged).unwrap()));
        }
    }

    /// In any order, fragments give the datagram, with the last of them. An additional one at any
    /// place changes no byte of it.
    #[test]
    fn fragments_give_the_datagram_or_nothing(
        data in vec(any::<u8>(), 2..3000),
        cuts in vec(any::<proptest::sample::Index>(), 1..20),
        seed in any::<u64>(),
        extra in proptest::option::of(any::<(u16, u16, bool)>()),
    ) {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(data.len()) & !7).collect();
        at.extend([0, data.len()]);
        at.sort_unstable();
        at.dedup();
        let mut pieces: Vec<(usize, usize, bool)> =
            at.windows(2).map(|ends| (ends[0], ends[1], ends[1] != data.len())).collect();
        if let Some((start, len, more)) = extra {
            // Of equal bytes, so that mixtures can be recognised.
            let start = (usize::from(start) % data.len()) & !7;
            let end = data.len().min(start + 8 + usize::from(len) % data.len());
            pieces.push((start, if more { end & !7 } else { end }, more));
        }
        fastrand::Rng::with_seed(seed).shuffle(&mut pieces);
        let mut fragments = Fragments::default();
        let mut whole = Vec::new();
        for (start, end, more) in &pieces {
            let packet = invariants::fragment(1, *start, *more, &data[*start..*(end.max(start))]);
            let offered = fragments.offer(Mac([2; 6]), &packet, Instant::now());
            whole.extend(offered.map(|(_, l4)| l4));
        }
        match extra {
            None => prop_assert_eq!(whole, vec![data]),
            // A last fragment may end the datagram early.
            Some(_) => prop_assert!(whole.iter().all(|whole| data.starts_with(whole))),
        }
    }

    #[test]
    fn fragments_of_any_kind(bytes in vec(any::<u8>(), 0..600)) {
        invariants::fragments(&bytes);
    }
}
