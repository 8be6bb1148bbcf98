// SPDX-License-Identifier: Apache-2.0

//! Flows: long, idle, ending and failing ones.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use clat_tests::{can_run, Netns, USER_NAMESPACES};
use nix::sys::resource::{getrlimit, Resource};

use crate::{python_in, World, SERVER, SERVER6, SERVERS};

/// Like a terminal: small writes in both directions, with pauses; and datagrams.
#[test]
fn flows_that_idle_and_talk() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    world.python(&[], include_str!("scripts/talk_and_idle.py"), &SERVERS)?;
    Ok(())
}

/// A zero window in either direction, for seconds; all data arrives in the end, and memory is
/// bounded meanwhile.
#[test]
fn readers_that_sleep() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, platd) = world.guest("sleep", &["--clat"])?;
    let started = Instant::now();
    let code = include_str!("scripts/sleeping_readers.py");
    let before = crate::resident_kib(platd.pid())?;
    let most = std::thread::scope(|scope| {
        let readers = scope.spawn(|| python_in(&guest, code, &SERVERS));
        let mut most = (0, 0);
        while !readers.is_finished() {
            let held = world.status("sleep")?["bytes_held"].as_u64().context("a number")?;
            most = (most.0.max(held), most.1.max(crate::resident_kib(platd.pid())?));
            std::thread::sleep(Duration::from_millis(20));
        }
        readers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok::<_, anyhow::Error>(most)
    })?;
    ensure!(started.elapsed() >= Duration::from_secs(4));
    // One MiB per flow, of four flows that use one direction each; of 38 million bytes.
    ensure!(((1 << 20)..=(4 << 20)).contains(&most.0), "{} bytes held", most.0);
    ensure!(most.1 - before < 8 << 10, "{before} KiB, then {}", most.1);
    ensure!(world.status("sleep")?["bytes_held"] == 0, "nothing is left");
    Ok(())
}

/// One end may continue after the other has closed its direction; resets pass in both directions.
#[test]
fn halves_and_resets() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, mut platd) = world.guest("ends", &["--clat"])?;
    python_in(&guest, include_str!("scripts/halves_and_resets.py"), &SERVERS)?;
    crate::wait_until("flows end", || Ok(world.status("ends")?["flows_open"] == 0))?;
    platd.stop(nix::sys::signal::Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn iperf3_each_way() -> Result<()> {
    if !can_run(&["iperf3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let log = world.path("iperf3.log");
    let mut server = world.outside.spawn(&["iperf3", "--forceflush", "-s"], &log)?;
    server.wait_for("listening")?;
    for target in [SERVER, SERVER6] {
        for direction in [&[][..], &["-R"]] {
            let args =
                [&["run", "--", "iperf3", "-J", "-t", "2", "-c", target], direction].concat();
            let output = world.platd(&args)?;
            ensure!(output.status.success(), "{output:?}");
            let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            let rate = json["end"]["sum_received"]["bits_per_second"].as_f64();
            ensure!(rate > Some(1e7), "{target} {direction:?}: {rate:?}");
        }
    }
    Ok(())
}

/// A guest gets the host's errors: no route, host unreachable, no answer.
#[test]
fn errors_of_the_host_come_back() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    for line in [
        "ip route add unreachable 198.51.100.7",
        "ip route add blackhole 198.51.100.8",
        "sysctl -qw net.ipv4.ip_forward=1",
        // Otherwise one error per second.
        "sysctl -qw net.ipv4.icmp_ratelimit=0",
    ] {
        world.outside.run(line)?;
    }
    // It gives up after three seconds.
    world.host.run("sysctl -qw net.ipv4.tcp_syn_retries=1")?;
    world.python(&[], include_str!("scripts/errors_of_the_host.py"), &[])?;
    Ok(())
}

/// Destinations outside the prefix are IPv6 for the host, too.
#[test]
fn ipv6_stays_ipv6() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES, "ping"]) {
        return Ok(());
    }
    const FAR: &str = "2001:db8:7::2";
    let world = World::new()?;
    for line in ["addr add 2001:db8:6::1/64 dev w0 nodad", "route add default via 2001:db8:6::2"] {
        world.host.run(&format!("ip -6 {line}"))?;
    }
    for line in [
        "addr add 2001:db8:6::2/64 dev h0 nodad",
        "addr add 2001:db8:7::2/128 dev lo",
        "route add unreachable 2001:db8:7::7",
    ] {
        world.outside.run(&format!("ip -6 {line}"))?;
    }
    world.outside.run("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.icmp.ratelimit=0")?;
    let argv = ["python3", "-c", include_str!("scripts/ipv6_serve.py"), FAR];
    let mut server = world.outside.spawn(&argv, &world.path("far.log"))?;
    server.wait_for("ready")?;
    let code = include_str!("scripts/ipv6_guest.py");
    world.python(&[], code, &[FAR])?;
    ensure!(server.log().contains("visitor 2001:db8:6::1"), "{}", server.log());
    for size in ["56", "4000"] {
        let ping = ["run", "--", "ping", "-c", "2", "-i", "0.2", "-W", "3", "-s", size, FAR];
        let output = world.platd(&ping)?;
        ensure!(output.status.success(), "{output:?}");
    }
    Ok(())
}

