// SPDX-License-Identifier: Apache-2.0

//! Several queues: no packet is lost or reordered with any number of threads, and no thread is
//! awake without need.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clat_datapath::batch::Batch;
use clat_datapath::socket::{join_anycast, PacketSocket, RawSocket};
use clat_tun::{Options, Tun};
use common::*;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};

/// A daemon with four queues.
fn start(test: &str) -> Clatd {
    let tun = Tun::create_with_queues("v4-up0", Options::default()).unwrap();
    // Keeps the kernel from sending on its own.
    run("echo 1 > /proc/sys/net/ipv6/conf/v4-up0/disable_ipv6");
    let mut clatd = Clatd::start_with(test, tun, None, "--queues 4");
    clatd.ready();
    assert!(clatd.log().contains("queues: 4"), "{}", clatd.log());
    clatd
}

/// A line of each thread's status; the first thread's comes first.
fn statuses(clatd: &Clatd, key: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", clatd.pid())).unwrap();
    let mut tasks: Vec<u32> =
        tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    tasks.sort_unstable();
    let line = |task: &u32| {
        let status = fs::read_to_string(format!("/proc/{}/task/{task}/status", clatd.pid()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line[key.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
    };
    tasks.iter().map(line).collect()
}

fn switches(clatd: &Clatd) -> Vec<String> {
    statuses(clatd, "voluntary_ctxt_switches:")
}

#[test]
fn every_thread_is_confined() {
    let Some(_network) = Network::new() else { return };
    let clatd = start("confined");
    for (key, expected) in [
        ("Uid:", clatd.status("Uid:")),
        ("Gid:", clatd.status("Gid:")),
        ("Groups:", String::new()),
        ("CapPrm:", "0".repeat(16)),
        ("CapEff:", "0".repeat(16)),
        ("CapInh:", "0".repeat(16)),
        ("CapBnd:", "0".repeat(16)),
        ("CapAmb:", "0".repeat(16)),
        ("NoNewPrivs:", "1".to_owned()),
        ("Seccomp:", "2".to_owned()),
    ] {
        assert!(!expected.starts_with("0 "), "{key} {expected}");
        assert_eq!(statuses(&clatd, key), [(); 4].map(|()| expected.clone()), "{key}");
    }
    clatd.stop();
}

#[test]
fn nothing_wakes_any_thread_when_idle() {
    let Some(_network) = Network::new() else { return };
    let clatd = start("queues-idle");
    until("two quiet seconds", || {
        let before = switches(&clatd);
        thread::sleep(Duration::from_secs(2));
        (switches(&clatd) == before).then_some(())
    });
    clatd.stop();
}

/// Everything that works with one queue.
#[test]
fn every_kind_of_packet() {
    let Some(network) = Network::new() else { return };
    let clatd = start("queues-packets");
    route();
    for _ in 0..8 {
        ping();
        udp_echo(&network);
    }
    tcp_echo(&network);
    let line = clatd.stop();
    assert!(!line.contains("reassembly") && !line.contains("offload"), "{line}");
}

const FLOWS: usize = 32;
const ROUNDS: u32 = 300;

/// Numbered datagrams of many flows, a few at a time so that no queue overflows.
fn numbered(round: u32) -> Vec<u8> {
    let mut datagram = round.to_be_bytes().to_vec();
    // Of all sizes that are not fragmented.
    datagram.resize(4 + usize::try_from(round % 1200).unwrap(), 7);
    datagram
}

/// Receives until all datagrams of all flows have arrived, in order within each flow.
fn all_in_order(socket: &UdpSocket, flows: &mut HashMap<SocketAddr, u32>, until: u32) {
    let mut buf = [0; 2000];
    while flows.len() < FLOWS || flows.values().any(|next| *next < until) {
        let (_, from) = socket.recv_from(&mut buf).unwrap();
        let next = flows.entry(from).or_insert(0);
        assert_eq!(buf[..4], next.to_be_bytes(), "from {from}");
        *next += 1;
    }
}

/// Each queue's socket on the uplink receives some of the flows, and each flow, like all fragments
/// from one source, is received by one socket.
#[test]
fn flows_are_shared_out() {
    let Some(network) = Network::new() else { return };
    run(&format!("ip addr add {V6}/64 dev up0 nodad"));
    // Resolve the neighbour first: more packets follow than may wait for that.
    network.run_peer(&format!("ping -n -c 1 -w 5 {V6}"));
    let (index, v6) = (if_nametoindex("up0").unwrap(), V6.parse().unwrap());
    let first = PacketSocket::open(index, v6).unwrap();
    let mut sockets = first.share(index, v6, 3).unwrap();
    sockets.push(first);
    network.in_peer(|| {
        let flows = [(); FLOWS].map(|()| UdpSocket::bind((SERVER, 0)).unwrap());
        for socket in &flows {
            for payload in [&[0; 10][..], &[0; 1000], &[0; 4000]] {
                socket.send_to(payload, (V6, 9)).unwrap();
            }
        }
    });
    // By the ports, or `None` for fragments: which sockets received it, and how often.
    let mut heard: HashMap<Option<[u8; 4]>, Vec<usize>> = HashMap::new();
    let mut batch = Batch::default();
    until("all of them", || {
        for (socket, number) in sockets.iter().zip(0..) {
            while socket.recv(&mut batch, 32).is_ok() {
                for i in 0..batch.len() {
                    let range = batch.packet(i).1;
                    let packet = &batch.slot(i)[range];
                    let ports = (packet[6] == 17).then(|| packet[40..44].try_into().unwrap());
                    heard.entry(ports).or_default().push(number);
                }
                batch.clear();
            }
        }
        let count: usize = heard.values().map(Vec::len).sum();
        (count == FLOWS * (2 + 3)).then_some(())
    });
    for (flow, sockets) in &heard {
        assert!(sockets.iter().all(|number| *number == sockets[0]), "{flow:?}: {sockets:?}");
    }
    assert_eq!(heard.len(), FLOWS + 1);
    let all: HashSet<usize> = heard.values().flatten().copied().collect();
    assert_eq!(all.len(), 4, "{heard:?}");
}

#[test]
fn many_flows_each_in_order() {
    let Some(network) = Network::new() else { return };
    let clatd = start("flows");
    route();
    let server = network.in_peer(|| UdpSocket::bind((SERVER, 0)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = server.local_addr().unwrap().port();
    let clients: Vec<_> = (0..FLOWS)
        .map(|_| {
            let client = UdpSocket::bind("192.0.0.4:0").unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.connect(("203.0.113.1", port)).unwrap();
            client
        })
        .collect();
    let mut flows = HashMap::new();
    for round in 0..ROUNDS {
        for client in &clients {
            client.send(&numbered(round)).unwrap();
        }
        if round % 4 == 3 {
            all_in_order(&server, &mut flows, round + 1);
        }
    }
    // And back.
    let mut buf = [0; 2000];
    for round in 0..ROUNDS {
        for client in flows.keys() {
            server.send_to(&numbered(round), client).unwrap();
        }
        for client in &clients {
            client.recv(&mut buf).unwrap();
            assert_eq!(buf[..4], round.to_be_bytes());
        }
    }
    let each = u64::try_from(FLOWS).unwrap() * u64::from(ROUNDS);
    let bytes: usize = (0..ROUNDS).map(|round| numbered(round).len()).sum::<usize>() * FLOWS;
    let (header4, header6) = (28 * FLOWS * 300, 48 * FLOWS * 300);
    let line = clatd.stop();
    let expected =
        format!("egress4={each}/{} ingress6={each}/{}", bytes + header4, bytes + header6);
    assert!(line.contains(&expected) && line.contains("drops=0"), "{expected}: {line}");
}

/// Threads take over queues under load without reordering, and sleep again afterwards.
#[test]
fn threads_come_and_go() {
    let Some(network) = Network::new() else { return };
    let clatd = start("come-and-go");
    route();
    let before = switches(&clatd);
    let server = network.in_peer(|| UdpSocket::bind((SERVER, 0)).unwrap());
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    setsockopt(&server, sockopt::RcvBufForce, &(64 << 20)).unwrap();
    let port = server.local_addr().unwrap().port();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let flood = |_| {
                let client = UdpSocket::bind("192.0.0.4:0").unwrap();
                client.connect(("203.0.113.1", port)).unwrap();
                client
            };
            let clients: Vec<_> = (0..FLOWS).map(flood).collect();
            let mut number = 0u32;
            while !done.load(Ordering::Relaxed) {
                for client in &clients {
                    // A queue may be full.
                    let _ = client.send(&numbered(number));
                }
                number += 1;
            }
        });
        let (mut flows, mut buf) = (HashMap::<SocketAddr, u32>::new(), [0; 2000]);
        let start = Instant::now();
        let mut woken = 0;
        while woken < 2 && start.elapsed() < PATIENCE {
            for _ in 0..1000 {
                let Ok((_, from)) = server.recv_from(&mut buf) else { break };
                let number = u32::from_be_bytes(buf[..4].try_into().unwrap());
                let last = flows.insert(from, number);
                assert!(last.is_none_or(|last| last < number), "{from}: {number} behind {last:?}");
            }
            woken = switches(&clatd).iter().zip(&before).filter(|(now, then)| now != then).count();
        }
        done.store(true, Ordering::Relaxed);
        assert!(woken >= 2, "no other thread woke up");
    });
    until("two quiet seconds", || {
        let before = switches(&clatd);
        thread::sleep(Duration::from_secs(2));
        (switches(&clatd) == before).then_some(())
    });
    // All queues are still served.
    for _ in 0..8 {
        udp_echo(&network);
    }
    clatd.stop();
}

#[test]
fn the_end_of_one_is_the_end_of_all() {
    let Some(_network) = Network::new() else { return };
    let mut clatd = start("queues-removed");
    run("ip link del v4-up0");
    let (status, log) = (clatd.wait(), clatd.log());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("cannot read v4-up0"), "{log}");
}

