// SPDX-License-Identifier: Apache-2.0

//! A CLAT follows its network: changes on the real kernel under a running CLAT, with BPF programs
//! and without, on both kinds of uplink.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::packet::{icmpv6, proto, Seen, V6};
use clat_tests::wire::{send_raw, uninterrupted, Sniffer};
use clat_tests::{
    can_run, change, eventually, Controller, Lab, Mode, Netns, Offloads, Uplink, PREFIX, PREFIX2,
    SERVER4, SERVER6, UPLINK6,
};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

const NEEDS: &[&str] = &["ip", "ethtool", "ping", "tc", "nft"];

/// Far longer than any step takes; the real time is printed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes six tests of each.
macro_rules! on_both_paths_and_links {
    ($($name:ident)*) => { $(mod $name {
        use super::{run, Mode, Uplink};

        #[test]
        fn ethernet_offload() -> anyhow::Result<()> {
            run(Uplink::Ethernet, Mode::Offload, super::$name)
        }

        #[test]
        fn ethernet_direct() -> anyhow::Result<()> {
            run(Uplink::Ethernet, Mode::Direct, super::$name)
        }

        #[test]
        fn ethernet_daemon() -> anyhow::Result<()> {
            run(Uplink::Ethernet, Mode::Daemon, super::$name)
        }

        #[test]
        fn rawip_offload() -> anyhow::Result<()> {
            run(Uplink::RawIp, Mode::Offload, super::$name)
        }

        #[test]
        fn rawip_direct() -> anyhow::Result<()> {
            run(Uplink::RawIp, Mode::Direct, super::$name)
        }

        #[test]
        fn rawip_daemon() -> anyhow::Result<()> {
            run(Uplink::RawIp, Mode::Daemon, super::$name)
        }
    })* };
}

on_both_paths_and_links! {
    its_uplink_is_renumbered
    its_path_shrinks_and_grows
    its_route_and_its_address_are_taken_away
    its_device_is_deleted
    its_uplink_is_deleted
    its_uplink_is_renamed
    its_router_advertises_another_mtu
    its_router_deprecates_its_prefix
    its_clatd_hangs
    its_clatd_hangs_while_packets_only_arrive
    others_flush_their_rules_and_routes
}

fn run(uplink: Uplink, mode: Mode, test: fn(&Lab, &Controller<'_>) -> Result<()>) -> Result<()> {
    run_with(uplink, Offloads::Default, mode, test)
}

fn run_with(
    uplink: Uplink,
    offloads: Offloads,
    mode: Mode,
    test: fn(&Lab, &Controller<'_>) -> Result<()>,
) -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::on(uplink, offloads)?;
    let controller = Controller::new(&lab, mode, &[])?;
    controller.start("up0", PREFIX)?;
    works(&lab, "at first")?;
    test(&lab, &controller).with_context(|| controller.daemon.log())
}

/// On links with neighbour discovery.
#[test]
fn another_node_has_its_address() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        run(Uplink::Ethernet, mode, |lab, controller| {
            let v6 = status(controller)?["v6"].as_str().context("an address")?.to_owned();
            lab.router.run(&format!("ip -6 addr add {v6}/128 dev ph0 nodad"))?;
            // The next clatd detects the duplicate.
            for pid in controller.clatds() {
                lab.phone.run(&format!("kill -9 {pid}"))?;
            }
            eventually("another address", || {
                Ok(status(controller)?["v6"].as_str().is_some_and(|now| now != v6))
            })?;
            works(lab, "with another address")
        })?;
    }
    Ok(())
}

/// The better of two uplinks goes down, then the other one loses its route.
#[test]
fn another_uplink_takes_over() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        run(Uplink::Ethernet, mode, |lab, controller| {
            lab.second_uplink()?;
            controller.start("up1", PREFIX2)?;
            ensure!(lab.phone.run("ip -4 route get 192.0.2.1")?.contains("v4-up0"), "the first");
            lab.phone.run("ip link set up0 down")?;
            works(lab, "by the other uplink")?;
            lab.phone.run("ip -6 route del default dev up1")?;
            eventually("no route", || Ok(lab.phone.run("ip -4 route show default")?.is_empty()))?;
            lab.phone.run("ip -6 route add default via 2001:db8:2::1 dev up1")?;
            works(lab, "with a route again")
        })?;
    }
    Ok(())
}