/// A connection to a silent peer ends for the guest when the host gives it up, and not before.
#[test]
fn a_connection_that_times_out() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    // It gives up after seconds.
    world.host.run("sysctl -qw net.ipv4.tcp_retries2=3")?;
    let (guest, _platd) = world.guest("silent", &["--clat"])?;
    let argv = ["python3", "-c", include_str!("scripts/silent_peer.py"), SERVER, SERVER6];
    let mut guest = guest.spawn(&argv, &world.path("silent.guest"))?;
    guest.wait_for("connected")?;
    world.outside.run("ip route add blackhole 203.0.113.1/32")?;
    guest.wait_for("reset")?;
    Ok(())
}

/// A GSO packet of datagrams stays one in each direction, through the device, platd and the host's
/// kernel, and keeps its boundaries.
#[test]
fn gso_packets_stay_whole() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let argv = ["python3", "-c", include_str!("scripts/gso_serve.py"), SERVER];
    let mut server = world.outside.spawn(&argv, &world.path("gso.log"))?;
    server.wait_for("ready")?;
    let guest = include_str!("scripts/gso_guest.py");
    world.python(&[], guest, &SERVERS)?;
    assert_eq!(server.log().matches("20007 [1000]").count(), 2, "{}", server.log());
    Ok(())
}

/// RFC 4787: a guest's port is mapped to one port, whatever the peer; all ports of addressed peers
/// may answer, and no others.
#[test]
fn who_may_answer() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    world.outside.run("ip addr add 198.51.100.2/32 dev lo")?;
    // Each returns the guest's port as it sees it, also from another socket.
    let tell = include_str!("scripts/who_tells.py");
    let mut server = world.outside.spawn(&["python3", "-c", tell], &world.path("tell.log"))?;
    server.wait_for("ready")?;
    let (guest, _platd) = world.guest("who", &["--clat"])?;
    let code = include_str!("scripts/who_asks.py");
    python_in(&guest, code, &SERVERS)?;
    let status = world.status("who")?;
    ensure!(status["stats"]["drops"]["filtered"] == 2, "{status}");
    let (platd, socket) = (world.path("platd"), world.path("who.status"));
    let text = world.host.run(&format!("{} status {}", platd.display(), socket.display()))?;
    ensure!(text.contains("filtered 2"), "{text}");
    Ok(())
}

/// A network behind a link of MTU 1300, with 198.51.100.9 and .10.
fn far(world: &World) -> Result<Netns> {
    let far = Netns::new(crate::number(), "far")?;
    world.outside.run(&format!("ip link add f0 type veth peer name o0 netns {}", far.name()))?;
    for line in [
        "addr add 192.0.2.1/24 dev f0",
        "link set f0 mtu 1300 up",
        "route add 198.51.100.8/30 via 192.0.2.9",
    ] {
        world.outside.run(&format!("ip {line}"))?;
    }
    for line in [
        "addr add 192.0.2.9/24 dev o0",
        "addr add 198.51.100.9/32 dev lo",
        "addr add 198.51.100.10/32 dev lo",
        "link set lo up",
        "link set o0 mtu 1300 up",
        "route add default via 192.0.2.1",
    ] {
        far.run(&format!("ip {line}"))?;
    }
    world.outside.run("sysctl -qw net.ipv4.ip_forward=1")?;
    Ok(far)
}

