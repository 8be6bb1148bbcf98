// SPDX-License-Identifier: Apache-2.0

//! A CLAT follows its network: what changes on the real kernel under a CLAT that runs, with
//! programs in the kernel and without, on both kinds of uplink.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, Controller, Lab, Mode, Offloads, Uplink, PREFIX, PREFIX2, SERVER4};
use serde_json::Value;

const NEEDS: &[&str] = &["ip", "ethtool", "ping", "ip6tables", "tc"];

/// Far more than it takes; how long that is gets printed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes four tests of each.
macro_rules! on_both_paths_and_links {
    ($($name:ident)*) => { $(mod $name {
        use super::{run, Mode, Uplink};

        #[test]
        fn ethernet_offload() -> anyhow::Result<()> {
            run(Uplink::Ethernet, Mode::Offload, super::$name)
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
}

fn run(uplink: Uplink, mode: Mode, test: fn(&Lab, &Controller<'_>) -> Result<()>) -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::on(uplink, Offloads::Default)?;
    let controller = Controller::new(&lab, mode, &[])?;
    controller.start("up0", PREFIX)?;
    works(&lab, "at first")?;
    test(&lab, &controller)
}

/// Where neighbours are told of.
#[test]
fn another_node_has_its_address() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        run(Uplink::Ethernet, mode, |lab, controller| {
            let v6 = status(controller)?[0]["v6"].as_str().context("an address")?.to_owned();
            lab.router.run(&format!("ip -6 addr add {v6}/128 dev ph0 nodad"))?;
            // The next one looks for duplicates.
            for pid in controller.clatds() {
                lab.phone.run(&format!("kill -9 {pid}"))?;
            }
            eventually("another address", || {
                Ok(status(controller)?[0]["v6"].as_str().is_some_and(|now| now != v6))
            })?;
            works(lab, "with another address")
        })?;
    }
    Ok(())
}

/// The better of two uplinks goes, then the other one.
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

/// Tries until it is so, and prints how long that took.
fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
    eprintln!("{what}: after {:?}", begun.elapsed());
    Ok(())
}

/// Whether IPv4 works.
fn works(lab: &Lab, what: &str) -> Result<()> {
    let ping = format!("ping -c 1 -W 0.2 {SERVER4}");
    eventually(what, || Ok(lab.phone.run(&ping).is_ok()))
}

fn status(controller: &Controller<'_>) -> Result<Value> {
    let status: Value = serde_json::from_str(&controller.ctl(&["status", "--json"])?)?;
    Ok(status["clats"].clone())
}

fn its_uplink_is_renumbered(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    let before = status(controller)?[0].clone();
    lab.router.run("ip -6 addr add 2001:db8:11::1/64 dev ph0 nodad")?;
    lab.phone.run("ip -6 addr del 2001:db8:1::2/64 dev up0")?;
    lab.phone.run("ip -6 addr add 2001:db8:11::2/64 dev up0 nodad")?;
    lab.phone.run("ip -6 route replace default via 2001:db8:11::1 dev up0 metric 100")?;
    // It is not shown while it changes.
    let now = || -> Result<Value> { Ok(status(controller)?[0].clone()) };
    eventually("a new address", || {
        Ok(now()?["v6"].as_str().is_some_and(|v6| v6.starts_with("2001:db8:11:0:")))
    })?;
    works(lab, "renumbered")?;
    let after = now()?;
    let v6 = after["v6"].as_str().context("an address")?;
    for same in ["v4", "v4ifIndex", "offloaded"] {
        ensure!(before[same] == after[same], "{same}: {before} {after}");
    }
    let rules = lab.phone.run("ip6tables -t raw -S")?;
    ensure!(rules.matches("-d 2001:db8:").count() == 1 && rules.contains(v6), "{rules}");
    controller.ctl(&["stop", "up0"]).map(drop)
}

fn its_path_shrinks_and_grows(lab: &Lab, _: &Controller<'_>) -> Result<()> {
    let set = |mtu: u32| -> Result<()> {
        lab.router.run(&format!("ip link set ph0 mtu {mtu}"))?;
        lab.phone.run(&format!("ip link set up0 mtu {mtu}")).map(drop)
    };
    // Bytes of an echo request behind its 28 of headers.
    let passes = |size: u32| {
        lab.phone.run(&format!("ping -c 1 -W 1 -M do -s {} {SERVER4}", size - 28)).is_ok()
    };
    ensure!(passes(1472), "the device's MTU");
    for mtu in [1300, 1500] {
        set(mtu)?;
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

fn its_device_is_deleted(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    lab.phone.run("ip link del v4-up0")?;
    works(lab, "device deleted")?;
    ensure!(status(controller)?.as_array().is_some_and(|clats| clats.len() == 1));
    controller.ctl(&["stop", "up0"]).map(drop)
}

fn its_uplink_is_deleted(lab: &Lab, controller: &Controller<'_>) -> Result<()> {
    lab.phone.run("ip link del up0")?;
    eventually("uplink deleted", || Ok(status(controller)?.as_array().is_some_and(Vec::is_empty)))?;
    eventually("its device", || Ok(!lab.phone.run("ip -o link")?.contains("v4-up0")))?;
    let rules = lab.phone.run("ip6tables -t raw -S")?;
    ensure!(!rules.contains("up0"), "{rules}");
    Ok(())
}
