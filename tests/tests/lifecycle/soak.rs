// SPDX-License-Identifier: Apache-2.0

//! Endurance, for `./test soak`: repeated starts and stops, then random disturbances of a CLAT
//! under traffic, all with a hostile caller. Memory does not grow, other callers do not wait, and
//! in the end all is as it was.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_controller::binder_adapter::{IClatdController, Transport};
use clat_controller::client;
use clat_tests::{Controller, Daemon, Lab, Mode, Offloads, PREFIX, SERVER4, SERVER6};
use fastrand::Rng;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::killed::Left;
use super::{descriptors, eventually, ping, BpfFs};

/// Minutes to run; without it the test does nothing.
const MINUTES: &str = "CLAT_SOAK_MINUTES";
/// Repeats a run with the seed that it printed.
const SEED: &str = "CLAT_SOAK_SEED";

/// The hostile caller.
const UID: &str = "4321";

/// The longest time that another user may wait for an answer, beyond what a sleeping thread of this
/// machine oversleeps.
const WAIT: Duration = Duration::from_millis(100);

/// How much the controller's memory may grow, in bytes: threads, and what the allocator keeps.
const MEMORY: u64 = 8 << 20;

/// A user who attacks the controller, until dropped.
fn hostile(lab: &Lab, socket: &Path) -> Result<Daemon> {
    // So that it can reach the socket.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
    let script = lab.dir().join("hostile.py");
    fs::write(&script, include_str!("hostile.py"))?;
    let (user, group) = (format!("--reuid={UID}"), format!("--regid={UID}"));
    let (script, socket) = (script.to_string_lossy(), socket.to_string_lossy());
    let argv = ["setpriv", &user, &group, "--clear-groups", "python3", &script, &socket];
    lab.phone.spawn(&argv, &lab.dir().join("hostile.log"))
}

/// Resident memory of a process in bytes.
fn memory(pid: i32) -> Result<u64> {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    Ok(pages.split(' ').nth(1).context("no number")?.parse::<u64>()? * 4096)
}

/// How long another caller waits for answers, and how much of that is due to the machine.
#[derive(Default)]
struct Waits {
    ended: AtomicBool,
    /// Whether the controller has to answer.
    is_up: AtomicBool,
    /// The longest time that a thread overslept since the last reading, in microseconds.
    overslept: AtomicU64,
    /// The longest wait, in microseconds, and of how many.
    worst: AtomicU64,
    count: AtomicU64,
}

impl Waits {
    /// Whether the run is over, perhaps because a wait was too long.
    fn are_over(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Measures how late a sleeping thread wakes.
    fn watch_the_machine(&self) {
        const NAP: Duration = Duration::from_millis(2);
        while !self.are_over() {
            let begin = Instant::now();
            thread::sleep(NAP);
            self.overslept.fetch_max(micros(begin.elapsed().saturating_sub(NAP)), Ordering::SeqCst);
        }
    }

    /// Calls repeatedly, and compares.
    fn ask(&self, socket: &Path) -> Result<()> {
        let transport = Transport::Rpc(socket.to_owned());
        while !self.are_over() {
            thread::sleep(Duration::from_millis(20));
            if !self.is_up.load(Ordering::SeqCst) {
                continue;
            }
            self.overslept.store(0, Ordering::SeqCst);
            let begin = Instant::now();
            let answer = client::connect(Some(&transport), false)
                .map_err(|e| e.to_string())
                .and_then(|service| service.getStatus().map_err(|e| client::describe(&e)));
            let wait = begin.elapsed();
            // It may have been ended meanwhile.
            if !self.is_up.load(Ordering::SeqCst) {
                continue;
            }
            answer.map_err(anyhow::Error::msg).context("another caller is not answered")?;
            self.worst.fetch_max(micros(wait), Ordering::SeqCst);
            self.count.fetch_add(1, Ordering::SeqCst);
            // Let the measuring thread sleep once more.
            thread::sleep(Duration::from_millis(4));
            let machine = Duration::from_micros(self.overslept.load(Ordering::SeqCst));
            ensure!(
                wait <= WAIT + machine,
                "another caller waited {wait:.0?}; a thread of this machine overslept {machine:.0?}"
            );
        }
        Ok(())
    }

    fn told(&self) -> String {
        let worst = Duration::from_micros(self.worst.load(Ordering::SeqCst));
        format!(
            "another caller waited {worst:.1?} at most of {}",
            self.count.load(Ordering::SeqCst)
        )
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Runs `during` while others call, and ends these with it.
fn while_asked(socket: &Path, during: impl FnOnce(&Waits) -> Result<()>) -> Result<String> {
    let waits = Waits::default();
    waits.is_up.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(|| waits.watch_the_machine());
        let asked = scope.spawn(|| {
            let asked = waits.ask(socket);
            waits.ended.store(true, Ordering::SeqCst);
            asked
        });
        let done = during(&waits);
        waits.ended.store(true, Ordering::SeqCst);
        asked.join().expect("no panic")?;
        done
    })?;
    Ok(waits.told())
}

/// Ensures that a controller holds no more than before, once there are no callers.
fn ensure_flat(controller: &Controller<'_>, (fds, bytes): (usize, u64)) -> Result<String> {
    let pid = controller.daemon.pid();
    eventually("closing of descriptors", || Ok(descriptors(pid)?.len() <= fds))
        .with_context(|| format!("{:#?}", descriptors(pid)))?;
    let now = memory(pid)?;
    ensure!(now <= bytes + MEMORY, "memory: {} KiB became {}", bytes >> 10, now >> 10);
    Ok(format!("{fds} descriptors, {} KiB, then {} KiB", bytes >> 10, now >> 10))
}

/// Starts and stops.
fn cycles(lab: &Lab, pins: &BpfFs, time: Duration) -> Result<()> {
    let options = ["--bpf-dir", &pins.0, "--allow-uid", UID];
    let controller = Controller::new(lab, Mode::Offload, &options)?;
    let cycle = || -> Result<()> {
        controller.start("up0", PREFIX)?;
        controller.ctl(&["stop", "up0"]).map(drop)
    };
    // The first rounds may fill caches.
    (0..20).try_for_each(|_| cycle())?;
    let before = Left::of(lab, pins, &controller)?;
    let held = (descriptors(controller.daemon.pid())?.len(), memory(controller.daemon.pid())?);
    let enemy = hostile(lab, controller.socket())?;
    let (begin, mut count) = (Instant::now(), 0);
    let told = while_asked(controller.socket(), |waits| {
        while begin.elapsed() < time && !waits.are_over() {
            count += 1;
            cycle()?;
        }
        Ok(())
    });
    let told = told.with_context(|| format!("cycle {count}"))?;
    drop(enemy);
    let flat = ensure_flat(&controller, held)?;
    let after = Left::of(lab, pins, &controller)?;
    ensure!(after == before, "{after:#?}\nwas {before:#?}");
    eprintln!("{count} starts and stops in {:.0?}: {told}; {flat}", begin.elapsed());
    Ok(())
}

/// A disturbance.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Flap,
    Mtu,
    Route4,
    Route6,
    Renumber,
    DeviceDown,
    DeviceGone,
    KillClatd,
    StopClatd,
    KillController,
    LeaveController,
    Restart,
}

