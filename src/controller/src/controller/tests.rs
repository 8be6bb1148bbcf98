// SPDX-License-Identifier: Apache-2.0

//! Tests of the controller on a host that fails on demand.

use std::collections::BTreeSet;
use std::sync::{mpsc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use clat_datapath::path::Direction;

use super::*;
use crate::ebpf_mode::KernelVersion;
use crate::host::fake::{FakeHost, Fault, Inner};
use crate::host::{ClatdArgs, EgressEntry, IngressEntry, Recovery, System};
use crate::model::Working;

const PREFIX: &str = "64:ff9b::/96";

fn controller(host: &FakeHost, standalone: bool) -> Controller<FakeHost> {
    Controller::new(Arc::new(host.clone()), standalone, Arc::new(|_| ()))
}

/// The resources held of the host.
fn live(host: &FakeHost) -> Vec<String> {
    host.inner().live.iter().cloned().collect()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The same, while the controller reconciles.
fn follow_until(controller: &Controller<FakeHost>, what: &str, mut is_so: impl FnMut() -> bool) {
    wait_until(what, || {
        controller.reconcile();
        is_so()
    });
}

#[test]
fn a_life() {
    let host = FakeHost::with_uplink("wlan0");
    let controller = controller(&host, true);
    let v6 = controller.start("wlan0", PREFIX).expect("starts");
    assert_eq!(v6.segments()[..4], [0x2001, 0xdb8, 1, 2]);
    let log = host.inner().log.clone();
    let rule = format!("rule wlan0 {PREFIX} {v6}");
    let route = "route by 101 from 192.0.0.4 metric 2069".to_owned();
    let order = ["tun v4-wlan0", &rule, "clatd wlan0", &route];
    assert_eq!(log, order.map(|name| format!("+{name}")));

    let args = host.inner().spawned[0].argv(3);
    let v6_text = v6.to_string();
    let expected = [
        "clatd-wlan0",
        "-i",
        "wlan0",
        "-m",
        "0xf0015",
        "-p",
        "64:ff9b::",
        "-4",
        "192.0.0.4",
        "-6",
        &v6_text,
        "-t",
        "3",
    ];
    assert_eq!(args, expected);
    assert_eq!(ClatdArgs::parse(&expected), Some((host.inner().spawned[0].clone(), 3)));
    for (at, bad) in [
        (0, "clatd-wlan1"),
        (1, "-j"),
        (2, "wlan1"),
        (4, "0xF0015"),
        (4, "15"),
        (4, "0x15"),
        (6, "64:ff9b::1"),
        (6, "64:ff9b::0"),
        (8, "192.0.0.04"),
        (10, "2001:DB8::1"),
        (12, "+3"),
        (12, "03"),
    ] {
        let mut argv = expected;
        argv[at] = bad;
        assert_eq!(ClatdArgs::parse(&argv), None, "{bad}");
    }
    assert_eq!(ClatdArgs::parse(&expected[..11]), None);

    let running = &controller.running()[0];
    assert_eq!((running.clat.index, running.clat.v4index, running.restarts), (21, 101, 0));
    assert!(host.inner().children.contains_key(&running.pid));
    assert_eq!(running.traffic.map(|t| (t.tx_packets, t.rx_bytes)), Some((1, 400)));

    host.inner().log.clear();
    controller.stop("wlan0").expect("stops");
    let log = host.inner().log.clone();
    let order = [&route, "clatd wlan0", &rule, "tun v4-wlan0"];
    assert_eq!(log, order.map(|name| format!("-{name}")));
    assert_eq!(live(&host), [""; 0]);

    controller.shut_down();
    assert!(host.inner().live.is_empty());
    assert_eq!(controller.start("wlan0", PREFIX).map_err(|e| e.errno), Err(Errno::ESHUTDOWN));
}

#[test]
fn every_step_fails_and_leaves_nothing() {
    let eio = Errno::EIO;
    for (step, fault, errno, expected) in [
        (Step::CreateTun, Fault::CreateTun, Errno::ENOENT, Errno::ENOENT),
        (Step::CreateTun, Fault::CreateTun, Errno::EBUSY, Errno::EBUSY),
        (Step::PickV4, Fault::HasAddress, Errno::EMFILE, Errno::EADDRNOTAVAIL),
        (Step::MakeV6, Fault::Source, Errno::ENETUNREACH, Errno::EADDRNOTAVAIL),
        (Step::MakeV6, Fault::Identifier, eio, eio),
        (Step::AddRule, Fault::Rule, eio, eio),
        (Step::Spawn, Fault::Spawn, Errno::ENOENT, Errno::ENOENT),
        (Step::AwaitClatd, Fault::IsConfigured, eio, eio),
        (Step::AddRoute, Fault::Route, Errno::EEXIST, Errno::EEXIST),
    ] {
        let host = FakeHost::with_uplink("wlan0");
        let controller = controller(&host, true);
        host.inner().faults.insert(fault, errno);
        let error = controller.start("wlan0", PREFIX).expect_err("fails");
        assert_eq!((error.errno, error.step), (expected, step), "{error}");
        assert!(error.to_string().starts_with(&format!("wlan0: cannot {step}: ")), "{error}");
        assert_eq!(live(&host), [""; 0], "{error}");
        assert!(host.inner().children.is_empty());
        assert!(controller.running().is_empty());
        assert_eq!(controller.stop("wlan0").map_err(|e| e.errno), Err(Errno::ENODEV));

        host.inner().faults.clear();
        controller.start("wlan0", PREFIX).expect("a second start works");
        assert_eq!(
            controller.running()[0].clat.v4.octets(),
            [192, 0, 0, 4],
            "the address was given back"
        );
        drop(controller);
        assert!(host.inner().live.is_empty(), "{:?}", host.inner().live);
    }
}

#[test]
fn failures_that_are_not_of_the_host() {
    let host = FakeHost::with_uplink("wlan0");
    let controller = controller(&host, true);
    let errno =
        |iface: &str, prefix: &str| controller.start(iface, prefix).map_err(|e| (e.errno, e.step));

    // docs/contract.md, "start", 2.
    assert_eq!(errno("wlan1", PREFIX), Err((Errno::ENODEV, Step::FindNetwork)));
    // Names are checked before anything else.
    for name in ["", "wlan0 ", "wlan0\nCOMMIT", "../wlan0", "-A", "eth+"] {
        assert_eq!(errno(name, PREFIX), Err((Errno::EINVAL, Step::CheckName)), "{name:?}");
    }
    for len in 16..20 {
        assert_eq!(
            errno(&"x".repeat(len), PREFIX),
            Err((Errno::ENAMETOOLONG, Step::CheckName)),
            "{len}"
        );
    }
    assert_eq!(host.inner().log, [""; 0]);
    // "start", 5.
    for (prefix, expected) in [
        ("64:ff9b::/80", Errno::EINVAL),
        ("64:ff9b::1/96", Errno::EINVAL),
        ("nonsense", Errno::EINVAL),
        ("192.0.2.0/24", Errno::EAFNOSUPPORT),
    ] {
        assert_eq!(errno("wlan0", prefix), Err((expected, Step::ParsePrefix)), "{prefix}");
        assert_eq!(live(&host), [""; 0]);
    }
    host.inner().addresses = (0..8).map(|n| [192, 0, 0, n].into()).collect();
    assert_eq!(errno("wlan0", PREFIX), Err((Errno::EADDRNOTAVAIL, Step::PickV4)));
    host.inner().addresses.clear();
    for source in ["::", "::1", "fe80::1", "fec0::1"] {
        host.inner().source = source.parse().ok();
        assert_eq!(errno("wlan0", PREFIX), Err((Errno::EADDRNOTAVAIL, Step::MakeV6)), "{source}");
        assert_eq!(live(&host), [""; 0]);
    }
    // A unique local address, of a site with its own NAT64.
    host.inner().source = "fd00::1".parse().ok();
    assert!(errno("wlan0", PREFIX).is_ok() && controller.stop("wlan0").is_ok());
    host.inner().source = "2001:db8::1".parse().ok();
    // "start", 4: disabling IPv6 may fail.
    host.inner().faults.insert(Fault::DisableIpv6, Errno::ENOENT);
    assert!(errno("wlan0", PREFIX).is_ok());
    // "start", 1.
    let error = controller.start("wlan0", PREFIX).expect_err("runs already");
    assert_eq!((error.errno, error.step), (Errno::EBUSY, Step::Start));
    let pid = controller.running()[0].pid;
    assert!(error.to_string().contains(&format!("pid {pid}")), "{error}");
}

#[test]
fn a_clatd_that_does_not_get_ready() {
    let host = FakeHost::with_uplink("wlan0");
    let controller = controller(&host, true);
    host.inner().lazy_clatd = true;
    let error = controller.start("wlan0", PREFIX).expect_err("never ready");
    assert_eq!((error.errno, error.step), (Errno::ETIMEDOUT, Step::AwaitClatd), "{error}");
    assert_eq!(live(&host), [""; 0]);
    host.inner().dead_on_arrival = true;
    let error = controller.start("wlan0", PREFIX).expect_err("dies");
    assert_eq!((error.errno, error.step), (Errno::EIO, Step::AwaitClatd), "{error}");
    assert!(error.to_string().contains("was told to die before v4-wlan0"), "{error}");
    assert_eq!(live(&host), [""; 0]);
}

#[test]
fn addresses_are_not_shared() {
    let host = FakeHost::with_uplink("up0");
    let controller = controller(&host, true);
    for n in 1..9 {
        host.add_link(&format!("up{n}"), 30 + n);
    }
    host.inner().addresses.insert([192, 0, 0, 6].into());
    let mut octets = Vec::new();
    for n in 0..7 {
        controller.start(&format!("up{n}"), PREFIX).expect("starts");
        octets.push(controller.running()[n].clat.v4.octets()[3]);
    }
    assert_eq!(octets, [4, 5, 7, 0, 1, 2, 3]);
    let error = controller.start("up7", PREFIX).expect_err("none left");
    assert_eq!((error.errno, error.step), (Errno::EADDRNOTAVAIL, Step::PickV4));
    controller.stop("up1").expect("stops");
    controller.start("up7", PREFIX).expect("starts");
    assert_eq!(controller.running().last().map(|r| r.clat.v4.octets()[3]), Some(5));
}

#[test]
fn networks_with_netd() {
    let host = FakeHost::with_uplink("rmnet0");
    let controller = controller(&host, false);
    let start = || controller.start("rmnet0", PREFIX).map_err(|e| e.errno);
    assert_eq!(start(), Err(Errno::ENODEV));
    for bad in [0, -1, 65536, i32::MIN, i32::MAX] {
        assert_eq!(
            controller.add_interface(bad, "rmnet0").map_err(|e| e.errno),
            Err(Errno::EINVAL),
            "{bad}"
        );
    }
    assert_eq!(controller.add_interface(100, "rm net").map_err(|e| e.errno), Err(Errno::EINVAL));
    controller.add_interface(100, "rmnet0").expect("free");
    controller.add_interface(100, "rmnet0").expect("the same again");
    assert_eq!(controller.add_interface(101, "rmnet0").map_err(|e| e.errno), Err(Errno::EBUSY));
    assert!(start().is_ok());
    assert!(host.inner().log.iter().all(|line| !line.contains("route")), "the route is netd's");
    assert_eq!(controller.running()[0].clat.mark.to_string(), "0xf0064");
    controller.stop("rmnet0").expect("stops");
    assert_eq!(controller.remove_interface(101, "rmnet0").map_err(|e| e.errno), Err(Errno::ENOENT));
    controller.remove_interface(100, "rmnet0").expect("there");
    assert_eq!(controller.remove_interface(100, "rmnet0").map_err(|e| e.errno), Err(Errno::ENOENT));
    assert_eq!(start(), Err(Errno::ENODEV));
    controller.add_interface(7, "gone0").expect("free");
    assert_eq!(controller.start("gone0", PREFIX).map_err(|e| e.errno), Err(Errno::ENODEV));
}

#[test]
fn a_network_goes_with_its_clats() {
    let host = FakeHost::with_uplink("rmnet0");
    host.add_link("rmnet1", 22);
    let events = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let events = Arc::clone(&events);
        move |event| {
            if let Event::Stopped { iface, reason } = event {
                events.lock().expect("no panic").push((iface.to_string(), reason));
            }
        }
    };
    let controller = Controller::new(Arc::new(host.clone()), false, Arc::new(observer));
    for (net_id, iface) in [(100, "rmnet0"), (200, "rmnet1")] {
        controller.add_interface(net_id, iface).expect("free");
        controller.start(iface, PREFIX).expect("starts");
    }
    for bad in [0, -1, 65536] {
        let result = controller.destroy_network(bad);
        assert_eq!(result.map_err(|e| e.errno), Err(Errno::EINVAL), "{bad}");
    }
    controller.destroy_network(300).expect("gone already");
    assert_eq!(controller.running().len(), 2);

    // The network's CLATs end, and another network on the same interface works.
    controller.destroy_network(100).expect("there");
    assert_eq!(*events.lock().expect("no panic"), [("rmnet0".to_owned(), StopReason::NetworkGone)]);
    assert_eq!(controller.running().len(), 1);
    assert_eq!(controller.start("rmnet0", PREFIX).map_err(|e| e.errno), Err(Errno::ENODEV));
    controller.add_interface(101, "rmnet0").expect("it belongs to none");
    controller.start("rmnet0", PREFIX).expect("starts");
    assert_eq!(controller.running()[0].clat.mark.to_string(), "0xf0065");

    // Removing an interface from its network ends its CLAT.
    controller.remove_interface(101, "rmnet0").expect("there");
    controller.remove_interface(200, "rmnet1").expect("there");
    assert_eq!(events.lock().expect("no panic").len(), 3);
    assert!(controller.running().is_empty() && live(&host).is_empty(), "{:?}", live(&host));
}

#[test]
fn standalone_network_ids() {
    for (index, id) in
        [(1, 1), (21, 21), (65535, 65535), (65536, 1), (131_070, 65535), (u32::MAX, 65535)]
    {
        assert_eq!(own_net_id(index), id, "{index}");
    }
}

#[test]
fn a_dead_clatd_is_started_again() {
    let host = FakeHost::with_uplink("wlan0");
    let controller = controller(&host, true);
    controller.start("wlan0", PREFIX).expect("starts");
    let pid = controller.running()[0].pid;
    host.inner().faults.insert(Fault::Spawn, Errno::EAGAIN);
    host.kill(pid);
    wait_until("the death", || controller.running()[0].pid == 0);
    let due = controller.reconcile().expect("another is due");
    follow_until(&controller, "a try that fails", || controller.reconcile() > Some(due));
    host.inner().faults.clear();
    follow_until(&controller, "the restart", || controller.running()[0].pid != 0);
    let running = &controller.running()[0];
    assert_ne!(running.pid, pid);
    assert_eq!(running.restarts, 1);
    {
        let inner = host.inner();
        assert_eq!(inner.spawned[0], inner.spawned[1], "the same addresses");
    }
    host.kill(running.pid);
    follow_until(&controller, "the second restart", || controller.running()[0].restarts == 2);
    controller.stop("wlan0").expect("stops");
    assert_eq!(live(&host), [""; 0]);
}

#[test]
fn stopping_does_not_wait_for_the_next_restart() {
    let host = FakeHost::with_uplink("wlan0");
    let controller = controller(&host, true);
    controller.start("wlan0", PREFIX).expect("starts");
    host.inner().faults.insert(Fault::Spawn, Errno::ENOENT);
    host.kill(controller.running()[0].pid);
    let (far, mut due) = (Instant::now() + Duration::from_secs(6), None);
    wait_until("a long wait", || {
        due = controller.reconcile();
        due > Some(far)
    });
    controller.stop("wlan0").expect("stops");
    assert!(Some(Instant::now()) < due, "it did not wait for {due:?}");
    assert_eq!(live(&host), [""; 0]);
}

#[test]
fn a_slow_start_holds_up_only_its_own_interface() {
    let host = FakeHost::with_uplink("wlan0");
    host.add_link("eth0", 22);
    let controller = controller(&host, true);
    controller.start("eth0", PREFIX).expect("starts");
    host.inner().tun_delay = Duration::from_secs(3);
    thread::scope(|scope| {
        let (started, has_started) = mpsc::channel();
        let controller = &controller;
        scope.spawn(move || started.send(controller.start("wlan0", PREFIX).is_ok()));
        wait_until("the start", || {
            let state = controller.state();
            state.places.values().any(|place| matches!(place, Place::Busy(_)))
        });
        let begun = Instant::now();
        assert_eq!(controller.dump().lines().filter(|line| line.contains("[v4-")).count(), 1);
        assert_eq!(controller.running().len(), 1);
        controller.stop("eth0").expect("stops");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        // A stop during a start waits, and then stops the CLAT.
        controller.stop("wlan0").expect("stops");
        assert_eq!(has_started.recv(), Ok(true));
    });
    assert_eq!(live(&host), [""; 0]);
}

#[test]
fn starts_at_the_same_time() {
    let host = FakeHost::with_uplink("up0");
    for n in 1..8 {
        host.add_link(&format!("up{n}"), 30 + n);
    }
    let controller = controller(&host, true);
    thread::scope(|scope| {
        for n in 0..16 {
            let controller = &controller;
            scope.spawn(move || controller.start(&format!("up{}", n % 8), PREFIX));
        }
    });
    let running = controller.running();
    let addresses: BTreeSet<_> = running.iter().map(|r| r.clat.v4).collect();
    assert_eq!((running.len(), addresses.len()), (8, 8));
    controller.shut_down();
    assert!(host.inner().live.is_empty());
}

#[test]
fn the_mode_comes_from_the_properties() {
    let mode = |pairs: &[(&str, &str)]| {
        let host = FakeHost::default();
        host.inner().properties =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert!(host.kernel_version() >= KernelVersion(4, 9));
        controller(&host, true).ebpf_mode()
    };
    assert_eq!(mode(&[]), EbpfMode::Disabled);
    assert_eq!(mode(&[("ro.product.first_api_level", "28")]), EbpfMode::Maybe);
    assert_eq!(
        mode(&[("ro.product.first_api_level", "0"), ("ro.build.version.sdk", "34")]),
        EbpfMode::Enabled
    );
    assert_eq!(
        mode(&[("ro.product.first_api_level", "x"), ("ro.build.version.sdk", "28")]),
        EbpfMode::Maybe
    );
    assert_eq!(
        mode(&[("ro.product.first_api_level", "27"), ("ro.build.version.sdk", "34")]),
        EbpfMode::Disabled
    );
}

#[test]
fn dump_shows_what_runs() {
    let host = FakeHost::with_uplink("wlan0");
    let controller = controller(&host, false);
    controller.add_interface(100, "wlan0").expect("free");
    let v6 = controller.start("wlan0", PREFIX).expect("starts");
    let dump = controller.dump();
    let mut lines = dump.lines();
    assert_eq!(lines.next(), Some("  ClatdController"));
    let header = "    Trackers: iif[iface] nat64Prefix v6Addr -> v4Addr v4iif[v4iface] [fwmark]";
    assert_eq!(lines.next(), Some(header));
    let tracker = format!("      21[wlan0] 64:ff9b::/96 {v6} -> 192.0.0.4 101[v4-wlan0] [0xf0064]");
    assert_eq!(lines.next(), Some(tracker.as_str()));
    let mode = "    eBPF mode: Disabled: kernel or first API level is too old";
    assert_eq!(lines.next(), Some(mode));
    let pid = controller.running()[0].pid;
    assert_eq!(
        lines.next(),
        Some(format!("    wlan0: clatd pid {pid}, 0 restarts, up 0 s").as_str())
    );
    assert_eq!(lines.next(), None);
}

/// A host with this first API level, which decides on translation in the kernel.
fn offloading_host(level: u32) -> FakeHost {
    let host = FakeHost::with_uplink("wlan0");
    let property = ("ro.product.first_api_level".to_owned(), level.to_string());
    host.inner().properties.extend([property]);
    host
}

#[test]
fn offload_comes_and_goes_in_order() {
    let host = offloading_host(36);
    let controller = controller(&host, true);
    assert_eq!(controller.ebpf_mode(), EbpfMode::Enabled);
    let v6 = controller.start("wlan0", PREFIX).expect("starts");
    let rule = format!("rule wlan0 {PREFIX} {v6}");
    let taken = [
        "next hop of 21",
        "egress entry of 101",
        "ingress entry of 21",
        "Egress RawIp filter on 101",
        "Ingress Ethernet filter on 21",
    ];
    let mut expected = vec!["+programs".to_owned()];
    expected.extend(["tun v4-wlan0", &rule, "clatd wlan0"].map(|name| format!("+{name}")));
    let [next_hop, egress_entry, ingress_entry, egress, ingress] =
        taken.map(|name| format!("+{name}"));
    expected.extend([next_hop, egress_entry, ingress_entry, "clsact on 101".into(), egress]);
    expected.extend(["clsact on 21".into(), ingress]);
    expected.push("+route by 101 from 192.0.0.4 metric 2069".to_owned());
    assert_eq!(host.inner().log, expected);
    let prefix = "64:ff9b::".parse().expect("an address");
    let local4 = "192.0.0.4".parse().expect("an address");
    assert_eq!(
        host.inner().egress,
        [EgressEntry { iif: 101, local4, oif: 21, local6: v6, prefix, oif_is_ethernet: true }]
    );
    assert_eq!(
        host.inner().ingress,
        [IngressEntry { iif: 21, prefix, local6: v6, oif: 101, local4 }]
    );

    let running = &controller.running()[0];
    assert_eq!(running.path, PacketPath::Device);
    assert_eq!(running.egress.as_ref().map(|c| c.packets), Some(4));
    assert_eq!(running.ingress.as_ref().map(|c| c.packets), Some(14));
    let dump = controller.dump();
    let line = "    wlan0: eBPF ingress 14 packets 0 bytes, 0 super-packets, 0 neighbours \
        resolved, 0 lost, passed to clatd: header=5\n";
    assert!(dump.ends_with(line), "{dump}");
    assert!(
        dump.contains(&format!(
            "      101(v4-wlan0) 192.0.0.4 -> {v6} 64:ff9b::/96 21(wlan0) ether\n"
        )),
        "{dump}"
    );
    host.inner().faults.extend([(Fault::Maps, Errno::EPERM), (Fault::Counters, Errno::EPERM)]);
    assert_eq!(controller.dump().matches("Error printing BPF map: ").count(), 2);
    assert_eq!(controller.running()[0].ingress, None);
    host.inner().faults.insert(Fault::Place, Errno::ENODEV);
    assert_eq!(
        controller.running()[0].path,
        PacketPath::Device,
        "the kernel is not asked by who asks us"
    );
    controller.reconcile();
    assert_eq!(controller.running()[0].path, PacketPath::Daemon);
    host.inner().faults.clear();

    host.inner().log.clear();
    controller.stop("wlan0").expect("stops");
    let [next_hop, egress_entry, ingress_entry, egress, ingress] = taken.map(str::to_owned);
    let route = "route by 101 from 192.0.0.4 metric 2069".to_owned();
    let order = [
        route,
        ingress,
        egress,
        ingress_entry,
        egress_entry,
        next_hop,
        "clatd wlan0".into(),
        rule,
        "tun v4-wlan0".into(),
    ];
    assert_eq!(host.inner().log, order.map(|name| format!("-{name}")));
    controller.shut_down();
    assert!(host.inner().live.is_empty(), "{:?}", host.inner().live);
}

#[test]
fn a_clat_works_without_each_step_of_the_offload() {
    const STEPS: [&str; 4] = [
        "next hop of 21",
        "egress entry of 101",
        "ingress entry of 21",
        "Egress RawIp filter on 101",
    ];
    for (fault, taken) in [
        (Fault::LinkKind, &[][..]),
        (Fault::NextHop, &[]),
        (Fault::EgressEntry, &STEPS[..1]),
        (Fault::IngressEntry, &STEPS[..2]),
        (Fault::Clsact(101), &STEPS[..3]),
        (Fault::EgressFilter, &STEPS[..3]),
        (Fault::Clsact(21), &STEPS),
        (Fault::IngressFilter, &STEPS),
    ] {
        for level in [28, 36] {
            let host = offloading_host(level);
            let controller = controller(&host, true);
            host.inner().faults.insert(fault, Errno::ENOENT);
            controller.start("wlan0", PREFIX).expect("starts all the same");
            let running = &controller.running()[0];
            assert_eq!(running.path, PacketPath::Daemon);
            assert!(running.egress.is_none() && running.ingress.is_none());
            let mut log = host.inner().log.clone();
            log.retain(|line| STEPS.iter().any(|step| line.contains(step)));
            let there = taken.iter().map(|name| format!("+{name}"));
            let back = taken.iter().rev().map(|name| format!("-{name}"));
            assert_eq!(log, there.chain(back).collect::<Vec<_>>(), "{fault:?}");

            controller.stop("wlan0").expect("stops");
            assert_eq!(live(&host), ["programs"]);
            host.inner().faults.clear();
            controller.start("wlan0", PREFIX).expect("starts");
            assert_eq!(controller.running()[0].path, PacketPath::Device, "the next has it");
            drop(controller);
            assert!(host.inner().live.is_empty(), "{:?}", host.inner().live);
        }
    }
}

/// The route is set last and removed first.
#[test]
fn the_direct_way() {
    const PARTS: [&str; 3] = [
        "egress entry of 21",
        "Direct Ethernet filter on 21",
        "direct route by 21 from 192.0.0.4 metric 2069 mtu 1472",
    ];
    for (fault, taken) in [
        (None, &PARTS[..]),
        (Some(Fault::Direct), &[]),
        (Some(Fault::DirectFilter), &PARTS[..1]),
        (Some(Fault::DirectRoute), &PARTS[..2]),
    ] {
        let host = offloading_host(36);
        let controller = controller(&host, true).direct(true);
        host.inner().faults.extend(fault.map(|fault| (fault, Errno::EOPNOTSUPP)));
        controller.start("wlan0", PREFIX).expect("starts all the same");
        let path = if fault.is_none() { PacketPath::Direct } else { PacketPath::Device };
        assert_eq!(controller.running()[0].path, path, "by the device at least");
        let is_said = !controller.running()[0].hindrances.is_empty();
        assert_eq!(is_said, fault.is_some());
        if fault.is_none() {
            assert_eq!(host.inner().log.last(), Some(&format!("+{}", PARTS[2])));
            host.inner().log.clear();
            host.inner().source = None;
            controller.reconcile();
            assert_eq!(host.inner().log, [format!("-{}", PARTS[2])], "no path, no route");
            assert_eq!(controller.running()[0].path, PacketPath::Device);
            host.inner().source = "2001:db8:1:2::5".parse().ok();
            controller.reconcile();
            host.inner().log.clear();
            controller.stop("wlan0").expect("stops");
            // After the route of the TUN device.
            assert_eq!(host.inner().log.get(1), Some(&format!("-{}", PARTS[2])));
        } else {
            controller.stop("wlan0").expect("stops");
        }
        let mut log = host.inner().log.clone();
        log.retain(|line| PARTS.iter().any(|part| line == &format!("-{part}")));
        assert_eq!(log.len(), taken.len(), "{fault:?}: {log:?}");
        assert_eq!(live(&host), ["programs"], "{fault:?}");
    }
    // With netd, routes are not ours.
    let host = offloading_host(36);
    let controller = controller(&host, false).direct(true);
    controller.add_interface(21, "wlan0").expect("a network");
    controller.start("wlan0", PREFIX).expect("starts");
    assert!(!live(&host).iter().any(|part| part.to_lowercase().contains("direct")));
}

#[test]
fn a_start_that_fails_late_takes_the_offload_back() {
    for fault in [Fault::IsConfigured, Fault::Route] {
        let host = offloading_host(36);
        let controller = controller(&host, true);
        host.inner().faults.insert(fault, Errno::EIO);
        controller.start("wlan0", PREFIX).expect_err("fails");
        assert!(host.inner().log.iter().any(|line| line.starts_with("+Ingress")));
        assert_eq!(live(&host), ["programs"]);
    }
}

#[test]
fn no_offload_without_programs() {
    for (level, errno, no_offload, why) in [
        (36, Some(Errno::EPERM), false, "Operation not permitted (os error 1)"),
        (28, Some(Errno::ENOENT), false, "No such file or directory (os error 2)"),
        (36, None, true, "policy"),
        // The programs are not opened.
        (27, None, false, "kernel or first API level is too old"),
    ] {
        let host = offloading_host(level);
        host.inner().no_offload = no_offload;
        host.inner().faults.extend(errno.map(|errno| (Fault::Programs, errno)));
        let controller = controller(&host, true);
        assert_eq!(controller.ebpf_mode(), EbpfMode::Disabled);
        controller.start("wlan0", PREFIX).expect("starts");
        assert_eq!(controller.running()[0].path, PacketPath::Daemon);
        assert!(!host.inner().log.iter().any(|l| l.contains("filter") || l.contains("programs")));
        let dump = controller.dump();
        assert!(!dump.contains("BPF ingress map"));
        assert!(dump.contains(&format!("    eBPF mode: Disabled: {why}\n")), "{dump}");
    }
}

#[test]
fn what_a_previous_controller_left_is_removed() {
    let host = offloading_host(36);
    host.leave_behind();
    let controller = controller(&host, true);
    end_orphans(host.orphans());
    controller.recover(Vec::new());
    assert!(controller.running().is_empty());
    assert_eq!(host.inner().orphans, []);
    // The kernel removes the route with its device.
    assert_eq!(live(&host), ["programs", "route by 50 from 192.0.0.6 metric 2069"]);
}

#[test]
fn a_clat_of_a_previous_controller_goes_on() {
    let host = offloading_host(36);
    let args = host.leave_behind();
    let before: BTreeSet<_> = host.inner().live.clone();
    let controller = controller(&host, true);
    controller.recover(host.orphans());
    let strange = ["egress entry of 7", "ingress entry of 8", "Ingress RawIp filter on 8"];
    let expected: BTreeSet<_> =
        before.iter().filter(|name| !strange.contains(&name.as_str())).cloned().collect();
    assert_eq!(host.inner().live, expected);
    {
        let inner = host.inner();
        // Only the rules, which are replaced atomically, were removed meanwhile.
        let gone: Vec<_> = inner.log.iter().filter(|line| line.starts_with('-')).collect();
        assert!(gone.iter().all(|l| strange.contains(&&l[1..]) || l.contains("rule")));
    }
    let running = &controller.running()[0];
    let Clat { iface, index, v4index, prefix, v4, v6, mark, .. } = running.clat.clone();
    assert_eq!((index, v4index, running.pid, running.restarts), (21, 50, 77, 0));
    assert_eq!(ClatdArgs { uplink: iface, mark, prefix, v4, v6 }, args);
    assert_eq!(running.path, PacketPath::Device);
    let error = controller.start("wlan0", PREFIX).expect_err("runs already");
    assert_eq!(error.errno, Errno::EBUSY);

    // The address of the CLAT that was taken over stays in use.
    host.add_link("eth0", 22);
    host.inner().addresses = (4..6).map(|n| [192, 0, 0, n].into()).collect();
    controller.start("eth0", PREFIX).expect("starts");
    assert_eq!(controller.running()[0].clat.v4.octets(), [192, 0, 0, 7]);
    controller.stop("eth0").expect("stops");

    host.kill(77);
    follow_until(&controller, "the restart", || controller.running()[0].restarts == 1);
    assert_eq!(host.inner().spawned.last(), Some(&args), "as it was");

    host.inner().log.clear();
    controller.stop("wlan0").expect("stops");
    let rule = format!("rule wlan0 {PREFIX} {}", args.v6);
    let order = [
        "route by 50 from 192.0.0.6 metric 2069",
        "Ingress Ethernet filter on 21",
        "Egress RawIp filter on 50",
        "ingress entry of 21",
        "egress entry of 50",
        "next hop of 21",
        "clatd wlan0",
        &rule,
        "tun v4-wlan0",
    ];
    assert_eq!(host.inner().log, order.map(|name| format!("-{name}")));
    controller.shut_down();
    assert!(host.inner().live.is_empty(), "{:?}", host.inner().live);
}

#[test]
fn an_incomplete_clat_of_a_previous_controller_is_removed() {
    type Damage = fn(&mut Inner);
    let damages: [(&str, Damage); 9] = [
        ("no uplink", |host| host.links.retain(|name, _| name != "wlan0")),
        ("no device", |host| host.links.retain(|name, _| name != "v4-wlan0")),
        ("not set up", |host| host.lazy_clatd = true),
        ("cannot tell", |host| host.faults.extend([(Fault::IsConfigured, Errno::EIO)])),
        ("no rule", |host| host.faults.extend([(Fault::Rule, Errno::EPERM)])),
        ("no route", |host| host.faults.extend([(Fault::Route, Errno::EPERM)])),
        ("not of the pool", |host| host.orphans[0].0.v4 = [10, 0, 0, 1].into()),
        ("not global", |host| host.orphans[0].0.v6 = "fe80::1".parse().expect("an address")),
        ("no clatd", |host| host.children.clear()),
    ];
    for (what, damage) in damages {
        let host = offloading_host(36);
        host.leave_behind();
        damage(&mut host.inner());
        let controller = controller(&host, true);
        controller.recover(host.orphans());
        assert!(controller.running().is_empty(), "{what}");
        let mut left = live(&host);
        left.retain(|name| {
            !name.starts_with("route") && (what != "no clatd" || !name.ends_with("wlan0"))
        });
        assert_eq!(left, ["programs"], "{what}");
        host.inner().faults.clear();
        host.inner().lazy_clatd = false;
        if what != "no uplink" && what != "no clatd" {
            controller.start("wlan0", PREFIX).expect("starts");
        }
    }
}

#[test]
fn a_clat_goes_on_without_what_the_offload_lacks() {
    for fault in [Fault::LinkKind, Fault::NextHop, Fault::EgressEntry, Fault::IngressFilter] {
        let host = offloading_host(36);
        host.leave_behind();
        host.inner().faults.insert(fault, Errno::EIO);
        let controller = controller(&host, true);
        controller.recover(host.orphans());
        assert_eq!(controller.running()[0].path, PacketPath::Daemon);
        let left = live(&host);
        let is_offload = |name: &&String| name.contains("entry") || name.contains("filter");
        assert_eq!(left.iter().filter(is_offload).count(), 0, "{fault:?}: {left:?}");
        controller.stop("wlan0").expect("stops");
        assert_eq!(live(&host), ["programs"]);
    }
}

#[test]
fn leaving_takes_nothing_along() {
    let host = offloading_host(36);
    let controller = controller(&host, true);
    controller.start("wlan0", PREFIX).expect("starts");
    let before = host.inner().live.clone();
    controller.detach();
    assert_eq!(controller.start("wlan0", PREFIX).map_err(|e| e.errno), Err(Errno::ESHUTDOWN));
    drop(controller);
    assert_eq!(host.inner().live, before);

    // Without a CLAT to take over, nothing stays.
    let host = offloading_host(36);
    let controller = self::controller(&host, true);
    controller.start("wlan0", PREFIX).expect("starts");
    controller.stop("wlan0").expect("stops");
    controller.detach();
    assert_eq!(live(&host), [""; 0]);
}

/// A controller on a host with an uplink and a CLAT, and its events.
fn following() -> (FakeHost, Controller<FakeHost>, mpsc::Receiver<Event>) {
    let host = offloading_host(36);
    let (tell, told) = mpsc::channel();
    let observer = Arc::new(move |event| drop(tell.send(event)));
    let controller = Controller::new(Arc::new(host.clone()), true, observer);
    controller.start("wlan0", PREFIX).expect("starts");
    controller.reconcile();
    assert!(matches!(told.recv(), Ok(Event::Started(_))));
    assert!(told.try_recv().is_err(), "nothing has changed");
    (host, controller, told)
}

#[test]
fn a_clat_follows_its_uplink_into_another_prefix() {
    let (host, controller, told) = following();
    let before = controller.running()[0].clat.clone();
    // While the uplink has no other address, the CLAT stays.
    host.inner().source = None;
    controller.reconcile();
    assert_eq!(controller.running()[0].clat, before);
    // But its route is withdrawn, so that IPv4 can use another.
    assert_eq!(host.inner().withdrawn.len(), 1);
    host.inner().source = "2001:db8:7:8::5".parse().ok();
    host.inner().log.clear();
    controller.reconcile();
    let running = controller.running();
    let after = &running[0].clat;
    assert_eq!(after.v6.segments()[..4], [0x2001, 0xdb8, 7, 8]);
    assert_eq!((after.v4, after.v4index), (before.v4, before.v4index));
    assert!(host.inner().withdrawn.is_empty(), "the route is back");
    assert_eq!(running[0].path, PacketPath::Device);
    assert!(matches!(told.try_recv(), Ok(Event::Started(clat)) if clat == *after));
    assert_eq!(host.inner().spawned.last().map(|args| args.v6), Some(after.v6));
    let log = host.inner().log.clone();
    assert!(log.contains(&format!("-rule wlan0 {PREFIX} {}", before.v6)), "{log:?}");
    assert!(!log.iter().any(|line| line.contains("tun ") || line.contains("route ")), "{log:?}");
    controller.stop("wlan0").expect("stops");
    assert_eq!(live(&host), ["programs"]);
}

#[test]
fn a_clat_follows_the_size_of_its_path() {
    let (host, controller, _told) = following();
    let pid = controller.running()[0].pid;
    host.inner().path_less = 200;
    controller.reconcile();
    assert_eq!(host.inner().mtus[&101], 1272);
    assert_eq!(controller.running()[0].pid, pid, "it knows by itself");
    host.inner().path_less = 0;
    controller.reconcile();
    assert_eq!(host.inner().mtus[&101], 1472);
    assert_ne!(controller.running()[0].pid, pid, "one that believes in the new path");
}

#[test]
fn what_others_take_away_is_put_back_until_it_is_a_fight() {
    let (host, controller, told) = following();
    let route = "route by 101 from 192.0.0.4 metric 2069";
    host.inner().live.remove(route);
    controller.reconcile();
    assert!(host.inner().live.contains(route));
    for _ in 0..4 {
        host.inner().lazy_clatd = true;
        controller.reconcile();
        assert!(!host.inner().lazy_clatd, "configured again");
    }
    assert_eq!(controller.running().len(), 1);
    host.inner().lazy_clatd = true;
    controller.reconcile();
    let stopped = Event::Stopped { iface: name("wlan0"), reason: StopReason::Failed };
    assert_eq!(told.try_recv(), Ok(stopped));
    assert_eq!(live(&host), ["programs"]);
}

#[test]
fn a_clat_without_its_device_is_made_anew_and_one_without_its_uplink_ends() {
    let (host, controller, told) = following();
    host.inner().links.remove("v4-wlan0");
    controller.reconcile();
    let clat = controller.running()[0].clat.clone();
    assert_eq!((clat.v4index, clat.v4.octets()), (103, [192, 0, 0, 4]));
    assert!(matches!(told.try_recv(), Ok(Event::Started(told)) if told == clat));

    // Another interface with this name.
    host.add_link("wlan0", 22);
    controller.reconcile();
    let stopped = Event::Stopped { iface: name("wlan0"), reason: StopReason::UplinkGone };
    assert_eq!(told.try_recv(), Ok(stopped));
    assert_eq!(live(&host), ["programs"]);
    controller.start("wlan0", PREFIX).expect("starts");
}

/// Between two questions about it.
#[test]
fn a_device_that_goes_while_it_is_looked_at_is_made_anew() {
    let (host, controller, told) = following();
    host.inner().going = Some("v4-wlan0".to_owned());
    controller.reconcile();
    let clat = controller.running()[0].clat.clone();
    assert_eq!((clat.v4index, clat.v4.octets()), (103, [192, 0, 0, 4]));
    assert!(matches!(told.try_recv(), Ok(Event::Started(told)) if told == clat));

    // What fails each time is not tried without end.
    host.inner().links.remove("v4-wlan0");
    host.inner().faults.insert(Fault::CreateTun, Errno::EPERM);
    controller.reconcile();
    let stopped = Event::Stopped { iface: name("wlan0"), reason: StopReason::Failed };
    assert_eq!(told.try_recv(), Ok(stopped));
    assert_eq!(live(&host), ["programs"]);
}

fn name(text: &str) -> IfaceName {
    IfaceName::parse(text).expect("a name")
}

#[test]
fn a_clat_whose_address_another_node_has_gets_another_one() {
    let (host, controller, told) = following();
    let before = controller.running()[0].clat.v6;
    host.inner().exit_status = Some(3);
    host.kill(controller.running()[0].pid);
    wait_until("its death", || controller.running()[0].pid == 0);
    controller.reconcile();
    let clat = controller.running()[0].clat.clone();
    assert_ne!(clat.v6, before);
    assert!(matches!(told.try_recv(), Ok(Event::Died { .. })));
    assert!(matches!(told.try_recv(), Ok(Event::Restarted { .. })));
    assert!(matches!(told.try_recv(), Ok(Event::Started(told)) if told == clat));
    assert_ne!(controller.running()[0].pid, 0);

    // In another network nobody has had one yet.
    let last = || controller.running()[0].clat.v6.octets()[15];
    assert_eq!(last(), before.octets()[15] + 1);
    host.inner().source = "2001:db8:1:3::5".parse().ok();
    controller.reconcile();
    assert_eq!(last(), before.octets()[15]);
}

#[test]
fn what_an_event_says_is_shown_when_it_comes() {
    let host = offloading_host(36);
    let asked = Arc::new(OnceLock::<Weak<Controller<FakeHost>>>::new());
    let (tell, told) = mpsc::channel();
    let observer = {
        let asked = Arc::clone(&asked);
        move |event| {
            let controller = asked.get().and_then(Weak::upgrade).expect("it runs");
            let pid = controller.running().first().map(|running| running.pid);
            drop(tell.send((event, pid)));
        }
    };
    let controller = Arc::new(Controller::new(Arc::new(host.clone()), true, Arc::new(observer)));
    asked.set(Arc::downgrade(&controller)).expect("set once");
    controller.start("wlan0", PREFIX).expect("starts");
    let first = controller.running()[0].pid;
    host.kill(first);
    wait_until("its death", || controller.running()[0].pid == 0);
    let has_died = |(event, pid): (Event, _)| matches!(event, Event::Died { .. }) && pid == Some(0);
    assert!(matches!(told.recv(), Ok((Event::Started(_), Some(pid))) if pid == first));
    follow_until(&controller, "another", || controller.running()[0].pid != 0);
    assert!(told.recv().is_ok_and(has_died));
    assert!(matches!(told.recv(), Ok((Event::Restarted { pid, .. }, shown)) if shown == Some(pid)));
    controller.stop("wlan0").expect("stops");
    assert!(matches!(told.recv(), Ok((Event::Stopped { .. }, None))));
}

/// The only CLAT keeps its route, whatever its probe says.
#[test]
fn ipv4_goes_by_a_clat_by_which_it_works() {
    let host = FakeHost::with_uplink("wlan0");
    host.add_link("wlan1", 22);
    host.inner().silent.insert("wlan0".to_owned());
    let controller = controller(&host, true).probing("192.0.2.1".parse().ok());
    let withdrawn = || host.inner().withdrawn.iter().cloned().collect::<Vec<_>>();
    let says = |at: usize, working| controller.running()[at].working == working;
    controller.start("wlan0", PREFIX).expect("starts");
    follow_until(&controller, "no", || says(0, Working::No));
    controller.reconcile();
    assert_eq!(withdrawn(), [""; 0]);

    controller.start("wlan1", PREFIX).expect("starts");
    follow_until(&controller, "yes", || says(1, Working::Yes));
    controller.reconcile();
    assert_eq!(withdrawn(), ["route by 101 from 192.0.0.4 metric 2069"]);
    controller.stop("wlan1").expect("stops");
    controller.reconcile();
    assert_eq!(withdrawn(), [""; 0]);

    // Neither works.
    host.inner().silent.insert("wlan1".to_owned());
    controller.start("wlan1", PREFIX).expect("starts");
    follow_until(&controller, "no", || says(1, Working::No));
    controller.reconcile();
    assert_eq!(withdrawn(), [""; 0]);
}

#[test]
fn a_clat_gets_three_new_addresses_a_minute() {
    let (host, controller, _told) = following();
    host.inner().exit_status = Some(3);
    let mut seen = vec![controller.running()[0].clat.v6];
    for n in 1..=4 {
        host.kill(controller.running()[0].pid);
        wait_until("its death", || controller.running()[0].pid == 0);
        let due = controller.reconcile();
        let running = &controller.running()[0];
        if n == 4 {
            // Nothing is sent from the duplicate address.
            assert_eq!((running.pid, running.clat.v6), (0, seen[3]));
            assert!(due > Some(Instant::now() + Duration::from_secs(30)), "{due:?}");
        } else {
            assert_ne!(running.pid, 0);
            assert!(!seen.contains(&running.clat.v6), "{seen:?}");
            seen.push(running.clat.v6);
        }
    }
}

#[test]
fn a_clatd_that_takes_no_packets_is_replaced() {
    for way in [Direction::Egress, Direction::Ingress] {
        let (host, controller, told) = following();
        let pid = controller.running()[0].pid;
        host.inner().packets = Some(way);
        // The next clatd has packets to read.
        host.kill(pid);
        follow_until(&controller, "the one after", || controller.running()[0].restarts == 2);
        let hung = |event| matches!(event, Event::Died { cause, .. } if cause.starts_with("hung"));
        assert!(told.try_iter().any(hung), "{way:?}");
    }
}

#[test]
fn a_clat_follows_the_name_of_its_uplink() {
    let (host, controller, told) = following();
    let before = controller.running()[0].clat.clone();
    host.add_link("eth1", 22);
    controller.start("eth1", PREFIX).expect("starts");
    assert!(matches!(told.try_recv(), Ok(Event::Started(_))));
    // The names were exchanged, and the CLATs not yet reconciled.
    host.inner().links.remove("wlan0");
    host.add_link("eth1", 21);
    host.add_link("a-very-long-one", 22);
    let error = controller.start("a-very-long-one", PREFIX).expect_err("it runs there");
    assert_eq!(error.errno, Errno::EBUSY, "{error}");
    controller.reconcile();
    controller.reconcile();
    let running = controller.running();
    let names: Vec<_> = running.iter().map(|it| (it.clat.index, it.clat.iface.as_str())).collect();
    assert_eq!(names, [(22, "a-very-long-one"), (21, "eth1")]);
    assert_eq!(running[0].clat.v4iface.as_str(), "v4-22");
    let after = &running[1].clat;
    assert_eq!((after.v4, after.v6, after.v4iface.as_str()), (before.v4, before.v6, "v4-eth1"));
    controller.stop("eth1").expect("stops");
    controller.stop("a-very-long-one").expect("stops");
    assert_eq!(live(&host), ["programs"]);
}

#[test]
fn two_uplinks_swap_their_names() {
    let (host, controller, _) = following();
    host.add_link("eth1", 22);
    controller.start("eth1", PREFIX).expect("starts");
    let addresses = |controller: &Controller<FakeHost>| {
        let running = controller.running().into_iter();
        running.map(|it| (it.clat.index, it.clat.v4, it.clat.v6)).collect::<BTreeSet<_>>()
    };
    let before = addresses(&controller);
    host.add_link("wlan0", 22);
    host.add_link("eth1", 21);
    controller.reconcile();
    controller.reconcile();
    assert_eq!(addresses(&controller), before);
    let names: Vec<_> = controller.running().into_iter().map(|it| it.clat).collect();
    let names = names.iter().map(|it| (it.index, it.iface.as_str(), it.v4iface.as_str()));
    assert_eq!(names.collect::<Vec<_>>(), [(21, "eth1", "v4-eth1"), (22, "wlan0", "v4-wlan0")]);
    controller.shut_down();
    assert_eq!(live(&host), [""; 0]);
}

/// Renamed while no controller was running.
#[test]
fn an_uplink_was_renamed_between_controllers() {
    let host = offloading_host(36);
    let args = host.leave_behind();
    host.inner().links.remove("wlan0");
    host.add_link("eth1", 21);
    let controller = controller(&host, true);
    controller.recover(host.orphans());
    let clat = controller.running()[0].clat.clone();
    assert_eq!((clat.iface.as_str(), clat.v4iface.as_str()), ("eth1", "v4-eth1"));
    assert_eq!((clat.v4, clat.v6), (args.v4, args.v6));
    controller.stop("eth1").expect("stops");
    assert_eq!(live(&host), ["programs"]);
}

#[test]
fn a_prefix_of_the_uplinks_own_network_is_refused() {
    let host = FakeHost::with_uplink("wlan0");
    let error = controller(&host, true).start("wlan0", "2001:db8:1:2::/96").expect_err("its own");
    assert_eq!((error.errno, error.step), (Errno::EINVAL, Step::ParsePrefix), "{error}");
    assert_eq!(live(&host), [""; 0]);
}
