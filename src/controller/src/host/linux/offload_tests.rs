// SPDX-License-Identifier: Apache-2.0

//! Tests of the translation in the kernel, observed by bpftool and tc, each with its own network
//! namespace and BPF file system.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clat_xlat::Prefix;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use nix::sched::{unshare, CloneFlags};

use super::{LinuxHost, Properties};
use crate::host::{Hook, LinkKind, Links, Offload, OffloadCounters, Programs, Recovery};
use crate::model::Clat;
use crate::offload::Attached;
use clat_host::Fwmark;
use clat_host::IfaceName;
use clat_offload::{program_name, Objects, PROGRAMS};

const MAPS: [&str; 4] = [
    "map_clatd_clat_egress_map",
    "map_clatd_clat_ingress_map",
    "map_clatd_clat_counters_map",
    "map_clatd_clat_next_hop_map",
];

/// An Ethernet uplink with a route.
const VETH: &str =
    "ip link add up0 type veth peer name peer0 && ip link set up0 up && ip link set peer0 up &&
    ip -6 addr add 2001:db8::2/64 dev up0 nodad && ip -6 route add default dev up0";

/// Runs `test` in a thread with a new network namespace and in a mount namespace with a BPF file
/// system.
fn in_namespaces(test: impl FnOnce(&LinuxHost, &Path) + Send + 'static) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if !nix::unistd::geteuid().is_root() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
        eprintln!("SKIPPED: needs root for network namespaces");
        return;
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("clat-bpf-{}-{number}", std::process::id()));
    fs::create_dir(&dir).expect("a directory");
    let mounted = dir.clone();
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        mount(Some("bpf"), &mounted, Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("a BPF file system");
        test(&host(&mounted), &mounted);
    });
    let result = thread.join();
    fs::remove_dir(&dir).expect("an empty mount point");
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn host(dir: &Path) -> LinuxHost {
    LinuxHost::new(
        PathBuf::from("/bin/false"),
        Properties::new(None, None).expect("no file"),
        Some(dir.to_owned()),
    )
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn programs(host: &LinuxHost) -> Objects {
    host.programs().expect("programs").expect("wanted")
}

fn clat(host: &LinuxHost) -> Clat {
    let name = |text| IfaceName::parse(text).expect("a name");
    let index = |name| host.index_of(&name).expect("an interface");
    Clat {
        iface: name("up0"),
        index: index(name("up0")),
        v4iface: name("v4-up0"),
        v4index: index(name("v4-up0")),
        prefix: Prefix::WELL_KNOWN,
        v4: "192.0.0.4".parse().expect("an address"),
        v6: "2001:db8::1:2:3:4".parse().expect("an address"),
        mark: Fwmark::new(1),
        since: Instant::now(),
    }
}

/// Our filter on each interface, without its varying parts; empty if there is none.
fn filters() -> [String; 2] {
    ["v4-up0 egress", "up0 ingress"].map(|place| {
        let shown = sh(&format!("tc filter show dev {place}"));
        let found: Vec<_> = shown
            .lines()
            .filter(|line| line.contains(" pref 4 ") && line.contains("fsobj"))
            .collect();
        assert!(found.len() < 2, "{shown}");
        let line = found.first().copied().unwrap_or_default();
        let words = line.split(" not_in_hw").next().unwrap_or_default().split(' ').skip(1);
        let mut words: Vec<_> = words.collect();
        if let Some(at) = words.iter().position(|word| *word == "handle") {
            words.drain(at..at + 2);
        }
        words.join(" ")
    })
}

fn pinned_id(dir: &Path, name: &str) -> String {
    let kind = if name.starts_with("map") { "map" } else { "prog" };
    let shown = sh(&format!("bpftool {kind} show pinned {}/{name}", dir.display()));
    shown.split(':').next().unwrap_or_default().to_owned()
}

fn pins(dir: &Path) -> BTreeMap<String, String> {
    let programs = PROGRAMS.map(|(hook, link)| program_name(hook, link));
    MAPS.into_iter().chain(programs).map(|name| (name.to_owned(), pinned_id(dir, name))).collect()
}

/// The values of a map in hexadecimal digits; of an array, those that are not zero.
fn values(dir: &Path, map: &str) -> Vec<String> {
    let shown = sh(&format!("bpftool -j map dump pinned {}/{map}", dir.display()));
    // bpftool also shows them as objects or numbers.
    let values = shown.split("\"value\":[").skip(1).filter_map(|rest| rest.split(']').next());
    let digits = values.map(|bytes| bytes.replace([',', '"', ' '], "").replace("0x", ""));
    digits.filter(|digits| digits.contains(|digit| digit != '0')).collect()
}

fn entries(dir: &Path, map: &str) -> usize {
    values(dir, map).len()
}

/// Attaches to and detaches from an uplink made by `make_uplink`, observed by tools.
fn comes_and_goes(host: &LinuxHost, dir: &Path, make_uplink: &str, link: LinkKind) {
    sh(make_uplink);
    sh("ip tuntap add v4-up0 mode tun");
    let programs = programs(host);
    let clat = clat(host);
    assert_eq!(programs.link_kind(clat.index).expect("known"), link);
    // Other filters: with our name at another priority, and with our priority and another program.
    sh("tc qdisc add dev up0 clsact");
    let add = "tc filter add dev up0 ingress protocol ipv6";
    let pinned = dir.join(program_name(Hook::Ingress, link));
    sh(&format!("{add} prio 5 bpf da pinned {}", pinned.display()));
    sh(&format!("{add} prio 4 bpf bytecode \"1,6 0 0 0\" classid 1:1"));
    let foreign = || sh("tc filter show dev up0 ingress | grep -c -E \"pref 5 .*handle|bytecode\"");
    assert_eq!(foreign().trim(), "2");

    let attached = Attached::attach(&programs, &clat, false).expect("attached");
    let kind = if link == LinkKind::Ethernet { "ether" } else { "rawip" };
    let names = ["egress_clat_rawip".to_owned(), format!("ingress_clat_{kind}")];
    let [egress, ingress] = names.map(|name| format!("prog_clatd_schedcls_{name}"));
    let line = |protocol, name: &str| {
        format!("protocol {protocol} pref 4 bpf chain 0 {name}:[*fsobj] direct-action")
    };
    assert_eq!(filters(), [line("ip", &egress), line("ipv6", &ingress)]);
    for (place, name) in [("v4-up0 egress", &egress), ("up0 ingress", &ingress)] {
        let shown = sh(&format!("tc filter show dev {place}"));
        let id = pinned_id(dir, name);
        assert!(shown.contains(&format!(" id {id} ")), "{shown} {id}");
    }
    assert_eq!(
        MAPS.map(|map| entries(dir, map)),
        [1, 1, 0, usize::from(link == LinkKind::Ethernet)]
    );
    let egress = programs.egress_map().expect("readable");
    assert_eq!((egress.len(), egress[0].oif_is_ethernet), (1, link == LinkKind::Ethernet));
    assert_eq!((egress[0].iif, egress[0].oif), (clat.v4index, clat.index));
    assert_eq!((egress[0].local4, egress[0].local6), (clat.v4, clat.v6));
    let ingress = programs.ingress_map().expect("readable");
    assert_eq!((ingress[0].iif, ingress[0].oif), (clat.index, clat.v4index));
    assert_eq!((ingress[0].prefix, ingress[0].local6), (clat.prefix.addr(), clat.v6));
    for hook in [Hook::Egress, Hook::Ingress] {
        let counters = programs.counters(hook, clat.v4).expect("readable");
        assert_eq!(counters, Some(OffloadCounters::default()));
    }

    drop(attached);
    assert_eq!(filters(), ["", ""]);
    assert_eq!(MAPS.map(|map| entries(dir, map)), [0; MAPS.len()]);
    assert_eq!(foreign().trim(), "2");
    assert!(sh("tc qdisc show dev v4-up0").contains("clsact"), "stays until its interface goes");
    drop(Attached::attach(&programs, &clat, false).expect("a second time"));

    // The interfaces may be removed first.
    let attached = Attached::attach(&programs, &clat, false).expect("a third time");
    sh("ip link del v4-up0; ip link del up0");
    drop(attached);
    assert_eq!(MAPS.map(|map| entries(dir, map)), [0; MAPS.len()]);
    drop(programs);
    assert_eq!(fs::read_dir(dir).expect("readable").count(), 2, "maps.debug and progs.debug");
}

#[test]
fn on_ethernet() {
    let veth = VETH;
    in_namespaces(|host, dir| comes_and_goes(host, dir, veth, LinkKind::Ethernet));
}

#[test]
fn on_raw_ip() {
    let tun = "ip tuntap add up0 mode tun";
    in_namespaces(|host, dir| comes_and_goes(host, dir, tun, LinkKind::RawIp));
}

#[test]
fn other_links_are_refused() {
    in_namespaces(|host, _| {
        let programs = programs(host);
        let lo = host.index_of(&IfaceName::parse("lo").expect("a name")).expect("there");
        let error = programs.link_kind(lo).expect_err("a loopback");
        let error = crate::errors::Error::io(&error, "lo", crate::errors::Step::FindLinkKind);
        assert_eq!(error.errno, Errno::EAFNOSUPPORT, "{error}");
        assert_eq!(programs.link_kind(9999).map_err(|e| e.raw_os_error()), Err(Some(libc::ENODEV)));
    });
}

#[test]
fn a_killed_controller_is_cleaned_up_and_its_pins_are_used() {
    in_namespaces(|host, dir| {
        sh(VETH);
        sh("ip tuntap add v4-up0 mode tun");
        let first = programs(host);
        let before = pins(dir);
        // As after a killed process: all is left but the lock.
        std::mem::forget(Attached::attach(&first, &clat(host), false).expect("attached"));
        let busy = host.programs().expect_err("the lock");
        assert!(busy.to_string().contains("another clat_controller"), "{busy}");
        first.detach();

        host.remove_filters(&[]);
        assert_eq!(filters(), ["", ""]);
        let second = programs(host);
        assert_eq!(entries(dir, MAPS[0]), 1, "maps are last");
        second.clear_maps(&[], &[]).expect("cleared");
        assert_eq!(MAPS.map(|map| entries(dir, map)), [0; MAPS.len()]);
        assert_eq!(pins(dir), before);
        drop(Attached::attach(&second, &clat(host), false).expect("works"));
    });
}

#[test]
fn counters_begin_with_a_clat_and_outlive_a_controller() {
    in_namespaces(|host, dir| {
        sh(VETH);
        sh("ip tuntap add v4-up0 mode tun");
        let clat = clat(host);
        let counted = |programs: &Objects| {
            [Hook::Egress, Hook::Ingress]
                .map(|hook| programs.counters(hook, clat.v4).expect("readable").expect("counted"))
        };
        // Each counter of each slot.
        let count = || {
            let map = MapHandle::from_pinned_path(dir.join(MAPS[2])).expect("pinned");
            let size = map.value_size() as usize;
            let ones = vec![vec![1; size]; libbpf_rs::num_possible_cpus().expect("CPUs")];
            for slot in map.keys() {
                map.update_percpu(&slot, &ones, MapFlags::ANY).expect("written");
            }
        };
        let first = programs(host);
        count();
        let attached = Attached::attach(&first, &clat, false).expect("attached");
        let none = OffloadCounters::default();
        assert_eq!(counted(&first), [none, none]);
        count();
        let before = counted(&first);
        assert!(!before.contains(&none), "{before:?}");
        // As after a killed process.
        std::mem::forget(attached);
        first.detach();

        let second = programs(host);
        let attached = Attached::attach(&second, &clat, false).expect("taken over");
        assert_eq!(counted(&second), before);
        drop(attached);
        let _attached = Attached::attach(&second, &clat, false).expect("attached");
        assert_eq!(counted(&second), [none, none]);
    });
}

#[test]
fn pins_of_another_kind_are_replaced() {
    in_namespaces(|host, dir| {
        sh(VETH);
        sh("ip tuntap add v4-up0 mode tun");
        let path = dir.display();
        let create = |name, kind, key, value| {
            sh(&format!(
                "bpftool map create {path}/{name} type {kind} key {key} value {value} entries 16 \
                    name other"
            ));
        };
        create(MAPS[0], "hash", 8, 36);
        create(MAPS[1], "array", 4, 8);
        create(MAPS[2], "percpu_hash", 4, 8);
        create(MAPS[3], "hash", 4, 20);
        // A map in place of a program, and the remains of a controller killed while it replaced a
        // pin.
        let program = program_name(Hook::Ingress, LinkKind::Ethernet);
        create(program, "hash", 8, 40);
        create("map_clatd_clat_egress_map_new", "hash", 8, 40);
        let before = MAPS.map(|map| pinned_id(dir, map));

        let first = programs(host);
        let after = pins(dir);
        for (map, before) in MAPS.iter().zip(before) {
            assert_ne!(after[*map], before);
        }
        assert!(!dir.join("map_clatd_clat_egress_map_new").exists());
        drop(Attached::attach(&first, &clat(host), false).expect("works"));
        first.detach();

        // One map was replaced: its programs are reloaded, the others stay.
        fs::remove_file(dir.join(MAPS[1])).expect("there");
        let second = programs(host);
        let now = pins(dir);
        for (name, id) in &now {
            let is_new = name == MAPS[1] || name.contains("ingress_clat");
            assert_eq!(*id != after[name], is_new, "{name}");
        }
        drop(Attached::attach(&second, &clat(host), false).expect("works"));
    });
}

#[test]
fn the_folder_has_to_be_of_the_right_kind() {
    in_namespaces(|_, dir| {
        let elsewhere = std::env::temp_dir().join(format!("clat-nobpf-{}", std::process::id()));
        let said = host(&elsewhere).programs().expect_err("no BPF file system").to_string();
        assert!(
            said.contains("is not on a BPF file system") && said.contains("mount -t bpf"),
            "{said}"
        );
        fs::remove_dir(&elsewhere).expect("empty");
        // A directory inside is created.
        drop(programs(&host(&dir.join("of/ours"))));
        assert!(dir.join("of/ours").is_dir());
    });
}

#[test]
fn a_program_that_is_missing_is_no_excuse() {
    in_namespaces(|host, dir| {
        sh(VETH);
        sh("ip tuntap add v4-up0 mode tun");
        let programs = programs(host);
        fs::remove_file(dir.join(program_name(Hook::Ingress, LinkKind::Ethernet))).expect("there");
        let Err(error) = Attached::attach(&programs, &clat(host), false) else {
            panic!("no program")
        };
        assert_eq!((error.errno, error.step), (Errno::EIO, crate::errors::Step::AddIngressFilter));
        assert_eq!(filters(), ["", ""]);
        assert_eq!(MAPS.map(|map| entries(dir, map)), [0; MAPS.len()]);
    });
}

/// The next hop of up0 in the map, when it is as expected, or after a timeout.
fn next_hop(dir: &Path, expected: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let value = values(dir, MAPS[3]).pop().unwrap_or_default();
        // `known` follows it.
        let hop = value.get(..32).unwrap_or_default().to_owned();
        if hop == expected || Instant::now() > deadline {
            return hop;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_next_hop_follows_the_routes() {
    const ON_LINK: &str = "00000000000000000000000000000000";
    const ROUTER: &str = "fe800000000000000000000000000001";
    in_namespaces(|host, dir| {
        sh(VETH);
        sh("ip tuntap add v4-up0 mode tun && ip link add up1 type veth peer name peer1");
        sh("ip link set up1 up && ip link set peer1 up");
        let programs = programs(host);
        let attached = Attached::attach(&programs, &clat(host), false).expect("attached");
        for (change, expected) in [
            ("true", ON_LINK),
            ("ip -6 route add default via fe80::1 dev up0 metric 10", ROUTER),
            // The best route, but through another interface.
            ("ip -6 route add default via fe80::2 dev up1 metric 1", ROUTER),
            ("ip -6 route add 64:ff9b::/96 via fe80::2 dev up1 metric 1", ROUTER),
            ("ip -6 route add 64:ff9b::/96 dev up0 table 7", ON_LINK),
            ("ip -6 route del 64:ff9b::/96 dev up0 table 7", ROUTER),
            ("ip link set up0 down", ""),
            ("ip link set up0 up; ip -6 route add default via fe80::1 dev up0", ROUTER),
            ("ip -6 route flush default dev up0; ip -6 route flush default dev up0", ""),
        ] {
            sh(change);
            assert_eq!(next_hop(dir, expected), expected, "{change}");
        }
        drop(attached);
        sh("ip -6 route add default via fe80::1 dev up0");
        // A CLAT without a route still starts, and gets one later.
        let attached = Attached::attach(&programs, &clat(host), false).expect("attached again");
        assert_eq!(next_hop(dir, ROUTER), ROUTER);
        drop(attached);
        assert_eq!(MAPS.map(|map| entries(dir, map)), [0; MAPS.len()]);
    });
}
