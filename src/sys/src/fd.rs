// SPDX-License-Identifier: Apache-2.0

//! Descriptors, where nix lacks something or says it otherwise in each release.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::c_int;
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

/// The flags that a descriptor was opened with, and those set since (fcntl(2), F_GETFL).
///
/// # Errors
/// What the kernel said.
pub fn status_flags(fd: impl AsFd) -> nix::Result<c_int> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETFL) })
}

/// Has reads and writes return `EAGAIN` instead of waiting: of this descriptor and all copies of
/// it.
///
/// # Errors
/// What the kernel said.
pub fn set_nonblocking(fd: impl AsFd) -> nix::Result<()> {
    let flags = status_flags(&fd)? | libc::O_NONBLOCK;
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// Puts a copy of a descriptor in the place of stdin, stdout or stderr (0 to 2), which nobody owns.
///
/// # Errors
/// `EBADF` for another number; what the kernel said.
pub fn replace_standard(number: RawFd, by: impl AsFd) -> nix::Result<()> {
    if !(libc::STDIN_FILENO..=libc::STDERR_FILENO).contains(&number) {
        return Err(Errno::EBADF);
    }
    // SAFETY: no memory is passed, and no owner loses a descriptor.
    Errno::result(unsafe { libc::dup2(by.as_fd().as_raw_fd(), number) }).map(drop)
}

/// Gives an open file, which may have none (O_TMPFILE), a name.
///
/// # Errors
/// What the kernel said: `EEXIST` where there is a file of that name, `ENOENT` for a file whose
/// names are gone; `EINVAL` for a path with a NUL.
pub fn link_open_file(fd: impl AsFd, path: &Path) -> nix::Result<()> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let file = text(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).as_bytes())?;
    let path = text(path.as_os_str().as_bytes())?;
    let (here, flags) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    // SAFETY: the kernel reads two strings that live through the call.
    Errno::result(unsafe { libc::linkat(here, file.as_ptr(), here, path.as_ptr(), flags) })
        .map(drop)
}
