// SPDX-License-Identifier: Apache-2.0

//! Tests of the Linux host with the kernel, each in its own network namespace.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use clat_host::firewall::Rule;
use clat_host::{ClatdArgs, Fwmark, IfaceName};
use clat_tun::default_queues;
use clat_xlat::Prefix;
use nix::sched::{unshare, CloneFlags};

use super::{LinuxHost, Properties};
use crate::host::{Devices, Firewall, Links, Recovery};

const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 4);

/// Runs `test` in a thread with a new network namespace, which ends with the thread.
fn in_namespace(test: impl FnOnce(&LinuxHost) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
        eprintln!("SKIPPED: needs root for network namespaces");
        return;
    }
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        test(&LinuxHost::new(
            PathBuf::from("/bin/false"),
            Properties::new(None, None).expect("no file"),
            None,
        ));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn name(text: &str) -> IfaceName {
    IfaceName::parse(text).expect("a name")
}

#[test]
fn devices_addresses_and_routes() {
    in_namespace(|host| {
        let v4iface = name("v4-up0");
        assert_eq!(host.index_of(&v4iface), None);
        let tun = host.create_tun(&v4iface).expect("created");
        let index = host.index_of(&v4iface).expect("there");
        assert_eq!(host.name_of(index).as_deref(), Some("v4-up0"));
        assert_eq!(host.name_of(index + 1), None);
        let again = host.create_tun(&v4iface).expect_err("exclusive");
        assert!(again.to_string().contains("v4-up0"), "{again}");
        let details = sh("ip -d link show v4-up0");
        let queues =
            if default_queues() > 1 { "multi_queue numqueues 1 numdisabled 0 " } else { "" };
        let expected = format!("tun type tun pi off vnet_hdr on {queues}persist off");
        assert!(details.contains(&expected), "{details}");

        host.disable_ipv6(&v4iface).expect("written");
        sh("ip link set lo up && ip link set v4-up0 up");
        assert_eq!(sh("ip -6 addr show dev v4-up0"), "");

        assert!(host.has_address(Ipv4Addr::LOCALHOST).expect("known"));
        assert!(!host.has_address(V4).expect("known"));
        assert!(!host.is_configured(&v4iface, V4).expect("known"));
        sh("ip link set v4-up0 down && ip addr add 192.0.0.4/32 dev v4-up0");
        assert!(!host.is_configured(&v4iface, V4).expect("known"), "down");
        sh("ip link set v4-up0 up");
        assert!(host.is_configured(&v4iface, V4).expect("known"));
        assert!(!host.is_configured(&v4iface, Ipv4Addr::new(192, 0, 0, 5)).expect("known"));
        assert!(!host.is_configured(&name("lo"), V4).expect("known"));
        assert!(host.has_address(V4).expect("known"));

        let route = host.default_route(index, V4, 2048).expect("set");
        assert_eq!(
            sh("ip -4 route").trim(),
            "default dev v4-up0 proto static scope link src 192.0.0.4 metric 2048"
        );
        let again = host.default_route(index, V4, 2048).expect_err("there is one");
        assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
        let second = host.default_route(index, V4, 2049).expect("set");
        drop(route);
        assert_eq!(
            sh("ip -4 route").trim(),
            "default dev v4-up0 proto static scope link src 192.0.0.4 metric 2049"
        );

        sh("ping -c 1 -w 5 127.0.0.1");
        let traffic = host.traffic(&name("lo")).expect("counted");
        assert!(traffic.tx_packets >= 2 && traffic.rx_bytes >= 2 * 84, "{traffic:?}");

        drop(tun);
        assert_eq!(host.index_of(&v4iface), None);
        // The route was removed with its device; dropping it must not remove another route.
        drop(second);
        assert_eq!(host.traffic(&v4iface).map_err(|e| e.raw_os_error()), Err(Some(libc::ENODEV)));
        assert!(host.disable_ipv6(&v4iface).is_err());
    });
}

