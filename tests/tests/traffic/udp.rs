// SPDX-License-Identifier: Apache-2.0

//! UDP: sizes, fragments, GSO, a hop with a small MTU, no checksum.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clat_tests::packet::{self, proto, V4};
use clat_tests::wire::{send_raw, uninterrupted, Sniffer};
use clat_tests::{Clat, Lab, SERVER4, SERVER6};
use nix::sys::socket::{setsockopt, sockopt};

use crate::{pattern, PATIENCE};

/// A server and a client that have exchanged datagrams, so that either may send first.
pub(crate) fn pair(lab: &Lab) -> Result<(UdpSocket, UdpSocket)> {
    let server = Lab::udp(&lab.internet, (SERVER6, 5000))?;
    let client = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
    client.connect((SERVER4, 5000))?;
    client.send(b"hello")?;
    let (_, peer) = uninterrupted(|| server.recv_from(&mut [0; 16])).context("hello")?;
    server.connect(peer)?;
    Ok((client, server))
}

fn pass(from: &UdpSocket, to: &UdpSocket, len: usize) -> Result<()> {
    let data = pattern(len);
    from.send(&data).with_context(|| format!("send {len}"))?;
    let mut buf = vec![0; 1 << 16];
    let n = uninterrupted(|| to.recv(&mut buf)).with_context(|| format!("receive {len}"))?;
    ensure!(buf[..n] == data, "{n} of {len} bytes, or other ones");
    Ok(())
}

pub(crate) fn small_udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    for len in [0, 1, 2, 511, 1200, 1400] {
        pass(&client, &server, len).context("up")?;
        pass(&server, &client, len).context("down")?;
    }
    Ok(())
}

pub(crate) fn large_udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    pass(&client, &server, 8000).context("up")?;
    pass(&server, &client, 8000).context("down")
}

/// Connection tracking holds fragments until it has all of a datagram.
pub(crate) fn large_udp_behind_a_stateful_firewall(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    lab.phone.run("ip6tables -A INPUT -m conntrack --ctstate INVALID -j DROP")?;
    let (client, server) = pair(lab)?;
    for len in [1473, 1500, 2944, 3000, 5000, 8000] {
        pass(&client, &server, len).context("up")?;
        pass(&server, &client, len).context("down")?;
    }
    Ok(())
}

pub(crate) fn largest_udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    pass(&client, &server, 65507).context("up")?;
    pass(&server, &client, 65507).context("down")
}

pub(crate) fn udp_without_checksum(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let server = Lab::udp(&lab.internet, (SERVER6, 5001))?;
    let mut datagram = packet::udp(clat.v4.into(), 4001, SERVER4.into(), 5001, b"no checksum");
    datagram[6..8].fill(0);
    let sniffer = Sniffer::new(&lab.internet, "net0")?;
    send_raw(&lab.phone, &V4::new(clat.v4, SERVER4, proto::UDP).packet(&datagram))?;
    let seen =
        sniffer.wait(PATIENCE, |s| s.proto == proto::UDP && packet::word(&s.payload, 2) == 5001)?;
    // Computed by the CLAT, not by the sender's kernel, so it is there with any offloads.
    assert!(seen.checksum_ok(), "{seen:?}");
    let mut buf = [0; 64];
    let (n, peer) = uninterrupted(|| server.recv_from(&mut buf))?;
    assert_eq!(&buf[..n], b"no checksum");
    assert_eq!(peer, SocketAddr::new(clat.v6.into(), 4001));
    Ok(())
}

pub(crate) fn small_hop_udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    lab.narrow(1300)?;
    let (client, server) = pair(lab)?;
    for (from, to, way, mtu) in [(&client, &server, "up", 1280), (&server, &client, "down", 1300)] {
        // The first one finds the small MTU, and is lost.
        from.send(&pattern(1400))?;
        let learnt = || from_mtu(from).is_ok_and(|known| known == mtu);
        for _ in 0..100 {
            if learnt() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        ensure!(learnt(), "{way}: path MTU is {:?}, not {mtu}", from_mtu(from));
        // The socket reports the error once; then the kernel fragments.
        let _ = from.take_error();
        pass(from, to, 1400).context(way)?;
    }
    Ok(())
}

/// The kernel's path MTU of a connected socket.
fn from_mtu(socket: &UdpSocket) -> Result<i32> {
    if socket.local_addr()?.is_ipv4() {
        return Ok(nix::sys::socket::getsockopt(socket, sockopt::IpMtu)?);
    }
    // nix has no IPV6_MTU: find the largest unfragmented payload, with "do not fragment".
    setsockopt(socket, sockopt::Ipv6DontFrag, &true)?;
    let fits = |mtu: usize| {
        // To the peer's discard port; at worst it is refused.
        match socket.send(&pattern(mtu - 48)) {
            Err(e) => e.raw_os_error() != Some(nix::libc::EMSGSIZE),
            Ok(_) => true,
        }
    };
    let mtu = if fits(1301) { 1301 } else { 1300 };
    setsockopt(socket, sockopt::Ipv6DontFrag, &false)?;
    Ok(mtu)
}

pub(crate) fn udp_segment_both_ways(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    for (from, to, way) in [(&client, &server, "up"), (&server, &client, "down")] {
        setsockopt(from, sockopt::UdpGsoSegment, &1200)?;
        let sent = pattern(1200 * 20 + 333);
        from.send(&sent)?;
        let mut got: Vec<u8> = Vec::new();
        let mut buf = vec![0; 1 << 16];
        while got.len() < sent.len() {
            let n = uninterrupted(|| to.recv(&mut buf))
                .with_context(|| format!("{way}, {} bytes in", got.len()))?;
            ensure!(n <= 1200, "{way}: a datagram of {n}");
            got.extend(&buf[..n]);
        }
        ensure!(got == sent, "{way}: other bytes");
    }
    let Some(controller) = &clat.controller else { return Ok(()) };
    let status = controller.status("up0")?;
    // BPF programs translate a GSO packet as one.
    let whole = status["egress"]["superPackets"].as_u64().unwrap_or_default();
    let may_cut = status["offloaded"] == false || status["egress"]["passed"]["gso"] == 1;
    ensure!(may_cut || whole > 0, "the GSO packet was segmented: {status}");
    Ok(())
}
