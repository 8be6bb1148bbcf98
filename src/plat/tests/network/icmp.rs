// SPDX-License-Identifier: Apache-2.0

//! Echo, errors, closed ports, and packets for the flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use clat_plat::frame::{Mac, Out};
use clat_plat::icmp_error::IcmpError;
use clat_plat::network::Handled;
use clat_plat::settings::Settings;
use smoltcp::wire::{IpProtocol, TcpPacket, TcpSeqNumber};

use crate::guest::{
    icmp6, packet, read, udp4, udp6, Got, Lab, ALL_NODES, ALL_ROUTERS, DNS, ELSEWHERE, GLOBAL,
    GUEST4, LINK_LOCAL, MAC, ROUTER, ROUTER4, ROUTER_GLOBAL,
};

const SERVER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// A frame without its Ethernet header, cut off where an error ends.
fn quoted(frame: &[u8], most: usize) -> &[u8] {
    &frame[14..frame.len().min(14 + most)]
}

fn assert_error(got: Option<Got>, kind: [u8; 2], field: u32, frame: &[u8]) {
    let got = got.unwrap();
    assert_eq!((got.src, got.dst), (ROUTER_GLOBAL.into(), GLOBAL.into()));
    assert_eq!(got.payload[..2], kind);
    assert_eq!(got.payload[4..8], field.to_be_bytes());
    assert_eq!(&got.payload[8..], quoted(frame, 1232));
    assert!(got.whole.len() <= 1280);
}

#[test]
fn echo() {
    let mut lab = Lab::new(Settings::default());
    let request = [128, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7];
    for (src, dst, from) in [
        (GLOBAL, ROUTER_GLOBAL, ROUTER_GLOBAL),
        (GLOBAL, DNS, DNS),
        (LINK_LOCAL, ROUTER, ROUTER),
        (LINK_LOCAL, ALL_NODES, ROUTER),
        (LINK_LOCAL, ALL_ROUTERS, ROUTER),
    ] {
        let got = lab.ask(&icmp6(src, dst, 64, &request)).unwrap();
        assert_eq!((got.src, got.dst, got.to), (from.into(), src.into(), MAC));
        assert_eq!(got.payload[..2], [129, 0]);
        assert_eq!(got.payload[4..], request[4..]);
    }
    assert_eq!(lab.ask(&icmp6(Ipv6Addr::UNSPECIFIED, ROUTER, 64, &request)), None);
    assert_eq!(lab.ask(&icmp6(GLOBAL, ROUTER_GLOBAL, 64, &request[..7])), None, "too short");

    let mut lab = Lab::dual_stack();
    let request = [8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7];
    let got =
        lab.ask(&packet(GUEST4.into(), ROUTER4.into(), 64, IpProtocol::Icmp, &request)).unwrap();
    assert_eq!((got.src, got.dst), (ROUTER4.into(), GUEST4.into()));
    assert_eq!((&got.payload[..2], &got.payload[4..]), (&[0, 0][..], &request[4..]));
}

#[test]
fn what_goes_elsewhere_is_the_flows() {
    let mut lab = Lab::dual_stack();
    for frame in [
        udp6((GLOBAL, 1000), (ELSEWHERE, 53), b"payload"),
        icmp6(GLOBAL, ELSEWHERE, 2, &[128, 0, 0, 0, 0, 0, 0, 0]),
        udp4((GUEST4, 1000), (SERVER4, 53), b"payload"),
    ] {
        assert_eq!(lab.send(&frame), (Handled::NotForUs, vec![]));
        // Padding does not matter; a missing byte does.
        let padded = [&frame[..], &[0; 20]].concat();
        assert_eq!(lab.send(&padded), (Handled::NotForUs, vec![]));
        assert_eq!(lab.send(&frame[..frame.len() - 1]), (Handled::Yes, vec![]));
    }
    let frame = udp4((GUEST4, 1000), (SERVER4, 53), b"payload");
    let mut spoiled = frame.clone();
    spoiled[14 + 8] ^= 1;
    assert_eq!(lab.ask(&spoiled), None, "IPv4 header checksum");
    assert_eq!(Lab::new(Settings::default()).ask(&frame), None, "no IPv4 here");
}