/// The PLAT of the better of two uplinks falls silent while a program sends; then the other's, too.
#[test]
fn its_plat_falls_silent() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    for mode in [Mode::Offload, Mode::Direct, Mode::Daemon] {
        let lab = Lab::new(Offloads::Default)?;
        lab.second_uplink()?;
        let controller = Controller::new(&lab, mode, &["--probe", &SERVER4.to_string()])?;
        let uplinks = [("up0", PREFIX), ("up1", PREFIX2)];
        let says = |iface: &str, working: &str| {
            let is_so = || Ok(controller.status(iface)?["working"] == working);
            eventually(&format!("{iface}: {working}"), is_so)
        };
        for (iface, prefix) in uplinks {
            controller.start(iface, prefix)?;
            says(iface, "yes")?;
        }
        works(&lab, "by the first")?;
        lab.router.run(&format!("ip -6 route add blackhole {PREFIX} metric 1"))?;
        works(&lab, &format!("{mode:?}: the first is silent"))?;
        ensure!(controller.status("up0")?["working"] == "no", "it went by itself");
        let by = |iface: &str| -> Result<bool> {
            Ok(lab.phone.run("ip -4 route get 192.0.2.1")?.contains(iface))
        };
        ensure!(by("up1")?, "{}", lab.phone.run("ip -4 route")?);
        lab.router.run(&format!("ip -6 route add blackhole {PREFIX2} metric 1"))?;
        eventually("up1: no", || {
            let _ = lab.phone.run(&format!("ping -c 1 -W 0.1 {SERVER4}"));
            Ok(controller.status("up1")?["working"] == "no")
        })?;
        eventually("none of them is better", || by("up0"))?;
        lab.router.run(&format!("ip -6 route del blackhole {PREFIX} metric 1"))?;
        works(&lab, "the first answers again")?;
    }
    Ok(())
}

/// Each device takes the other's previous name.
#[test]
fn two_uplinks_swap_their_names() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        run(Uplink::Ethernet, mode, |lab, controller| {
            lab.second_uplink()?;
            controller.start("up1", PREFIX2)?;
            let of = |iface: &str| -> Result<Value> {
                let mut all = all(controller)?.into_iter();
                all.find(|clat| clat["iface"] == iface).with_context(|| iface.to_owned())
            };
            let (first, second) = (of("up0")?, of("up1")?);
            for (name, new) in [("up0", "other"), ("up1", "up0"), ("other", "up1")] {
                lab.phone.run(&format!("ip link set {name} down"))?;
                lab.phone.run(&format!("ip link set {name} name {new}"))?;
            }
            for (name, net, metric) in [("up0", "2001:db8:2", 101), ("up1", "2001:db8:1", 100)] {
                for line in [
                    format!("ip link set {name} up"),
                    format!("ip -6 addr replace {net}::2/64 dev {name} nodad"),
                    format!("ip -6 route add default via {net}::1 dev {name} metric {metric}"),
                ] {
                    lab.phone.run(&line)?;
                }
            }
            for (name, before) in [("up1", first), ("up0", second)] {
                eventually(name, || {
                    let is_it = |clat: Value| clat["ifIndex"] == before["ifIndex"];
                    Ok(of(name).is_ok_and(is_it))
                })?;
                let device = format!("ping -c 1 -W 0.2 -I v4-{name} {SERVER4}");
                eventually("an answer", || Ok(lab.phone.run(&device).is_ok()))?;
                let after = of(name)?;
                for same in ["v4", "v6", "offloaded"] {
                    ensure!(before[same] == after[same], "{same}: {before} {after}");
                }
                ensure!(after["v4iface"] == format!("v4-{name}"), "{after}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn its_uplink_is_made_anew() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        run(Uplink::Ethernet, mode, |lab, controller| {
            lab.remake_uplink()?;
            eventually("its end", || Ok(all(controller)?.is_empty()))?;
            controller.start("up0", PREFIX)?;
            works(lab, "started again")
        })?;
    }
    Ok(())
}

