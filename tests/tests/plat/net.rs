// SPDX-License-Identifier: Apache-2.0

//! Networks of several nodes, by an ordinary user.

use std::fs;
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, Daemon, USER_NAMESPACES};

use crate::{python_in, wait_until, what_it_said, World, SERVER};

/// A resolver of the outside world, with IPv4 only.
const DNS: &str = "198.51.100.53";

const NEEDS: &[&str] = &["dnsmasq", "ping", "python3", "setpriv", USER_NAMESPACES];

/// A node, which serves or visits.
const NODE: &str = include_str!("scripts/net_node.py");

/// An ordinary user's networks.
struct Networks {
    world: World,
    folder: PathBuf,
    _dns: Daemon,
}

impl Networks {
    fn new() -> Result<Self> {
        let world = World::new()?;
        world.outside.run(&format!("ip addr add {DNS}/32 dev lo"))?;
        let records = format!(
            "--listen-address={DNS} --host-record=old.example,{SERVER} \
             --host-record=both.example,{SERVER},2001:db8:ffff::1"
        );
        let dns = world.outside.dnsmasq(&records, &world.path("dns.log"))?;
        let folder = world.path("run");
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        Ok(Self { world, folder, _dns: dns })
    }

    fn command(&self, args: &[&str]) -> Vec<String> {
        let own = format!("XDG_RUNTIME_DIR={}", self.folder.display());
        let words = self.world.command(&[&["net"], args].concat());
        ["env".to_owned(), own].into_iter().chain(words).collect()
    }

    fn net(&self, args: &[&str]) -> Result<Output> {
        self.world.host.output(&self.command(args))
    }

