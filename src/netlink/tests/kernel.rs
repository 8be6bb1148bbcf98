// SPDX-License-Identifier: Apache-2.0

//! Next hops against the kernel's own routes, each test in a network namespace of its own.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;

use clat_netlink::{
    link, neighbour, next_hop, Change, LinkKind, Neighbour, NextHop, Subscription, Target, Topic,
};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sched::{unshare, CloneFlags};

fn sh(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().expect("sh");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `test` in a new namespace with the Ethernet interfaces up0 (index 10) and up1 (index 20).
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
        eprintln!("SKIPPED: needs root for network namespaces");
        return;
    }
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        for n in ["0", "1"] {
            sh(&format!(
                "ip link add up{n} index {}0 type veth peer name peer{n}
                ip link set up{n} up; ip link set peer{n} up
                ip -6 addr add 2001:db8:{n}::2/64 dev up{n} nodad",
                if n == "0" { 1 } else { 2 }
            ));
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn address(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

/// The next hop of up0 towards 64:ff9b::/96.
fn by_up0() -> Option<NextHop> {
    next_hop(&Target {
        oif: 10,
        source: address("2001:db8::c1a7"),
        prefix: address("64:ff9b::"),
        prefix_len: 96,
    })
    .expect("routes")
}

fn gateway(text: &str) -> Option<NextHop> {
    Some(NextHop::Gateway(address(text)))
}

#[test]
fn the_most_specific_route_wins_then_the_metric() {
    in_namespace(|| {
        assert_eq!(by_up0(), None, "routes to elsewhere only");
        sh("ip -6 route add default dev up0 metric 900");
        assert_eq!(by_up0(), Some(NextHop::OnLink));
        sh("ip -6 route add default via fe80::1 dev up0 metric 800");
        assert_eq!(by_up0(), gateway("fe80::1"));
        sh("ip -6 route add default via fe80::2 dev up0 metric 1000");
        assert_eq!(by_up0(), gateway("fe80::1"));
        sh("ip -6 route add 64:ff9b::/32 via fe80::3 dev up0 metric 5000");
        assert_eq!(by_up0(), gateway("fe80::3"));
        sh("ip -6 route add 64:ff9b::/96 dev up0 metric 6000");
        assert_eq!(by_up0(), Some(NextHop::OnLink));
        // Routes to a part of the prefix, or to others.
        sh("ip -6 route add 64:ff9b::/97 via fe80::4 dev up0");
        sh("ip -6 route add 64:ff9b:1::/48 via fe80::5 dev up0");
        assert_eq!(by_up0(), Some(NextHop::OnLink));
        sh("ip -6 route del 64:ff9b::/96 dev up0; ip -6 route del 64:ff9b::/32 dev up0");
        assert_eq!(by_up0(), gateway("fe80::1"));
    });
}

#[test]
fn routes_by_other_interfaces_do_not_matter() {
    in_namespace(|| {
        sh("ip -6 route add default via fe80::9 dev up1 metric 1");
        sh("ip -6 route add 64:ff9b::/96 via fe80::9 dev up1 metric 1");
        assert_eq!(by_up0(), None);
        sh("ip -6 route add default via fe80::1 dev up0 metric 1024");
        assert_eq!(by_up0(), gateway("fe80::1"));
        sh("ip -6 route add unreachable 64:ff9b::/96 metric 2");
        assert_eq!(by_up0(), gateway("fe80::1"));
    });
}

#[test]
fn any_table_will_do() {
    in_namespace(|| {
        // As Android's netd does: a table for each interface, and rules by mark.
        sh("ip -6 rule add fwmark 0x10064/0x1ffff table 1010");
        sh("ip -6 route add default via fe80::1 dev up0 table 1010");
        sh("ip -6 route add default via fe80::2 dev up1 table 1020");
        assert_eq!(by_up0(), gateway("fe80::1"));
    });
}

#[test]
fn ways_of_a_multipath_route() {
    in_namespace(|| {
        sh("ip -6 route add default nexthop via fe80::9 dev up1 nexthop via fe80::1 dev up0");
        assert_eq!(by_up0(), gateway("fe80::1"));
        sh("ip nexthop add id 1 via fe80::7 dev up0; ip nexthop add id 2 via fe80::8 dev up1");
        sh("ip nexthop add id 3 group 2/1; ip -6 route add 64:ff9b::/64 nhid 3");
        assert_eq!(by_up0(), gateway("fe80::7"));
    });
}

#[test]
fn routes_for_a_source() {
    in_namespace(|| {
        sh("ip -6 route add default from 2001:db8:f::/48 via fe80::2 dev up0 metric 1");
        assert_eq!(by_up0(), None);
        sh("ip -6 route add default from 2001:db8::/48 via fe80::1 dev up0 metric 2000");
        assert_eq!(by_up0(), gateway("fe80::1"));
        sh("ip -6 route add default via fe80::3 dev up0 metric 1");
        assert_eq!(by_up0(), gateway("fe80::1"));
    });
}

#[test]
fn routers_that_prefer_themselves() {
    in_namespace(|| {
        // One is on-link: two routers with equal metric would be one multipath route with one
        // preference.
        sh("ip -6 route add default dev up0 metric 5 pref medium");
        sh("ip -6 route append default via fe80::1 dev up0 metric 5 pref low");
        assert_eq!(by_up0(), Some(NextHop::OnLink));
        sh("ip -6 route add 64::/16 dev up0 metric 5 pref medium");
        sh("ip -6 route append 64::/16 via fe80::2 dev up0 metric 5 pref high");
        assert_eq!(by_up0(), gateway("fe80::2"));
    });
}

#[test]
fn changes_are_told() {
    in_namespace(|| {
        let topics = [Topic::Links, Topic::Routes6];
        let subscription = Subscription::new(&topics).expect("a subscription");
        let readable = |for_long: bool| {
            let mut fds = [PollFd::new(subscription.as_fd(), PollFlags::POLLIN)];
            let timeout = if for_long { PollTimeout::from(30_000u16) } else { PollTimeout::ZERO };
            poll(&mut fds, timeout).expect("poll") > 0
        };
        // Skip notifications of the interfaces' coming up, which last for a while.
        while readable(false) {
            subscription.read().expect("read");
            thread::sleep(std::time::Duration::from_millis(300));
        }
        assert!(subscription.read().expect("nothing").is_empty());
        for change in [
            "ip -6 route add default via fe80::1 dev up0",
            "ip -6 route del default via fe80::1 dev up0",
            "ip -6 route add default via fe80::1 dev up0 table 1010",
            "ip link set up0 down",
        ] {
            sh(change);
            assert!(readable(true), "{change}");
            assert!(!subscription.read().expect("read").is_empty());
        }
        assert_eq!(by_up0(), None, "the route went with its interface");
        // More than fits into the socket's buffer.
        sh("ip link set up0 up; ip -6 addr add 2001:db8::2/64 dev up0 nodad");
        sh("seq 1 9999 | sed 's|.*|route add 2001:db8:&::/64 dev up0|' | ip -6 -batch - ");
        assert!(readable(true));
        assert!(subscription.read().expect("read").contains(&Change::Missed));
        assert!(!readable(false));
    });
}

#[test]
fn neighbours_as_the_kernel_knows_them() {
    in_namespace(|| {
        let router = address("fe80::1");
        let on_up0 = || neighbour(10, router).expect("neighbours");
        let known = |last, is_stale| Some(Neighbour { address: [2, 0, 0, 0, 0, last], is_stale });
        let topics = [Topic::Links, Topic::Routes6, Topic::Neighbours];
        let subscription = Subscription::new(&topics).expect("a subscription");
        assert_eq!(on_up0(), None);
        subscription.read().expect("changes");
        sh("ip -6 neigh add fe80::1 lladdr 02:00:00:00:00:01 dev up0 nud permanent
            ip -6 neigh add fe80::1 lladdr 02:00:00:00:00:09 dev up1 nud permanent");
        assert!(subscription.read().expect("changes").contains(&Change::Neighbour(10)));
        assert_eq!(on_up0(), known(1, false));
        for (state, expected) in [
            ("stale", known(2, true)),
            ("reachable", known(2, false)),
            ("delay", known(2, false)),
            ("failed", None),
            ("noarp", known(2, false)),
        ] {
            sh(&format!(
                "ip -6 neigh replace fe80::1 lladdr 02:00:00:00:00:02 dev up0 nud {state}"
            ));
            assert_eq!(on_up0(), expected, "{state}");
        }
        sh("ip -6 neigh del fe80::1 dev up0");
        assert_eq!(on_up0(), None);
    });
}

#[test]
fn each_change_is_told_as_what_it_is() {
    in_namespace(|| {
        let topics = [
            Topic::Links,
            Topic::Addresses4,
            Topic::Addresses6,
            Topic::Routes4,
            Topic::Routes6,
            Topic::Neighbours,
            Topic::TrafficControl,
        ];
        let subscription = Subscription::new(&topics).expect("a subscription");
        for (change, expected) in [
            ("ip link set up0 mtu 1300", Change::Link(10)),
            ("ip addr add 192.0.2.1/24 dev up0", Change::Address(10)),
            ("ip -6 addr add 2001:db8:7::2/64 dev up1 nodad", Change::Address(20)),
            ("ip route add default dev up0", Change::Route(Some(10))),
            ("ip -6 route add blackhole 2001:db8:9::/48", Change::Route(Some(1))),
            ("ip route add blackhole 198.51.100.0/24", Change::Route(None)),
            ("ip -6 route add default dev up1", Change::Route(Some(20))),
            ("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:01 dev up0", Change::Neighbour(10)),
            ("tc qdisc add dev up0 clsact", Change::TrafficControl(10)),
            (
                "tc filter add dev up0 ingress protocol ip bpf bytecode '1,6 0 0 0'",
                Change::TrafficControl(10),
            ),
            ("tc filter del dev up0 ingress", Change::TrafficControl(10)),
            ("tc qdisc del dev up0 clsact", Change::TrafficControl(10)),
            ("ip -6 addr del 2001:db8:7::2/64 dev up1", Change::Address(20)),
            ("ip link del up1", Change::Link(20)),
        ] {
            subscription.read().expect("read");
            sh(change);
            let mut told = BTreeSet::new();
            while !told.contains(&expected) {
                let mut fds = [PollFd::new(subscription.as_fd(), PollFlags::POLLIN)];
                let ready = poll(&mut fds, PollTimeout::from(30_000u16)).expect("poll");
                assert_eq!(ready, 1, "{change}: {told:?}");
                told.extend(subscription.read().expect("read"));
            }
        }
        assert!(link(20).is_err(), "it has been removed");
    });
}

#[test]
fn a_link_as_it_is() {
    in_namespace(|| {
        sh("ip link set up0 mtu 1300");
        let up0 = link(10).expect("there");
        assert_eq!((up0.name.as_str(), up0.mtu, up0.hardware, up0.is_up), ("up0", 1300, 1, true));
        sh("ip link set up0 down");
        assert!(!link(10).expect("there").is_up);
        assert_eq!(link(99).map_err(|e| e.raw_os_error()), Err(Some(nix::libc::ENODEV)));
    });
}

#[test]
fn kinds_of_links_by_number() {
    for (hardware, kind) in [
        (1, Some(LinkKind::Ethernet)),
        (0xfffe, Some(LinkKind::RawIp)),
        (512, Some(LinkKind::RawIp)),
        (519, Some(LinkKind::RawIp)),
        (520, Some(LinkKind::RawIp)),
        (530, Some(LinkKind::RawIp)),
        // Loopback, 6LoWPAN.
        (772, None),
        (825, None),
    ] {
        assert_eq!(LinkKind::from_hardware(hardware), kind, "{hardware}");
    }
}