#[test]
fn source_addresses() {
    in_namespace(|host| {
        let (uplink, mark) = (name("up0"), Fwmark::new(1));
        let source = || host.source_towards(&uplink, mark, Prefix::WELL_KNOWN.addr());
        assert!(source().is_err(), "no such interface");
        sh("ip link add up0 type veth peer name up1 && ip link set up1 up && ip link set up0 up");
        assert!(source().is_err(), "no route");
        sh("ip addr add 2001:db8::5/64 dev up0 nodad && ip -6 route add default dev up0");
        assert_eq!(
            source().expect("a route"),
            "2001:db8::5".parse::<std::net::Ipv6Addr>().expect("an address")
        );
        // Neither a temporary address (RFC 8981), which the kernel would choose, nor a deprecated
        // one while there is another.
        sh("sysctl -qw net.ipv6.conf.up0.use_tempaddr=2");
        sh("ip addr add 2001:db8:1::5/64 dev up0 nodad mngtmpaddr");
        let is_settled = || sh("ip -6 addr show dev up0 tentative").is_empty();
        assert!((0..1000).any(|_| is_settled()), "still tentative");
        assert!(sh("ip -6 route get 64:ff9b::1").contains("src 2001:db8:1:0:"));
        let stable = |net: u16| Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, 5);
        let chosen = source().expect("a route");
        assert!([0, 1].map(stable).contains(&chosen), "{chosen}");
        for (deprecated, chosen) in [(0, 1), (1, 0)] {
            let set = |net, lifetime| {
                let addr = stable(net);
                sh(&format!("ip addr change {addr}/64 dev up0 preferred_lft {lifetime}"));
            };
            set(deprecated, "0");
            assert_eq!(source().expect("a route"), stable(chosen));
            set(deprecated, "forever");
        }
        // Another interface's route does not count, and the mark chooses the table.
        let other = host.source_towards(&name("up1"), mark, Prefix::WELL_KNOWN.addr());
        assert!(
            other.is_err()
                || other.is_ok_and(|addr| !clat_host::address::is_usable_source(addr, false))
        );
        sh(&format!("ip -6 rule add pref 1 fwmark {mark} prohibit"));
        let refused = source().expect_err("the mark's rule");
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{refused}");
    });
}

/// The rule in netd's chain, on Android.
#[test]
fn firewall_rules() {
    in_namespace(|_| {
        let v6 = "2001:db8::1:2:3:4".parse().expect("an address");
        let add = |iface| Rule::add(&name(iface), &Prefix::WELL_KNOWN, v6).expect("added");
        let (rule, other) = (add("up0"), add("up1"));
        let jump = "-A PREROUTING -j clat_raw_PREROUTING";
        let line = |iface| {
            format!(
                "-A clat_raw_PREROUTING -s 64:ff9b::/96 -d 2001:db8::1:2:3:4/128 -i {iface} -j \
                DROP"
            )
        };
        let rules = sh("ip6tables -t raw -S");
        assert!(
            [jump, &line("up0"), &line("up1")].iter().all(|l| rules.lines().any(|r| r == *l)),
            "{rules}"
        );
        assert_eq!(rules.matches(jump).count(), 1, "{rules}");
        drop(rule);
        let rules = sh("ip6tables -t raw -S");
        assert!(!rules.contains("up0") && rules.contains("up1"), "{rules}");
        drop(other);
        // The chain stays, since it is netd's.
        let nothing = sh("ip6tables -t raw -S");
        assert!(nothing.contains(jump) && !nothing.contains("DROP"), "{nothing}");
        // As after a flush of the tables.
        sh("ip6tables -t raw -F && ip6tables -t raw -X");
        let rule = add("up0");
        let rules = sh("ip6tables -t raw -S");
        assert!(rules.contains(jump) && rules.contains(&line("up0")), "{rules}");
        drop(rule);

        // The remains of two killed controllers, beside another program's rule.
        let theirs = "-A PREROUTING -i other0 -j ACCEPT";
        sh(&format!("ip6tables -t raw {theirs}"));
        std::mem::forget((add("up0"), add("up0")));
        drop(Rule::adopt(&[]).expect("tidied up"));
        let rules = sh("ip6tables -t raw -S");
        assert_eq!(rules, format!("{nothing}{theirs}\n"));
        drop(Rule::adopt(&[]).expect("tidied up"));
    });
}

/// The route that replaces the rule on systems without netd.
#[test]
fn blackhole_routes() {
    in_namespace(|host| {
        let v6 = |n: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 1, 2, 3, n);
        let add = |n| host.drop_rule(&name("up0"), &Prefix::WELL_KNOWN, v6(n)).expect("added");
        let shown = || sh("ip -6 route show table local | grep blackhole || true");
        let line = |n| format!("blackhole {} dev lo proto 64 metric 1024 pref medium\n", v6(n));
        let (first, second) = (add(1), add(2));
        assert_eq!(shown(), line(1) + &line(2));
        drop(first);
        assert_eq!(shown(), line(2));
        assert!(!host.restore_rule(&second).expect("routes"), "it is there");
        sh("ip -6 route flush table all");
        assert!(host.restore_rule(&second).expect("routes"));
        assert_eq!(shown(), line(2));

        // The remains of a killed controller, beside another program's route.
        let theirs = "blackhole 2001:db8::9 dev lo proto static metric 1024 pref medium\n";
        sh("ip -6 route add blackhole 2001:db8::9 table local proto static");
        std::mem::forget((second, add(3)));
        let args = |n| ClatdArgs {
            uplink: name("up0"),
            mark: Fwmark::new(1),
            prefix: Prefix::WELL_KNOWN,
            v4: [192, 0, 0, 4].into(),
            v6: v6(n),
        };
        let kept = host.adopt_rules(&[args(3), args(4)]).expect("taken over");
        assert_eq!(shown(), theirs.to_owned() + &line(3) + &line(4));
        drop(kept);
        assert_eq!(shown(), theirs);
        drop(host.adopt_rules(&[]).expect("nothing"));
        assert_eq!(shown(), theirs);
    });
}
