// SPDX-License-Identifier: Apache-2.0

//! Takes over what a previous controller left running: its clatds, and their TUN devices.

use std::fs;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::path::Path;
use std::time::Duration;

use clat_sys::{pidfd, wait_readable, HostError};
use clat_tun::Tun;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::unistd::{Pid, User};

use crate::{record, ClatdArgs, ClatdProcess, Device, IfaceName};

/// The users that clatd runs as, in order of preference.
const USERS: [&str; 2] = ["clat", "nobody"];

/// A clatd that a previous controller started, and its TUN device. Dropping this ends the process
/// and removes the device.
#[derive(Debug)]
pub struct Orphan {
    /// The process.
    pub child: ClatdProcess,
    /// Its device.
    pub tun: Device,
    /// Its arguments.
    pub args: ClatdArgs,
    /// The index of its uplink, which may have another name by now.
    pub index: u32,
}

/// Takes over every clatd of ours, and ends those that cannot be taken over.
#[must_use]
pub fn orphans() -> Vec<Orphan> {
    let processes = match fs::read_dir("/proc") {
        Ok(processes) => processes,
        Err(e) => {
            log::warn!("cannot look for clatd processes of a previous controller: {e}");
            return Vec::new();
        }
    };
    let pids = processes.flatten().filter_map(|p| p.file_name().to_str()?.parse().ok());
    let orphans: Vec<_> = pids.filter_map(|pid| orphan(Pid::from_raw(pid))).collect();
    let devices: Vec<_> = orphans.iter().map(|orphan| orphan.tun.tun.name()).collect();
    record::remove_all_but(&devices);
    orphans
}

/// The process, if it is a clatd of ours; one that cannot be taken over is ended.
fn orphan(pid: Pid) -> Option<Orphan> {
    let process = format!("/proc/{pid}");
    let process = Path::new(&process);
    let found = identify(process)?;
    let pidfd =
        pidfd::open(pid).inspect_err(|e| log::error!("pidfd_open of pid {pid}: {e}")).ok()?;
    let child = ClatdProcess::adopt(pid, pidfd);
    // Checked again with the pidfd open: before, the process id may have been reused.
    if identify(process).as_ref() != Some(&found)
        || wait_readable(&[child.as_fd()], Some(Duration::ZERO)).is_some()
    {
        child.detach();
        return None;
    }
    let (uplink, fd) = found;
    match take(&child, &uplink, fd) {
        Ok((args, index, tun)) => Some(Orphan { child, tun, args, index }),
        Err(e) => {
            log::warn!("ending the clatd of a previous controller on {uplink}, pid {pid}: {e}");
            None
        }
    }
}

/// The arguments of a clatd, the index of its uplink, and a copy of its descriptor `fd`, its TUN
/// device's. The process's own claims are not trusted: the kernel tells which device it holds, and
/// the record of that device has the rest.
fn take(
    child: &ClatdProcess,
    uplink: &IfaceName,
    fd: RawFd,
) -> io::Result<(ClatdArgs, u32, Device)> {
    let fd =
        pidfd::get_fd(child.as_fd(), fd).map_err(|e| HostError::during("its TUN device", e))?;
    let tun = Tun::from_fd(fd).map_err(|e| HostError::because(e.errno(), e.to_string()))?;
    if !is_device_of(uplink, tun.name()) {
        return Err(HostError::because(Errno::EINVAL, format!("it holds {}", tun.name())));
    }
    let (args, uplink_index) = record::read(tun.name())?;
    if args.uplink != *uplink {
        return Err(HostError::because(Errno::EINVAL, format!("it was for {}", args.uplink)));
    }
    let index = if_nametoindex(tun.name())?;
    Ok((args, uplink_index, Device { tun, index }))
}

/// The uplink of the process with this directory in /proc, and its descriptor of the TUN device, if
/// it is provably a clatd of ours: in our network namespace, named `clatd-IFACE`, run by clatd's
/// user (or by root, until it changes), and with the TUN device `v4-IFACE` open.
fn identify(process: &Path) -> Option<(IfaceName, RawFd)> {
    let command = fs::read(process.join("cmdline")).ok()?;
    let argv0 = command.split(|byte| *byte == 0).next()?;
    let uplink = IfaceName::parse(std::str::from_utf8(argv0).ok()?.strip_prefix("clatd-")?).ok()?;
    let same_namespace = fs::read_link(process.join("ns/net")).ok()?
        == fs::read_link("/proc/thread-self/ns/net").ok()?;
    if !same_namespace || !has_clatds_user(process)? {
        return None;
    }
    let fd = fs::read_dir(process.join("fdinfo")).ok()?.flatten().find(|fd| {
        let info = fs::read_to_string(fd.path()).unwrap_or_default();
        let device = info.lines().find_map(|line| line.strip_prefix("iff:\t"));
        device.is_some_and(|device| is_device_of(&uplink, device))
    })?;
    Some((uplink, fd.file_name().to_str()?.parse().ok()?))
}

/// Whether `device` is the name of a CLAT's device on an uplink of this name, whatever the index of
/// the uplink, which is part of it if the uplink's name is long.
fn is_device_of(uplink: &IfaceName, device: &str) -> bool {
    let index = device.strip_prefix("v4-").and_then(|index| index.parse().ok());
    uplink.v4iface(index.unwrap_or_default()).is_ok_and(|v4iface| v4iface.as_str() == device)
}

/// From the process's status: its directory in /proc belongs to root if the process is not
/// dumpable.
fn has_clatds_user(process: &Path) -> Option<bool> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let user = USERS.into_iter().find_map(|name| User::from_name(name).ok().flatten());
    let allowed = [Some(0), user.map(|user| user.uid.as_raw())];
    Some(uids.split_whitespace().all(|uid| allowed.contains(&uid.parse().ok())))
}
