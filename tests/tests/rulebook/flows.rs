// SPDX-License-Identifier: Apache-2.0

//! Real flows through the BPF programs only: there is no daemon, so that packets that they do not
//! translate are lost.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clat_netlink::NextHop;
use clat_offload::{OffloadCounters, PASSED_REASONS};
use clat_tests::{Lab, Offloads, PREFIX, SERVER4, SERVER6};
use clat_tun::{GsoType, Options, Tun};
use clat_xlat::{Local, Prefix};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};

use super::common::{check, LOCAL4, V4};
use super::devices::{attach, redirect, Pins};
use super::programs::{entries, reason, Programs, EGRESS, INGRESS};
use super::unfinished;

/// Inside the /64 of the phone's Ethernet uplink.
const LOCAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0xc1a7, 0, 0, 1);
/// Its neighbour.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// Bytes of each flow.
const BYTES: usize = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uplink {
    Ethernet,
    RawIp,
}

/// A phone whose IPv4 goes through the BPF programs.
struct Phone {
    lab: Lab,
    programs: Programs,
    v4: Tun,
    /// Packets written to it leave by `v4`.
    inject: Tun,
    /// The two ends of a raw-IP link.
    link: Option<(Tun, Tun)>,
    _pins: Pins,
}

impl Phone {
    fn new(offloads: Offloads, uplink: Uplink) -> Result<Self> {
        let lab = Lab::new(offloads)?;
        let options = Options { packet_info: false, vnet_header: false };
        let (name, link) = match uplink {
            Uplink::Ethernet => {
                // Instead of the daemon, which would answer for its address.
                let mac = lab.phone.run("cat /sys/class/net/up0/address")?;
                let mac = mac.trim();
                lab.router.run(&format!("ip -6 neigh add {LOCAL6} lladdr {mac} dev ph0"))?;
                ("up0", None)
            }
            Uplink::RawIp => {
                let near = lab.phone.enter(|| Ok(Tun::create("raw0", options)?))?;
                let far = lab.router.enter(|| Ok(Tun::create("raw1", options)?))?;
                lab.phone.run("ip link set raw0 up")?;
                lab.router.run("ip link set raw1 up")?;
                lab.router.run(&format!("ip -6 route add {LOCAL6} dev raw1"))?;
                ("raw0", Some((near, far)))
            }
        };
        // A better route over another uplink must not be used.
        lab.second_uplink()?;
        lab.phone.run("ip -6 route add default via 2001:db8:2::1 dev up1 metric 1")?;
        lab.phone.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")?;
        let v4 = lab.phone.enter(|| Ok(Tun::create("v4-up", options)?))?;
        lab.phone.run(&format!("ip addr add {LOCAL4} dev v4-up"))?;
        lab.phone.run("ip link set v4-up up mtu 1472")?;
        lab.phone.run("ip route add default dev v4-up")?;

        let vnet = Options { packet_info: false, vnet_header: true };
        let inject = lab.phone.enter(|| Ok(Tun::create("inject", vnet)?))?;
        lab.phone.run("ip link set inject up")?;
        redirect(&lab.phone, "inject ingress prio 1", "v4-up")?;

        let programs = Programs::load(true);
        let index = |name| lab.phone.enter(|| if_nametoindex(name).context("an interface"));
        let (v4_index, up_index) = (index("v4-up")?, index(name)?);
        let prefix: Prefix = PREFIX.parse().map_err(|e| anyhow::anyhow!("{e}"))?;
        let ethernet = uplink == Uplink::Ethernet;
        let local = Local::neutral(LOCAL4, LOCAL6, &prefix, LOCAL6.octets()[8..].try_into()?);
        // Not checksum-neutral: every checksum changes.
        ensure!(local.v6 != LOCAL6, "neutral by chance");
        programs.add(entries((v4_index, up_index, ethernet), (LOCAL4, LOCAL6, prefix.addr())));
        programs.set_next_hop(Some(NextHop::Gateway(ROUTER)));
        let pins = Pins::new(&programs)?;
        let kind = if ethernet { "ether" } else { "rawip" };
        let program = format!("schedcls_ingress_clat_{kind}");
        attach(&lab.phone, &pins, &format!("{name} ingress prio 4 protocol ipv6"), &program)?;
        let program = "schedcls_egress_clat_rawip";
        attach(&lab.phone, &pins, "v4-up egress prio 4 protocol ip", program)?;
        Ok(Self { lab, programs, v4, inject, link, _pins: pins })
    }

