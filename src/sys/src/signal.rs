// SPDX-License-Identifier: Apache-2.0

//! Signals to a thread.

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Sends a signal to one thread of a process (tgkill(2)).
///
/// # Errors
/// `ESRCH` if there is no such thread, `EPERM` if this process may not.
pub fn tgkill(process: Pid, thread: Pid, signal: Signal) -> nix::Result<()> {
    let (process, thread) = (process.as_raw(), thread.as_raw());
    // SAFETY: the call takes three numbers and no pointer.
    let done = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal as libc::c_int) };
    Errno::result(done).map(drop)
}
