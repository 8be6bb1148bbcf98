// SPDX-License-Identifier: Apache-2.0

//! The programs at work on raw-IP devices: what goes in and comes out are packets of the kernel's,
//! with checksums and segmentation that are yet to be done.
//!
//! ```text
//! out   inject ──────> v4 ─ egress program ─> up          passed on: v4's own descriptor
//! in    up ─ ingress program ─> v4 ──────> arrived        passed on: left
//! ```
//! The direct way, what comes out translated does so where it would have passed on, and the other
//! way round for what is passed on out:
//!
//! ```text
//! out   inject ──────> up ─ direct program ─> up's descriptor   passed on: v4's, as above
//! in    up ─ ingress program ──────> left                       passed on: left
//! ```
//! All five are TUN devices; the plain arrows are redirects by tc, so that nothing else touches the
//! packets.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_offload::{EgressEntry, OffloadCounters};
use clat_tests::Netns;
use clat_tun::{GsoType, Options, Tun, VirtioHeader};
use clat_xlat::{Local, Prefix};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use tempfile::TempDir;

use super::programs::{entries, Programs, EGRESS, INGRESS};
use super::Outcome;

/// No lab of the other kind has this number.
const LAB: u32 = 9000;

/// Five devices in a namespace of their own.
pub(crate) struct Wires {
    inject: Tun,
    v4: Tun,
    up: Tun,
    arrived: Tun,
    left: Tun,
    direct: bool,
    programs: Programs,
    _pins: Pins,
    _ns: Netns,
}

/// Programs pinned where tc finds them, in a file system of their own.
pub(crate) struct Pins(TempDir);

impl Pins {
    pub(crate) fn new(programs: &Programs) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        ensure!(Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(dir.path())
            .status()?
            .success());
        let pins = Self(dir);
        for mut program in programs.object.progs_mut() {
            let path = pins.path(&program.name().to_string_lossy());
            program.pin(&path).with_context(|| path)?;
        }
        Ok(pins)
    }

    pub(crate) fn path(&self, program: &str) -> String {
        self.0.path().join(format!("prog_clatd_{program}")).display().to_string()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Adds a filter `at` a device. Runs inside the namespace, but with the host's mounts: `ip netns
/// exec` would hide the pins.
fn filter(ns: &Netns, at: &str, what: &str) -> Result<()> {
    let dev = at.split(' ').next().context("no device")?;
    for line in
        [format!("tc qdisc replace dev {dev} clsact"), format!("tc filter add dev {at} {what}")]
    {
        let run = || Ok(Command::new("sh").arg("-c").arg(&line).output()?);
        let output = ns.enter(run)?;
        ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Attaches a pinned program as the controller does.
pub(crate) fn attach(ns: &Netns, pins: &Pins, at: &str, program: &str) -> Result<()> {
    filter(ns, at, &format!("bpf da object-pinned {}", pins.path(program)))
}

/// Sends on by `to` whatever comes along.
pub(crate) fn redirect(ns: &Netns, at: &str, to: &str) -> Result<()> {
    filter(
        ns,
        at,
        &format!("protocol all u32 match u32 0 0 action mirred egress redirect dev {to}"),
    )
}

impl Wires {
    pub(crate) fn new(number: u32, local: Local, direct: bool) -> Result<Self> {
        let ns = Netns::new(LAB + number, "raw")?;
        ns.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")?;
        let tun = |name: &str| -> Result<(Tun, u32)> {
            let options = Options { packet_info: false, vnet_header: true };
            let tun = ns.enter(|| Ok((Tun::create(name, options)?, if_nametoindex(name)?)))?;
            // The kernel completes what is read here.
            ns.run(&format!("ethtool -K {name} tx off"))?;
            // Before 5.12 the kernel drops what is redirected to a device with less.
            ns.run(&format!("ip link set dev {name} mtu 9000 up"))?;
            Ok(tun)
        };
        let (inject, v4, up, arrived, left) =
            (tun("inject")?, tun("v4-up")?, tun("up")?, tun("arrived")?, tun("left")?);

        let programs = Programs::load(true);
        let addresses = (local.v4, local.v6, Prefix::WELL_KNOWN.addr());
        let (egress, mut ingress) = entries((v4.1, up.1, false), addresses);
        if direct {
            ingress.oif = up.1;
            let there = EgressEntry { iif: up.1, oif: v4.1, ..egress.clone() };
            programs.add((there, ingress.clone()));
        }
        programs.add((egress, ingress));
        let pins = Pins::new(&programs)?;
        attach(&ns, &pins, "v4-up egress prio 4 protocol ip", "schedcls_egress_clat_rawip")?;
        if direct {
            attach(&ns, &pins, "up egress prio 4 protocol ip", "schedcls_direct_clat_rawip")?;
        }
        attach(&ns, &pins, "up ingress prio 4 protocol ipv6", "schedcls_ingress_clat_rawip")?;
        redirect(&ns, "inject ingress prio 1", if direct { "up" } else { "v4-up" })?;
        redirect(&ns, "v4-up ingress prio 1", "arrived")?;
        redirect(&ns, "up ingress prio 5", "left")?;
        Ok(Self {
            inject: inject.0,
            v4: v4.0,
            up: up.0,
            arrived: arrived.0,
            left: left.0,
            direct,
            programs,
            _pins: pins,
            _ns: ns,
        })
    }

    /// What has happened in the direction of this packet.
    pub(crate) fn counters(&self, packet: &[u8]) -> OffloadCounters {
        self.programs.counters(if packet[0] >> 4 == 4 { EGRESS } else { INGRESS })
    }

    /// Whether a device takes this kind of super-packet: that of UDP has a number since 6.2.
    pub(crate) fn takes(&self, vnet: &VirtioHeader, packet: &[u8]) -> bool {
        vnet.gso_type != GsoType::UdpL4 || self.left.send(vnet, packet) != Err(Errno::EINVAL)
    }

    /// Sends a packet in the direction of its family. What comes out is complete: the devices leave
    /// nothing to whoever reads them.
    pub(crate) fn pass(
        &self,
        vnet: &VirtioHeader,
        packet: &[u8],
    ) -> Result<(Outcome, Vec<Vec<u8>>)> {
        let (from, translated, passed) = if packet[0] >> 4 == 4 {
            (&self.inject, &self.up, &self.v4)
        } else {
            (&self.up, &self.arrived, &self.left)
        };
        from.send(vnet, packet)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            for (tun, is_translated) in [(translated, true), (passed, false)] {
                let Some(first) = receive(tun)? else { continue };
                let mut all = vec![first];
                if vnet.gso_type != GsoType::None {
                    // The segments are queued together.
                    while let Some(next) = receive(tun)? {
                        all.push(next);
                    }
                }
                // Where it comes out tells only by a device of one's own.
                let is_other = (all[0][0] ^ packet[0]) >> 4 != 0;
                let outcome = if is_other || (is_translated && !self.direct) {
                    Outcome::Translated(all[0].clone())
                } else {
                    Outcome::Passed
                };
                return Ok((outcome, all));
            }
            ensure!(Instant::now() < deadline, "lost: {packet:02x?}, {:?}", self.counters(packet));
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

fn receive(tun: &Tun) -> Result<Option<Vec<u8>>> {
    let mut buf = vec![0; 1 << 17];
    match tun.recv(&mut buf) {
        Ok((vnet, len)) => {
            ensure!(!vnet.needs_csum && vnet.gso_type == GsoType::None, "not complete: {vnet:?}");
            buf.truncate(len);
            Ok(Some(buf))
        }
        Err(Errno::EAGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
