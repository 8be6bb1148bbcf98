// SPDX-License-Identifier: Apache-2.0

//! CLATs are started and stopped on the real kernel, with BPF programs and without, and leave it as
//! it was.

#[path = "lifecycle/kept.rs"]
mod kept;
#[path = "lifecycle/killed.rs"]
mod killed;
#[path = "lifecycle/soak.rs"]
mod soak;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::{
    can_run, eventually, Controller, Lab, Mode, Offloads, Uplink, PREFIX, PREFIX2, SERVER4, SERVER6,
};
use clat_xlat::Prefix;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

/// Makes three tests of each.
macro_rules! with_and_without_offload {
    ($($name:ident)*) => { $(mod $name {
        #[test]
        fn offload() -> anyhow::Result<()> {
            super::run(super::Mode::Offload, super::$name)
        }

        #[test]
        fn direct() -> anyhow::Result<()> {
            super::run(super::Mode::Direct, super::$name)
        }

        #[test]
        fn daemon() -> anyhow::Result<()> {
            super::run(super::Mode::Daemon, super::$name)
        }
    })* };
}

with_and_without_offload! {
    two_hundred_starts_leave_nothing
    two_uplinks_with_two_prefixes
    a_clat_starts_where_addresses_are_checked_for_duplicates
    the_router_finds_the_clat_again_after_forgetting_it
    a_terminated_controller_leaves_nothing
    a_killed_controller_is_cleaned_up_after
    a_clatd_that_dies_is_started_again
}

/// Makes a test for each uplink and path, and for each way in which the first controller ends.
macro_rules! flows_go_on {
    ($($name:ident $uplink:ident $mode:ident $signal:ident)*) => { $(
        #[test]
        fn $name() -> Result<()> {
            if !can_run(NEEDS) {
                return Ok(());
            }
            let lab = Lab::on(Uplink::$uplink, Offloads::Default)?;
            flows_go_on_across_a_restart(&lab, Mode::$mode, Signal::$signal)
        }
    )* };
}

flows_go_on! {
    flows_go_on_ethernet_kernel_left Ethernet Offload SIGTERM
    flows_go_on_ethernet_kernel_killed Ethernet Offload SIGKILL
    flows_go_on_ethernet_direct_left Ethernet Direct SIGTERM
    flows_go_on_ethernet_direct_killed Ethernet Direct SIGKILL
    flows_go_on_ethernet_daemon_left Ethernet Daemon SIGTERM
    flows_go_on_ethernet_daemon_killed Ethernet Daemon SIGKILL
    flows_go_on_rawip_kernel_left RawIp Offload SIGTERM
    flows_go_on_rawip_kernel_killed RawIp Offload SIGKILL
    flows_go_on_rawip_direct_left RawIp Direct SIGTERM
    flows_go_on_rawip_direct_killed RawIp Direct SIGKILL
    flows_go_on_rawip_daemon_left RawIp Daemon SIGTERM
    flows_go_on_rawip_daemon_killed RawIp Daemon SIGKILL
}

fn run(mode: Mode, test: fn(&Lab, Mode) -> Result<()>) -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    test(&Lab::new(Offloads::Default)?, mode)
}

const NEEDS: &[&str] = &["ip", "ethtool", "ping", "tc"];

/// What a CLAT could leave behind in the phone.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    interfaces: BTreeSet<String>,
    routes: String,
    addresses: String,
    groups: String,
    filters: String,
    processes: BTreeSet<i32>,
}