/// Neighbours resolve its address while clatd is dead, so that BPF programs go on translating; and
/// the delay before each restart grows.
#[test]
fn its_clatd_dies_again_and_again() -> Result<()> {
    run(Uplink::Ethernet, Mode::Offload, |lab, controller| {
        for restarts in 0..7 {
            let runs = |clat: &Value| clat["pid"] != 0 && clat["restarts"] == restarts;
            eventually("a clatd", || Ok(runs(&status(controller)?)))?;
            let pid = status(controller)?["pid"].as_i64().context("a number")?;
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
        }
        eventually("its death", || Ok(status(controller)?["pid"] == 0))?;
        let clat = status(controller)?;
        ensure!(clat["pid"] == 0 && clat["offloaded"] == true, "{clat}");
        lab.router.run("ip -6 neigh flush dev ph0")?;
        works(lab, "without a clatd")?;
        let clat = status(controller)?;
        ensure!(clat["pid"] == 0, "it was back too early to tell: {clat}");
        eventually("its clatd", || Ok(status(controller)?["restarts"] == 7))
    })
}

/// Flags of a neighbour advertisement (RFC 4861 §4.4).
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Whether this is a neighbour advertisement of `v6`, with one option.
fn is_advertisement(seen: &Seen, v6: Ipv6Addr) -> bool {
    let message = &seen.payload;
    let is_it = seen.proto == proto::ICMPV6 && message.len() == 32 && message[0] == 136;
    is_it && message[8..24] == v6.octets()
}

/// Whoever asks for its address is answered from that very address (RFC 4861 §7.2.4), and by nobody
/// else: some wireless controllers forget a node that answers from another.
#[test]
fn neighbours_are_answered() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    for mode in [Mode::Offload, Mode::Direct, Mode::Daemon] {
        let lab = Lab::on(Uplink::Ethernet, Offloads::Default)?;
        let controller = Controller::new(&lab, mode, &[])?;
        let wire = Sniffer::new(&lab.router, "ph0")?;
        let (_, v6) = controller.start("up0", PREFIX)?;
        // Before, another node may turn out to have it (RFC 4429 §2.2).
        let is_sure = |seen: &Seen| is_advertisement(seen, v6) && seen.payload[4] & OVERRIDE != 0;
        wire.wait(PATIENCE, is_sure).context("the end of duplicate address detection")?;
        let link_local = lab.router.run("ip -o -6 addr show dev ph0 scope link")?;
        let link_local = link_local.split_whitespace().find_map(|word| word.strip_suffix("/64"));
        let link_local = link_local.context("a link-local address")?.parse()?;
        let [own, theirs] = [link_address(&lab.phone, "up0")?, link_address(&lab.router, "ph0")?];
        for asker in [link_local, Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)] {
            // The router's kernel first asks by multicast, for the address to send this to.
            lab.router.run("ip -6 neigh flush dev ph0")?;
            let question = [&v6.octets()[..], &[1, 1], &theirs].concat();
            let question = icmpv6(asker, v6, 135, 0, 0, &question);
            let header = V6 { hops: 255, ..V6::new(asker, v6, proto::ICMPV6) };
            send_raw(&lab.router, &header.packet(&question))?;
            for how in ["by multicast", "by unicast"] {
                let answer = wire.wait(PATIENCE, |seen| is_advertisement(seen, v6));
                let answer = answer.with_context(|| format!("{mode:?}, {asker}, {how}"))?;
                let said = [&[SOLICITED | OVERRIDE, 0, 0, 0], &v6.octets()[..], &[2, 1], &own];
                ensure!(
                    (answer.src, answer.dst) == (v6.into(), asker.into())
                        && (answer.hops, &answer.payload[4..]) == (255, &said.concat()[..]),
                    "{mode:?}, {asker}, {how}: {answer:02x?}"
                );
            }
        }
        // Nor later, as for an anycast address (RFC 4861 §7.2.7).
        while let Some(packet) = wire.next(Duration::from_secs(1))? {
            let seen = Seen::read(&packet);
            ensure!(!seen.is_some_and(|seen| is_advertisement(&seen, v6)), "{packet:02x?}");
        }
    }
    Ok(())
}

