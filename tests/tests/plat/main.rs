// SPDX-License-Identifier: Apache-2.0

//! platd as used: an ordinary user's `platd run`, on a host with IPv4 (and IPv6) behind it.

mod by_itself;
mod flows;
mod forwards;
mod impairment;
mod links;
mod namespaces;
mod neighbours;
mod net;
mod process;
mod transparency;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, install, program, Daemon, Netns, USER_NAMESPACES};
use tempfile::TempDir;

/// A server with IPv4 only.
const SERVER: &str = "198.51.100.1";
/// Its address inside the prefix.
const SERVER6: &str = "64:ff9b::198.51.100.1";

/// The user id of the ordinary user.
const NOBODY: &str = "65534";

/// Both, for programs that talk to the server by either.
const SERVERS: [&str; 2] = [SERVER, SERVER6];

/// A unique number for namespaces of tests.
fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(500);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Waits until `done`, but not for ever.
fn wait_until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done()? {
        ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The output of a Python program in `ns`.
fn python_in(ns: &Netns, code: &str, args: &[&str]) -> Result<String> {
    what_it_said(&ns.output(&[&["python3", "-c", code], args].concat())?)
}

/// The output of a program, which must have succeeded.
fn what_it_said(output: &Output) -> Result<String> {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    ensure!(output.status.success(), "{out}\n{err}");
    Ok(out.into_owned())
}

/// Resident memory of a process in KiB.
fn resident_kib(pid: i32) -> Result<u64> {
    Ok(status_of(pid, "VmRSS:")?.trim_end_matches(" kB").parse()?)
}

/// A line of a process's status (proc_pid_status(5)).
fn status_of(pid: i32, name: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| name.to_owned())?.trim().to_owned())
}

struct World {
    host: Netns,
    _server: Daemon,
    outside: Netns,
    dir: TempDir,
}

impl World {
    fn new() -> Result<Self> {
        let lab = number();
        let (host, outside) = (Netns::new(lab, "host")?, Netns::new(lab, "world")?);
        host.run(&format!("ip link add w0 type veth peer name h0 netns {}", outside.name()))?;
        for line in [
            "ip addr add 203.0.113.1/24 dev w0",
            "ip link set w0 up",
            "ip link set lo up",
            "ip route add default via 203.0.113.2",
        ] {
            host.run(line)?;
        }
        // One argument with a space, which run() would split.
        let ping = host.output(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647"])?;
        ensure!(ping.status.success(), "sysctl: {ping:?}");
        for line in [
            "ip addr add 203.0.113.2/24 dev h0",
            "ip addr add 198.51.100.1/32 dev lo",
            "ip link set h0 up",
            "ip link set lo up",
        ] {
            outside.run(line)?;
        }
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
        install(&program("platd")?, &dir.path().join("platd"))?;
        let mut server = outside.spawn(
            &["python3", "-c", include_str!("scripts/serve.py")],
            &dir.path().join("server.log"),
        )?;
        server.wait_for("ready")?;
        Ok(Self { host, _server: server, outside, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command line of `platd ARGS` for an unprivileged user, with a /dev/net/tun for everybody
    /// as usual.
    fn command(&self, args: &[&str]) -> Vec<String> {
        let dir = self.dir.path().to_string_lossy();
        let script = include_str!("scripts/as_anybody.sh");
        let mut words: Vec<String> = ["sh", "-c", script, "sh", &dir].map(str::to_owned).into();
        words.extend(args.iter().map(|&arg| arg.to_owned()));
        words
    }

    /// A running platd started by root, with a status socket; it is ready.
    fn daemon(&self, name: &str, args: &[&str]) -> Result<Daemon> {
        let (platd, status) = (self.path("platd"), self.path(&format!("{name}.status")));
        let (platd, status) = (platd.to_str().context("path")?, status.to_str().context("path")?);
        let argv = [&[platd, "--status", status], args].concat();
        let mut daemon = self.host.spawn(&argv, &self.path(&format!("{name}.log")))?;
        let ready = if args.contains(&"--netns") { " is up in " } else { "waiting for a guest" };
        daemon.wait_for(ready)?;
        Ok(daemon)
    }

    /// Its status.
    fn status(&self, name: &str) -> Result<serde_json::Value> {
        let (platd, status) = (self.path("platd"), self.path(&format!("{name}.status")));
        let line = format!("{} status {} --json", platd.display(), status.display());
        Ok(serde_json::from_str(&self.host.run(&line)?)?)
    }

    /// A namespace with a network of a platd with these options, which has configured itself.
    fn guest(&self, name: &str, options: &[&str]) -> Result<(Netns, Daemon)> {
        let number = number();
        let guest = Netns::new(number, "guest")?;
        let path = format!("/run/netns/{}", guest.name());
        let daemon = self.daemon(name, &[&["--netns", &path], options].concat())?;
        wait_until("an address by router advertisement", || {
            Ok(guest.run("ip -6 addr show scope global")?.contains("2001:db8:464:"))
        })?;
        Ok((guest, daemon))
    }

    fn platd(&self, args: &[&str]) -> Result<Output> {
        self.host.output(&self.command(args))
    }

    /// Runs a Python program in a network with these options; returns its output.
    fn python(&self, options: &[&str], code: &str, args: &[&str]) -> Result<String> {
        what_it_said(
            &self.platd(&[&["run"], options, &["--", "python3", "-c", code], args].concat())?,
        )
    }
}

#[test]
fn literals_ping_and_exit_codes() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES, "ping"]) {
        return Ok(());
    }
    let world = World::new()?;
    let out = world.python(&[], include_str!("scripts/literals.py"), &SERVERS)?;
    assert_eq!(out.matches("b'HELLO'").count(), 2, "{out}");
    for server in [SERVER, SERVER6] {
        let ping =
            world.platd(&["run", "--", "ping", "-c", "2", "-i", "0.2", "-W", "3", server])?;
        assert!(ping.status.success(), "{ping:?}");
    }
    for (server, size) in
        [(SERVER, "4000"), (SERVER, "40000"), (SERVER6, "4000"), (SERVER6, "40000")]
    {
        let big = world
            .platd(&["run", "--", "ping", "-c", "2", "-i", "0.2", "-W", "3", "-s", size, server])?;
        assert!(big.status.success(), "{server} {size}: {big:?}");
    }
    let code = world.platd(&["run", "--", "sh", "-c", "exit 7"])?;
    assert_eq!(code.status.code(), Some(7));
    let none = world.platd(&["run", "--", "no-such-program"])?;
    assert!(String::from_utf8_lossy(&none.stderr).contains("cannot run no-such-program"));
    Ok(())
}

#[test]
fn many_connections() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    world.python(&[], include_str!("scripts/many_connections.py"), &SERVERS)?;
    Ok(())
}

