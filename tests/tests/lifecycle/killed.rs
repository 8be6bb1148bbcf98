// SPDX-License-Identifier: Apache-2.0

//! SIGKILL after each single effect that a controller has outside of its process, while it starts a
//! CLAT, stops one, or recovers after a killed controller; and at random times: the next controller
//! leaves nothing of it, and nothing of others' is changed.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, Controller, Daemon, Lab, Mode, Offloads, PREFIX};
use libbpf_rs::{MapCore, MapHandle};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use super::{eventually, ping, BpfFs, Traces, NEEDS};

/// The system calls with effects on others. Files are written in place; all sends are to netlink.
const EFFECTS: &[libc::c_long] = &[
    libc::SYS_bpf,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_ioctl,
    libc::SYS_kill,
    libc::SYS_mount,
    libc::SYS_pidfd_send_signal,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendto,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_wait4,
    libc::SYS_write,
];

/// A process traced by the thread that made this.
struct Watched {
    process: Pid,
    /// Its threads, and for those in a system call, whether it has an effect.
    threads: HashMap<Pid, Option<bool>>,
}

impl Watched {
    fn new(process: Pid) -> Result<Self> {
        let mut watched = Self { process, threads: HashMap::new() };
        loop {
            let tasks = fs::read_dir(format!("/proc/{process}/task"))?.flatten();
            let tasks = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
            let new = tasks.map(Pid::from_raw).filter(|t| !watched.threads.contains_key(t));
            let new: Vec<_> = new.collect();
            if new.is_empty() {
                return Ok(watched);
            }
            for thread in new {
                let options =
                    ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_TRACECLONE;
                match ptrace::seize(thread, options) {
                    // Ended meanwhile, or already traced through its creator.
                    Err(Errno::ESRCH | Errno::EPERM) => {}
                    done => done.context("seize")?,
                }
                let _ = ptrace::interrupt(thread);
                watched.threads.insert(thread, None);
            }
        }
    }

    /// Continues it until it has had `count` effects, and kills it right then; false if it is
    /// `done` before.
    fn kill_after(mut self, count: usize, done: &AtomicBool) -> Result<bool> {
        let mut effects = 0;
        // Only what this thread traces, not children of others.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
        loop {
            let (thread, signal) = match waitpid(None, Some(flags))? {
                WaitStatus::StillAlive => {
                    if done.load(Ordering::Relaxed) {
                        return Ok(false);
                    }
                    thread::sleep(Duration::from_micros(20));
                    continue;
                }
                WaitStatus::PtraceSyscall(thread) => {
                    let within = self.threads.entry(thread).or_default();
                    let had_effect = match within.take() {
                        Some(effect) => effect,
                        None => {
                            *within = Some(has_effect(thread));
                            false
                        }
                    };
                    if had_effect {
                        effects += 1;
                        if effects == count {
                            kill(self.process, Signal::SIGKILL)?;
                            return Ok(true);
                        }
                    }
                    (thread, None)
                }
                WaitStatus::PtraceEvent(thread, ..) => (thread, None),
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) => {
                    ensure!(thread != self.process, "it ended by itself");
                    self.threads.remove(&thread);
                    continue;
                }
                WaitStatus::Continued(_) => continue,
            };
            match ptrace::syscall(thread, signal) {
                Err(Errno::ESRCH) => {}
                done => done.context("go on")?,
            }
        }
    }
}

/// Whether the system call that this thread begins is one of [`EFFECTS`].
fn has_effect(thread: Pid) -> bool {
    let call = fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
    let number = call.split_whitespace().next().and_then(|number| number.parse().ok());
    number.is_some_and(|number| EFFECTS.contains(&number))
}

/// Kills `process` after its `count`th effect while `during` runs. False if there were fewer.
fn killed_after(process: i32, count: usize, during: impl FnOnce() -> Result<()>) -> Result<bool> {
    let (done, ready) = (AtomicBool::new(false), std::sync::Barrier::new(2));
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let watched = Watched::new(Pid::from_raw(process));
            ready.wait();
            watched?.kill_after(count, &done)
        });
        ready.wait();
        let result = during();
        done.store(true, Ordering::Relaxed);
        let killed = watcher.join().expect("no panic")?;
        if !killed {
            result?;
        }
        Ok(killed)
    })
}

