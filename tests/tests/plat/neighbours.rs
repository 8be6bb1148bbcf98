// SPDX-License-Identifier: Apache-2.0

//! Several guests of one network as stations of a bridge: which one has which address, and that
//! they reach each other.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, Daemon, Netns};

use crate::{number, python_in, wait_until, World, SERVER6};

/// A bridge with a platd on it.
struct Switch {
    ns: Netns,
    platd: Daemon,
    world: World,
}

/// A station of it, with its address.
struct Station {
    ns: Netns,
    address: String,
}

impl Switch {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let ns = Netns::new(number(), "switch")?;
        let platd = world.daemon("switch", &["--netns", &format!("/run/netns/{}", ns.name())])?;
        for line in
            ["ip link add br0 type bridge", "ip link set br0 up", "ip link set plat0 master br0"]
        {
            ns.run(line)?;
        }
        Ok(Self { ns, platd, world })
    }

    fn station(&self, n: u8) -> Result<Station> {
        let ns = Netns::new(number(), "station")?;
        self.ns.run(&format!("ip link add p{n} type veth peer name e0 netns {}", ns.name()))?;
        self.ns.run(&format!("ip link set p{n} up master br0"))?;
        ns.run(&format!("ip link set e0 address 02:00:00:00:01:0{n}"))?;
        ns.run("ip link set e0 up")?;
        ns.run("ip link set lo up")?;
        let address = format!("2001:db8:464::ff:fe00:10{n}");
        wait_until("an address", || {
            let addresses = ns.run("ip -6 addr show dev e0 scope global")?;
            Ok(addresses.contains(&address) && !addresses.contains("tentative"))
        })?;
        Ok(Station { ns, address })
    }

    fn drops(&self, why: &str) -> Result<u64> {
        self.world.status("switch")?["stats"]["drops"][why].as_u64().context("a number")
    }
}

/// A connection that a station has.
struct Talk {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Talk {
    fn begin(station: &Station) -> Result<Self> {
        let argv = ["python3", "-c", include_str!("scripts/station.py"), SERVER6];
        let mut command = station.ns.command(&argv);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("stdin")?;
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        let mut talk = Self { child, input, output };
        talk.hear("connected")?;
        Ok(talk)
    }

    fn say(&mut self, word: &str) -> Result<()> {
        writeln!(self.input, "{word}")?;
        self.hear(&format!("heard {word}"))
    }

    fn hear(&mut self, wanted: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim_end() == wanted, "{line:?}");
        Ok(())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No station can use a neighbour's address while that is present, but it can afterwards. A station
/// that changes its Ethernet address keeps its addresses.
#[test]
fn an_address_is_its_stations() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let switch = Switch::new()?;
    let (owner, thief) = (switch.station(1)?, switch.station(2)?);
    let mut talk = Talk::begin(&owner)?;
    thief.ns.run(&format!("ip addr add {}/64 dev e0 nodad", owner.address))?;
    let speak_as = include_str!("scripts/speak_as.py");
    let said = python_in(&thief.ns, speak_as, &[&owner.address, SERVER6, "20"])?;
    ensure!(said.trim() == "not answered", "{said}");
    ensure!(switch.drops("foreign_source")? > 0);
    talk.say("one")?;

    // Neighbours with its old address have to learn the new one, too.
    owner.ns.run("ip link set e0 address 02:00:00:00:01:09")?;
    talk.say("two")?;
    talk.say("three")?;
    ensure!(switch.platd.log().contains("has moved from 02:00:00:00:01:01"));

    drop(talk);
    switch.ns.run("ip link del p1")?;
    let said = python_in(&thief.ns, speak_as, &[&owner.address, SERVER6, "100"])?;
    ensure!(said.trim() == "answered", "{said}");
    Ok(())
}

/// By addresses of the network, which are not on-link (RFC 4861 §6.3.4); also a station that has
/// sent nothing yet, but none that is absent.
#[test]
fn neighbours_reach_each_other() -> Result<()> {
    if !can_run(&["ping", "python3"]) {
        return Ok(());
    }
    let switch = Switch::new()?;
    let (one, other) = (switch.station(1)?, switch.station(2)?);
    one.ns.run(&format!("ping -c 3 -i 0.2 -W 10 {}", other.address))?;
    other.ns.run(&format!("ping -c 3 -i 0.2 -W 10 -s 1400 {}", one.address))?;
    let nobody = one.ns.output(&["ping", "-c", "1", "-W", "10", "2001:db8:464::77"])?;
    let said = String::from_utf8_lossy(&nobody.stdout).into_owned();
    ensure!(!nobody.status.success() && said.contains("Address unreachable"), "{said}");
    Ok(())
}
