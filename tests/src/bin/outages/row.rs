// SPDX-License-Identifier: Apache-2.0

//! The changes, and how each outage is measured.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::{
    change, Controller, Lab, Mode, Offloads, Uplink, PREFIX, SERVER4, SERVER6, UPLINK6,
};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::traffic::{outage, upload_stall};

/// The subject of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// A CLAT whose packets the kernel translates.
    Offload,
    /// A CLAT with clatd only.
    Daemon,
    /// Native IPv6.
    Native,
}

impl Subject {
    pub(crate) const ALL: [Self; 3] = [Self::Offload, Self::Daemon, Self::Native];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Offload => "offload",
            Self::Daemon => "clatd alone",
            Self::Native => "native IPv6",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy)]
enum How {
    /// How long no datagram is answered.
    Datagrams(fn(&Lab, Option<&Controller<'_>>) -> Result<()>),
    /// How long no data of an upload arrives.
    Upload(fn(&Lab, Option<&Controller<'_>>) -> Result<()>),
    /// The duration of this function.
    Time(fn(&Lab, Option<&Controller<'_>>) -> Result<Duration>),
}

/// One line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    how: How,
    /// Whether it applies without a CLAT.
    is_native: bool,
    /// Options of the controller.
    options: &'static [&'static str],
}

impl Row {
    pub(crate) fn is_of(&self, subject: Subject) -> bool {
        self.is_native || subject != Subject::Native
    }

    /// Makes the change once, in a new lab.
    pub(crate) fn take(&self, subject: Subject) -> Result<Duration> {
        let offloads = match self.how {
            // A veth passes GSO packets larger than its MTU.
            How::Upload(_) => Offloads::Off,
            _ => Offloads::Default,
        };
        let lab = Lab::on(Uplink::Ethernet, offloads)?;
        lab.phone.run("sysctl -qw net.ipv6.conf.up0.accept_ra=2")?;
        let mode = match subject {
            Subject::Offload => Some(Mode::Offload),
            Subject::Daemon => Some(Mode::Daemon),
            Subject::Native => None,
        };
        let controller = mode.map(|mode| Controller::new(&lab, mode, self.options)).transpose()?;
        if let Some(controller) = &controller {
            controller.start("up0", PREFIX)?;
        }
        let controller = controller.as_ref();
        let to: IpAddr = if controller.is_some() { SERVER4.into() } else { SERVER6.into() };
        match self.how {
            How::Datagrams(change) => outage(&lab, to, || change(&lab, controller)),
            How::Upload(change) => upload_stall(&lab, to, || change(&lab, controller)),
            How::Time(take) => take(&lab, controller),
        }
    }
}

const fn row(name: &'static str, how: How) -> Row {
    Row { name, how, is_native: true, options: &[] }
}

/// A row for CLATs only.
const fn own(name: &'static str, how: How) -> Row {
    Row { name, how, is_native: false, options: &[] }
}

/// What is in memory of the controller and of clatd with one CLAT that has carried packets, in
/// bytes.
pub(crate) fn memory(mode: Mode) -> Result<[u64; 2]> {
    let lab = Lab::on(Uplink::Ethernet, Offloads::Default)?;
    let controller = Controller::new(&lab, mode, &[])?;
    controller.start("up0", PREFIX)?;
    lab.phone.run(&format!("ping -c 10 -i 0.01 {SERVER4}"))?;
    let clatd = *controller.clatds().first().context("no clatd")?;
    let resident = |pid: i32| -> Result<u64> {
        let pages = fs::read_to_string(format!("/proc/{pid}/statm"))?;
        Ok(pages.split(' ').nth(1).context("no number")?.parse::<u64>()? * 4096)
    };
    Ok([resident(controller.daemon.pid())?, resident(clatd)?])
}

pub(crate) const ROWS: &[Row] = &[
    row("upload, link's MTU 1500 → 1400", How::Upload(|lab, _| change::set_link_mtu(lab, 1400))),
    row(
        "upload, router's MTU 1500 → 1400",
        How::Upload(|lab, _| {
            change::advertise(lab, UPLINK6, &change::mtu_option(1400))?;
            lab.router.run("ip link set ph0 mtu 1400").map(drop)
        }),
    ),
    row("uplink renumbered by hand", How::Datagrams(|lab, _| change::renumber(lab))),
    row(
        "prefix deprecated by its router",
        How::Datagrams(|lab, _| {
            let [old, new]: [Ipv6Addr; 2] = ["2001:db8:1::".parse()?, "2001:db8:11::".parse()?];
            lab.router.run("ip -6 addr add 2001:db8:11::1/64 dev ph0 nodad")?;
            let options =
                [change::prefix_option(old, false), change::prefix_option(new, true)].concat();
            change::advertise(lab, UPLINK6, &options)?;
            lab.phone.run("ip -6 addr change 2001:db8:1::2/64 dev up0 preferred_lft 0").map(drop)
        }),
    ),
    own(
        "another node has the address",
        How::Datagrams(|lab, controller| {
            let controller = controller.context("a CLAT")?;
            let v6 = controller.status("up0")?["v6"].as_str().context("an address")?.to_owned();
            change::claim(lab, v6.parse()?)
        }),
    ),
    row(
        "uplink's Ethernet address changed",
        How::Datagrams(|lab, _| {
            lab.phone.run("ip link set up0 address 02:00:00:00:12:34").map(drop)
        }),
    ),
    row("uplink renamed", How::Datagrams(|lab, _| change::rename(lab, "new0"))),
    row(
        "the better of two uplinks down",
        How::Time(|lab, controller| {
            lab.second_uplink()?;
            if let Some(controller) = controller {
                controller.start("up1", PREFIX)?;
            }
            let to: IpAddr = if controller.is_some() { SERVER4.into() } else { SERVER6.into() };
            outage(lab, to, || lab.phone.run("ip link set up0 down").map(drop))
        }),
    ),
    Row {
        options: &["--probe", "192.0.2.1"],
        ..own(
            "PLAT of the better of two uplinks silent",
            How::Time(|lab, controller| {
                let controller = controller.context("a CLAT")?;
                lab.second_uplink()?;
                controller.start("up1", PREFIX)?;
                outage(lab, SERVER4, || {
                    let silent = format!("ip -6 rule add iif ph0 to {PREFIX} blackhole");
                    lab.router.run(&silent).map(drop)
                })
            }),
        )
    },
    own(
        "default route deleted",
        How::Datagrams(|lab, _| lab.phone.run("ip -4 route del default").map(drop)),
    ),
    own(
        "address of the IPv4 device flushed",
        How::Datagrams(|lab, _| lab.phone.run("ip -4 addr flush dev v4-up0").map(drop)),
    ),
    own(
        "IPv4 device down",
        How::Datagrams(|lab, _| lab.phone.run("ip link set v4-up0 down").map(drop)),
    ),
    own(
        "IPv4 device deleted",
        How::Datagrams(|lab, _| lab.phone.run("ip link del v4-up0").map(drop)),
    ),
    own("clatd killed", How::Datagrams(|_, controller| signal(controller, Signal::SIGKILL))),
    own("clatd hangs", How::Datagrams(|_, controller| signal(controller, Signal::SIGSTOP))),
    Row {
        options: &["--keep"],
        ..own(
            "controller killed, another goes on (--keep)",
            How::Datagrams(|_, controller| replace(controller).map(drop)),
        )
    },
    own(
        "three CLATs of a killed controller removed",
        How::Time(|lab, controller| {
            let controller = controller.context("a CLAT")?;
            lab.second_uplink()?;
            lab.third_uplink()?;
            controller.start("up1", PREFIX)?;
            controller.start("up2", PREFIX)?;
            replace(Some(controller))
        }),
    ),
    own(
        "start to first answer",
        How::Time(|lab, controller| {
            let controller = controller.context("a CLAT")?;
            controller.ctl(&["stop", "up0"])?;
            let begun = Instant::now();
            controller.ctl(&["start", "up0", "--prefix", PREFIX])?;
            while lab.phone.run(&format!("ping -c 1 -W 0.1 {SERVER4}")).is_err() {
                ensure!(begun.elapsed() < Duration::from_secs(20), "no answer");
            }
            Ok(begun.elapsed())
        }),
    ),
    own(
        "stop",
        How::Time(|_, controller| {
            let controller = controller.context("a CLAT")?;
            let begun = Instant::now();
            controller.ctl(&["stop", "up0"])?;
            Ok(begun.elapsed())
        }),
    ),
];

/// Kills a controller, and returns how long the next one takes until it is ready.
fn replace(controller: Option<&Controller<'_>>) -> Result<Duration> {
    let controller = controller.context("a controller")?;
    kill(Pid::from_raw(controller.daemon.pid()), Signal::SIGKILL)?;
    let begun = Instant::now();
    // It goes with the lab, as the first would.
    std::mem::forget(controller.again()?);
    Ok(begun.elapsed())
}

fn signal(controller: Option<&Controller<'_>>, signal: Signal) -> Result<()> {
    let controller = controller.context("a CLAT")?;
    for pid in controller.clatds() {
        kill(Pid::from_raw(pid), signal)?;
    }
    // So that losses by it are seen.
    thread::sleep(Duration::from_millis(10));
    Ok(())
}
