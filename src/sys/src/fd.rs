// SPDX-License-Identifier: Apache-2.0

//! Operations on descriptors that nix lacks or renames from release to release.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::c_int;
use nix::errno::Errno;

/// Takes over a descriptor inherited from the parent process; close-on-exec from now on.
///
/// # Errors
/// `EBADF` if there is no such descriptor.
pub fn adopt(number: RawFd) -> nix::Result<OwnedFd> {
    // The copy has one owner, and the original is closed so that there is no second one. SAFETY: no
    // memory is passed.
    let copy = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: F_DUPFD_CLOEXEC has just made it; it has no other owner.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    nix::unistd::close(number)?;
    Ok(copy)
}

/// The status flags of a descriptor (fcntl(2), F_GETFL).
///
/// # Errors
/// The kernel's error.
pub fn status_flags(fd: impl AsFd) -> nix::Result<c_int> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETFL) })
}

/// Makes reads and writes return `EAGAIN` instead of blocking, by this descriptor and all its
/// copies.
///
/// # Errors
/// The kernel's error.
pub fn set_nonblocking(fd: impl AsFd) -> nix::Result<()> {
    let on: c_int = 1;
    // SAFETY: the kernel reads an int that lives through the call.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONBIO, &on) }).map(drop)
}

/// Takes a record lock (fcntl(2), F_SETLK) on a whole file for writing, or fails at once. It goes
/// with this process, and with the first descriptor of the file that the process closes.
///
/// # Errors
/// `EAGAIN` or `EACCES` if another process has one, `EBADF` if the file is not open for writing.
pub fn lock_record(fd: impl AsFd) -> nix::Result<()> {
    let [l_type, l_whence] =
        [libc::F_WRLCK, libc::SEEK_SET].map(|it| it.try_into().unwrap_or_default());
    let all = libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the kernel reads a struct that lives through the call.
    Errno::result(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETLK, &all) }).map(drop)
}

/// Replaces stdin, stdout or stderr (0 to 2), which have no owner, by a copy of a descriptor.
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

/// Gives a name to an open file, also to one made with O_TMPFILE.
///
/// # Errors
/// The kernel's error: `EEXIST` if the name exists, `ENOENT` for a file whose names were all
/// removed; `EINVAL` for a path with a NUL.
pub fn link_open_file(fd: impl AsFd, path: &Path) -> nix::Result<()> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let file = text(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).as_bytes())?;
    let path = text(path.as_os_str().as_bytes())?;
    let (here, flags) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    // SAFETY: the kernel reads two strings that live through the call.
    Errno::result(unsafe { libc::linkat(here, file.as_ptr(), here, path.as_ptr(), flags) })
        .map(drop)
}
