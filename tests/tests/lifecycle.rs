//! CLATs come and go on the real kernel, with programs in it and without, and leave it as they found it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, Controller, Lab, Mode, Offloads, PREFIX, PREFIX2};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// Makes two tests of each.
macro_rules! with_and_without_offload {
    ($($name:ident)*) => { $(mod $name {
        #[test]
        fn offload() -> anyhow::Result<()> {
            super::run(super::Mode::Offload, super::$name)
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

fn run(mode: Mode, test: fn(&Lab, Mode) -> Result<()>) -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    test(&Lab::new(Offloads::Default)?, mode)
}

const NEEDS: &[&str] = &["ip", "ethtool", "ping", "ip6tables", "tc"];

/// What a CLAT could leave behind in the phone.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    interfaces: BTreeSet<String>,
    rules: Vec<String>,
    routes: String,
    addresses: String,
    anycast: String,
    filters: String,
    processes: BTreeSet<i32>,
}

impl Traces {
    fn of(lab: &Lab) -> Result<Self> {
        let links = lab.phone.run("ip -br link")?;
        let names = links.lines().filter_map(|line| line.split_whitespace().next());
        let rules = lab.phone.run("ip6tables-save -t raw")?;
        let routes = ["-4", "-6"].map(|f| lab.phone.run(&format!("ip {f} route show table all")));
        let rules4 = ["-4", "-6"].map(|f| lab.phone.run(&format!("ip {f} rule show")));
        // The clsact that they hang on stays until the uplink goes.
        let filters = ["ingress", "egress"]
            .map(|hook| lab.phone.run(&format!("tc filter show dev up0 {hook}")));
        let [ingress, egress] = filters;
        let [routes4, routes6] = routes;
        let [rules4, rules6] = rules4;
        Ok(Self {
            interfaces: names.map(str::to_owned).collect(),
            // Without comments, which hold the time, and the packet counts of chains.
            rules: rules
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(|line| line.split(" [").next().unwrap_or(line).to_owned())
                .collect(),
            routes: routes4? + &steady(&routes6?) + &rules4? + &rules6?,
            addresses: lab.phone.run("ip -br addr")?,
            filters: ingress? + &egress?,
            anycast: lab.phone.run("cat /proc/net/anycast6")?,
            processes: lab.phone.pids().into_iter().collect(),
        })
    }
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

/// Waits until `done`, for what happens on its own.
fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done()? {
        ensure!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn two_hundred_starts_leave_nothing(lab: &Lab, mode: Mode) -> Result<()> {
    let controller = Controller::new(lab, mode, &[])?;
    // The first round may fill caches that stay: threads, sockets of libraries.
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
    // The chain for drop rules comes with the first CLAT and goes with the controller.
    controller.start("up0", PREFIX)?;
    controller.ctl(&["stop", "up0"])?;
    let before = Traces::of(lab)?;
    let (v4, v6) = controller.start("up0", PREFIX)?;
    let (second4, second6) = controller.start("up1", PREFIX2)?;
    assert_ne!(v4, second4);
    assert_eq!(v6.segments()[..4], [0x2001, 0xdb8, 1, 0]);
    assert_eq!(second6.segments()[..4], [0x2001, 0xdb8, 2, 0]);
    let outside = clat_tests::wire::Sniffer::new(&lab.internet, "net0")?;
    for (dev, src) in [("v4-up0", v6), ("v4-up1", second6)] {
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
    assert!(status.success(), "{status}: {}", controller.daemon.log());
    assert!(!controller.socket().exists());
    // The chain may stay as a table that exists, empty; that is the kernel's, not ours.
    let after = Traces::of(lab)?;
    let ours = |line: &&String| line.contains("clat");
    assert_eq!(after.rules.iter().filter(ours).count(), 0, "{after:?}");
    assert_eq!(Traces { rules: Vec::new(), ..after }, Traces { rules: Vec::new(), ..before });
    Ok(())
}

fn a_killed_controller_is_cleaned_up_after(lab: &Lab, mode: Mode) -> Result<()> {
    let mut first = Controller::new(lab, mode, &[])?;
    first.start("up0", PREFIX)?;
    first.daemon.stop(Signal::SIGKILL)?;
    let controller = Controller::new(lab, mode, &[])?;
    ensure!(controller.clatds().is_empty(), "an orphan: {:?}", controller.clatds());
    ensure!(!lab.phone.run("ip -br link")?.contains("v4-up0"), "its TUN device is still there");
    ensure!(!lab.phone.run("ip6tables-save -t raw")?.contains("DROP"), "its rule is still there");
    controller.start("up0", PREFIX)?;
    ping(lab, "")
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