/// The Ethernet address of an interface.
fn link_address(ns: &Netns, dev: &str) -> Result<[u8; 6]> {
    let shown = ns.run(&format!("ip -o link show dev {dev}"))?;
    let address = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    let bytes = address.context("no Ethernet address")?.split(':');
    let bytes = bytes.map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().map_err(|bytes| anyhow::anyhow!("{bytes:?}"))
}

/// Neighbours are sent advertisements at the start, for every new address, and when the Ethernet
/// address changes (RFC 4861 §7.2.6, RFC 9131).
#[test]
fn neighbours_are_told() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    for mode in [Mode::Offload, Mode::Daemon] {
        let lab = Lab::on(Uplink::Ethernet, Offloads::Default)?;
        let controller = Controller::new(&lab, mode, &[])?;
        let wire = Sniffer::new(&lab.router, "ph0")?;
        let told = |v6: Ipv6Addr, at: Option<[u8; 6]>| -> Result<()> {
            let is_told = |seen: &Seen| {
                is_advertisement(seen, v6)
                    && seen.payload[4] & OVERRIDE != 0
                    && at.is_none_or(|at| seen.payload[26..32] == at)
            };
            wire.wait(PATIENCE, is_told).with_context(|| format!("{v6} at {at:02x?}")).map(drop)
        };
        let (_, v6) = controller.start("up0", PREFIX)?;
        told(v6, None).context("at the start")?;
        lab.phone.run("ip link set up0 address 02:00:00:00:12:34")?;
        told(v6, Some([2, 0, 0, 0, 0x12, 0x34])).context("at another Ethernet address")?;
        works(&lab, "at another Ethernet address")?;
        change::renumber(&lab)?;
        eventually("a new address", || Ok(status(&controller)?["v6"] != v6.to_string()))?;
        let v6 = status(&controller)?["v6"].as_str().context("an address")?.parse()?;
        told(v6, None).context("renumbered")?;
    }
    Ok(())
}

/// A bridge passes its frames to ip6tables (br_netfilter) before anything else.
#[test]
fn its_uplink_is_a_bridge() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        if !can_run(NEEDS) {
            return Ok(());
        }
        let lab = Lab::new(Offloads::Default)?;
        for line in [
            "ip -6 addr flush dev up0",
            "ip link add br0 type bridge",
            "ip link set up0 master br0",
            "ip link set br0 up",
            "ip -6 addr add 2001:db8:1::2/64 dev br0 nodad",
            "ip -6 route add default via 2001:db8:1::1 dev br0",
            "sysctl -qew net.bridge.bridge-nf-call-ip6tables=1",
            // So that ip6tables has work.
            "nft add table ip6 raw",
            "nft add chain ip6 raw prerouting { type filter hook prerouting priority raw ; }",
            "nft add rule ip6 raw prerouting counter",
        ] {
            lab.phone.run(line).with_context(|| line)?;
        }
        let controller = Controller::new(&lab, mode, &[])?;
        controller.start("br0", PREFIX)?;
        works(&lab, "by a bridge")?;
        let offloaded = status(&controller)?["offloaded"] == true;
        ensure!(offloaded == (mode == Mode::Offload), "{mode:?}");
        controller.ctl(&["stop", "br0"])?;
    }
    Ok(())
}