#[test]
fn what_must_not_go_anywhere() {
    let mut lab = Lab::dual_stack();
    let loopback = Ipv6Addr::LOCALHOST;
    let other: Ipv6Addr = "fe80::7".parse().unwrap();
    for (src, dst) in [
        (GLOBAL, loopback),
        (GLOBAL, Ipv6Addr::UNSPECIFIED),
        (loopback, ELSEWHERE),
        (Ipv6Addr::UNSPECIFIED, ELSEWHERE),
        (ALL_NODES, ELSEWHERE),
        (ROUTER, ELSEWHERE),
        (ROUTER_GLOBAL, ELSEWHERE),
        (GLOBAL, other),
        (GLOBAL, "ff0e::1".parse().unwrap()),
    ] {
        assert_eq!(lab.ask(&udp6((src, 1), (dst, 2), b"")), None, "{src} to {dst}");
    }
    for (src, dst) in [
        (GUEST4, Ipv4Addr::LOCALHOST),
        (GUEST4, [0, 0, 0, 1].into()),
        (GUEST4, [169, 254, 1, 1].into()),
        (GUEST4, [224, 0, 0, 1].into()),
        ([127, 0, 0, 1].into(), SERVER4),
        ([192, 168, 64, 255].into(), SERVER4),
        (ROUTER4, SERVER4),
        ([10, 0, 0, 1].into(), SERVER4),
    ] {
        assert_eq!(lab.ask(&udp4((src, 1), (dst, 2), b"")), None, "{src} to {dst}");
    }
    let mut frame = udp6((GLOBAL, 1000), (ELSEWHERE, 53), b"payload");
    frame[5] ^= 1;
    assert_eq!(lab.ask(&frame), None, "another station's");
    let mut frame = udp6((GLOBAL, 1000), (ELSEWHERE, 53), b"payload");
    frame[6] |= 1;
    assert_eq!(lab.ask(&frame), None, "from a group");
}

#[test]
fn errors_on_the_way() {
    let mut lab = Lab::new(Settings::default());
    let elsewhere = (ELSEWHERE, 53);
    let far: Ipv6Addr = "2001:db8:ffff::9".parse().unwrap();
    let frame = packet(GLOBAL.into(), ELSEWHERE.into(), 1, IpProtocol::Udp, &[0; 2000]);
    assert_error(lab.ask(&frame), [3, 0], 0, &frame);
    // A neighbour is solicited first.
    lab.sleep(Duration::ZERO);
    let frame = udp6((GLOBAL, 1), ("2001:db8:464::77".parse().unwrap(), 2), b"");
    assert_eq!(lab.ask(&frame).unwrap().payload[0], 135);
    assert!(lab.sleep(Duration::from_secs(2)).is_empty());
    assert_error(lab.sleep(Duration::from_secs(1)).pop(), [1, 3], 0, &frame);
    let got = lab.ask(&udp6((far, 1), elsewhere, b"")).unwrap();
    assert_eq!((got.dst, &got.payload[..2]), (far.into(), &[1, 5][..]));
    let got = lab.ask(&udp6((LINK_LOCAL, 1), elsewhere, b"")).unwrap();
    assert_eq!((got.src, &got.payload[..2]), (ROUTER.into(), &[1, 2][..]));

    let mut lab = Lab::dual_stack();
    let frame = packet(GUEST4.into(), SERVER4.into(), 1, IpProtocol::Udp, &[0; 2000]);
    let got = lab.ask(&frame).unwrap();
    assert_eq!((got.src, got.dst), (ROUTER4.into(), GUEST4.into()));
    assert_eq!(got.payload[..2], [11, 0]);
    assert_eq!(&got.payload[8..], quoted(&frame, 548));
    let got = lab.ask(&udp4((GUEST4, 1), ([192, 168, 64, 99].into(), 2), b"")).unwrap();
    assert_eq!(got.payload[..2], [3, 1]);
}

#[test]
fn errors_at_the_router() {
    let mut lab = Lab::dual_stack();
    let frame = udp6((GLOBAL, 1), (ROUTER_GLOBAL, 2), b"payload");
    assert_error(lab.ask(&frame), [1, 4], 0, &frame);
    let to_router = |next: u8, payload: &[u8]| {
        packet(GLOBAL.into(), ROUTER_GLOBAL.into(), 64, IpProtocol::from(next), payload)
    };
    let frame = to_router(132, &[0; 12]);
    assert_error(lab.ask(&frame), [4, 1], 6, &frame);
    let frame = to_router(60, &[132, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3]);
    assert_error(lab.ask(&frame), [4, 1], 40, &frame);
    let frame = to_router(60, &[0, 0, 1, 4, 0, 0, 0, 0, 59, 0, 1, 4, 0, 0, 0, 0]);
    assert_error(lab.ask(&frame), [4, 1], 40, &frame);
    let frame = to_router(43, &[59, 0, 99, 1, 0, 0, 0, 0]);
    assert_error(lab.ask(&frame), [4, 0], 42, &frame);
    let frame = to_router(60, &[59, 0, 1, 0, 0x80, 2, 0, 0]);
    assert_error(lab.ask(&frame), [4, 2], 44, &frame);
    for (next, payload) in [
        (59, &[1, 2, 3][..]),
        (60, &[59, 0, 1, 4, 0, 0, 0, 0]),
        (43, &[59, 0, 99, 0, 0, 0, 0, 0]),
        (60, &[59, 0, 0x40, 4, 0, 0, 0, 0]), // says: discard
        (60, &[59, 1, 1, 4, 0, 0, 0, 0]),    // longer than the packet
        (60, &[59, 0, 1, 200, 0, 0, 0, 0]),
        (44, &[132, 0, 0, 1, 0, 0, 0, 0]),
        (60, &[]),
    ] {
        assert_eq!(lab.ask(&to_router(next, payload)), None, "{next} {payload:?}");
    }
    // An atomic fragment is a whole packet.
    let echo = icmp6(GLOBAL, ROUTER_GLOBAL, 64, &[128, 0, 0, 0, 0, 0, 0, 0]);
    let atomic = [&[58, 0, 0, 0, 0, 0, 0, 1][..], &echo[54..]].concat();
    assert_eq!(lab.ask(&to_router(44, &atomic)).unwrap().payload[0], 129);

    let got = lab.ask(&udp4((GUEST4, 1), (ROUTER4, 2), b"payload")).unwrap();
    assert_eq!((got.payload[..2].to_vec(), got.src), (vec![3, 3], ROUTER4.into()));
    let frame = packet(GUEST4.into(), ROUTER4.into(), 64, IpProtocol::from(132), &[0; 12]);
    assert_eq!(lab.ask(&frame).unwrap().payload[..2], [3, 2]);
}

