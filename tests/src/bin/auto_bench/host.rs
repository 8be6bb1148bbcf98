// SPDX-License-Identifier: Apache-2.0

//! Who runs the CLAT.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clat_tests::{Controller, Daemon, Lab, Mode};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// After this systemd starts a service again (RestartSec of systemd.service(5)).
const RESTART: Duration = Duration::from_millis(100);

/// Whose CLAT is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// Ours, whose packets the kernel translates.
    Offload,
    /// Ours with clatd only.
    Daemon,
    /// NetworkManager's.
    NetworkManager,
}

impl Subject {
    pub(crate) const ALL: [Self; 3] = [Self::Offload, Self::Daemon, Self::NetworkManager];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Offload => "offload",
            Self::Daemon => "clatd alone",
            Self::NetworkManager => "NetworkManager",
        }
    }
}

/// It, at work on the phone of a lab.
pub(crate) enum Host<'l> {
    Ours(Controller<'l>),
    NetworkManager { lab: &'l Lab, _loop: Daemon },
}

impl<'l> Host<'l> {
    /// Starts it on `up0`, which has this address by hand where there is one, and else only what
    /// its router gives.
    pub(crate) fn start(
        lab: &'l Lab,
        subject: Subject,
        root: Option<&Path>,
        address: Option<&str>,
    ) -> Result<Self> {
        let mode = match subject {
            Subject::Offload => Mode::Offload,
            Subject::Daemon => Mode::Daemon,
            Subject::NetworkManager => {
                let script = source().join("networkmanager.sh");
                let root = root.context("no root with NetworkManager")?;
                let words = [script.to_str(), root.to_str(), Some(address.unwrap_or_default())];
                let argv: Vec<_> = words.into_iter().flatten().collect();
                let log = lab.dir().join("networkmanager.log");
                let mut all = lab.phone.spawn(&argv, &log)?;
                all.wait_for("(up0): state change: prepare -> config")?;
                return Ok(Self::NetworkManager { lab, _loop: all });
            }
        };
        lab.phone.run("sysctl -qw net.ipv6.conf.up0.accept_ra=1")?;
        if let Some(address) = address {
            lab.phone.run(&format!("ip -6 addr add {address} dev up0 nodad"))?;
        }
        let options = ["--auto", "--uplink", "up0", "--keep"];
        Ok(Self::Ours(Controller::new(lab, mode, &options)?))
    }

    /// Starts a DHCPv4 client where none is part of it. It forgets all leases of before.
    pub(crate) fn dhcp_client(&self) -> Result<Option<Daemon>> {
        let Self::Ours(controller) = self else { return Ok(None) };
        let run = "mount -t tmpfs tmpfs /var/lib/dhcpcd; mount -t tmpfs tmpfs /run; \
                   exec dhcpcd --ipv4only --noipv4ll --nobackground --nohook resolv.conf up0";
        let argv = ["unshare", "--mount", "sh", "-c", run];
        let lab = controller.lab();
        lab.phone.spawn(&argv, &lab.dir().join("dhcpcd.log")).map(Some)
    }

    /// Its processes, the one that follows the network first.
    fn processes(&self) -> Result<Vec<i32>> {
        match self {
            Self::Ours(controller) => {
                Ok([vec![controller.daemon.pid()], controller.clatds()].concat())
            }
            Self::NetworkManager { lab, .. } => {
                let is_it = |pid: &i32| {
                    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
                    name.is_ok_and(|name| name.trim() == "NetworkManager")
                };
                Ok(lab.phone.pids().into_iter().filter(is_it).collect())
            }
        }
    }

    /// Kills the one that follows the network, which is started again.
    pub(crate) fn kill(&self) -> Result<()> {
        let pid = *self.processes()?.first().context("it does not run")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        if let Self::Ours(controller) = self {
            thread::sleep(RESTART);
            // It goes with the lab, as the first would.
            std::mem::forget(controller.again()?);
        }
        Ok(())
    }

    /// What is in memory of it, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let resident = |pid: i32| -> Result<u64> {
            let pages = fs::read_to_string(format!("/proc/{pid}/statm"))?;
            Ok(pages.split(' ').nth(1).context("no number")?.parse::<u64>()? * 4096)
        };
        self.processes()?.into_iter().map(resident).sum()
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/auto_bench")
}

/// Makes a root with Debian sid's NetworkManager, unless it exists; returns its version.
pub(crate) fn sid(root: &Path) -> Result<String> {
    if !root.exists() {
        eprintln!("making {} by debootstrap, a few minutes", root.display());
        let made = Command::new("debootstrap")
            .args(["--variant=minbase", "--include=network-manager,dbus", "sid"])
            .args([root.as_os_str(), "http://deb.debian.org/debian".as_ref()])
            .status();
        ensure!(made.context("debootstrap")?.success(), "debootstrap failed");
    }
    let said = Command::new("chroot").arg(root).args(["NetworkManager", "--version"]).output()?;
    ensure!(said.status.success(), "{} has no NetworkManager", root.display());
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}