/// A USB adapter's name is too long for `v4-` in front.
#[test]
fn its_uplink_has_a_long_name() -> Result<()> {
    const NAME: &str = "enx30d042231de0";
    for mode in [Mode::Offload, Mode::Daemon] {
        run(Uplink::Ethernet, mode, |lab, controller| {
            change::rename(lab, NAME)?;
            for how in ["renamed", "started"] {
                eventually(how, || Ok(status(controller)?["iface"] == NAME))?;
                works(lab, how)?;
                let clat = status(controller)?;
                ensure!(clat["v4iface"] == format!("v4-{}", clat["ifIndex"]), "{clat}");
                controller.ctl(&["stop", NAME])?;
                let start = controller.try_ctl(&["start", NAME, "--prefix", PREFIX])?;
                let said = String::from_utf8_lossy(&start.stderr).into_owned();
                ensure!(start.status.success() && said.contains("v4-"), "{said}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// No NAT64 answers in the uplink's own network.
#[test]
fn its_prefix_is_the_uplinks_own() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let controller = Controller::new(&lab, Mode::Daemon, &[])?;
    for prefix in ["2001:db8:1::/96", "2001:db8:1:0:1:2::/96"] {
        let refused = controller.try_ctl(&["start", "up0", "--prefix", prefix])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && said.contains("EINVAL"), "{prefix}: {said}");
    }
    controller.start("up0", PREFIX).map(drop)
}

/// Whether IPv4 works is probed by ICMP and by TCP, and again when the path changes.
#[test]
fn whether_ipv4_works_is_asked() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    for (mode, target) in [(Mode::Offload, "192.0.2.1"), (Mode::Daemon, "192.0.2.1:80")] {
        let lab = Lab::new(Offloads::Default)?;
        let controller = Controller::new(&lab, mode, &["--probe", target])?;
        let _server = Lab::listen(&lab.internet, (SERVER6, 80))?;
        let works = |working: &str| {
            eventually(&format!("{target}: {working}"), || {
                Ok(status(&controller)?["working"] == working)
            })
        };
        let doctor = || -> Result<Value> {
            let doctor = controller.try_ctl(&["doctor", "--json"])?;
            let said: Value = serde_json::from_slice(&doctor.stdout)?;
            let mut checks = said["checks"].as_array().context("no checks")?.iter();
            let found = checks.find(|check| check["name"] == "IPv4 by CLATs");
            Ok(found.context("no check")?["state"].clone())
        };
        let route = format!("{PREFIX} via 2001:db8:ff::2");
        lab.router.run(&format!("ip -6 route del {route}"))?;
        controller.start("up0", PREFIX)?;
        works("no")?;
        ensure!(doctor()? == "optional", "{}", doctor()?);
        lab.router.run(&format!("ip -6 route add {route}"))?;
        change::renumber(&lab)?;
        works("yes")?;
        ensure!(doctor()? == "ok", "{}", doctor()?);
    }
    Ok(())
}

/// Without events and packets there are no wake-ups, also where IPv4 is probed.
#[test]
fn it_sleeps_while_nothing_happens() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    for mode in [Mode::Offload, Mode::Daemon] {
        let lab = Lab::new(Offloads::Default)?;
        let controller = Controller::new(&lab, mode, &["--probe", &SERVER4.to_string()])?;
        controller.start("up0", PREFIX)?;
        works(&lab, "at first")?;
        let wakeups = || -> Result<u64> {
            let tasks = fs::read_dir(format!("/proc/{}/task", controller.daemon.pid()))?;
            let mut sum = 0;
            for task in tasks {
                let status = fs::read_to_string(task?.path().join("status"))?;
                let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
                sum += counts.filter_map(|(_, n)| n.trim().parse::<u64>().ok()).sum::<u64>();
            }
            Ok(sum)
        };
        // Ongoing work has to end first.
        eventually("3 s without a wake-up", || {
            let before = wakeups()?;
            thread::sleep(Duration::from_secs(3));
            Ok(wakeups()? == before)
        })?;
        ensure!(status(&controller)?["working"] == "yes", "it is watched");
    }
    Ok(())
}

/// A running transfer goes on when the path MTU shrinks, by the link or by a router's error.
/// Without offloads: a veth passes GSO packets larger than its MTU.
#[test]
fn an_upload_goes_on_by_a_smaller_path() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        run_with(Uplink::Ethernet, Offloads::Off, mode, |lab, _| {
            uploads_across(lab, "by link", || change::set_link_mtu(lab, 1400))?;
            let options = change::mtu_option(1300);
            uploads_across(lab, "by router", || {
                change::advertise(lab, UPLINK6, &options)?;
                lab.router.run("ip link set ph0 mtu 1300").map(drop)
            })
        })?;
    }
    Ok(())
}