impl Disturbance {
    const ALL: [Self; 12] = [
        Self::Flap,
        Self::Mtu,
        Self::Route4,
        Self::Route6,
        Self::Renumber,
        Self::DeviceDown,
        Self::DeviceGone,
        Self::KillClatd,
        Self::StopClatd,
        Self::KillController,
        Self::LeaveController,
        Self::Restart,
    ];
}

/// Restores the uplink as the lab has made it.
fn mend(lab: &Lab) -> Result<()> {
    for line in [
        "ip link set up0 mtu 1500 up",
        "ip -6 addr replace 2001:db8:1::2/64 dev up0 nodad",
        "ip -6 route replace default via 2001:db8:1::1 dev up0 metric 100",
    ] {
        lab.phone.run(line)?;
    }
    // The remains of renumbering, if any.
    let _ = lab.phone.run("ip -6 addr del 2001:db8:3::2/64 dev up0");
    Ok(())
}

/// A CLAT with random disturbances.
struct Chaos<'l> {
    lab: &'l Lab,
    options: Vec<&'l str>,
    controller: Controller<'l>,
    random: Rng,
}

impl<'l> Chaos<'l> {
    fn apply(&mut self, disturbance: Disturbance, waits: &Waits) -> Result<()> {
        let lab = self.lab;
        // Errors do not matter: the thing may not exist just now.
        let phone = |line: &str| drop(lab.phone.run(line));
        match disturbance {
            Disturbance::Flap => phone("ip link set up0 down"),
            Disturbance::Mtu => {
                phone(&format!("ip link set up0 mtu {}", self.random.u32(1280..=1500)));
            }
            Disturbance::Route4 => phone("ip -4 route flush table main"),
            Disturbance::Route6 => phone("ip -6 route del default dev up0"),
            Disturbance::Renumber => {
                phone("ip -6 addr add 2001:db8:3::2/64 dev up0 nodad");
                phone("ip -6 addr del 2001:db8:1::2/64 dev up0");
            }
            Disturbance::DeviceDown => phone("ip link set v4-up0 down"),
            Disturbance::DeviceGone => phone("ip link del v4-up0"),
            Disturbance::KillClatd => self.signal_clatds(Signal::SIGKILL),
            Disturbance::StopClatd => {
                self.signal_clatds(Signal::SIGSTOP);
                self.pause();
                self.signal_clatds(Signal::SIGCONT);
            }
            Disturbance::KillController => self.replace(Signal::SIGKILL, waits)?,
            Disturbance::LeaveController => self.replace(Signal::SIGTERM, waits)?,
            Disturbance::Restart => drop(self.controller.try_ctl(&["stop", "up0"])?),
        }
        self.pause();
        mend(lab)
    }