/// All that a CLAT may leave in the phone and in the maps.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Left {
    traces: Traces,
    settings: String,
    pins: Vec<(String, Option<usize>)>,
    /// The records in /run/clat.
    notes: Vec<String>,
}

impl Left {
    pub(super) fn of(lab: &Lab, pins: &BpfFs, controller: &Controller<'_>) -> Result<Self> {
        let mut traces = Traces::of(lab)?;
        traces.processes.remove(&controller.daemon.pid());
        let entries =
            |path: &Path| MapHandle::from_pinned_path(path).ok().map(|map| map.keys().count());
        let pins = fs::read_dir(&pins.0)?.flatten();
        let pins = pins.map(|pin| {
            let name = pin.file_name().to_string_lossy().into_owned();
            let count = if name.starts_with("map_") { entries(&pin.path()) } else { None };
            (name, count)
        });
        let mut pins: Vec<_> = pins.collect();
        pins.sort();
        let settings = lab.phone.run("sysctl -a --pattern ^net.ipv[46].conf")?;
        let namespace = lab.phone.enter(|| Ok(fs::metadata("/proc/thread-self/ns/net")?.ino()))?;
        let notes = fs::read_dir("/run/clat")?.flatten().map(|file| file.file_name());
        let notes = notes.filter_map(|name| name.into_string().ok());
        let notes = notes.filter(|name| name.contains(&namespace.to_string())).collect();
        Ok(Self { traces, settings, pins, notes })
    }
}

/// What the controller is doing when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Start,
    Stop,
    Recovery,
}

/// Waits for the end of its recovery, or its own. Not by waitpid(2), which would take events from
/// the tracer.
fn until_ready(controller: &Controller<'_>) -> Result<()> {
    let command = format!("/proc/{}/cmdline", controller.daemon.pid());
    eventually("recovery", || {
        let is_alive = fs::read(&command).is_ok_and(|command| !command.is_empty());
        Ok(!is_alive || controller.daemon.log().contains("ready on unix:"))
    })
}

fn killed_at_every_step_of(work: Work) -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = &Lab::new(Offloads::Default)?;
    let pins = BpfFs::mount(lab)?;
    let options = ["--bpf-dir", &pins.0];
    let start = |c: &Controller<'_>| c.ctl(&["start", "up0", "--prefix", PREFIX]).map(drop);
    let stop = |c: &Controller<'_>| c.ctl(&["stop", "up0"]).map(drop);
    let mut controller = Controller::new(lab, Mode::Offload, &options)?;
    let before = Left::of(lab, &pins, &controller)?;
    // A recovery also loads the programs, which is most of its effects: test every fifth.
    let every = if work == Work::Recovery { 5 } else { 1 };
    for step in (1 + std::process::id() as usize % every..).step_by(every) {
        let pid = controller.daemon.pid();
        let killed = match work {
            Work::Start => killed_after(pid, step, || start(&controller))?,
            Work::Stop => {
                start(&controller)?;
                killed_after(pid, step, || stop(&controller))?
            }
            Work::Recovery => {
                start(&controller)?;
                controller.daemon.stop(Signal::SIGKILL)?;
                controller = Controller::spawn(lab, Mode::Offload, &options)?;
                let pid = controller.daemon.pid();
                killed_after(pid, step, || until_ready(&controller))?
            }
        };
        controller.daemon.stop(Signal::SIGKILL)?;
        controller = Controller::new(lab, Mode::Offload, &options)?;
        let after = Left::of(lab, &pins, &controller)?;
        ensure!(
            after == before,
            "{work:?}, killed behind effect {step}: {after:#?}\nwas {before:#?}\n{}",
            controller.daemon.log()
        );
        if !killed {
            eprintln!("{work:?}: fewer than {step} effects");
            start(&controller)?;
            return ping(lab, "");
        }
    }
    Ok(())
}

#[test]
fn killed_at_every_step_of_start() -> Result<()> {
    killed_at_every_step_of(Work::Start)
}

