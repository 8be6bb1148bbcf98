// SPDX-License-Identifier: Apache-2.0

//! What a controller trusts of the CLATs of a previous one, and what it does with them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, change, Controller, Lab, Mode, Offloads, PREFIX, PREFIX2};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::{ensure_same, ping, BpfFs, NEEDS};

/// Overwrites the arguments of a process, but not its name, as it could itself.
fn overwrite_arguments(pid: i32) -> Result<()> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    // proc(5), from field 3 on: 48 is arg_start.
    let begin = fields.split(' ').nth(48 - 3).context("no arguments")?.parse::<u64>()?;
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    let (name, arguments) = command.split_once('\0').context("no arguments")?;
    let others = arguments.replace("2001:db8:64::", "2001:db8:65::").replace("0x", "0y");
    ensure!(others != arguments && others.len() == arguments.len(), "{arguments}");
    let memory = File::options().write(true).open(format!("/proc/{pid}/mem"))?;
    memory.write_all_at(others.as_bytes(), begin + name.len() as u64 + 1)?;
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    ensure!(command.contains("2001:db8:65::"), "{command}");
    Ok(())
}

/// Prefix and mark among them, which root would then use.
#[test]
fn what_a_clatd_says_of_itself_is_not_believed() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = &Lab::new(Offloads::Default)?;
    let mut first = Controller::new(lab, Mode::Daemon, &["--keep"])?;
    first.start("up0", PREFIX)?;
    let kept = first.status("up0")?;
    overwrite_arguments(first.clatds()[0])?;
    first.daemon.stop(Signal::SIGKILL)?;
    let second = Controller::new(lab, Mode::Daemon, &["--keep"])?;
    ensure_same(&second.status("up0")?, &kept)?;
    ping(lab, "")
}

/// While no controller was running.
#[test]
fn an_uplink_that_was_renamed_meanwhile_is_found() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    for mode in [Mode::Offload, Mode::Daemon] {
        let lab = &Lab::new(Offloads::Default)?;
        let mut first = Controller::new(lab, mode, &["--keep"])?;
        first.start("up0", PREFIX)?;
        let kept = first.status("up0")?;
        first.daemon.stop(Signal::SIGKILL)?;
        change::rename(lab, "new0")?;
        let second = Controller::new(lab, mode, &["--keep"])?;
        let now = second.status("new0")?;
        for same in ["ifIndex", "nat64Prefix", "v4", "v6", "offloaded"] {
            ensure!(now[same] == kept[same], "{same}: {now} was {kept}");
        }
        ensure!(now["v4iface"] == "v4-new0", "{now}");
        ping(lab, "")?;
        second.ctl(&["stop", "new0"])?;
        ensure!(second.clatds().is_empty(), "{:?}", second.clatds());
    }
    Ok(())
}

/// linux/capability.h: SYS_PTRACE, SYS_ADMIN, DAC_OVERRIDE.
const GIVEN_UP: u64 = 1 << 19 | 1 << 21 | 1 << 1;

/// In no thread, also for a CLAT of a previous controller.
#[test]
fn what_only_the_start_may_do_is_given_up() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = &Lab::new(Offloads::Default)?;
    let pins = BpfFs::mount(lab)?;
    let options = ["--keep", "--bpf-dir", &pins.0];
    let mut first = Controller::new(lab, Mode::Offload, &options)?;
    first.start("up0", PREFIX)?;
    first.daemon.stop(Signal::SIGKILL)?;
    let second = Controller::new(lab, Mode::Offload, &options)?;
    ensure!(second.status("up0")?["offloaded"] == true);
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", second.daemon.pid()))?.flatten() {
        let status = fs::read_to_string(task.path().join("status"))?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let name = field("Name:").context("no name")?.trim().to_owned();
        let set = field("CapEff:").context("no capabilities")?.trim();
        let set = u64::from_str_radix(set, 16)?;
        ensure!(set & GIVEN_UP == 0, "{name} has {set:x}");
        threads.push(name);
    }
    for name in ["next hops", "clatd-watch"] {
        ensure!(threads.iter().any(|thread| thread == name), "{name}: {threads:?}");
    }
    Ok(())
}

/// Each may take seconds, as a stopped process would.
#[test]
fn three_that_are_stopped_are_removed_at_once() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = &Lab::new(Offloads::Default)?;
    lab.second_uplink()?;
    lab.third_uplink()?;
    let mut first = Controller::new(lab, Mode::Daemon, &[])?;
    for (uplink, prefix) in [("up0", PREFIX), ("up1", PREFIX2), ("up2", PREFIX2)] {
        first.start(uplink, prefix)?;
    }
    let clatds = first.clatds();
    ensure!(clatds.len() == 3, "{clatds:?}");
    for clatd in clatds {
        kill(Pid::from_raw(clatd), Signal::SIGSTOP)?;
    }
    first.daemon.stop(Signal::SIGKILL)?;
    let begin = Instant::now();
    let second = Controller::new(lab, Mode::Daemon, &[])?;
    eprintln!(
        "ready in {:.0?} after three stopped clatds of a previous controller",
        begin.elapsed()
    );
    ensure!(second.clatds().is_empty(), "{:?}", second.clatds());
    ensure!(!lab.phone.run("ip -br link")?.contains("v4-"), "a device is left");
    let log = second.daemon.log();
    ensure!(!log.contains("does not end by SIGTERM"), "{log}");
    Ok(())
}