    /// The counters of the programs, egress and ingress.
    fn counters(&self) -> (OffloadCounters, OffloadCounters) {
        (self.programs.counters(EGRESS), self.programs.counters(INGRESS))
    }

    /// Runs `flow` while a raw-IP link carries its packets.
    fn while_connected(&self, flow: impl FnOnce() -> Result<()>) -> Result<()> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            if let Some((near, far)) = &self.link {
                scope.spawn(|| carry(near, far, &done));
            }
            let result = flow();
            done.store(true, Ordering::Relaxed);
            result
        })
    }
}

/// Moves packets between two devices until `done`.
fn carry(a: &Tun, b: &Tun, done: &AtomicBool) {
    let mut buf = vec![0; 1 << 16];
    while !done.load(Ordering::Relaxed) {
        let mut idle = true;
        for (from, to) in [(a, b), (b, a)] {
            while let Ok((vnet, len)) = from.recv(&mut buf) {
                idle = false;
                // A device that is not up yet loses it, like any link.
                let _ = to.send(&vnet, &buf[..len]);
            }
        }
        if idle {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

fn pattern() -> Vec<u8> {
    (0..BYTES).map(|i| (i * 31 + i / 253) as u8).collect()
}

/// [`BYTES`] in both directions at once.
fn tcp(lab: &Lab) -> Result<()> {
    let server = Lab::listen(&lab.internet, (SERVER6, 8080))?;
    let sent = pattern();
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| -> Result<()> {
            let (mut stream, _) = server.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut data = vec![0; BYTES];
            stream.read_exact(&mut data)?;
            Ok(stream.write_all(&data)?)
        });
        let mut stream = Lab::connect(&lab.phone, (SERVER4, 8080))?;
        stream.write_all(&sent)?;
        let mut back = vec![0; BYTES];
        stream.read_exact(&mut back)?;
        ensure!(back == sent, "came back changed");
        echo.join().map_err(|_| anyhow::anyhow!("the server"))?
    })
}

/// Datagrams of several sizes in both directions; a large one as fragments if the daemon is not
/// needed to fragment it.
fn udp(lab: &Lab) -> Result<()> {
    let server = Lab::udp(&lab.internet, (SERVER6, 5353))?;
    let client = Lab::udp(&lab.phone, (LOCAL4, 0))?;
    let mut buf = vec![0; 1 << 16];
    for len in [0, 1, 511, 1200, 1444] {
        let data = &pattern()[..len];
        client.send_to(data, (SERVER4, 5353))?;
        let (n, from) = server.recv_from(&mut buf)?;
        ensure!(buf[..n] == *data, "{len} bytes out");
        server.send_to(data, from)?;
        let (n, from) = client.recv_from(&mut buf)?;
        ensure!(buf[..n] == *data && from == SocketAddr::from((SERVER4, 5353)), "{len} bytes in");
    }
    // Fragments from the server.
    let (_, from) = {
        client.send_to(b"?", (SERVER4, 5353))?;
        server.recv_from(&mut buf)?
    };
    server.send_to(&pattern()[..8000], from)?;
    let (n, _) = client.recv_from(&mut buf)?;
    ensure!(buf[..n] == pattern()[..8000], "fragments");
    Ok(())
}

