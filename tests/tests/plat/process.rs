// SPDX-License-Identifier: Apache-2.0

//! How platd is started, says that it is ready, and ends.

use std::fs;

use anyhow::{ensure, Context, Result};
use clat_tests::can_run;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::{wait_until, what_it_said, World};

/// By a socket that is connected already, as a virtual machine monitor gives it: it is served, and
/// platd ends with it.
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

/// In the background once it is ready; its number is in a file; it ends with its first guest.
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
    // What cannot be made ready is said, and is no success.
    let argv = [platd.to_str().context("path")?, "--socket", "/nowhere/x", "--background"];
    let output = world.host.output(&argv)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("/nowhere/x"), "{said}");
    Ok(())
}
