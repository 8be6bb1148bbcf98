// SPDX-License-Identifier: Apache-2.0

//! Namespaces as guests, made and entered by an ordinary user.

use std::fs;
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, Daemon, USER_NAMESPACES};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::{wait_until, World, NOBODY};

/// A web server and a DNS server of the outside world, both with IPv4 only.
const WEB: &str = "198.51.100.2";
const DNS: &str = "198.51.100.53";

/// Files in a namespace's `/etc`, by ip-netns(8).
pub(crate) struct Etc(pub(crate) PathBuf);

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts both servers.
fn serve(world: &World) -> Result<[Daemon; 2]> {
    for server in [WEB, DNS] {
        world.outside.run(&format!("ip addr add {server}/32 dev lo"))?;
    }
    let www = world.path("www");
    fs::create_dir(&www)?;
    fs::write(www.join("index.html"), "Hello from IPv4\n")?;
    let words = format!("python3 -u -m http.server --bind {WEB} --directory {} 80", www.display());
    let words: Vec<_> = words.split_whitespace().collect();
    let mut web = world.outside.spawn(&words, &world.path("web.log"))?;
    web.wait_for("Serving")?;
    let records = format!("--listen-address={DNS} --host-record=web.example,{WEB}");
    let dns = world.outside.dnsmasq(&records, &world.path("dns.log"))?;
    Ok([web, dns])
}

/// Ordinary programs: with an IPv4 literal, with names, with the host's own resolvers.
#[test]
fn programs_in_a_network_of_their_own() -> Result<()> {
    if !can_run(&["curl", "dig", "dnsmasq", "python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let _servers = serve(&world)?;
    let etc = Etc(PathBuf::from("/etc/netns").join(world.host.name()));
    fs::create_dir_all(&etc.0)?;
    fs::write(etc.0.join("resolv.conf"), format!("# of a test\nnameserver {DNS}\n"))?;
    let run = |words: &str| -> Result<String> {
        let args: Vec<_> = ["run", "--"].into_iter().chain(words.split_whitespace()).collect();
        let output = world.platd(&args)?;
        ensure!(output.status.success(), "{words}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let by_nat64 = format!("[64:ff9b::{WEB}]");
    for url in [WEB, &by_nat64, "web.example", "-4 web.example", "-6 web.example"] {
        let said = run(&format!("curl -sS --max-time 10 {url}"))?;
        ensure!(said == "Hello from IPv4\n", "{url}: {said}");
    }
    ensure!(run("dig +short AAAA web.example")? == "64:ff9b::c633:6402\n");
    ensure!(run("dig +short +tcp A web.example")? == format!("{WEB}\n"));
    // A resolver by IPv6, on another port.
    let records = "--listen-address=::1 --port=5353 --host-record=other.example,198.51.100.9";
    let _resolver = world.host.dnsmasq(records, &world.path("other.log"))?;
    let dig = ["run", "--dns", "[::1]:5353", "--", "dig", "+short", "AAAA", "other.example"];
    let output = world.platd(&dig)?;
    ensure!(output.stdout == b"64:ff9b::c633:6409\n", "{output:?}");
    // This network only; the user is root in the namespace only.
    let said = run("ip -o -4 addr show scope global")?;
    ensure!(said.lines().count() == 1 && said.contains("v4-plat0"), "{said}");
    ensure!(run("cat /proc/self/uid_map")?.split_whitespace().eq(["0", NOBODY, "1"]));
    Ok(())
}

/// An existing namespace of the user, by the id of a process in it.
#[test]
fn a_namespace_by_its_process() -> Result<()> {
    if !can_run(&["curl", "dnsmasq", "nsenter", "python3", "setpriv", USER_NAMESPACES, "unshare"]) {
        return Ok(());
    }
    let world = World::new()?;
    let _servers = serve(&world)?;
    let made = "setpriv --reuid 65534 --regid 65534 --clear-groups unshare -Urn sh -c";
    let argv: Vec<_> = made.split_whitespace().chain(["echo made; exec sleep 1000"]).collect();
    let mut owner = world.host.spawn(&argv, &world.path("owner.log"))?;
    owner.wait_for("made")?;
    let pid = owner.pid().to_string();
    let status = world.path("s");
    let status = status.to_str().context("path")?;
    let args = ["--netns", &pid, "--ifname", "eth7", "--clat", "--dns", DNS, "--status", status];
    let mut platd = world.host.spawn(&world.command(&args), &world.path("platd.log"))?;
    platd.wait_for("eth7 is up in ")?;
    let inside = |words: &str| {
        world.host.run(&format!("nsenter --preserve-credentials -U -n -t {pid} {words}"))
    };
    wait_until("an address", || {
        Ok(inside("ip -6 addr show dev eth7 scope global")?.contains("2001:db8:464:"))
    })?;
    for url in [WEB.to_owned(), format!("[64:ff9b::{WEB}]")] {
        let said = inside(&format!("curl -sS --max-time 10 {url}"))?;
        ensure!(said == "Hello from IPv4\n", "{url}: {said}");
    }
    // The devices are platd's and end with it; the namespace stays.
    ensure!(platd.stop(Signal::SIGTERM)?.success(), "{}", platd.log());
    let links = inside("ip -o link")?;
    ensure!(links.lines().count() == 1 && links.contains(" lo:"), "{links}");
    Ok(())
}

/// A command and its network end together, however either ends.
#[test]
fn none_outlives_the_other() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let killed = world.platd(&["run", "--", "sh", "-c", "kill -9 $$"])?;
    ensure!(killed.status.code() == Some(128 + 9), "{killed:?}");
    let mut others = world.host.pids();
    others.sort_unstable();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let command =
            world.command(&["run", "--no-pid-ns", "--", "sh", "-c", "echo $$; exec sleep 1000"]);
        let mut platd = world.host.spawn(&command, &world.path(&format!("{signal}.log")))?;
        wait_until("the command runs", || {
            Ok(platd.log().lines().any(|l| l.parse::<i32>().is_ok()))
        })?;
        let pid: i32 = platd.log().lines().find_map(|l| l.parse().ok()).context("a number")?;
        ensure!(kill(Pid::from_raw(pid), None).is_ok(), "it does not run");
        platd.stop(signal)?;
        wait_until("the command ends", || Ok(kill(Pid::from_raw(pid), None).is_err()))?;
        wait_until("all else ends", || {
            let mut left = world.host.pids();
            left.sort_unstable();
            Ok(left == others)
        })?;
    }
    Ok(())
}