#[test]
fn ends_and_errors() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    world.python(&[], include_str!("scripts/ends_and_errors.py"), &SERVERS)?;
    Ok(())
}

/// A program that listens on the host's loopback gets no connection, whatever address a guest uses.
#[test]
fn the_hosts_loopback_is_out_of_reach() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let listen = include_str!("scripts/loopback_listen.py");
    let mut host = world.host.spawn(&["python3", "-c", listen], &world.path("host.log"))?;
    host.wait_for("ready")?;
    let attempts = include_str!("scripts/loopback_try.py");
    world.python(&[], attempts, &[])?;
    assert!(!host.log().contains("visitor"), "{}", host.log());
    let mapped = include_str!("scripts/loopback_mapped.py");
    let out = world.python(&["--map-host", "192.0.2.2"], mapped, &[])?;
    assert!(out.contains("the host") && host.log().contains("visitor"), "{out}");
    Ok(())
}

/// Loss in both directions.
#[test]
fn lossy_links() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let code = include_str!("scripts/lossy_link.py");
    world.python(&["--loss", "2", "--delay", "5"], code, &SERVERS)?;
    Ok(())
}

/// A port is forwarded to the guest; status shows it; a killed guest leaves nothing.
#[test]
fn forward_status_and_the_end() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let socket = world.path("status");
    let socket = socket.to_str().context("path")?;
    let code = include_str!("scripts/forward_guest.py");
    let command = world.command(&[
        "run",
        "--status",
        socket,
        "--forward",
        "tcp:8080:80",
        "--forward",
        "udp:5353:53",
        "--",
        "python3",
        "-c",
        code,
    ]);
    let mut guest = world.host.spawn(&command, &world.path("guest.log"))?;
    guest.wait_for("ready")?;
    let visit = include_str!("scripts/forward_visit.py");
    let out = world.host.output(&["python3", "-c", visit, "127.0.0.1"])?;
    let out = String::from_utf8_lossy(&out.stdout).into_owned();
    // The host itself appears with the dummy address (RFC 7600 §4.8), and others with theirs,
    // inside the prefix.
    assert!(out.contains("the guest saw 64:ff9b::c000:8'"), "{out} {}", guest.log());
    assert!(out.contains("QUESTION"), "{out} {}", guest.log());
    let out = world.outside.output(&["python3", "-c", visit, "203.0.113.1"])?;
    let out = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.contains("the guest saw 64:ff9b::cb00:7102'"), "{out} {}", guest.log());
    assert!(out.contains("QUESTION"), "{out} {}", guest.log());
    let platd = world.path("platd");
    let platd = platd.to_str().context("path")?;
    let text = world.host.run(&format!("{platd} status {socket}"))?;
    assert!(text.contains("2001:db8:464::/64") && text.contains("TCP"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&world.host.run(&format!("{platd} status {socket} --json"))?)?;
    assert!(json["stats"]["tcp"].as_u64() >= Some(1), "{json}");
    let status = guest.stop(nix::sys::signal::Signal::SIGTERM)?;
    assert!(status.success(), "{status:?}");
    Ok(())
}