impl Traces {
    fn of(lab: &Lab) -> Result<Self> {
        let links = lab.phone.run("ip -br link")?;
        let names = links.lines().filter_map(|line| line.split_whitespace().next());
        let routes = ["-4", "-6"].map(|f| lab.phone.run(&format!("ip {f} route show table all")));
        let rules4 = ["-4", "-6"].map(|f| lab.phone.run(&format!("ip {f} rule show")));
        let interfaces: BTreeSet<_> = names.map(|name| until_at(name).to_owned()).collect();
        // Their clsact stays until the uplink is removed.
        let filters = interfaces.iter().filter(|name| name.starts_with("up")).flat_map(|uplink| {
            ["ingress", "egress"]
                .map(|hook| lab.phone.run(&format!("tc filter show dev {uplink} {hook}")))
        });
        let filters = filters.collect::<Result<_>>()?;
        let [routes4, routes6] = routes;
        let [rules4, rules6] = rules4;
        Ok(Self {
            interfaces,
            routes: routes4? + &steady(&routes6?) + &rules4? + &rules6?,
            addresses: lab.phone.run("ip -br addr")?,
            filters,
            groups: lab.phone.run("ip -6 maddr show")?,
            processes: lab.phone.pids().into_iter().collect(),
        })
    }
}

