// SPDX-License-Identifier: Apache-2.0

//! The headers of a guest's kernel, and what it expects of its peers, are the same behind the
//! network as without one.

use std::io::Write;
use std::process::Stdio;

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, USER_NAMESPACES};

use crate::{wait_until, World, SERVER, SERVER6, SERVERS};

/// DSCP of all packets, and ECN of datagrams (RFC 7915 §4.1, §5.1), also when they change.
#[test]
fn traffic_classes() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let sniff = ["python3", "-c", include_str!("scripts/sniff_classes.py")];
    let mut sniffed = world.outside.spawn(&sniff, &world.path("classes.log"))?;
    sniffed.wait_for("ready")?;
    world.python(&[], include_str!("scripts/classes.py"), &SERVERS)?;
    for (protocol, class) in
        [(17, "b9"), (17, "ba"), (17, "02"), (17, "03"), (6, "28"), (6, "48"), (6, "68"), (6, "88")]
    {
        sniffed.wait_for(&format!("protocol {protocol} class {class}"))?;
    }
    Ok(())
}

/// The same of datagrams to the guest, also of several that come together.
#[test]
fn traffic_classes_of_answers() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let serve = ["python3", "-c", include_str!("scripts/classes_serve.py")];
    let mut server = world.outside.spawn(&serve, &world.path("classes.log"))?;
    server.wait_for("ready")?;
    world.python(&[], include_str!("scripts/classes_down.py"), &SERVERS)?;
    Ok(())
}

/// An urgent byte is ordinary data (RFC 6093), in both directions.
#[test]
fn urgent_bytes() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let serve = ["python3", "-c", include_str!("scripts/urgent_serve.py")];
    let mut server = world.outside.spawn(&serve, &world.path("urgent.log"))?;
    server.wait_for("ready")?;
    world.python(&[], include_str!("scripts/urgent.py"), &SERVERS)?;
    wait_until("both are there", || Ok(server.log().matches("got b'wx?yz'").count() == 2))
}

/// A SYN with a small hop limit gets a router's Time Exceeded.
#[test]
fn traceroute_by_tcp() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let beyond = clat_tests::Netns::new(crate::number(), "beyond")?;
    world.outside.run(&format!("ip link add b0 type veth peer name o0 netns {}", beyond.name()))?;
    for line in [
        "ip addr add 203.0.114.1/24 dev b0",
        "ip link set b0 up",
        "ip route add 198.51.102.1 via 203.0.114.2",
        "sysctl -qw net.ipv4.ip_forward=1",
    ] {
        world.outside.run(line)?;
    }
    for line in [
        "ip addr add 203.0.114.2/24 dev o0",
        "ip addr add 198.51.102.1/32 dev lo",
        "ip link set o0 up",
        "ip link set lo up",
        "ip route add default via 203.0.114.1",
    ] {
        beyond.run(line)?;
    }
    let serve = ["python3", "-u", "-m", "http.server", "--bind", "198.51.102.1", "80"];
    let mut server = beyond.spawn(&serve, &world.path("beyond.log"))?;
    server.wait_for("Serving")?;
    let code = include_str!("scripts/tcp_traceroute.py");
    world.python(&[], code, &["64:ff9b::198.51.102.1"])?;
    Ok(())
}

/// All peers to which a port has sent may answer it, however many.
#[test]
fn a_port_with_many_peers() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    world.outside.run("ip route add local 198.51.101.0/24 dev lo")?;
    let serve = ["python3", "-c", include_str!("scripts/many_peers_serve.py")];
    let mut server = world.outside.spawn(&serve, &world.path("peers.log"))?;
    server.wait_for("ready")?;
    world.python(&[], include_str!("scripts/many_peers.py"), &[])?;
    Ok(())
}

/// A dead peer is detected by a guest with keepalive, and by one with TCP_USER_TIMEOUT, as without
/// a network between.
#[test]
fn dead_peers_are_missed() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, _platd) = world.guest("dead", &["--clat"])?;
    let argv = ["python3", "-c", include_str!("scripts/dead_peer.py"), SERVER, SERVER6];
    let mut child = guest.command(&argv).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("stdin")?;
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().context("stdout")?));
    let alive = lines.next().context("it ended")??;
    ensure!(alive == "alive", "{alive}");
    world.outside.run("ip route add blackhole 203.0.113.1/32")?;
    input.write_all(b"\n")?;
    let said: Vec<String> = lines.collect::<std::io::Result<_>>()?;
    println!("{}", said.join("; "));
    ensure!(child.wait()?.success() && said.last().is_some_and(|last| last == "found out"));
    Ok(())
}

/// The host's resolvers and caches are not asked, but its search domains are used.
#[test]
fn names_are_looked_for_in_this_network() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let etc = std::path::Path::new("/etc/netns").join(world.host.name());
    std::fs::create_dir_all(&etc)?;
    let _etc = crate::namespaces::Etc(etc.clone());
    std::fs::write(etc.join("resolv.conf"), "nameserver 192.0.2.53\nsearch corp.example\n")?;
    std::fs::write(etc.join("nsswitch.conf"), "hosts: resolve [!UNAVAIL=return] files dns\n")?;
    let output = world.platd(&["run", "--", "cat", "/etc/resolv.conf", "/etc/nsswitch.conf"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        said == "nameserver 2001:db8:464::53\nsearch corp.example\nhosts: files dns\n",
        "{said}"
    );
    Ok(())
}

/// IPv4 without a CLAT, for a command whose network has both families.
#[test]
fn a_command_with_both_families() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    world.python(&["--dual-stack"], include_str!("scripts/talk.py"), &SERVERS)?;
    let said = world.platd(&["run", "--dual-stack", "--", "ip", "-o", "-4", "addr", "show"])?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(said.contains("plat0    inet 192.168.64.2/32"), "{said}");
    Ok(())
}

/// A network in a network.
#[test]
fn nested() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let platd = world.path("platd");
    let platd = platd.to_str().context("path")?;
    let talk = include_str!("scripts/talk.py");
    let inner = [&["run", "--", platd, "run", "--", "python3", "-c", talk][..], &SERVERS].concat();
    let output = world.platd(&inner)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn who_has_read_enough_is_no_error() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    let socket = world.path("x.sock");
    let _platd = world.daemon("head", &["--socket", socket.to_str().context("path")?])?;
    let line = format!(
        "set -o pipefail; {} status {} | head -n 1",
        world.path("platd").display(),
        world.path("head.status").display()
    );
    let output = world.host.output(&["bash", "-c", &line])?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    Ok(())
}
