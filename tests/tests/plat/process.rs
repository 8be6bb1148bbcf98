// SPDX-License-Identifier: Apache-2.0

//! How platd starts, reports that it is ready, and ends.

use std::fs;
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, USER_NAMESPACES};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::{wait_until, what_it_said, World};

/// With a connected socket, as from a virtual machine monitor: it is served, and platd ends with
/// it.
#[test]
fn an_inherited_socket() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    let platd = world.path("platd");
    let platd = platd.to_str().context("path")?;
    for kind in ["stream", "packets"] {
        let argv = ["python3", "-c", include_str!("scripts/fd_guest.py"), platd, kind];
        let said = what_it_said(&world.host.output(&argv)?)?;
        ensure!(said.trim() == "served", "{kind}: {said}");
    }
    let output = world.host.output(&[platd, "--fd", "77"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("--fd 77: no descriptor"), "{said}");
    Ok(())
}

/// In the background once it is ready, with its process id in a file; it ends with its first guest.
#[test]
fn in_the_background_for_one_guest() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    let (platd, socket) = (world.path("platd"), world.path("one.sock"));
    let pid = world.path("one.pid");
    let argv = [&platd, std::path::Path::new("--socket"), &socket, "--pid".as_ref(), &pid]
        .map(|word| word.to_str().unwrap_or_default());
    let argv = [&argv[..], &["--one-off", "--background"]].concat();
    let output = world.host.output(&argv)?;
    ensure!(output.status.success(), "{output:?}");
    let number: i32 = fs::read_to_string(&pid)?.trim().parse()?;
    let is_there = || kill(Pid::from_raw(number), None).is_ok();
    ensure!(is_there());
    let path = socket.to_str().context("path")?;
    let code = include_str!("scripts/guest.py");
    let argv = ["python3", "-c", code, "socket", path, "5001"];
    let mut guest = world.host.spawn(&argv, &world.path("one.guest"))?;
    guest.wait_for("connected")?;
    ensure!(is_there());
    guest.stop(Signal::SIGKILL)?;
    wait_until("platd ends", || Ok(!is_there()))?;
    wait_until("nothing is left of it", || Ok(!socket.exists() && !pid.exists()))?;
    // A failure to start is reported.
    let argv = [platd.to_str().context("path")?, "--socket", "/nowhere/x", "--background"];
    let output = world.host.output(&argv)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("/nowhere/x"), "{said}");
    Ok(())
}

/// Whom the host asks may change at any time, by a file that takes the place of the old one. The
/// command asks the network all the same.
#[test]
fn the_hosts_resolvers_change() -> Result<()> {
    if !can_run(&["python3", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let (before, after) = ("127.0.0.2", "127.0.0.3");
    let code = include_str!("scripts/resolvers.py");
    let argv = ["python3", "-c", code, before, after];
    let mut resolvers = world.host.spawn(&argv, &world.path("resolvers.log"))?;
    resolvers.wait_for("ready")?;
    let (platd, script) = (world.path("platd"), include_str!("scripts/own_etc.sh"));
    let platd = platd.to_str().context("path")?;
    let guest = include_str!("scripts/ask_for_ever.py");
    let argv = ["sh", "-c", script, "sh", before, platd, "run", "--", "python3", "-c", guest];
    let mut guest = world.host.spawn(&argv, &world.path("guest.log"))?;
    guest.wait_for("ready")?;
    resolvers.wait_for("127.0.0.2 was asked")?;
    let etc = PathBuf::from(format!("/proc/{}/root/etc", guest.pid()));
    fs::write(etc.join("new"), format!("nameserver {after}\n"))?;
    fs::rename(etc.join("new"), etc.join("resolv.conf"))?;
    resolvers.wait_for("127.0.0.3 was asked")?;
    Ok(())
}

/// The host's address and interface are those that are wanted, and so is what names are looked for
/// with.
#[test]
fn how_it_leaves_the_host_and_searches_names() -> Result<()> {
    if !can_run(&["python3", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    world.host.run("ip addr add 203.0.113.9/24 dev w0")?;
    world.host.run("ip link add d0 type veth peer name d1")?;
    world.host.run("ip link set d0 up")?;
    let code = include_str!("scripts/who_calls.py");
    let argv = ["python3", "-c", code];
    let mut server = world.outside.spawn(&argv, &world.path("who.log"))?;
    server.wait_for("ready")?;
    let (platd, script) = (world.path("platd"), include_str!("scripts/own_etc.sh"));
    let platd = platd.to_str().context("path")?;
    let call = |options: &[&str]| {
        let argv = ["sh", "-c", script, "sh", "192.0.2.53", platd, "run"];
        let command = ["--", "python3", "-c", include_str!("scripts/call.py")];
        world.host.output(&[&argv[..], options, &command].concat())
    };
    let own = "nameserver 2001:db8:464::53";
    for (options, address, names) in [
        (&[][..], "203.0.113.1", own),
        (&["--outbound", "203.0.113.9"], "203.0.113.9", own),
        (&["--outbound-interface", "w0", "--no-dns"], "203.0.113.1", "nameserver 192.0.2.53"),
        (
            &["--search", "a.example", "--search", "b.example"],
            "203.0.113.1",
            "nameserver 2001:db8:464::53 search a.example. b.example.",
        ),
    ] {
        let said = what_it_said(&call(options)?)?;
        ensure!(said == format!("{address}\n{address}\n{names}\n"), "{options:?}: {said}");
    }
    // Nothing is reached by an interface that leads nowhere.
    ensure!(!call(&["--outbound-interface", "d0"])?.status.success());
    Ok(())
}