/// Runs an upload across a change, and prints how long no data arrived.
fn uploads_across(lab: &Lab, what: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let listener = Lab::listen(&lab.internet, (SERVER6, 80))?;
    let mut client = Lab::connect(&lab.phone, (SERVER4, 80))?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(PATIENCE))?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                client.write_all(&[0xa5; 1 << 14])?;
            }
            Ok(())
        });
        let mut block = [0; 1 << 16];
        let mut read = |bytes: usize| -> Result<Duration> {
            let (mut left, mut longest, mut last) = (bytes, Duration::ZERO, Instant::now());
            while left > 0 {
                let read = match server.read(&mut block) {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        anyhow::bail!("{what}: it stalls")
                    }
                    read => read?,
                };
                ensure!(read > 0, "{what}: it ends");
                left = left.saturating_sub(read);
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Ok(longest)
        };
        let flowed = read(1 << 20).and_then(|_| change()).and_then(|()| read(8 << 20));
        ended.store(true, Ordering::Relaxed);
        drop(server);
        drop(sender.join());
        eprintln!("upload, smaller path {what}: nothing for {:?}", flowed?);
        Ok(())
    })
}

/// Whether IPv4 works.
fn works(lab: &Lab, what: &str) -> Result<()> {
    let ping = format!("ping -c 1 -W 0.2 {SERVER4}");
    eventually(what, || Ok(lab.phone.run(&ping).is_ok()))
}

fn all(controller: &Controller<'_>) -> Result<Vec<Value>> {
    let status: Value = serde_json::from_str(&controller.ctl(&["status", "--json"])?)?;
    Ok(status["clats"].as_array().context("no clats")?.clone())
}

/// The CLAT's status, which is always available.
fn status(controller: &Controller<'_>) -> Result<Value> {
    let mut all = all(controller)?;
    ensure!(all.len() == 1, "not one: {all:?}");
    Ok(all.remove(0))
}

fn its_uplink_is_renumbered(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    let before = status(controller)?;
    change::renumber(lab)?;
    let now = || status(controller);
    eventually("a new address", || {
        Ok(now()?["v6"].as_str().is_some_and(|v6| v6.starts_with("2001:db8:11:0:")))
    })?;
    works(lab, "renumbered")?;
    let after = now()?;
    let v6 = after["v6"].as_str().context("an address")?;
    for same in ["v4", "v4ifIndex", "offloaded"] {
        ensure!(before[same] == after[same], "{same}: {before} {after}");
    }
    let rules = lab.phone.run("ip -6 route show table local type blackhole")?;
    ensure!(rules.matches("2001:db8:").count() == 1 && rules.contains(v6), "{rules}");
    controller.ctl(&["stop", "up0"]).map(drop)
}

fn its_path_shrinks_and_grows(lab: &Lab, _: &Controller<'_>) -> Result<()> {
    // Bytes of an echo request behind its 28 bytes of headers.
    let passes = |size: u32| {
        lab.phone.run(&format!("ping -c 1 -W 1 -M do -s {} {SERVER4}", size - 28)).is_ok()
    };
    ensure!(passes(1472), "the device's MTU");
    for mtu in [1300, 1500] {
        change::set_link_mtu(lab, mtu)?;
        let device = format!(" mtu {} ", mtu - 28);
        eventually(&format!("uplink of {mtu}"), || {
            Ok(lab.phone.run("ip link show v4-up0")?.contains(&device))
        })?;
        eventually("the longest packet", || Ok(passes(mtu - 28)))?;
        ensure!(!passes(mtu - 27), "one that is too long");
    }
    Ok(())
}

