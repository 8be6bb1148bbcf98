// SPDX-License-Identifier: Apache-2.0

//! Options of a network, as its guests' kernels see them.

use std::fs::File;

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, USER_NAMESPACES};
use pcap_file::pcap::PcapReader;

use crate::{python_in, World, SERVER, SERVER6, SERVERS};

/// The same flow to several names of the server.
const TALK: &str = include_str!("scripts/talk.py");

#[test]
fn a_capture_has_both_directions() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES, "ping", "tshark"]) {
        return Ok(());
    }
    let world = World::new()?;
    let path = world.path("all.pcap");
    let pcap = path.to_str().context("path")?;
    world.python(&["--pcap", pcap], TALK, &[SERVER6])?;
    let mut reader = PcapReader::new(File::open(&path)?)?;
    let (mut up, mut down) = (0, 0);
    let mut last = std::time::Duration::ZERO;
    while let Some(packet) = reader.next_packet() {
        let packet = packet?;
        ensure!(packet.data.len() >= 14 && packet.orig_len as usize == packet.data.len());
        ensure!(packet.timestamp >= last, "time goes back");
        last = packet.timestamp;
        if packet.data[6..12] == [2, 0, 0, 0, 4, 0x64] {
            down += 1;
        } else {
            up += 1;
        }
    }
    ensure!(up > 5 && down > 5, "{up} up, {down} down");
    let text = world.host.run(&format!("tshark -r {pcap} -Y tcp.port==80||icmpv6"))?;
    ensure!(text.contains("Router Advertisement") && text.contains("[SYN, ACK]"), "{text}");
    Ok(())
}

/// The guest's kernel gets another prefix and drops the old one; new and existing flows work.
#[test]
fn prefixes_come_and_go() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, _platd) = world.guest("churn", &["--prefix-churn", "4"])?;
    let code = include_str!("scripts/prefix_churn.py");
    python_in(&guest, code, &SERVERS)?;
    let addresses = guest.run("ip -6 addr show dev plat0 scope global")?;
    ensure!(addresses.matches("inet6").count() >= 2, "{addresses}");
    ensure!(addresses.contains("deprecated"), "{addresses}");
    Ok(())
}

/// A guest without CLAT has IPv4 by DHCP.
#[test]
fn dual_stack() -> Result<()> {
    if !can_run(&["python3", "ping"]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, _platd) = world.guest("dual", &["--dual-stack"])?;
    // What dhclient would configure; carrier_clients.rs tests that it gets a lease.
    guest.run("ip addr add 192.168.64.2/24 dev plat0")?;
    guest.run("ip route add default via 192.168.64.1")?;
    python_in(&guest, TALK, &SERVERS)?;
    for server in [SERVER, SERVER6, "192.168.64.1"] {
        guest.run(&format!("ping -c 2 -i 0.2 -W 3 {server}"))?;
    }
    guest.run(&format!("ping -c 1 -W 3 -s 4000 {SERVER}"))?;
    Ok(())
}

/// Round trips take twice the delay; the loss is as configured.
#[test]
fn loss_and_delay() -> Result<()> {
    if !can_run(&["python3", "ping"]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, _platd) = world.guest("late", &["--delay", "40"])?;
    let out = guest.run(&format!("ping -c 10 -i 0.1 -W 3 {SERVER6}"))?;
    let times = out.rsplit("= ").next().and_then(|t| t.split(" ms").next()).context("times")?;
    let times: Vec<f64> = times.split('/').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(times[0] >= 80.0, "sooner than light: {out}");
    ensure!(times[0] < 120.0, "{out}");

    let (guest, _platd) = world.guest("lossy", &["--loss", "20"])?;
    let out = guest.output(&["ping", "-c", "500", "-i", "0.01", "-W", "1", SERVER6])?;
    let out = String::from_utf8_lossy(&out.stdout).into_owned();
    let received = out.split(", ").find_map(|part| part.strip_suffix(" received"));
    let received: u32 = received.context("count")?.parse()?;
    // 64 % of 500 is 320, with a standard deviation of 11.
    ensure!((255..385).contains(&received), "{out}");
    Ok(())
}

