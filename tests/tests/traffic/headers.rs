// SPDX-License-Identifier: Apache-2.0

//! Headers: options, classes, other protocols, foreign addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use clat_tests::packet::{self, proto, Seen, V4, V6};
use clat_tests::wire::{send_raw, uninterrupted, Sniffer};
use clat_tests::{Clat, Lab, Offloads, SERVER4, SERVER6};
use nix::sys::socket::{setsockopt, sockopt};

use crate::udp::pair;
use crate::{pattern, PATIENCE};

/// Checksums of captured packets can be checked only without offloads.
fn assert_whole(lab: &Lab, seen: &Seen) {
    assert!(
        lab.offloads() == Offloads::Default || seen.fragment || seen.checksum_ok(),
        "wrong checksum: {seen:?}"
    );
}

pub(crate) fn ipv4_options_udp(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let server = Lab::udp(&lab.internet, (SERVER6, 5002))?;
    let mut header = V4::new(clat.v4, SERVER4, proto::UDP);
    // Record route with room for one address, padded.
    header.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    let datagram = packet::udp(clat.v4.into(), 4002, SERVER4.into(), 5002, b"options");
    send_raw(&lab.phone, &header.packet(&datagram))?;
    let mut buf = [0; 64];
    let n = uninterrupted(|| server.recv(&mut buf))?;
    assert_eq!(&buf[..n], b"options");
    Ok(())
}

/// Watches what arrives as IPv4. The direct way there is nothing to see: a packet socket hears what
/// comes by the uplink before it is translated.
fn inside(lab: &Lab, clat: &Clat<'_>) -> Result<Option<Sniffer>> {
    (clat.dev != "up0").then(|| Sniffer::new(&lab.phone, clat.dev)).transpose()
}

pub(crate) fn ipv4_options_tcp(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let _listener = Lab::listen(&lab.internet, (SERVER6, 83))?;
    let inside = inside(lab, clat)?;
    let mut header = V4::new(clat.v4, SERVER4, proto::TCP);
    header.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    let syn = packet::tcp(clat.v4.into(), 4003, SERVER4.into(), 83, 2, &[]);
    send_raw(&lab.phone, &header.packet(&syn))?;
    let Some(inside) = inside else { return Ok(()) };
    let answer =
        inside.wait(PATIENCE, |s| s.src == IpAddr::V4(SERVER4) && s.proto == proto::TCP)?;
    assert_eq!(answer.payload[13] & 0x12, 0x12, "not a SYN with ACK: {answer:?}");
    Ok(())
}

pub(crate) fn destination_options_inward(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let client = Lab::udp(&lab.phone, (clat.v4, 4004))?;
    let mut payload = vec![proto::UDP, 0, 1, 4, 0, 0, 0, 0]; // PadN
    payload.extend(packet::udp(SERVER6.into(), 5004, clat.v6.into(), 4004, b"inward"));
    let packet = V6::new(SERVER6, clat.v6, proto::DESTINATION_OPTIONS).packet(&payload);
    send_raw(&lab.internet, &packet)?;
    let mut buf = [0; 64];
    let (n, peer) = uninterrupted(|| client.recv_from(&mut buf))?;
    assert_eq!(&buf[..n], b"inward");
    assert_eq!(peer, SocketAddr::new(SERVER4.into(), 5004));
    Ok(())
}

pub(crate) fn tos_both_ways(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    let outside = Sniffer::new(&lab.internet, "net0")?;
    let inside = inside(lab, clat)?;
    setsockopt(&client, sockopt::IpTos, &0xb9)?;
    setsockopt(&server, sockopt::Ipv6TClass, &0xb9)?;
    client.send(b"up")?;
    let up = outside.wait(PATIENCE, |s| s.src == IpAddr::V6(clat.v6) && s.proto == proto::UDP)?;
    assert_eq!(up.class, 0xb9);
    assert_whole(lab, &up);
    server.send(b"down")?;
    let Some(inside) = inside else {
        uninterrupted(|| client.recv(&mut [0; 8]))?;
        return Ok(());
    };
    let down = inside.wait(PATIENCE, |s| s.src == IpAddr::V4(SERVER4) && s.proto == proto::UDP)?;
    assert_eq!(down.class, 0xb9);
    assert_whole(lab, &down);
    Ok(())
}

/// Sends `data` by `protocol` in both directions, captured at the other end.
fn protocol_both_ways(
    lab: &Lab,
    clat: &Clat<'_>,
    protocol: u8,
    make: impl Fn(IpAddr, IpAddr) -> Vec<u8>,
) -> Result<()> {
    let outside = Sniffer::new(&lab.internet, "net0")?;
    let inside = inside(lab, clat)?;
    let up = make(clat.v4.into(), SERVER4.into());
    send_raw(&lab.phone, &V4::new(clat.v4, SERVER4, protocol).packet(&up))?;
    let seen = outside
        .wait(PATIENCE, |s| s.src == IpAddr::V6(clat.v6) && s.proto == protocol)
        .with_context(|| format!("protocol {protocol} up"))?;
    assert_eq!((seen.dst, &seen.payload), (SERVER6.into(), &up), "protocol {protocol} up");
    assert!(seen.checksum_ok(), "{seen:?}");

    let down = make(SERVER6.into(), clat.v6.into());
    send_raw(&lab.internet, &V6::new(SERVER6, clat.v6, protocol).packet(&down))?;
    let Some(inside) = inside else { return Ok(()) };
    let seen = inside
        .wait(PATIENCE, |s| s.src == IpAddr::V4(SERVER4) && s.proto == protocol)
        .with_context(|| format!("protocol {protocol} down"))?;
    assert_eq!((seen.dst, &seen.payload), (clat.v4.into(), &down), "protocol {protocol} down");
    assert!(seen.checksum_ok(), "{seen:?}");
    Ok(())
}

pub(crate) fn other_protocols(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    for protocol in [proto::GRE, proto::ESP, proto::SCTP, proto::UNASSIGNED] {
        protocol_both_ways(lab, clat, protocol, |_, _| pattern(64))?;
    }
    Ok(())
}

pub(crate) fn udplite_both_ways(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    protocol_both_ways(lab, clat, proto::UDPLITE, |src, dst| {
        packet::udplite(src, 4005, dst, 5005, &pattern(63))
    })
}

pub(crate) fn foreign_source(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let foreign = Ipv4Addr::new(10, 9, 9, 9);
    lab.phone.run("ip addr add 10.9.9.9/32 dev lo")?;
    let outside = Sniffer::new(&lab.internet, "net0")?;
    let at_router = Sniffer::new(&lab.router, "ph0")?;
    let client = Lab::udp(&lab.phone, (foreign, 0))?;
    for _ in 0..3 {
        client.send_to(b"from elsewhere", (SERVER4, 5000))?;
    }
    send_raw(&lab.phone, &V4::new(foreign, SERVER4, proto::GRE).packet(b"from elsewhere"))?;
    // Our own packet follows and arrives; by then the others would have, too.
    let own = Lab::udp(&lab.phone, (clat.v4, 0))?;
    own.send_to(b"ours", (SERVER4, 5001))?;
    for sniffer in [&outside, &at_router] {
        let first =
            sniffer.wait(PATIENCE, |s| s.dst == IpAddr::V6(SERVER6) && s.proto != proto::ICMPV6)?;
        assert_eq!(first.src, IpAddr::V6(clat.v6), "a foreign source got out: {first:?}");
        assert_eq!(packet::word(&first.payload, 2), 5001, "{first:?}");
    }
    Ok(())
}