fn its_route_and_its_address_are_taken_away(lab: &Lab, _: &Controller<'_>) -> Result<()> {
    for damage in
        ["ip -4 route del default", "ip -4 addr flush dev v4-up0", "ip link set v4-up0 down"]
    {
        lab.phone.run(damage)?;
        works(lab, damage)?;
    }
    Ok(())
}

/// On a host that forwards, packets to the CLAT would be sent back to where they came from.
fn others_flush_their_rules_and_routes(lab: &Lab, _: &Controller<'_>) -> Result<()> {
    lab.phone.run("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    let routes = || lab.phone.run("ip -6 route show table local type blackhole");
    let route = routes()?;
    ensure!(route.starts_with("blackhole 2001:db8:1:"), "{route}");
    let said = || -> Result<Vec<String>> {
        let all = lab.phone.run("cat /proc/net/snmp6")?;
        let of_interest = ["Icmp6OutDestUnreachs", "Icmp6OutRedirects", "Icmp6OutEchoReplies"];
        let lines = all.lines().filter(|line| of_interest.iter().any(|name| line.contains(name)));
        Ok(lines.map(ToOwned::to_owned).collect())
    };
    for damage in [
        "nft flush ruleset",
        "ip -6 route flush table local type blackhole",
        "ip link set lo up",
        "ip link set lo down",
    ] {
        lab.phone.run(damage)?;
        eventually(damage, || Ok(routes()? == route))?;
        let before = said()?;
        works(lab, damage)?;
        let server = Lab::udp(&lab.internet, (SERVER6, 5000))?;
        let client = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
        client.send_to(b"hello", (SERVER4, 5000))?;
        let (_, peer) = uninterrupted(|| server.recv_from(&mut [0; 16]))?;
        server.send_to(b"hello", peer)?;
        uninterrupted(|| client.recv(&mut [0; 16]))?;
        let after = said()?;
        ensure!(after == before, "the kernel took part: {before:?} {after:?}");
    }
    Ok(())
}

fn its_device_is_deleted(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    lab.phone.run("ip link del v4-up0")?;
    works(lab, "device deleted")?;
    status(controller)?;
    controller.ctl(&["stop", "up0"]).map(drop)
}

fn its_uplink_is_deleted(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    lab.phone.run("ip link del up0")?;
    eventually("uplink deleted", || Ok(all(controller)?.is_empty()))?;
    eventually("its device", || Ok(!lab.phone.run("ip -o link")?.contains("v4-up0")))?;
    let rules = lab.phone.run("ip -6 route show table local type blackhole")?;
    ensure!(rules.is_empty(), "{rules}");
    Ok(())
}

fn its_uplink_is_renamed(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    let before = status(controller)?;
    change::rename(lab, "new0")?;
    eventually("another name", || Ok(status(controller)?["iface"] == "new0"))?;
    works(lab, "renamed")?;
    let after = status(controller)?;
    for same in ["v4", "v6", "ifIndex", "offloaded"] {
        ensure!(before[same] == after[same], "{same}: {before} {after}");
    }
    ensure!(after["v4iface"] == "v4-new0", "{after}");
    let rules = lab.phone.run("ip -6 route show table local type blackhole")?;
    ensure!(rules.lines().count() == 1, "{rules}");
    let again = controller.try_ctl(&["start", "new0", "--prefix", PREFIX])?;
    ensure!(String::from_utf8_lossy(&again.stderr).contains("EBUSY"), "{again:?}");
    controller.ctl(&["stop", "new0"])?;
    controller.start("new0", PREFIX)?;
    works(lab, "started under its new name")
}

fn its_router_advertises_another_mtu(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    lab.phone.run("sysctl -qw net.ipv6.conf.up0.accept_ra=2")?;
    for mtu in [1400, 1500] {
        change::advertise(lab, UPLINK6, &change::mtu_option(mtu))?;
        let device = format!(" mtu {} ", mtu - 28);
        eventually(&format!("{mtu} advertised"), || {
            Ok(lab.phone.run("ip link show v4-up0")?.contains(&device))
        })?;
        works(lab, "by another MTU")?;
    }
    status(controller).map(drop)
}

fn its_router_deprecates_its_prefix(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    lab.phone.run("sysctl -qw net.ipv6.conf.up0.accept_ra=2")?;
    let [old, new]: [Ipv6Addr; 2] = ["2001:db8:1::".parse()?, "2001:db8:11::".parse()?];
    // From a manual address to an autoconfigured one in the same /64.
    change::advertise(lab, UPLINK6, &change::prefix_option(old, true))?;
    let own = || -> Result<Option<Ipv6Addr>> {
        let addresses = lab.phone.run("ip -o -6 addr show dev up0 scope global dynamic")?;
        let parse = |word: &str| word.strip_suffix("/64")?.parse::<Ipv6Addr>().ok();
        Ok(addresses.split_whitespace().find_map(parse))
    };
    eventually("an address of its own making", || Ok(own()?.is_some()))?;
    let own = own()?.context("an address")?;
    lab.phone.run(&format!("ip -6 addr del {UPLINK6}/64 dev up0"))?;
    works(lab, "from that")?;
    let before = status(controller)?;
    lab.router.run("ip -6 addr add 2001:db8:11::1/64 dev ph0 nodad")?;
    let options = [change::prefix_option(old, false), change::prefix_option(new, true)].concat();
    change::advertise(lab, own, &options)?;
    eventually("an address in the other prefix", || {
        let v6 = status(controller)?["v6"].clone();
        Ok(v6.as_str().is_some_and(|v6| v6.starts_with("2001:db8:11:0:")))
    })?;
    works(lab, "in the other prefix")?;
    let after = status(controller)?;
    ensure!(before["v4"] == after["v4"] && before["offloaded"] == after["offloaded"], "{after}");
    Ok(())
}

/// A clatd without work does not hang, whatever happens to its device.
#[test]
fn its_clatd_has_nothing_to_do() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        run(Uplink::Ethernet, mode, |lab, controller| {
            lab.phone.run("ip link set v4-up0 down")?;
            works(lab, "up again")?;
            let before = status(controller)?;
            lab.phone.run("ip link set v4-up0 down")?;
            thread::sleep(Duration::from_secs(3));
            let after = status(controller)?;
            ensure!(before["pid"] == after["pid"] && after["restarts"] == 0, "{before} {after}");
            Ok(())
        })?;
    }
    Ok(())
}