#[test]
fn killed_at_every_step_of_stop() -> Result<()> {
    killed_at_every_step_of(Work::Stop)
}

#[test]
fn killed_at_every_step_of_recovery() -> Result<()> {
    killed_at_every_step_of(Work::Recovery)
}

/// Repeats a run of [`killed_at_random`] with the seed that it printed.
const SEED: &str = "CLAT_KILL_SEED";

/// Things that look like ours but are not: a process by name, a device, a rule and a filter. They
/// last as long as the process and the lab.
fn make_foreign(lab: &Lab) -> Result<Daemon> {
    for line in [
        "ip tuntap add v4-other mode tun",
        "ip6tables -t raw -A PREROUTING -i other0 -s 2001:db8:64::/96 -j DROP",
        "tc qdisc add dev up0 clsact",
    ] {
        lab.phone.run(line)?;
    }
    let filter = "tc filter add dev up0 ingress prio 7 protocol ipv6 bpf bytecode";
    let filter: Vec<_> = filter.split(' ').chain(["1,6 0 0 0,"]).collect();
    let added = lab.phone.output(&filter)?;
    ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let argv = ["bash", "-c", "exec -a clatd-up0 sleep 1000"];
    lab.phone.spawn(&argv, &lab.dir().join("foreign.log"))
}

/// At any time, of a start or a stop; sometimes together with clatd, and sometimes during the next
/// controller's recovery.
fn killed_at_random(mode: Mode) -> Result<()> {
    const KILLS: usize = 50;
    if !can_run(NEEDS) {
        return Ok(());
    }
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{SEED}={seed} repeats this");
    let mut random = fastrand::Rng::with_seed(seed);
    let lab = &Lab::new(Offloads::Default)?;
    let pins = BpfFs::mount(lab)?;
    let options = ["--bpf-dir", &pins.0];
    let mut foreign = make_foreign(lab)?;
    foreign.wait_for("")?;
    let mut controller = Controller::new(lab, mode, &options)?;
    controller.start("up0", PREFIX)?;
    controller.ctl(&["stop", "up0"])?;
    let before = Left::of(lab, &pins, &controller)?;
    for number in 1..=KILLS {
        if random.u8(..4) == 0 {
            // Interrupts a recovery from the previous kill.
            controller.daemon.stop(Signal::SIGKILL)?;
            controller = Controller::spawn(lab, mode, &options)?;
        }
        let instant = Duration::from_micros(random.u64(..150_000));
        let with_clatd = random.bool();
        let killed = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let (controller, killed) = (&controller, &killed);
            scope.spawn(move || {
                while !killed.load(Ordering::Relaxed) {
                    let _ = controller.try_ctl(&["start", "up0", "--prefix", PREFIX]);
                    let _ = controller.try_ctl(&["stop", "up0"]);
                }
            });
            let begin = Instant::now();
            while begin.elapsed() < instant {
                thread::sleep(Duration::from_micros(100));
            }
            if with_clatd {
                for pid in controller.clatds().into_iter().filter(|pid| *pid != foreign.pid()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            let done = kill(Pid::from_raw(controller.daemon.pid()), Signal::SIGKILL);
            killed.store(true, Ordering::Relaxed);
            done.context("kill")
        })?;
        controller.daemon.stop(Signal::SIGKILL)?;
        controller = Controller::new(lab, mode, &options)?;
        // At once: the kernel may still have the device of one that was killed with its clatd.
        controller.start("up0", PREFIX).with_context(|| format!("behind kill {number}"))?;
        if number % 10 == 0 {
            ping(lab, "").with_context(|| format!("behind kill {number}"))?;
        }
        controller.ctl(&["stop", "up0"])?;
        let after = Left::of(lab, &pins, &controller)?;
        ensure!(
            after == before,
            "{SEED}={seed}, kill {number}: {after:#?}\nwas {before:#?}\n{}",
            controller.daemon.log()
        );
    }
    Ok(())
}

#[test]
fn killed_at_random_instants_offload() -> Result<()> {
    killed_at_random(Mode::Offload)
}

#[test]
fn killed_at_random_instants_daemon() -> Result<()> {
    killed_at_random(Mode::Daemon)
}
