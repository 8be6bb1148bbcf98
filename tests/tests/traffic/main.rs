// SPDX-License-Identifier: Apache-2.0

//! Real traffic through a running CLAT: every scenario on an Ethernet and on a raw-IP uplink,
//! translated by BPF programs, on a device of their own and on the uplink itself, and by clatd; and
//! once more with all offloads off, since a veth never verifies a partial checksum. The counters
//! tell which translated it.

mod headers;
mod icmp;
mod tcp;
mod udp;

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, Clat, Lab, Mode, Offloads, Uplink, SERVER6};
use headers::*;
use icmp::*;
use serde_json::Value;
use tcp::*;
use udp::*;

/// Long enough for a busy machine, short enough to fail in one sitting.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a test of each scenario for each uplink and mode, and for links with and without offloads.
/// After each scenario are the reasons for which BPF programs leave part of it to clatd, as in
/// `clatctl status`.
macro_rules! scenarios {
    ($($name:ident [$($reason:literal)*])*) => { $(mod $name {
        scenarios!(@ $name [$($reason)*]
            ethernet_kernel Ethernet Offload Default
            ethernet_kernel_no_offloads Ethernet Offload Off
            ethernet_direct Ethernet Direct Default
            ethernet_direct_no_offloads Ethernet Direct Off
            ethernet_daemon Ethernet Daemon Default
            ethernet_daemon_no_offloads Ethernet Daemon Off
            rawip_kernel RawIp Offload Default
            rawip_kernel_no_offloads RawIp Offload Off
            rawip_direct RawIp Direct Default
            rawip_direct_no_offloads RawIp Direct Off
            rawip_daemon RawIp Daemon Default
            rawip_daemon_no_offloads RawIp Daemon Off
        );
    })* };
    (@ $name:ident $reasons:tt $($test:ident $uplink:ident $mode:ident $offloads:ident)*) => { $(
        #[test]
        fn $test() -> anyhow::Result<()> {
            use super::{Mode, Offloads, Uplink};
            let case = (Uplink::$uplink, Mode::$mode, Offloads::$offloads);
            super::run(case, &scenarios!(@ $reasons), super::$name)
        }
    )* };
    (@ [$($reason:literal)*]) => { [$($reason),*] };
}

scenarios! {
    tcp_both_ways []
    small_hop_tcp ["icmp"]
    small_udp []
    udp_without_checksum []
    large_udp ["fragment"]
    large_udp_behind_a_stateful_firewall ["fragment"]
    largest_udp ["fragment"]
    small_hop_udp ["icmp" "fragment"]
    udp_segment_both_ways []
    echo []
    large_echo ["fragment"]
    traceroute_udp ["icmp"]
    traceroute_icmp ["icmp"]
    port_unreachable_outside ["icmp"]
    port_unreachable_inside ["icmp"]
    ipv4_options_udp ["options"]
    ipv4_options_tcp ["options"]
    destination_options_inward ["options"]
    tos_both_ways []
    // Both kernels answer: they have no such protocol or port.
    other_protocols ["icmp"]
    udplite_both_ways ["icmp"]
    foreign_source ["foreign-source" "icmp"]
}

fn run(
    (uplink, mode, offloads): (Uplink, Mode, Offloads),
    left: &[&str],
    scenario: fn(&Lab, &Clat<'_>) -> Result<()>,
) -> Result<()> {
    if !can_run(&["ip", "ethtool", "ping", "traceroute", "ip6tables"]) {
        return Ok(());
    }
    let lab = Lab::on(uplink, offloads)?;
    let clat = Clat::new(&lab, mode)?;
    // A train that has to be cut before it reaches an uplink without checksum offload has half a
    // checksum (Linux 6.11): clatd gets it cut.
    let is_cut = (mode, offloads, left.len()) == (Mode::Direct, Offloads::Off, 0);
    let result = scenario(&lab, &clat).and_then(|()| check_path(&clat, mode, left, is_cut));
    if let (Err(_), Some(controller)) = (&result, &clat.controller) {
        eprintln!("controller said: {}", controller.daemon.log());
        eprintln!("{}", controller.ctl(&["dump"]).unwrap_or_default());
    }
    result
}

/// Checks the counters: the BPF programs translated their part, and clatd got only what was `left`
/// to it for these reasons.
fn check_path(clat: &Clat<'_>, mode: Mode, left: &[&str], is_cut: bool) -> Result<()> {
    let Some(controller) = &clat.controller else { return Ok(()) };
    let status = controller.status("up0")?;
    let count = |value: &Value| value.as_u64().with_context(|| format!("no number in {status}"));
    let by_daemon = count(&status["txPackets"])? + count(&status["rxPackets"])?;
    if mode == Mode::Daemon {
        ensure!(status["offloaded"] == false && by_daemon > 0, "not by the daemon: {status}");
        return Ok(());
    }
    let (mut by_kernel, mut passed, mut reasons) = (0, Vec::new(), BTreeSet::new());
    for way in ["egress", "ingress"] {
        by_kernel += count(&status[way]["packets"])?;
        ensure!(status[way]["lost"] == 0, "the programs lost packets: {status}");
        let by_reason = status[way]["passed"].as_object().context("no reasons")?;
        let some = by_reason.iter().filter(|(_, n)| **n != 0);
        reasons.extend(some.map(|(reason, _)| reason.as_str()));
        passed.push(by_reason.values().map(count).sum::<Result<u64>>()?);
    }
    if is_cut && reasons == BTreeSet::from(["gso"]) {
        return Ok(());
    }
    ensure!(reasons == left.iter().copied().collect(), "left to the daemon: {status}");
    ensure!(status["txPackets"] == passed[0], "to the daemon went what was left to it: {status}");
    ensure!(left.is_empty() == (by_daemon == 0), "the daemon did its part: {status}");
    let all_left = matches!(left, ["fragment" | "options"]);
    ensure!(by_kernel > 0 || all_left, "the kernel did its part: {status}");
    Ok(())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect()
}

/// The lab itself: IPv6 works, and the phone has no IPv4 without a CLAT.
#[test]
fn native_ipv6_passes_and_ipv4_fails() -> Result<()> {
    if !can_run(&["ip", "ethtool", "ping"]) {
        return Ok(());
    }
    let uplinks = [Uplink::Ethernet, Uplink::RawIp].into_iter();
    for (uplink, offloads) in uplinks.flat_map(|u| [(u, Offloads::Default), (u, Offloads::Off)]) {
        let lab = Lab::on(uplink, offloads)?;
        lab.phone.run("ping -6 -n -c 2 -i 0.2 -W 3 2001:db8:64::192.0.2.1")?;
        ensure!(lab.phone.run("ping -n -c 1 -W 1 192.0.2.1").is_err(), "IPv4 without a CLAT");
        let listener = Lab::listen(&lab.internet, (SERVER6, 80))?;
        let client = Lab::connect(&lab.phone, (SERVER6, 80))?;
        transfer(client, listener.accept()?.0, 4 << 20)?;
        lab.narrow(1300)?;
        let client = Lab::connect(&lab.phone, (SERVER6, 80))?;
        transfer(listener.accept()?.0, client, 1 << 20)?;
        let unused = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xcb00, 0x7109);
        lab.phone.run(&format!("ping -6 -n -c 1 -W 3 {unused}"))?;
    }
    Ok(())
}
