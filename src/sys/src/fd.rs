// SPDX-License-Identifier: Apache-2.0

//! Descriptors, where nix lacks something or says it otherwise in each release.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Takes over a descriptor that the caller of this program has left open for it; close-on-exec from
/// now on.
///
/// # Errors
/// `EBADF` when there is none of that number.
pub fn adopt(number: RawFd) -> nix::Result<OwnedFd> {
    // A copy has one owner, whatever owned the number; the original is closed, so that no second
    // owner remains. SAFETY: no memory is passed.
    let copy = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: F_DUPFD_CLOEXEC has just made it, nobody else has it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    nix::unistd::close(number)?;
    Ok(copy)
}

/// Has reads and writes return `EAGAIN` instead of waiting: of this descriptor and all copies of
/// it.
///
/// # Errors
/// What the kernel said.
pub fn set_nonblocking(fd: impl AsFd) -> nix::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: no memory is passed.
    let flags = Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}