fn its_clatd_hangs(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    let [clatd] = controller.clatds()[..] else { anyhow::bail!("{:?}", controller.clatds()) };
    kill(Pid::from_raw(clatd), Signal::SIGSTOP)?;
    // With an IP option, which BPF programs leave to clatd.
    let ping = format!("ping -R -c 1 -W 0.2 {SERVER4}");
    eventually("another clatd", || {
        let answered = lab.phone.run(&ping).is_ok();
        let status = status(controller)?;
        Ok(answered && status["pid"] != clatd && status["restarts"] == 1)
    })
}

/// ICMP fragments, which BPF programs leave to clatd.
fn its_clatd_hangs_while_packets_only_arrive(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    let before = status(controller)?;
    let [clatd] = controller.clatds()[..] else { anyhow::bail!("{:?}", controller.clatds()) };
    kill(Pid::from_raw(clatd), Signal::SIGSTOP)?;
    let v6 = before["v6"].as_str().context("an address")?;
    let ping = format!("ping -c 1 -W 0.2 -s 3000 -I {SERVER6} {v6}");
    eventually("another clatd", || Ok(lab.internet.run(&ping).is_ok()))?;
    let after = status(controller)?;
    ensure!(after["pid"] != clatd && after["restarts"] == 1, "{after}");
    Ok(())
}