    fn pause(&mut self) {
        thread::sleep(Duration::from_millis(self.random.u64(..300)));
    }

    fn signal_clatds(&self, signal: Signal) {
        for pid in self.controller.clatds() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn replace(&mut self, end: Signal, waits: &Waits) -> Result<()> {
        waits.is_up.store(false, Ordering::SeqCst);
        self.controller.daemon.stop(end)?;
        self.controller = Controller::new(self.lab, Mode::Offload, &self.options)?;
        fs::set_permissions(self.controller.socket(), fs::Permissions::from_mode(0o666))?;
        waits.is_up.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Makes sure that a CLAT carries packets: it goes on by itself, or has ended and is started.
    fn recover(&self) -> Result<()> {
        eventually("an answer", || {
            if ping(self.lab, "").is_ok() {
                return Ok(true);
            }
            if self.controller.status("up0").is_err() {
                let _ = self.controller.try_ctl(&["start", "up0", "--prefix", PREFIX]);
            }
            Ok(false)
        })
        .with_context(|| self.controller.daemon.log())
    }
}

/// Sends datagrams until the end, and returns how many were sent and answered.
fn traffic(lab: &Lab, ended: &AtomicBool) -> Result<(u64, u64)> {
    let echo = Lab::udp(&lab.internet, (SERVER6, 7))?;
    let socket = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
    for socket in [&echo, &socket] {
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    }
    let (mut sent, mut answered, mut datagram) = (0, 0, [0; 1200]);
    while !ended.load(Ordering::SeqCst) {
        // Fails without a device or a route.
        sent += u64::from(socket.send_to(&datagram, (SERVER4, 7)).is_ok());
        if let Ok((len, from)) = echo.recv_from(&mut datagram) {
            let _ = echo.send_to(&datagram[..len], from);
        }
        answered += u64::from(socket.recv_from(&mut datagram).is_ok());
    }
    Ok((sent, answered))
}

fn chaos(lab: &Lab, pins: &BpfFs, time: Duration, random: Rng) -> Result<()> {
    lab.router.run("ip -6 addr add 2001:db8:3::1/64 dev ph0 nodad")?;
    let options = vec!["--keep", "--bpf-dir", &pins.0, "--allow-uid", UID];
    let controller = Controller::new(lab, Mode::Offload, &options)?;
    controller.start("up0", PREFIX)?;
    controller.ctl(&["stop", "up0"])?;
    let before = Left::of(lab, pins, &controller)?;
    let held = (descriptors(controller.daemon.pid())?.len(), memory(controller.daemon.pid())?);
    let enemy = hostile(lab, controller.socket())?;
    let socket = controller.socket().to_owned();
    let mut chaos = Chaos { lab, options, controller, random };
    chaos.recover()?;
    let (begin, mut disturbances) = (Instant::now(), Vec::new());
    let ended = AtomicBool::new(false);
    let (told, (sent, answered)) = thread::scope(|scope| -> Result<_> {
        let sender = scope.spawn(|| traffic(lab, &ended));
        let told = while_asked(&socket, |waits| {
            while begin.elapsed() < time && !waits.are_over() {
                let disturbance = Disturbance::ALL[chaos.random.usize(..Disturbance::ALL.len())];
                disturbances.push(disturbance);
                let recent = &disturbances[disturbances.len().saturating_sub(5)..];
                chaos.apply(disturbance, waits).with_context(|| format!("{recent:?}"))?;
                chaos.recover().with_context(|| format!("behind {recent:?}"))?;
            }
            Ok(())
        });
        ended.store(true, Ordering::SeqCst);
        let carried = sender.join().expect("no panic")?;
        Ok((told?, carried))
    })?;
    drop(enemy);
    // The last one.
    ping(lab, "")?;
    let clatd = memory(*chaos.controller.clatds().first().context("no clatd")?)?;
    chaos.controller.ctl(&["stop", "up0"])?;
    let flat = ensure_flat(&chaos.controller, held)?;
    let after = Left::of(lab, pins, &chaos.controller)?;
    ensure!(after == before, "{after:#?}\nwas {before:#?}");
    eprintln!(
        "{} disturbances in {:.0?}: {told}; {answered} of {sent} datagrams answered; {flat}; \
         clatd {} KiB",
        disturbances.len(),
        begin.elapsed(),
        clatd >> 10
    );
    Ok(())
}

#[test]
fn soak() -> Result<()> {
    let Ok(minutes) = std::env::var(MINUTES) else { return Ok(()) };
    let time = Duration::from_secs_f64(minutes.parse::<f64>().context(MINUTES)? * 60.0);
    let seed = std::env::var(SEED).ok().map(|seed| seed.parse()).transpose().context(SEED)?;
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{SEED}={seed} repeats this");
    let lab = Lab::new(Offloads::Default)?;
    let pins = BpfFs::mount(&lab)?;
    cycles(&lab, &pins, time / 3)?;
    chaos(&lab, &pins, time * 2 / 3, Rng::with_seed(seed)).with_context(|| format!("{SEED}={seed}"))
}
