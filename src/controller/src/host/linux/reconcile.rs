//! Finds the clatd processes of a controller that was killed. Their TUN devices live as long as they do.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::process::{pidfd_open, GRACE};
use crate::names::IfaceName;
use crate::supervisor::wait;

/// Ends every process that is provably a clatd of ours: in our network namespace, called `clatd-IFACE`, and holding the
/// TUN device `v4-IFACE`.
pub(super) fn end_orphans() {
    let processes = match fs::read_dir("/proc") {
        Ok(processes) => processes,
        Err(e) => return log::warn!("cannot look for clatd processes of a former life: {e}"),
    };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(uplink) = orphans_uplink(&entry.path()) {
            log::warn!("ending a clatd of a former life on {uplink}, pid {pid}");
            if let Err(e) = end(Pid::from_raw(pid), &entry.path()) {
                log::error!("cannot end pid {pid}: {e}");
            }
        }
    }
}

/// The uplink of the process with this directory in /proc, if it is a clatd of ours.
fn orphans_uplink(process: &Path) -> Option<IfaceName> {
    let command = fs::read(process.join("cmdline")).ok()?;
    let argv0 = command.split(|byte| *byte == 0).next()?;
    let uplink = IfaceName::parse(std::str::from_utf8(argv0).ok()?.strip_prefix("clatd-")?).ok()?;
    let device = format!("iff:\t{}", uplink.v4iface().ok()?);
    let same_namespace = fs::read_link(process.join("ns/net")).ok()?
        == fs::read_link("/proc/thread-self/ns/net").ok()?;
    let holds_device = || {
        let descriptors = fs::read_dir(process.join("fdinfo")).ok()?;
        descriptors
            .flatten()
            .any(|fd| {
                fs::read_to_string(fd.path())
                    .is_ok_and(|info| info.lines().any(|line| line == device))
            })
            .then_some(())
    };
    (same_namespace && holds_device().is_some()).then_some(uplink)
}

/// Ends the process by a pidfd, after a second look: the number may have gone to someone else meanwhile.
fn end(pid: Pid, process: &Path) -> io::Result<()> {
    let pidfd = pidfd_open(pid)?;
    if orphans_uplink(process).is_none() {
        return Ok(());
    }
    let send = |signal: Signal| {
        // SAFETY: the call takes numbers and a null pointer, which stands for what kill(2) would send.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                pidfd.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        Errno::result(done)
    };
    send(Signal::SIGTERM)?;
    if wait(&[pidfd.as_fd()], Some(GRACE)).is_none() {
        send(Signal::SIGKILL)?;
        wait(&[pidfd.as_fd()], Some(GRACE));
    }
    Ok(())
}