    /// What it says when it refuses.
    fn refusal(&self, args: &[&str]) -> Result<String> {
        let output = self.net(args)?;
        ensure!(!output.status.success(), "{args:?}: {output:?}");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// A node that serves.
    fn server(&self, name: &str) -> Result<Daemon> {
        let args = ["join", "ci", "--name", name, "--", "python3", "-c", NODE, "serve"];
        let log = self.world.path(&format!("{name}.log"));
        let mut server = self.world.host.spawn(&self.command(&args), &log)?;
        server.wait_for("serving")?;
        Ok(server)
    }

    /// What a new node says that visits the node `web` and this IPv4 server.
    fn visit(&self, server: &str) -> Result<String> {
        what_it_said(
            &self.net(&["join", "ci", "--", "python3", "-c", NODE, "visit", "web", server])?,
        )
    }

    fn left(&self) -> Result<Vec<PathBuf>> {
        let all = fs::read_dir(self.folder.join("platd"))?;
        Ok(all.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
    }
}

/// Nodes reach each other by name, address and link-local address, and IPv4 servers by DNS64 and
/// NAT64; they have no IPv4. A network that has ended leaves nothing.
#[test]
fn nodes_reach_each_other_and_ipv4() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let networks = Networks::new()?;
    let mut others = networks.world.host.pids();
    // As on many a CI runner.
    networks.world.host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")?;
    let options = ["up", "ci", "--dns", DNS, "--dns64-always", "--forward", "8080:80"];
    what_it_said(&networks.net(&options)?)?;
    what_it_said(&networks.net(&["join", "ci", "--", "true"])?)?;
    let mut web = networks.server("web")?;
    let visit = "import socket; \
        print(socket.create_connection(('127.0.0.1', 8080), 10).recv(99).decode())";
    ensure!(python_in(&networks.world.host, visit, &[])? == "hello 64:ff9b::c000:8\n");
    for name in ["old.example", "both.example"] {
        let said = networks.visit(name)?;
        ensure!(said.ends_with("only IPv6\n"), "{said}");
    }
    let db = networks.server("db")?;
    let said = what_it_said(&networks.net(&["list"])?)?;
    ensure!(said == "ci: web, db\n", "{said}");
    // A node that has left has no name any more; its name is free.
    drop(db);
    wait_until(
        "the node has left",
        || Ok(what_it_said(&networks.net(&["list"])?)? == "ci: web\n"),
    )?;
    let ask = ["join", "ci", "--", "getent", "hosts", "db"];
    ensure!(networks.net(&ask)?.status.code() == Some(2));
    let code = networks.net(&["join", "ci", "--name", "db", "--", "sh", "-c", "exit 7"])?;
    ensure!(code.status.code() == Some(7), "{code:?}");

    what_it_said(&networks.net(&["down", "ci"])?)?;
    ensure!(networks.left()?.is_empty(), "{:?}", networks.left()?);
    web.wait_for("the network has ended")?;
    others.sort_unstable();
    wait_until("all processes end", || {
        let mut left = networks.world.host.pids();
        left.sort_unstable();
        Ok(left == others)
    })
}

/// A namespace that exists, as a container's: found by name, and it cannot use a neighbour's
/// Ethernet address.
#[test]
fn a_namespace_is_a_node() -> Result<()> {
    if !can_run(&[NEEDS, &["nsenter", "unshare"]].concat()) {
        return Ok(());
    }
    let networks = Networks::new()?;
    let host = &networks.world.host;
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let made = format!("{user} unshare -Urn sh -c");
    let argv: Vec<_> = made.split_whitespace().chain(["echo made; exec sleep 1000"]).collect();
    let mut owner = host.spawn(&argv, &networks.world.path("owner.log"))?;
    owner.wait_for("made")?;
    let pid = owner.pid().to_string();
    what_it_said(&networks.net(&["up", "ci", "--dns", DNS])?)?;
    let args = networks.command(&["join", "ci", "--name", "box", "--netns", &pid]);
    let mut join = host.spawn(&args, &networks.world.path("join.log"))?;
    let ping = ["join", "ci", "--", "ping", "-c", "3", "-i", "0.2", "-W", "5", "box"];
    wait_until("it is found", || Ok(networks.net(&ping)?.status.success()))?;

    let inside = |words: &str| {
        host.run(&format!("{user} nsenter --preserve-credentials -U -n -t {pid} {words}"))
    };
    let _web = networks.server("web")?;
    let said = what_it_said(&networks.net(&["join", "ci", "--", "getent", "hosts", "web"])?)?;
    let address = said.split_whitespace().next().context("an address")?.parse::<Ipv6Addr>()?;
    let [.., a, b, c, _, _, d, e, f] = address.octets();
    let (a, ping) = (a ^ 2, "ping -c 2 -i 0.2 -W 5 2001:db8:464::1");
    inside(ping)?;
    inside(&format!("ip link set plat0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))?;
    ensure!(inside(ping).is_err(), "it has a neighbour's place");
    networks.visit("old.example")?;

    // The device is the network's, and ends with it; the namespace stays.
    what_it_said(&networks.net(&["down", "ci"])?)?;
    join.wait_for("the network has ended")?;
    let links = inside("ip -o link")?;
    ensure!(links.lines().count() == 1 && links.contains(" lo:"), "{links}");
    Ok(())
}

/// A prefix that changes, and frames that are lost one by one.
#[test]
fn nodes_of_an_impaired_network() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let networks = Networks::new()?;
    for (options, prefix) in [
        (["--loss", "1", "--mtu", "1280"], "2001:db8:464:0:"),
        (["--prefix-churn", "3", "--profile", "mobile"], "2001:db8:464:1:"),
    ] {
        what_it_said(&networks.net(&[&["up", "ci", "--dns", DNS], &options[..]].concat())?)?;
        let _web = networks.server("web")?;
        let ask = ["join", "ci", "--", "getent", "hosts", "web"];
        wait_until(prefix, || Ok(what_it_said(&networks.net(&ask)?)?.starts_with(prefix)))?;
        networks.visit("old.example")?;
        what_it_said(&networks.net(&["down", "ci"])?)?;
    }
    Ok(())
}

/// In one line each.
#[test]
fn what_is_refused() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let networks = Networks::new()?;
    let long = "x".repeat(64);
    for name in ["a/b", "..", ".", "", "-a", "a-", "a b", "a.example", "ä", &long] {
        for args in [&["up", "--", name][..], &["down", "--", name]] {
            let said = networks.refusal(args)?;
            ensure!(said.contains("letters, digits and hyphens"), "{name:?}: {said}");
        }
        let said = networks.refusal(&["join", "ci", &format!("--name={name}"), "true"])?;
        ensure!(said.contains("letters, digits and hyphens"), "{name:?}: {said}");
    }
    ensure!(!networks.folder.join("platd").exists());
    what_it_said(&networks.net(&["up", "ci"])?)?;
    let _web = networks.server("web")?;
    for (args, wanted) in [
        (&["up", "ci"][..], "network ci is up already; `platd net down ci` ends it"),
        (&["up", "v4", "--clat"], "--clat: nodes have no IPv4; `platd run` has a CLAT"),
        (&["down", "other"], "there is no network other; `platd net up other` starts it"),
        (&["join", "other", "true"], "there is no network other; `platd net up other` starts it"),
        (
            &["join", "ci", "--name", "WEB", "true"],
            "the network has a node web; choose another name",
        ),
    ] {
        let said = networks.refusal(args)?;
        ensure!(said == format!("platd: {wanted}\n"), "{args:?}: {said}");
    }
    // Another user's folder.
    what_it_said(&networks.net(&["down", "ci"])?)?;
    fs::remove_dir(networks.folder.join("platd"))?;
    fs::create_dir(networks.folder.join("platd"))?;
    let said = networks.refusal(&["up", "ci"])?;
    ensure!(said.contains("is not this user's alone; remove it"), "{said}");
    Ok(())
}