#[test]
fn without_pref64() -> Result<()> {
    if !can_run(&["rdisc6"]) {
        return Ok(());
    }
    let world = World::new()?;
    for (name, options, has) in [("with", &[][..], true), ("without", &["--no-pref64"], false)] {
        let path = world.path(&format!("{name}.pcap"));
        let pcap = path.to_str().context("path")?;
        let (guest, platd) = world.guest(name, &[&["--pcap", pcap], options].concat())?;
        guest.run("rdisc6 -1 plat0")?;
        drop(platd);
        let mut reader = PcapReader::new(File::open(&path)?)?;
        let mut advertisements = Vec::new();
        while let Some(packet) = reader.next_packet() {
            let data = packet?.data.into_owned();
            if data.get(20) == Some(&58) && data.get(54) == Some(&134) {
                advertisements.push(data);
            }
        }
        ensure!(!advertisements.is_empty());
        for data in advertisements {
            // RFC 8781: type 38, 16 bytes.
            let (mut at, mut found) = (70, false);
            while at + 1 < data.len() && data[at + 1] > 0 {
                found |= data[at..at + 2] == [38, 2];
                at += usize::from(data[at + 1]) * 8;
            }
            ensure!(found == has, "{name}");
        }
    }
    Ok(())
}

/// Names of the server inside NAT64 prefixes of other lengths (RFC 6052 §2.4), and by the CLAT.
#[test]
fn every_prefix_length() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    for (prefix, server) in [
        ("2001:db8::/32", "2001:db8:c633:6401::"),
        ("2001:db8:100::/40", "2001:db8:1c6:3364:1::"),
        ("2001:db8:122::/48", "2001:db8:122:c633:64:100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c6:33:6401::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c6:3364:100:0"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::198.51.100.1"),
    ] {
        let args = ["--prefix", "2001:db9:464::/64", "--prefix64", prefix];
        world.python(&args, TALK, &[server, SERVER]).context(prefix)?;
    }
    Ok(())
}

/// The least and the greatest.
#[test]
fn other_mtus() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    for mtu in ["1280", "65520"] {
        world.python(&["--mtu", mtu], TALK, &SERVERS).context(mtu)?;
        let code = include_str!("scripts/mtu.py");
        world.python(&["--mtu", mtu], code, &[mtu, SERVER, SERVER6]).context(mtu)?;
    }
    Ok(())
}

/// A log line when a flow begins, and one when it ends, at debug level.
#[test]
fn a_line_for_each_flow() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES, "ping"]) {
        return Ok(());
    }
    let code =
        concat!(include_str!("scripts/talk.py"), include_str!("scripts/ping_and_refusal.py"));
    let world = World::new()?;
    for level in ["info", "debug"] {
        let level = format!("RUST_LOG={level}");
        let argv = [
            vec!["env".to_owned(), level.clone()],
            world.command(&["run", "--", "python3", "-c", code, SERVER6]),
        ]
        .concat();
        let output = world.host.output(&argv)?;
        ensure!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines = |what: &str, end: &str| {
            said.lines().filter(|line| line.contains(what) && line.contains(end)).count()
        };
        let to = |port| format!("[64:ff9b::c633:6401]:{port}");
        let found = [
            lines("tcp ", &format!("{} begins", to(80))),
            lines("tcp ", &format!("{} ends: closed", to(80))),
            lines("tcp ", &format!("{} ends: ", to(9))),
            lines("udp ", " begins"),
            lines("echo ", " begins"),
        ];
        ensure!(found == [usize::from(level.ends_with("debug")); 5], "{found:?}: {said}");
    }
    Ok(())
}
