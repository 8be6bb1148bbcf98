// SPDX-License-Identifier: Apache-2.0

//! Virtual machines on platd's network, by QEMU's two kinds of Unix sockets: IPv6 only,
//! autoconfigured, then with our CLAT. `guests.sh` has the steps.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{ensure, Result};
use clat_tests::{install, program, Daemon, Netns};
use serde_json::Value;
use tempfile::TempDir;

use crate::fetch::{self, sh, Kernel};
use crate::image::Image;
use crate::machine::{all_ok, can_boot, Machine};

/// Beside them.
const NEEDS: &[&str] = &["python3", "dnsmasq", "setpriv"];

/// In them, besides what every machine has.
const PROGRAMS: &[&str] = &["curl", "dig", "ethtool", "rdisc6"];
const MODULES: &[&str] =
    &["virtio_pci", "virtio_net", "sch_netem", "ifb", "cls_matchall", "act_mirred"];

/// A host with an IPv4 internet behind it, and a platd of an ordinary user.
pub(crate) struct Carrier {
    platd: Daemon,
    _servers: [Daemon; 2],
    host: Netns,
    _outside: Netns,
    dir: TempDir,
}

impl Carrier {
    /// `number` is unique; `way` is the option for the guest's link.
    pub(crate) fn new(number: u32, way: &str) -> Result<Self> {
        let (host, outside) = (Netns::new(number, "host")?, Netns::new(number, "world")?);
        host.run(&format!("ip link add w0 type veth peer name h0 netns {}", outside.name()))?;
        host.run("ip addr add 203.0.113.1/24 dev w0")?;
        host.run("ip link set w0 up")?;
        host.run("ip route add default via 203.0.113.2")?;
        outside.run("ip addr add 203.0.113.2/24 dev h0")?;
        outside.run("ip addr add 198.51.100.1/32 dev lo")?;
        outside.run("ip addr add 198.51.100.53/32 dev lo")?;
        outside.run("ip link set h0 up")?;
        let ping = host.output(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647"])?;
        ensure!(ping.status.success(), "sysctl: {ping:?}");

        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
        let path = |name: &str| dir.path().join(name);
        install(&program("platd")?, &path("platd"))?;
        let mut web =
            outside.spawn(&["python3", "-c", include_str!("serve.py")], &path("web.log"))?;
        web.wait_for("ready")?;
        let records = "--listen-address=198.51.100.53 --host-record=web.example,198.51.100.1";
        let dns = outside.dnsmasq(records, &path("dns.log"))?;

        let words = format!(
            "setpriv --reuid 65534 --regid 65534 --clear-groups {dir}/platd {way} {dir}/p --status \
                {dir}/s \
             --dns 198.51.100.53 --mtu 1400",
            dir = dir.path().display()
        );
        let words: Vec<_> = words.split_whitespace().collect();
        let mut platd = host.spawn(&words, &path("platd.log"))?;
        platd.wait_for("waiting for a guest")?;
        Ok(Self { platd, _servers: [web, dns], host, _outside: outside, dir })
    }

    /// A file in a folder of its own.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// QEMU's options of a way in.
    pub(crate) fn netdev(&self, netdev: &str) -> String {
        netdev.replace("DIR", &self.dir.path().display().to_string())
    }

    fn status(&self) -> Result<Value> {
        let dir = self.dir.path().display();
        Ok(serde_json::from_str(&self.host.run(&format!("{dir}/platd status {dir}/s --json"))?)?)
    }

    /// Boots a guest that runs `script`.
    fn guest(&self, kernel: &Kernel, script: &str, netdev: &str) -> Result<Machine> {
        let root = self.path(script).with_extension("root");
        let mut image = Image::new(root, PROGRAMS)?;
        image.clat()?;
        image.script(script)?;
        let megabyte: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        let file = self.path("megabyte");
        fs::write(&file, megabyte)?;
        image.put(&file, "/megabyte")?;
        let sum = sh(self.dir.path(), "sha256sum <megabyte | cut -d' ' -f1")?;
        image.write("/sum", sum.trim())?;
        image.modules(kernel, MODULES)?;
        let initramfs = self.path(script).with_extension("initramfs");
        image.pack(&initramfs)?;
        let netdev = self.netdev(netdev);
        let device = "virtio-net-pci,netdev=n,romfile=";
        let options = ["-m", "512", "-netdev", &netdev, "-device", device];
        let folder = self.path(script).with_extension("run");
        Machine::boot(kernel, &initramfs, &folder, &options)
    }
}

#[test]
fn a_guest_by_datagrams() -> Result<()> {
    if !can_boot(&[NEEDS, PROGRAMS]) {
        return Ok(());
    }
    let kernel = fetch::kernel()?;
    let carrier = Carrier::new(600, "--frames")?;
    let dgram = "dgram,id=n,local.type=unix,local.path=DIR/q,remote.type=unix,remote.path=DIR/p";
    let guest = carrier.guest(&kernel, "guests.sh", dgram)?;
    // QEMU's own socket is root's here; platd is not root.
    let socket = carrier.path("q");
    while !socket.exists() {
        ensure!(!guest.report().contains("FAILED"), "QEMU has made no socket");
        sleep(Duration::from_millis(10));
    }
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
    all_ok(&guest.end()?, "guests.sh")
}

/// The first guest is killed during a download; the second finds a new network.
#[test]
fn guests_by_a_stream() -> Result<()> {
    if !can_boot(&[NEEDS, PROGRAMS]) {
        return Ok(());
    }
    let kernel = fetch::kernel()?;
    let mut carrier = Carrier::new(601, "--socket")?;
    let stream = "stream,id=n,server=off,addr.type=unix,addr.path=DIR/p";
    let mut first = carrier.guest(&kernel, "cut.sh", stream)?;
    first.wait_for("a download under way")?;
    let status = carrier.status()?;
    ensure!(status["flows_open"].as_u64() >= Some(1), "{status}");
    first.kill()?;
    carrier.platd.wait_for("the guest has left")?;
    // The flow is kept, with no more data than a flow may have.
    sleep(Duration::from_secs(1));
    let status = carrier.status()?;
    ensure!(status["bytes_held"].as_u64() <= Some(2 << 20), "{status}");
    let report = carrier.guest(&kernel, "guests.sh", stream)?.end()?;
    all_ok(&report, "guests.sh")?;
    let said = carrier.platd.log();
    ensure!(said.matches("a guest is connected").count() == 2, "{said}");
    Ok(())
}