#[test]
fn no_errors_about_errors_nor_to_groups() {
    let mut lab = Lab::dual_stack();
    let error = [1, 4, 0, 0, 0, 0, 0, 0, 0x60];
    let far = ELSEWHERE;
    for frame in [
        icmp6(GLOBAL, far, 1, &error),
        icmp6(GLOBAL, far, 1, &[137, 0, 0, 0, 0, 0, 0, 0]),
        packet(GLOBAL.into(), far.into(), 1, IpProtocol::Ipv6Frag, &[58, 0, 0, 8, 0, 0, 0, 0]),
        packet(GUEST4.into(), SERVER4.into(), 1, IpProtocol::Icmp, &[3, 1, 0, 0, 0, 0, 0, 0]),
        udp6((GLOBAL, 1), (ALL_NODES, 2), b""),
        udp4((GUEST4, 1), (Ipv4Addr::BROADCAST, 2), b""),
        udp4((GUEST4, 1), ([192, 168, 64, 255].into(), 2), b""),
    ] {
        assert_eq!(lab.ask(&frame), None);
    }
    assert!(lab.ask(&icmp6(GLOBAL, far, 1, &[128, 0, 0, 0, 0, 0, 0, 0])).is_some());
}

#[test]
fn errors_are_not_more_than_decent() {
    let mut lab = Lab::new(Settings::default());
    let frame = udp6((GLOBAL, 1), (ROUTER_GLOBAL, 2), b"");
    let count = |lab: &mut Lab| (0..1000).filter(|_| lab.ask(&frame).is_some()).count();
    assert_eq!(count(&mut lab), 100);
    lab.now += Duration::from_millis(10);
    assert_eq!(count(&mut lab), 10);
    lab.now += Duration::from_secs(1 << 30);
    assert_eq!(count(&mut lab), 100);
}

#[test]
fn closed_ports_reset() {
    let mut lab = Lab::dual_stack();
    let segment = |flags: u8, payload: &[u8]| {
        [&[0, 1, 0, 2, 0, 0, 0, 10, 0, 0, 0, 20, 0x50, flags, 0, 0, 0, 0, 0, 0][..], payload]
            .concat()
    };
    let pairs: [(IpAddr, IpAddr); 2] =
        [(GLOBAL.into(), DNS.into()), (GUEST4.into(), ROUTER4.into())];
    for (src, dst) in pairs {
        let mut ask = |flags, payload: &[u8]| {
            lab.ask(&packet(src, dst, 64, IpProtocol::Tcp, &segment(flags, payload))).map(|got| {
                assert_eq!((got.src, got.dst), (dst, src));
                let tcp = TcpPacket::new_checked(&got.payload[..]).unwrap();
                assert_eq!((tcp.src_port(), tcp.dst_port(), tcp.rst()), (2, 1, true));
                (tcp.seq_number(), tcp.ack().then(|| tcp.ack_number()))
            })
        };
        assert_eq!(ask(0x02, b""), Some((TcpSeqNumber(0), Some(TcpSeqNumber(11)))), "SYN");
        assert_eq!(ask(0x01, b"abc"), Some((TcpSeqNumber(0), Some(TcpSeqNumber(14)))), "FIN");
        assert_eq!(ask(0x10, b"abc"), Some((TcpSeqNumber(20), None)), "ACK");
        assert_eq!(ask(0x04, b""), None, "RST");
    }
}

#[test]
fn others_report_problems_too() {
    let mut lab = Lab::new(Settings::default());
    let frame = udp6((GLOBAL, 1), (ELSEWHERE, 2), &[7; 1400]);
    let mut out = Out::default();
    let mac = Mac([2, 0, 0, 0, 0, 3]);
    lab.network.report(IcmpError::TooBig(1280), mac, &frame[14..], lab.now, &mut out);
    let got = read(&out).remove(0);
    assert_eq!(got.to, mac);
    assert_error(Some(got), [2, 0], 1280, &frame);
    out.clear();
    lab.network.report(IcmpError::NoRoute, mac, &frame[14..40], lab.now, &mut out);
    lab.network.report(IcmpError::NoRoute, mac, &[], lab.now, &mut out);
    assert!(out.is_empty(), "no packet, no error");
}
