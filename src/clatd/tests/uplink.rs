// SPDX-License-Identifier: Apache-2.0

//! The daemon's next hop when routes, neighbours and the link change, and a full uplink.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clat_datapath::batch::Batch;
use clat_datapath::socket::{configure_packet_socket, open_packet_socket, PacketSocket};
use clat_tun::{GsoType, Options};
use common::*;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};

/// A client behind the CLAT and a server at the far end of the uplink.
struct Pair {
    client: UdpSocket,
    server: UdpSocket,
    /// Receives what the server's interface receives.
    wire: PacketSocket,
}

impl Pair {
    fn new(network: &Network) -> Self {
        let (server, wire) = network.in_peer(|| {
            let wire = open_packet_socket().unwrap();
            let index = if_nametoindex("down0").unwrap();
            configure_packet_socket(wire.as_fd(), index, SERVER.parse().unwrap()).unwrap();
            (UdpSocket::bind((SERVER, 0)).unwrap(), PacketSocket::from_fd(wire).unwrap())
        });
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.connect(("203.0.113.1", server.local_addr().unwrap().port())).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        }
        Self { client, server, wire }
    }

    /// Sends a datagram, waits a little for it and returns whether it has arrived.
    fn up(&self) -> bool {
        let mut buf = [0; 100];
        // There may be no route.
        let _ = self.client.send(b"up");
        self.server.recv(&mut buf).is_ok()
    }

    fn down(&self, to: std::net::SocketAddr) -> bool {
        let mut buf = [0; 100];
        let _ = self.server.send_to(b"down", to);
        self.client.recv(&mut buf).is_ok()
    }

    /// Waits until datagrams arrive.
    fn works(&self, what: &str) {
        until(what, || self.up().then_some(()));
    }

    /// Waits until a GSO packet leaves as such, which the raw socket cannot do.
    fn leaves_whole(&self, what: &str) {
        setsockopt(&self.client, sockopt::UdpGsoSegment, &100).unwrap();
        let mut batch = Batch::default();
        until(what, || {
            self.client.send(&data(1000)).ok()?;
            thread::sleep(Duration::from_millis(20));
            let mut whole = false;
            loop {
                batch.clear();
                match self.wire.recv(&mut batch, 32) {
                    Ok(()) => {
                        let mut all = (0..batch.len()).map(|i| batch.packet(i).0);
                        whole |= all.any(|vnet| vnet.gso_type == GsoType::UdpL4);
                    }
                    Err(Errno::EAGAIN) => break,
                    Err(errno) => panic!("{errno}"),
                }
            }
            whole.then_some(())
        });
        setsockopt(&self.client, sockopt::UdpGsoSegment, &0).unwrap();
        let mut buf = [0; 100];
        while self.server.recv(&mut buf).is_ok() {}
    }
}

fn start(test: &str) -> Clatd {
    let mut clatd = Clatd::start(test, tun(Options::default()), None);
    clatd.ready();
    route();
    clatd
}

#[test]
fn a_route_that_goes_and_comes() {
    let Some(network) = Network::new() else { return };
    let clatd = start("route");
    let pair = Pair::new(&network);
    pair.leaves_whole("a first GSO packet");
    run("ip -6 route del default");
    until("the end of the route", || (!pair.up()).then_some(()));
    assert!(clatd.counters().contains("drop.send="), "{}", clatd.counters());
    run("ip -6 route add default via 2001:db8:1::1 dev up0");
    pair.works("the restored route");
    pair.leaves_whole("a GSO packet on the restored route");
    clatd.stop();
}