/// What happens to ten datagrams of one UDP_SEGMENT call.
fn segments(phone: &Phone) -> Result<()> {
    let lab = &phone.lab;
    let server = Lab::udp(&lab.internet, (SERVER6, 4433))?;
    let client = Lab::udp(&lab.phone, (LOCAL4, 4000))?;
    setsockopt(&client, sockopt::UdpGsoSegment, &1200)?;
    let mut buf = vec![0; 1 << 16];

    // A TUN device without offloads leaves them to the daemon; before Linux 6.11 not even that.
    match client.send_to(&pattern()[..12000], (SERVER4, 4433)) {
        Err(e) if e.raw_os_error() == Some(Errno::EIO as i32) => {}
        sent => {
            sent?;
            for at in (0..12000).step_by(1200) {
                let (_, len) = phone.v4.recv(&mut buf)?;
                let data = &check(&buf[..len]).payload[8..];
                ensure!(*data == pattern()[at..at + 1200], "segment at {at}");
            }
            ensure!(phone.counters().0.passed[reason("gso")] == 1, "counted");
        }
    }

    // As from a device with offloads.
    let before = phone.counters().0;
    let header = V4 { src: LOCAL4, dst: SERVER4, df: true, ..V4::default() };
    let mut datagram = vec![0x0f, 0xa0, 0x11, 0x51, 0, 0, 0, 0];
    datagram.extend(&pattern()[..12000]);
    datagram[4..6].copy_from_slice(&12008_u16.to_be_bytes());
    let (vnet, packet) = unfinished(&header.raw(&datagram), GsoType::UdpL4, 1200);
    match phone.inject.send(&vnet, &packet) {
        // Before Linux 6.2, the virtio header has no type for it.
        Err(Errno::EINVAL) => return Ok(()),
        sent => sent?,
    }
    for at in (0..12000).step_by(1200) {
        let (n, from) = server.recv_from(&mut buf)?;
        ensure!(buf[..n] == pattern()[at..at + 1200], "segment at {at} on its way");
        ensure!(from == SocketAddr::from((LOCAL6, 4000)), "from {from}");
    }
    let after = phone.counters().0;
    ensure!(after.super_packets == before.super_packets + 1, "in one piece");
    ensure!(after.packets == before.packets + 10, "and counted as ten");
    Ok(())
}

#[test]
fn real_flows() {
    if !super::can_run_devices() || !clat_tests::can_run(&["ping"]) {
        return;
    }
    for uplink in [Uplink::Ethernet, Uplink::RawIp] {
        for offloads in [Offloads::Default, Offloads::Off] {
            let phone = Phone::new(offloads, uplink).expect("a phone");
            let lab = &phone.lab;
            let case = format!("{uplink:?}, offloads {offloads:?}");
            phone
                .while_connected(|| {
                    lab.phone.run(&format!("ping -c 3 -i 0.2 -W 5 {SERVER4}")).context("ping")?;
                    udp(lab).context("UDP")?;
                    tcp(lab).context("TCP")?;
                    ensure!(
                        phone.counters().0.passed == [0; PASSED_REASONS.len()],
                        "left to the daemon"
                    );
                    segments(&phone).context("UDP_SEGMENT")
                })
                .unwrap_or_else(|e| panic!("{case}: {e:#}: {:#?}", phone.counters()));
            let (out, back) = phone.counters();
            eprintln!("{case}: {out:?} {back:?}");
            assert_eq!(
                back.passed,
                [0; PASSED_REASONS.len()],
                "{case}: nothing was left to a daemon"
            );
            for counters in [&out, &back] {
                assert_eq!(counters.lost, 0, "{case}");
                assert!(counters.bytes > BYTES as u64, "{case}");
            }
            assert!(out.super_packets > 0, "{case}: uploads cross as super-packets");
            assert_eq!(out.neighbour > 0, uplink == Uplink::Ethernet, "{case}");
            let waits = phone.v4.recv(&mut [0; 2048]);
            assert_eq!(waits.err(), Some(Errno::EAGAIN), "{case}: nothing waits for a daemon");
        }
    }
}