/// A veth's own name, without that of its peer.
fn until_at(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

/// Routes without the lifetimes of cached ones.
fn steady(routes: &str) -> String {
    let lines = routes.lines().filter(|line| !line.contains("expires"));
    lines.map(|line| format!("{line}\n")).collect()
}

fn descriptors(pid: i32) -> Result<BTreeSet<String>> {
    let links = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let name = |e: fs::DirEntry| {
        let target = fs::read_link(e.path()).unwrap_or_default().to_string_lossy().into_owned();
        format!("{} {target}", e.file_name().to_string_lossy())
    };
    Ok(links.flatten().map(name).collect())
}

fn ping(lab: &Lab, how: &str) -> Result<()> {
    lab.phone.run(&format!("ping -n -c 1 -W 5 {how} 192.0.2.1")).map(drop)
}

fn two_hundred_starts_leave_nothing(lab: &Lab, mode: Mode) -> Result<()> {
    let controller = Controller::new(lab, mode, &["--address", "random"])?;
    // The first round may fill caches: threads, sockets of libraries.
    controller.start("up0", PREFIX)?;
    controller.ctl(&["stop", "up0"])?;
    let (before, fds) = (Traces::of(lab)?, descriptors(controller.daemon.pid())?);
    let mut addresses = BTreeSet::new();
    for round in 0..200 {
        let v6 = controller.ctl(&["start", "up0", "--prefix", PREFIX])?;
        if round % 50 == 0 {
            ping(lab, "")?;
        }
        controller.ctl(&["stop", "up0"]).with_context(|| format!("round {round}"))?;
        ensure!(addresses.insert(v6.clone()), "round {round}: {v6} again");
    }
    assert_eq!(Traces::of(lab)?, before);
    // Connections of clients close a moment after the answer.
    eventually("closing of descriptors", || {
        Ok(descriptors(controller.daemon.pid())?.len() <= fds.len())
    })
    .with_context(|| format!("{fds:#?} became {:#?}", descriptors(controller.daemon.pid())))
}

fn two_uplinks_with_two_prefixes(lab: &Lab, mode: Mode) -> Result<()> {
    lab.second_uplink()?;
    let controller = Controller::new(lab, mode, &[])?;
    let before = Traces::of(lab)?;
    let (v4, v6) = controller.start("up0", PREFIX)?;
    let (second4, second6) = controller.start("up1", PREFIX2)?;
    assert_ne!(v4, second4);
    assert_eq!(v6.segments()[..4], [0x2001, 0xdb8, 1, 0]);
    assert_eq!(second6.segments()[..4], [0x2001, 0xdb8, 2, 0]);
    let outside = clat_tests::wire::Sniffer::new(&lab.internet, "net0")?;
    // What is sent by the one and arrives by the other is not for who is bound to the one.
    let devices = if mode == Mode::Direct { ["up0", "up1"] } else { ["v4-up0", "v4-up1"] };
    for (dev, src) in devices.into_iter().zip([v6, second6]) {
        ping(lab, &format!("-I {dev}")).with_context(|| dev.to_owned())?;
        let patience = Duration::from_secs(5);
        outside.wait(patience, |s| s.src == std::net::IpAddr::V6(src)).with_context(|| dev)?;
    }
    controller.ctl(&["stop", "up0"])?;
    ping(lab, "").context("the second carries on alone")?;
    controller.ctl(&["stop", "up1"])?;
    assert_eq!(Traces::of(lab)?, before);
    Ok(())
}

fn a_clat_starts_where_addresses_are_checked_for_duplicates(lab: &Lab, mode: Mode) -> Result<()> {
    lab.phone.run("sysctl -qw net.ipv6.conf.up0.accept_dad=1 net.ipv6.conf.up0.dad_transmits=1")?;
    let controller = Controller::new(lab, mode, &[])?;
    controller.start("up0", PREFIX)?;
    ping(lab, "-i 0.2 -c 3")
}

/// The same CLAT's, after a restart too; another one elsewhere (RFC 7217).
#[test]
fn a_network_has_its_address() -> Result<()> {
    run(Mode::Daemon, |lab, mode| {
        let mut controller = Controller::new(lab, mode, &[])?;
        let here = controller.start("up0", PREFIX)?;
        controller.ctl(&["stop", "up0"])?;
        assert_eq!(controller.start("up0", PREFIX)?, here);
        controller.daemon.stop(Signal::SIGTERM)?;
        let mut controller = Controller::new(lab, mode, &[])?;
        assert_eq!(controller.start("up0", PREFIX)?, here);
        controller.ctl(&["stop", "up0"])?;

        let identifier = |(_, v6): (Ipv4Addr, Ipv6Addr)| v6.to_bits() & u128::from(u64::MAX);
        lab.router.run("ip -6 addr add 2001:db8:11::1/64 dev ph0 nodad")?;
        let renumber = |from: u16, to: u16| {
            lab.phone.run(&format!("ip -6 addr add 2001:db8:{to:x}::2/64 dev up0 nodad"))?;
            lab.phone.run(&format!("ip -6 addr del 2001:db8:{from:x}::2/64 dev up0")).map(drop)
        };
        renumber(1, 0x11)?;
        let there = controller.start("up0", PREFIX)?;
        assert_eq!(there.1.segments()[..4], [0x2001, 0xdb8, 0x11, 0]);
        // By chance half of the bits.
        let differing = (identifier(here) ^ identifier(there)).count_ones();
        assert!((12..=52).contains(&differing), "{here:?}, {there:?}");
        renumber(0x11, 1)?;
        controller.ctl(&["stop", "up0"])?;
        assert_eq!(controller.start("up0", PREFIX)?, here);
        controller.daemon.stop(Signal::SIGTERM)?;

        let controller = Controller::new(lab, mode, &["--address", "random"])?;
        assert_ne!(controller.start("up0", PREFIX)?, here);
        Ok(())
    })
}

fn the_router_finds_the_clat_again_after_forgetting_it(lab: &Lab, mode: Mode) -> Result<()> {
    let controller = Controller::new(lab, mode, &[])?;
    controller.start("up0", PREFIX)?;
    ping(lab, "")?;
    lab.router.run("ip -6 neigh flush dev ph0")?;
    ping(lab, "")
}

fn a_terminated_controller_leaves_nothing(lab: &Lab, mode: Mode) -> Result<()> {
    let before = Traces::of(lab)?;
    let mut controller = Controller::new(lab, mode, &[])?;
    controller.start("up0", PREFIX)?;
    let status = controller.daemon.stop(Signal::SIGTERM)?;
    let log = controller.daemon.log();
    assert!(status.success(), "{status}: {log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert!(!controller.socket().exists());
    ensure_nothing_left(lab, &before)
}

fn a_killed_controller_is_cleaned_up_after(lab: &Lab, mode: Mode) -> Result<()> {
    let mut first = Controller::new(lab, mode, &[])?;
    first.start("up0", PREFIX)?;
    first.daemon.stop(Signal::SIGKILL)?;
    let controller = Controller::new(lab, mode, &[])?;
    ensure!(controller.clatds().is_empty(), "an orphan: {:?}", controller.clatds());
    ensure!(!lab.phone.run("ip -br link")?.contains("v4-up0"), "its TUN device is still there");
    let rules = lab.phone.run("ip -6 route show table local type blackhole")?;
    ensure!(rules.is_empty(), "its rule is still there");
    controller.start("up0", PREFIX)?;
    ping(lab, "")
}

/// Nor does it need the right to load any.
#[test]
fn a_sweep_loads_no_programs() -> Result<()> {
    run(Mode::Offload, |lab, mode| {
        let (before, pins) = (Traces::of(lab)?, BpfFs::mount(lab)?);
        let mut controller = Controller::new(lab, mode, &["--bpf-dir", &pins.0])?;
        controller.start("up0", PREFIX)?;
        controller.daemon.stop(Signal::SIGKILL)?;
        let sweep = lab.phone.output(&[
            "setpriv".into(),
            "--bounding-set=-perfmon,-sys_admin".into(),
            clat_tests::program("clat_controller")?.into_os_string(),
            "--sweep".into(),
            "--offload".into(),
            "--bpf-dir".into(),
            pins.0.clone().into(),
        ])?;
        let said = String::from_utf8_lossy(&sweep.stderr);
        ensure!(sweep.status.success() && !said.contains("ERROR"), "{}: {said}", sweep.status);
        let names = fs::read_dir(&pins.0)?.flatten().map(|pin| pin.file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("clat")).collect();
        ensure!(left.is_empty(), "{left:?}");
        ensure_nothing_left(lab, &before)
    })
}

fn a_clatd_that_dies_is_started_again(lab: &Lab, mode: Mode) -> Result<()> {
    let controller = Controller::new(lab, mode, &[])?;
    controller.start("up0", PREFIX)?;
    let [first] = controller.clatds()[..] else { anyhow::bail!("{:?}", controller.clatds()) };
    kill(Pid::from_raw(first), Signal::SIGKILL)?;
    eventually("a new clatd", || Ok(controller.clatds().iter().any(|pid| *pid != first)))?;
    eventually("an answer", || Ok(ping(lab, "").is_ok()))?;
    controller.ctl(&["stop", "up0"])?;
    ensure!(controller.clatds().is_empty());
    Ok(())
}

/// A BPF file system that outlives a controller: programs in a namespace of the lab have their own
/// /sys.
struct BpfFs(String);

impl BpfFs {
    fn mount(lab: &Lab) -> Result<Self> {
        let dir = lab.dir().join("bpf");
        fs::create_dir(&dir)?;
        let dir = dir.to_str().context("a path that is no text")?.to_owned();
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf", &dir]).status()?;
        ensure!(mounted.success(), "mount: {mounted}");
        Ok(Self(dir))
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// How long nothing may arrive of a transfer: a lost packet costs TCP 0.2 s or more.
const STALL: Duration = Duration::from_secs(1);

/// Sends until `ended`; returns how much.
fn send(mut to: TcpStream, ended: &AtomicBool) -> Result<u64> {
    let (block, mut sent) = ([0xa5; 1 << 14], 0);
    while !ended.load(Ordering::Relaxed) {
        to.write_all(&block)?;
        sent += block.len() as u64;
        // Enough to have data in flight at any time, without using all of the machine.
        thread::sleep(Duration::from_millis(1));
    }
    to.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// Receives to the end; returns how much, and for how long nothing came.
fn receive(mut from: TcpStream) -> Result<(u64, Duration)> {
    from.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut block, mut received) = ([0; 1 << 16], 0);
    let (mut last, mut stall) = (Instant::now(), Duration::ZERO);
    loop {
        match from.read(&mut block)? {
            0 => return Ok((received, stall)),
            n => received += n as u64,
        }
        stall = stall.max(last.elapsed());
        last = Instant::now();
    }
}

/// Runs a TCP upload and download and a UDP ping-pong with `server`, at its IPv4 address and at its
/// IPv6 address for the CLAT, before, during and after `during`. Returns how many datagrams were
/// answered.
fn while_flowing<T>(
    lab: &Lab,
    server: (Ipv4Addr, Ipv6Addr),
    during: impl FnOnce() -> Result<T>,
) -> Result<(T, u64)> {
    let listener = Lab::listen(&lab.internet, (server.1, 80))?;
    let client = Lab::connect(&lab.phone, (server.0, 80))?;
    let (accepted, _) = listener.accept()?;
    let (to, from) = (client.try_clone()?, accepted.try_clone()?);
    let echo = Lab::udp(&lab.internet, (server.1, 7))?;
    let pings = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
    pings.connect((server.0, 7))?;
    let ended = AtomicBool::new(false);
    let (done, transfers, rounds) = thread::scope(|scope| -> Result<_> {
        let ended = &ended;
        let upload = scope.spawn(move || send(to, ended));
        let uploaded = scope.spawn(move || receive(from));
        let download = scope.spawn(move || send(accepted, ended));
        let downloaded = scope.spawn(move || receive(client));
        let echo = &echo;
        let reflector = scope.spawn(move || -> Result<()> {
            let mut datagram = [0; 8];
            while datagram != [0xff; 8] {
                let (_, from) = echo.recv_from(&mut datagram)?;
                echo.send_to(&datagram, from)?;
            }
            Ok(())
        });
        // No datagram is repeated: a lost one fails the test.
        let pinger = scope.spawn(move || -> Result<u64> {
            let (mut round, mut answer) = (0_u64, [0; 8]);
            while !ended.load(Ordering::Relaxed) {
                round += 1;
                pings.send(&round.to_be_bytes())?;
                pings.recv(&mut answer).with_context(|| format!("datagram {round}"))?;
                ensure!(answer == round.to_be_bytes(), "datagram {round}: {answer:?}");
                thread::sleep(Duration::from_millis(1));
            }
            pings.send(&[0xff; 8])?;
            pings.recv(&mut answer)?;
            Ok(round)
        });
        thread::sleep(Duration::from_millis(300));
        let done = during();
        thread::sleep(Duration::from_millis(300));
        ended.store(true, Ordering::Relaxed);
        let ways = [("upload", upload, uploaded), ("download", download, downloaded)];
        let transfers = ways.map(|(way, sent, received)| {
            (way, sent.join().expect("no panic"), received.join().expect("no panic"))
        });
        let rounds = pinger.join().expect("no panic");
        let (done, rounds) = (done?, rounds?);
        reflector.join().expect("no panic")?;
        Ok((done, transfers, rounds))
    })?;
    for (way, sent, received) in transfers {
        let (sent, (received, stall)) = (sent?, received?);
        eprintln!("{way}: {sent} bytes, nothing for {stall:?} at most");
        ensure!(sent == received && sent > 1 << 20, "{way}: {sent} sent, {received} received");
        ensure!(stall < STALL, "{way}: nothing for {stall:?}");
    }
    ensure!(rounds > 100, "{rounds} datagrams");
    Ok((done, rounds))
}

/// Ends a controller, and starts another one after a while.
fn replace<'l>(
    lab: &'l Lab,
    mode: Mode,
    options: &[&str],
    mut first: Controller<'l>,
    end: Signal,
) -> Result<Controller<'l>> {
    first.daemon.stop(end)?;
    thread::sleep(Duration::from_millis(300));
    Controller::new(lab, mode, options)
}

/// Whether `status` is of the same CLAT as `kept`.
fn ensure_same(status: &Value, kept: &Value) -> Result<()> {
    for fact in ["ifIndex", "v4ifIndex", "nat64Prefix", "v4", "v6", "fwmark", "pid", "offloaded"] {
        ensure!(status[fact] == kept[fact], "{fact}: {status} was {kept}");
    }
    Ok(())
}

/// After the last controller, the phone is as it was before.
fn ensure_nothing_left(lab: &Lab, before: &Traces) -> Result<()> {
    assert_eq!(&Traces::of(lab)?, before);
    Ok(())
}

/// Flows are not disturbed by one controller's end and the next one's start.
fn flows_go_on_across_a_restart(lab: &Lab, mode: Mode, end: Signal) -> Result<()> {
    let before = Traces::of(lab)?;
    let pins = BpfFs::mount(lab)?;
    let options = ["--keep", "--bpf-dir", &pins.0];
    let first = Controller::new(lab, mode, &options)?;
    let (_, v6) = first.start("up0", PREFIX)?;
    let kept = first.status("up0")?;
    let clatds = first.clatds();
    let (second, rounds) =
        while_flowing(lab, (SERVER4, SERVER6), || replace(lab, mode, &options, first, end))?;

    let now = second.status("up0")?;
    ensure_same(&now, &kept)?;
    assert_eq!(second.clatds(), clatds);
    ensure!(now["v6"] == v6.to_string() && now["offloaded"] == (mode != Mode::Daemon), "{now}");
    if mode != Mode::Daemon {
        let counted = now["egress"]["packets"].as_u64().context("no numbers")?;
        ensure!(counted > rounds, "counting goes on: {counted} of {rounds}");
    }
    // As for its own CLATs: a death is noticed, and it stops without leaving anything.
    let [clatd] = clatds[..] else { anyhow::bail!("{clatds:?}") };
    kill(Pid::from_raw(clatd), Signal::SIGKILL)?;
    eventually("a new clatd", || Ok(second.clatds().iter().any(|pid| *pid != clatd)))?;
    eventually("an answer", || Ok(ping(lab, "").is_ok()))?;
    assert_eq!(second.status("up0")?["v6"], v6.to_string());
    second.ctl(&["stop", "up0"])?;
    ensure!(second.clatds().is_empty(), "{:?}", second.clatds());
    let maps = second.ctl(&["dump"])?;
    ensure!(!maps.contains(&v6.to_string()), "{maps}");
    drop(second);
    ensure_nothing_left(lab, &before)
}

/// Two CLATs, on a raw-IP and on an Ethernet uplink, are taken over at once, and each is stopped
/// alone.
fn two_are_kept(mode: Mode) -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = &Lab::on(Uplink::RawIp, Offloads::Default)?;
    lab.second_uplink()?;
    let before = Traces::of(lab)?;
    let pins = BpfFs::mount(lab)?;
    let options = ["--keep", "--bpf-dir", &pins.0];
    let first = Controller::new(lab, mode, &options)?;
    let v6 = [("up0", PREFIX), ("up1", PREFIX2)]
        .map(|(uplink, prefix)| first.start(uplink, prefix).map(|(_, v6)| v6.to_string()));
    let [v6, second6] = v6;
    let (v6, second6) = (v6?, second6?);
    let kept = [first.status("up0")?, first.status("up1")?];
    let clatds = first.clatds();
    ensure!(clatds.len() == 2, "{clatds:?}");
    // By the second.
    let other4 = Ipv4Addr::new(198, 51, 100, 1);
    let prefix: Prefix = PREFIX2.parse().context("a prefix")?;
    let other = (other4, prefix.embed(other4));
    lab.phone.run(&format!("ip route add {other4} dev v4-up1"))?;

    let during = || replace(lab, mode, &options, first, Signal::SIGKILL);
    let ((second, _), _) = while_flowing(lab, (SERVER4, SERVER6), || {
        while_flowing(lab, other, during).context("by the second")
    })?;
    assert_eq!(second.clatds(), clatds);
    for (uplink, kept) in ["up0", "up1"].into_iter().zip(&kept) {
        let now = second.status(uplink)?;
        ensure_same(&now, kept)?;
        ensure!(now["offloaded"] == (mode != Mode::Daemon), "{now}");
    }

    while_flowing(lab, other, || second.ctl(&["stop", "up0"])).context("stopping the first")?;
    ensure_same(&second.status("up1")?, &kept[1])?;
    ensure!(second.clatds().len() == 1, "{:?}", second.clatds());
    let maps = second.ctl(&["dump"])?;
    ensure!(!maps.contains(&v6) && maps.contains(&second6), "{maps}");
    second.ctl(&["stop", "up1"])?;
    let maps = second.ctl(&["dump"])?;
    ensure!(!maps.contains(&second6), "{maps}");
    drop(second);
    ensure_nothing_left(lab, &before)
}

#[test]
fn two_are_kept_kernel() -> Result<()> {
    two_are_kept(Mode::Offload)
}

#[test]
fn two_are_kept_daemon() -> Result<()> {
    two_are_kept(Mode::Daemon)
}
