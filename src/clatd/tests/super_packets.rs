// SPDX-License-Identifier: Apache-2.0

//! GSO packets through the daemon, seen from an uplink that is a TUN device, whose far end is this
//! test.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use clat_datapath::segment::Segments;
use clat_packet::checksum::Sum;
use clat_tun::{GsoType, Options, Tun, VirtioHeader};
use common::*;
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{setsockopt, sockopt};

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 1;
const PSH: u8 = 8;
const ACK: u8 = 16;
const CWR: u8 = 128;

/// The far end of the uplink, and a daemon.
fn modem(test: &str) -> Option<(Tun, Clatd)> {
    if !namespace() {
        return None;
    }
    let modem = Tun::create("up0", Options::default()).unwrap();
    run("echo 1 > /proc/sys/net/ipv6/conf/up0/accept_dad
         ip addr add 2001:db8:1::2/64 dev up0 nodad
         ip link set up0 up
         ip -6 route add default dev up0");
    let tun = tun(Options::default());
    // Keeps the kernel from sending on its own.
    run("echo 1 > /proc/sys/net/ipv6/conf/v4-up0/disable_ipv6");
    let mut clatd = Clatd::start(test, tun, None);
    clatd.ready();
    route();
    Some((modem, clatd))
}

/// The next packet that the daemon has sent, and its virtio header.
fn sent(modem: &Tun) -> (VirtioHeader, Vec<u8>) {
    let v6: Ipv6Addr = V6.parse().unwrap();
    let mut buf = vec![0; 70_000];
    until("a translated packet", || {
        let (vnet, len) = modem.recv(&mut buf).ok()?;
        // The kernel sends packets as well, but not from this address.
        (buf[8..24] == v6.octets()).then(|| (vnet, buf[..len].to_vec()))
    })
}

/// The packets that this one becomes on the wire.
fn on_the_wire((vnet, mut packet): (VirtioHeader, Vec<u8>)) -> Vec<Vec<u8>> {
    if vnet.gso_type == GsoType::None {
        assert!(!vnet.needs_csum || clat_datapath::partial_checksum::complete(&mut packet, &vnet));
        return vec![packet];
    }
    let mut segments = Segments::new(&packet, &vnet).unwrap();
    let mut out = vec![0; 70_000];
    std::iter::from_fn(|| segments.next(&mut out).map(|len| out[..len].to_vec())).collect()
}

fn is_sound(packet: &[u8]) -> bool {
    let (l4, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    let sum = Sum::pseudo_header(packet, protocol, packet.len() - l4) + Sum::of(&packet[l4..]);
    sum.fold() == 0xffff
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// An IPv4 packet with DF from the CLAT's address to the server.
fn ipv4(protocol: u8, l4: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(Ipv4Addr::new(192, 0, 0, 4).octets());
    packet.extend(Ipv4Addr::new(203, 0, 113, 1).octets());
    packet[2..4].copy_from_slice(&u16::try_from(20 + l4.len()).unwrap().to_be_bytes());
    let sum = Sum::of(&packet).field();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(l4);
    packet
}

/// An IPv6 packet from the server to the CLAT's address.
fn ipv6(protocol: u8, l4: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
    packet[4..6].copy_from_slice(&u16::try_from(l4.len()).unwrap().to_be_bytes());
    for address in [SERVER, V6] {
        packet.extend(address.parse::<Ipv6Addr>().unwrap().octets());
    }
    packet.extend(l4);
    packet
}

/// The kernel forwards what this test writes to another TUN device, so that the daemon gets a
/// handmade GSO packet. Whether the kernel or the daemon segments it, each segment has to be right:
/// RFC 3168 §6.1.2 has CWR in the first only.
#[test]
fn every_segment_is_right() {
    let Some((modem, clatd)) = modem("every_segment_is_right") else { return };
    let feed = Tun::create("feed0", Options::default()).unwrap();
    run("ip link set feed0 up
         cd /proc/sys/net/ipv4
         echo 1 > ip_forward
         for name in all feed0; do echo 0 > conf/$name/rp_filter; done
         echo 1 > conf/feed0/accept_local");
    let payload = data(10_000);
    for whole in [true, false] {
        if !whole {
            run("ethtool -K up0 tx off tso off gso off >/dev/null");
        }
        let mut l4 = vec![0x30, 0x39, 0, 80, 0xff, 0xff, 0xff, 0, 1, 2, 3, 4, 0x80];
        l4.extend([FIN | PSH | ACK | CWR, 0xff, 0xff, 0, 0, 0, 0]);
        l4.extend([1; 12]);
        l4.extend(&payload);
        let mut packet = ipv4(TCP, &l4);
        let sum = Sum::pseudo_header(&packet, TCP, l4.len()).partial_field();
        packet[36..38].copy_from_slice(&sum);
        let vnet = VirtioHeader {
            needs_csum: true,
            gso_type: GsoType::TcpV4,
            gso_ecn: true,
            hdr_len: 52,
            gso_size: 1400,
            csum_start: 20,
            csum_offset: 16,
            ..Default::default()
        };
        feed.send(&vnet, &packet).unwrap();
        let first = sent(&modem);
        if whole {
            let expected = VirtioHeader {
                gso_type: GsoType::TcpV6,
                // A hint, which the kernel sets anew.
                hdr_len: first.0.hdr_len,
                csum_start: 40,
                ..vnet
            };
            assert_eq!((first.0, first.1.len()), (expected, packet.len() + 20));
        } else {
            assert_eq!((first.0, first.1.len()), (VirtioHeader::default(), 72 + 1400));
        }
        let mut segments = on_the_wire(first);
        while segments.len() < 8 {
            segments.extend(on_the_wire(sent(&modem)));
        }
        let mut got = Vec::<u8>::new();
        for (i, segment) in (0..).zip(&segments) {
            assert!(is_sound(segment), "segment {i}");
            assert_eq!(
                usize::from(u16::from_be_bytes([segment[4], segment[5]])),
                segment.len() - 40
            );
            assert_eq!(be32(&segment[44..]), 0xffff_ff00_u32.wrapping_add(1400 * i));
            let flags = ACK | if i == 0 { CWR } else { 0 } | if i == 7 { FIN | PSH } else { 0 };
            assert_eq!(segment[53], flags, "segment {i}");
            got.extend(&segment[72..]);
        }
        assert!(got == payload);
    }
    let line = clatd.stop();
    assert!(line.contains(&format!("egress4=16/{}", 2 * (10_000 + 8 * 52))), "{line}");
    assert!(line.contains("drops=0"), "{line}");
}

/// Datagrams that wait together leave as a GSO packet, and arrive as datagrams.
#[test]
fn equal_datagrams_leave_as_one() {
    let Some((modem, clatd)) = modem("equal_datagrams_leave_as_one") else { return };
    let client = UdpSocket::bind("192.0.0.4:0").unwrap();
    let sizes = [[100; 9].as_slice(), &[50], &[100; 3], &[0], &[700; 2], &[701]].concat();
    kill(clatd.pid(), Signal::SIGSTOP).unwrap();
    for size in &sizes {
        client.send_to(&data(*size), "203.0.113.1:9").unwrap();
    }
    // To another port, and back: these are not coalesced.
    for port in [10, 9, 10] {
        client.send_to(&data(64), ("203.0.113.1", port)).unwrap();
    }
    kill(clatd.pid(), Signal::SIGCONT).unwrap();
    let (mut gso_sizes, mut packets) = (Vec::new(), Vec::new());
    while packets.len() < sizes.len() + 3 {
        let packet = sent(&modem);
        if packet.0.gso_type == GsoType::UdpL4 {
            gso_sizes.push(packet.0.gso_size);
        }
        packets.extend(on_the_wire(packet));
    }
    for (packet, size) in packets.iter().zip(sizes.iter().chain(&[64; 3])) {
        assert!(is_sound(packet));
        assert_eq!(packet[48..], data(*size));
    }
    // Before Linux 6.2, a TUN device takes none.
    assert!(gso_sizes == [100, 100, 700] || gso_sizes.is_empty(), "{gso_sizes:?}");
    let line = clatd.stop();
    assert!(line.contains("egress4=20/") && line.contains("drops=0"), "{line}");
}

/// The same inward. A GSO packet has its checksums computed anew, so a datagram with a wrong one
/// must not be in it.
#[test]
fn equal_datagrams_arrive_as_one() {
    let Some((modem, clatd)) = modem("equal_datagrams_arrive_as_one") else { return };
    let client = UdpSocket::bind("192.0.0.4:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = client.local_addr().unwrap().port();
    let datagram = |number: u8, size: usize| {
        let length = u16::try_from(8 + size).unwrap();
        let mut udp = Vec::new();
        for field in [9, port, length, 0] {
            udp.extend(field.to_be_bytes());
        }
        udp.extend(vec![number; size]);
        let mut packet = ipv6(UDP, &udp);
        let pseudo = Sum::pseudo_header(&packet, UDP, length.into());
        let sum = (pseudo + Sum::of(&packet[40..])).nonzero_field();
        packet[46..48].copy_from_slice(&sum);
        packet
    };
    kill(clatd.pid(), Signal::SIGSTOP).unwrap();
    for number in 0..20 {
        let mut packet = datagram(number, 500);
        // One wrong datagram alone, and one that would begin a GSO packet.
        if number == 0 || number == 7 {
            packet[60] ^= 1;
        }
        modem.send(&VirtioHeader::default(), &packet).unwrap();
    }
    modem.send(&VirtioHeader::default(), &datagram(20, 499)).unwrap();
    setsockopt(&client, sockopt::UdpGroSegment, &true).unwrap();
    kill(clatd.pid(), Signal::SIGCONT).unwrap();
    let mut buf = vec![0; 70_000];
    let (mut got, mut reads) = (Vec::<u8>::new(), 0);
    while got.len() < 18 * 500 + 499 {
        let len = client.recv(&mut buf).unwrap();
        got.extend(&buf[..len]);
        reads += 1;
    }
    let numbers: Vec<u8> = (1..20).filter(|n| *n != 7).collect();
    let mut expected: Vec<u8> = numbers.iter().flat_map(|n| [*n; 500]).collect();
    expected.extend([20; 499]);
    assert!(got == expected);
    assert!(reads == 2 || reads == 19, "{reads} packets");
    clatd.stop();
}

/// A GSO packet is passed on as such, with its partial checksum. The kernel forwards it to another
/// TUN device, which shows that.
#[test]
fn what_arrives_whole_stays_whole() {
    let Some((modem, clatd)) = modem("what_arrives_whole_stays_whole") else { return };
    let inside = Tun::create("inside0", Options::default()).unwrap();
    let uso = inside.take_offloads().unwrap();
    run("echo 1 > /proc/sys/net/ipv6/conf/inside0/disable_ipv6
         ip link set inside0 up
         ip addr del 192.0.0.4/32 dev v4-up0
         ip route add 203.0.113.0/24 dev v4-up0
         ip route add 192.0.0.4 dev inside0
         cd /proc/sys/net/ipv4
         echo 1 > ip_forward
         for name in all v4-up0; do echo 0 > conf/$name/rp_filter; done");
    let payload = data(60_000);
    let mut tcp =
        vec![0, 80, 0x30, 0x39, 0, 0, 0, 1, 1, 2, 3, 4, 0x80, ACK, 0xff, 0xff, 0, 0, 0, 0];
    tcp.extend([1; 12]);
    let mut udp = vec![0, 80, 0x30, 0x39];
    udp.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    udp.extend([0; 2]);
    let both = [
        (TCP, tcp, 16, GsoType::TcpV6, GsoType::TcpV4),
        (UDP, udp, 6, GsoType::UdpL4, GsoType::UdpL4),
    ];
    // Before Linux 6.2, a TUN device has no UDP_SEGMENT packets.
    for (protocol, header, offset, arrives, is_handed_on) in &both[..1 + usize::from(uso)] {
        let l4 = [header.as_slice(), &payload].concat();
        let open = |mut packet: Vec<u8>, start: usize| {
            let sum = Sum::pseudo_header(&packet, *protocol, l4.len()).partial_field();
            packet[start + offset..start + offset + 2].copy_from_slice(&sum);
            packet
        };
        let vnet = VirtioHeader {
            needs_csum: true,
            gso_type: *arrives,
            gso_size: 1200,
            hdr_len: u16::try_from(40 + header.len()).unwrap(),
            csum_start: 40,
            csum_offset: u16::try_from(*offset).unwrap(),
            ..Default::default()
        };
        modem.send(&vnet, &open(ipv6(*protocol, &l4), 40)).unwrap();
        let mut buf = vec![0; 70_000];
        let (seen, len) = until("what the daemon made of it", || inside.recv(&mut buf).ok());
        let expected = VirtioHeader {
            gso_type: *is_handed_on,
            // A hint, which the kernel sets anew.
            hdr_len: seen.hdr_len,
            csum_start: 20,
            ..vnet
        };
        assert_eq!((seen, len), (expected, 20 + l4.len()));
        let packet = buf[..len].to_vec();
        assert!(open(packet.clone(), 20) == packet, "the sum of the pseudo-header");
        assert!(packet[20 + header.len()..] == payload);
    }
    clatd.stop();
}