/// Routes as netd makes them: a table for the uplink, and rules by mark. The raw socket's packets,
/// and the lookup of the neighbour for all others, need the mark.
#[test]
fn the_mark_chooses_the_route() {
    let Some(network) = Network::new() else { return };
    run("ip -6 route del default
         ip -6 route add default via 2001:db8:1::1 dev up0 table 1010
         ip -6 rule add fwmark 0x10064/0x1ffff table 1010");
    for (mark, found) in [("0xf0065", false), ("0xf0064", true)] {
        let more = format!("-m {mark}");
        let mut clatd = Clatd::start_with("mark", tun(Options::default()), None, &more);
        clatd.ready();
        route();
        let pair = Pair::new(&network);
        let mut buf = vec![0; 4000];
        // Fragmented packets are sent by the raw socket only.
        let mut large = || {
            pair.client.send(&data(3000)).unwrap();
            pair.server.recv(&mut buf).ok()
        };
        if found {
            pair.leaves_whole("a GSO packet");
            until("fragments", || large().filter(|len| *len == 3000));
        } else {
            until("their drop", || {
                assert_eq!(large(), None);
                clatd.counters().contains("drop.send=").then_some(())
            });
        }
        clatd.stop();
        unroute();
        until("the device to go", || if_nametoindex("v4-up0").is_err().then_some(()));
    }
}

#[test]
fn a_neighbour_that_changes() {
    let Some(network) = Network::new() else { return };
    // Make unreachability be noticed soon.
    run("cd /proc/sys/net/ipv6/neigh/up0
         echo 600 > base_reachable_time_ms
         echo 300 > retrans_time_ms
         echo 1 > delay_first_probe_time");
    let clatd = start("neighbour");
    let pair = Pair::new(&network);
    pair.leaves_whole("a first GSO packet");
    // Another router takes its place silently: only neighbour unreachability detection finds out
    // (RFC 4861 §7.3).
    network.run_peer("ip link set down0 address 02:00:00:00:00:77");
    pair.works("the new neighbour");
    pair.leaves_whole("a GSO packet to the new neighbour");
    let seen = run("ip -6 neigh show 2001:db8:1::1 dev up0");
    assert!(seen.contains("02:00:00:00:00:77"), "{seen}");
    clatd.stop();
}

/// While packets are sent past the kernel, it keeps checking that the neighbour is reachable.
#[test]
fn a_neighbour_is_kept_alive() {
    let Some(network) = Network::new() else { return };
    run("cd /proc/sys/net/ipv6/neigh/up0
         echo 500 > base_reachable_time_ms
         echo 1 > delay_first_probe_time");
    let clatd = start("alive");
    let pair = Pair::new(&network);
    pair.leaves_whole("a first GSO packet");
    let mut seen = Vec::new();
    until("a neighbour that is stale, probed and reachable again", || {
        assert!(pair.up(), "no packet is lost by it");
        let line = run("ip -6 neigh show 2001:db8:1::1 dev up0");
        let state = line.split_whitespace().last().unwrap_or_default().to_owned();
        if seen.last() != Some(&state) {
            seen.push(state);
        }
        let reachable = seen.iter().filter(|state| *state == "REACHABLE").count();
        (reachable >= 3).then_some(())
    });
    clatd.stop();
}

#[test]
fn a_link_that_goes_down_and_up() {
    let Some(network) = Network::new() else { return };
    run("echo 1 > /proc/sys/net/ipv6/conf/up0/keep_addr_on_down");
    let clatd = start("link");
    let pair = Pair::new(&network);
    pair.leaves_whole("a first GSO packet");
    run("ip link set up0 down");
    // Also if the send fails with it.
    let _ = pair.up();
    until("a log line about it", || clatd.log().contains("up0 is down").then_some(()));
    run("ip link set up0 up; ip -6 route replace default via 2001:db8:1::1 dev up0");
    pair.works("the restored route");
    pair.leaves_whole("a GSO packet on the restored route");
    clatd.stop();
}

/// Packets that have become too long are not sent; the sender learns the MTU.
#[test]
fn a_link_whose_mtu_shrinks() {
    let Some(network) = Network::new() else { return };
    let clatd = start("mtu");
    let pair = Pair::new(&network);
    pair.leaves_whole("a first GSO packet");
    run("ip link set up0 mtu 1400");
    until("the path MTU of IPv4", || {
        let _ = pair.client.send(&data(1420));
        run("ip route get 203.0.113.1").contains("mtu 1380").then_some(())
    });
    pair.works("a smaller link");
    pair.leaves_whole("a GSO packet on a smaller link");
    clatd.stop();
}

/// CPU time in clock ticks.
fn ticks(clatd: &Clatd) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", clatd.pid())).unwrap();
    // utime and stime, fields 14 and 15; field 2 is a name in parentheses.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// An uplink that is too slow: the daemon waits for it, without a busy loop and without dropping,
/// and still delivers what arrives.
#[test]
fn a_full_uplink_holds_nobody_up() {
    let Some(network) = Network::new() else { return };
    let clatd = start("full");
    let pair = Pair::new(&network);
    pair.leaves_whole("a first GSO packet");
    // Tells the server where to answer.
    pair.client.send(b"up").unwrap();
    let (_, client) = pair.server.recv_from(&mut [0; 10]).unwrap();
    run("tc qdisc add dev up0 root tbf rate 20mbit burst 100k limit 500m");

    let sending = Instant::now();
    let (mut slices, mut busy, mut delivered) = (0, 0, 0);
    let flood = pair.client.try_clone().unwrap();
    setsockopt(&flood, sockopt::UdpGsoSegment, &1200).unwrap();
    let gso = data(40 * 1200);
    // More than all sockets hold.
    let mut waiting = Vec::new();
    while sending.elapsed() < Duration::from_secs(4) {
        let before = ticks(&clatd);
        let slice = Instant::now();
        while slice.elapsed() < Duration::from_millis(200) {
            for _ in 0..20 {
                let _ = flood.send(&gso);
            }
            delivered += usize::from(pair.down(client));
        }
        busy = ticks(&clatd) - before;
        waiting.push(busy);
        slices += 1;
    }
    assert!(delivered >= slices, "{delivered} of {slices}");
    // A tick is 10 ms: a busy loop would have taken all twenty of the last interval.
    assert!(busy <= 10, "processor time a slice: {waiting:?}");
    let line = clatd.counters();
    assert!(!line.contains("drop.send"), "{line}");
    run("tc qdisc del dev up0 root");
    let mut buf = [0; 2000];
    until("the rest to leave", || {
        while pair.server.recv(&mut buf).is_ok() {}
        let sent = clatd.counters();
        thread::sleep(Duration::from_millis(200));
        (clatd.counters() == sent).then_some(())
    });
    pair.works("an empty uplink");
    clatd.stop();
}

/// As many packets as possible in one direction, and one datagram at a time in the other: these
/// arrive.
#[test]
fn neither_direction_starves_the_other() {
    let Some(network) = Network::new() else { return };
    let clatd = start("starve");
    let pair = Pair::new(&network);
    pair.leaves_whole("a first GSO packet");
    pair.client.send(b"up").unwrap();
    let (_, client) = pair.server.recv_from(&mut [0; 10]).unwrap();
    // The flood has its own ports, so that the single datagrams do not wait behind it there.
    let inside = UdpSocket::bind("192.0.0.4:0").unwrap();
    let outside = network.in_peer(|| UdpSocket::bind((SERVER, 0)).unwrap());
    let (from, to) = (inside.local_addr().unwrap().port(), outside.local_addr().unwrap().port());
    inside.connect(("203.0.113.1", to)).unwrap();
    outside.connect((V6, from)).unwrap();
    for (flood, up) in [(&inside, true), (&outside, false)] {
        let done = AtomicBool::new(false);
        let arrived = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // Without room it is lost.
                    let _ = flood.send(&[0; 64]);
                }
            });
            let one = |_: &i32| if up { pair.down(client) } else { pair.up() };
            let arrived = (0..200).filter(one).count();
            done.store(true, Ordering::Relaxed);
            arrived
        });
        assert!(arrived >= 190, "{arrived} of 200, against the flood (up: {up})");
    }
    clatd.stop();
}