/// The guest's kernel learns the MTU of a smaller hop, as from a router (RFC 8201, RFC 1191), and
/// sends smaller packets.
#[test]
fn a_smaller_hop() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let far = far(&world)?;
    let repeat = include_str!("scripts/smaller_hop_serve.py");
    let mut server = far.spawn(&["python3", "-c", repeat], &world.path("far.log"))?;
    server.wait_for("ready")?;
    let (guest, _platd) = world.guest("hop", &["--clat"])?;
    let code = include_str!("scripts/smaller_hop.py");
    python_in(&guest, code, &[])?;
    // Also for echo, to a destination new to the guest's IPv6.
    let ping = ["ping", "-6", "-n", "-c", "1", "-M", "do", "-s", "1400", "64:ff9b::198.51.100.9"];
    let output = guest.output(&ping)?;
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(text.concat().contains("mtu=1320"), "{text:?}");
    guest.run("ping -6 -n -c 1 -s 3000 64:ff9b::198.51.100.9")?;
    Ok(())
}

/// A guest with the most flows allowed loses its oldest for a new one.
#[test]
fn flows_of_one_guest() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, _platd) = world.guest("each", &["--max-flows-each", "10"])?;
    let code = include_str!("scripts/flows_of_one_guest.py");
    python_in(&guest, code, &SERVERS)?;
    let status = world.status("each")?;
    ensure!(status["flows_open"] == 10 && status["stats"]["evicted"] == 20, "{status}");
    Ok(())
}

/// A flow costs the same beside a hundred thousand others as beside a thousand, and all of these
/// work. With fewer descriptors allowed, there are fewer others.
#[test]
fn many_flows_cost_no_more() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let count = hard.saturating_sub(1000).min(100_000).to_string();
    let world = World::new()?;
    let guest = Netns::new(crate::number(), "guest")?;
    // For each of the server's two ports.
    let ports = ["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"];
    for ns in [&guest, &world.host] {
        ensure!(ns.output(&ports)?.status.success());
    }
    let repeat = include_str!("scripts/many_flows_serve.py");
    let mut server = world.outside.spawn(&["python3", "-c", repeat], &world.path("many.log"))?;
    server.wait_for("ready")?;
    let path = format!("/run/netns/{}", guest.name());
    let platd = world.daemon("many", &["--netns", &path, "--max-flows", "101000"])?;
    crate::wait_until("an address by router advertisement", || {
        Ok(guest.run("ip -6 addr show scope global")?.contains("2001:db8:464:"))
    })?;
    let code = include_str!("scripts/many_flows.py");
    let argv = ["python3", "-c", code, SERVER6, &platd.pid().to_string(), &count];
    let mut guests = guest.command(&argv).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    BufReader::new(guests.stdout.take().context("piped")?).read_line(&mut said)?;
    let status = world.status("many")?;
    let memory = crate::resident_kib(platd.pid())?;
    drop(guests.stdin.take());
    ensure!(guests.wait()?.success(), "{said}");
    let costs: Vec<u64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [connect_few, trip_few, connect_many, trip_many] = costs[..] else { bail!("{said}") };
    eprintln!(
        "{count} flows: {connect_many} ns a connection (beside 1000: {connect_few}), \
         {trip_many} ns a round trip ({trip_few}), {memory} KiB"
    );
    ensure!(status["stats"]["evicted"] == 0, "{status}");
    ensure!(status["flows_open"].as_u64() >= Some(count.parse()?), "{status}");
    ensure!(connect_many < 3 * connect_few && trip_many < 3 * trip_few, "{said}");
    ensure!(memory < 16_384 + 2 * count.parse::<u64>()?, "{memory} KiB");
    Ok(())
}

/// Routers on the path are visible to traceroute.
#[test]
fn hops_are_counted() -> Result<()> {
    if !can_run(&["setpriv", USER_NAMESPACES, "traceroute"]) {
        return Ok(());
    }
    let world = World::new()?;
    let far = far(&world)?;
    for router in [&world.outside, &far] {
        // Otherwise one error per second.
        router.run("sysctl -qw net.ipv4.icmp_ratelimit=0")?;
    }
    for (target, hops) in [
        ("64:ff9b::198.51.100.9", ["2001:db8:464::1", "64:ff9b::cb00:7102", "64:ff9b::c633:6409"]),
        // By the CLAT; platd's router has no IPv4 address (RFC 7335).
        ("198.51.100.9", ["192.0.0.8", "203.0.113.2", "198.51.100.9"]),
    ] {
        for probes in [&[][..], &["-I"]] {
            let trace = ["run", "--", "traceroute", "-n", "-q", "1", "-w", "3"];
            let output = world.platd(&[&trace[..], probes, &[target]].concat())?;
            let said = String::from_utf8(output.stdout)?;
            let seen = said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
            ensure!(seen.eq(hops), "{probes:?}: {said}");
        }
    }
    Ok(())
}
