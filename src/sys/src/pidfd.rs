// SPDX-License-Identifier: Apache-2.0

//! Process descriptors, which unlike process ids are never reused (pidfd_open(2)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Opens a descriptor of a process (Linux 5.3). It becomes readable when the process ends.
///
/// # Errors
/// `ESRCH` if there is no such process, `ENOSYS` before Linux 5.3.
pub fn open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and no pointer.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// Sends a signal to the process, unless it has ended (pidfd_send_signal(2), Linux 5.1).
///
/// # Errors
/// `EPERM` if this process may not.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> nix::Result<()> {
    // SAFETY: the call takes numbers, and a null pointer for the same siginfo as kill(2).
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match Errno::result(done) {
        Err(Errno::ESRCH) => Ok(()),
        done => done.map(drop),
    }
}

/// Copies the process's descriptor `fd` (pidfd_getfd(2), Linux 5.6).
///
/// # Errors
/// `EBADF` if it has no such descriptor, `EPERM` without CAP_SYS_PTRACE.
pub fn get_fd(pidfd: BorrowedFd<'_>, fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes three numbers and no pointer.
    own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Takes ownership of a descriptor returned by a call above.
fn own(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