#[test]
fn a_link_that_goes_down_and_up() {
    let Some(network) = Network::new() else { return };
    run("echo 1 > /proc/sys/net/ipv6/conf/up0/keep_addr_on_down");
    let clatd = start("queues-link");
    route();
    run("ip link set up0 down");
    until("a log line about it", || clatd.log().contains("up0 is down").then_some(()));
    run("ip link set up0 up; ip -6 route replace default via 2001:db8:1::1 dev up0");
    for _ in 0..8 {
        udp_echo(&network);
    }
    assert_eq!(clatd.log().matches("up0 is down").count(), 1);
    clatd.stop();
}

#[test]
fn one_thread_where_there_can_be_no_more() {
    let Some(network) = Network::new() else { return };
    // A device with a single queue.
    let mut clatd = Clatd::start_with("one-queue", tun(Options::default()), None, "--queues 4");
    clatd.ready();
    route();
    udp_echo(&network);
    assert_eq!(switches(&clatd).len(), 1);
    assert!(clatd.log().contains("v4-up0 takes one queue only: one thread"), "{}", clatd.log());
    clatd.stop();
    unroute();
    until("the device to go", || if_nametoindex("v4-up0").is_err().then_some(()));

    // A caller's sockets.
    let tun = Tun::create_with_queues("v4-up0", Options::default()).unwrap();
    run("ip addr add 192.0.0.4/32 dev v4-up0; ip link set v4-up0 mtu 1472 up");
    let index = if_nametoindex("up0").unwrap();
    let v6 = V6.parse().unwrap();
    let packet = PacketSocket::open(index, v6).unwrap();
    let raw = RawSocket::open("up0", 0).unwrap();
    join_anycast(raw.as_fd(), index, v6).unwrap();
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let sockets = (own(packet.as_fd()), own(raw.as_fd()));
    let mut clatd = Clatd::start_with("caller", tun, Some(sockets), "--queues 4");
    clatd.ready();
    drop((packet, raw));
    route();
    udp_echo(&network);
    assert_eq!(switches(&clatd).len(), 1);
    clatd.stop();
}
