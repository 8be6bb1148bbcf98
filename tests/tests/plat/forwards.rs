// SPDX-License-Identifier: Apache-2.0

//! Forwarded ports: however the guest listens, and wherever visitors come from.

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, USER_NAMESPACES};

use crate::{what_it_said, World};

const PORTS: [&str; 4] = ["--forward", "8080:80", "--forward", "udp:5353:53"];

/// Answers come from the requested address, one of several of the host's, among them link-local and
/// loopback.
#[test]
fn visitors_at_any_address() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    for line in ["addr add 203.0.113.9/24 dev w0", "addr add 2001:db8:6::1/64 dev w0 nodad"] {
        world.host.run(&format!("ip {line}"))?;
    }
    world.outside.run("ip addr add 2001:db8:6::2/64 dev h0 nodad")?;
    let link_local = world.host.run("ip -6 -o addr show dev w0 scope link")?;
    let link_local = link_local.split_whitespace().nth(3).context("an address")?;
    let link_local = link_local.split('/').next().context("an address")?;
    let guest = include_str!("scripts/forward_guest.py");
    let argv = [&["run"], &PORTS[..], &["--", "python3", "-c", guest]].concat();
    let mut guest = world.host.spawn(&world.command(&argv), &world.path("guest.log"))?;
    guest.wait_for("ready")?;
    let visit = include_str!("scripts/forward_from.py");
    let own = ["python3", "-c", visit, "127.0.0.1", "127.0.0.2", "::1", "203.0.113.9"];
    what_it_said(&world.host.output(&own)?)?;
    let far = format!("{link_local}%h0");
    let far = ["python3", "-c", visit, "203.0.113.9", "203.0.113.1", "2001:db8:6::1", &far];
    what_it_said(&world.outside.output(&far)?)?;
    Ok(())
}

/// A guest that listens by IPv4 only: behind the CLAT, and with both families.
#[test]
fn a_guest_that_listens_by_ipv4_alone() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    world.host.run("ip addr add 2001:db8:6::1/64 dev w0 nodad")?;
    world.outside.run("ip addr add 2001:db8:6::2/64 dev h0 nodad")?;
    let guest = include_str!("scripts/forward_guest.py");
    for (name, options) in [("clat", &[][..]), ("dual", &["--dual-stack"])] {
        let argv = [&["run"], options, &PORTS, &["--", "python3", "-c", guest, "0.0.0.0"]].concat();
        let log = world.path(&format!("{name}.log"));
        let mut guest = world.host.spawn(&world.command(&argv), &log)?;
        guest.wait_for("ready")?;
        let visit = include_str!("scripts/forward_from.py");
        let said = world.host.output(&["python3", "-c", visit, "127.0.0.1", "::1"])?;
        let said = what_it_said(&said).with_context(|| name.to_owned())?;
        ensure!(said.matches("the guest saw 192.0.0.8").count() == 2, "{name}: {said}");
        let far = ["python3", "-c", visit, "203.0.113.1", "2001:db8:6::1"];
        let said = what_it_said(&world.outside.output(&far)?).with_context(|| name.to_owned())?;
        ensure!(said.contains("203.0.113.1 the guest saw 203.0.113.2"), "{name}: {said}");
    }
    Ok(())
}

/// Ports are added and removed at run time by a process that may open them; platd itself no longer
/// may.
#[test]
fn ports_come_and_go() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let (platd, control) = (world.path("platd"), world.path("control"));
    let (platd, control) = (platd.to_str().context("path")?, control.to_str().context("path")?);
    let guest = include_str!("scripts/forward_guest.py");
    let argv = ["run", "--control", control, "--", "python3", "-c", guest];
    let mut guest = world.host.spawn(&world.command(&argv), &world.path("guest.log"))?;
    guest.wait_for("ready")?;
    let forward = |words: &str| -> Result<String> {
        let (action, ports) = words.split_once(' ').unwrap_or((words, ""));
        world.host.run(&format!("{platd} forward {action} {control} {ports}"))
    };
    let visit = include_str!("scripts/forward_from.py");
    let visited = || world.host.output(&["python3", "-c", visit, "127.0.0.1", "::1"]);
    ensure!(forward("list")?.is_empty() && !visited()?.status.success());
    forward("add tcp:8080:80 udp:5353:53")?;
    what_it_said(&visited()?)?;
    let list = forward("list")?;
    ensure!(
        list == "tcp:0.0.0.0:8080:80\ntcp:[::]:8080:80\nudp:0.0.0.0:5353:53\nudp:[::]:5353:53\n",
        "{list}"
    );
    ensure!(forward("add tcp:8080:81").is_err(), "it is taken");
    forward("remove tcp:127.0.0.1:8080:80").expect_err("it is of all addresses");
    forward("remove tcp:8080:80")?;
    ensure!(!visited()?.status.success());
    forward("remove udp:5353:53")?;
    ensure!(forward("list")?.is_empty());
    // Again, and several at once.
    forward("add 8080-8082:80-82 udp:5353:53")?;
    what_it_said(&visited()?)?;
    ensure!(forward("list")?.lines().count() == 8);
    Ok(())
}
