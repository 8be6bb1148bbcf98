// SPDX-License-Identifier: Apache-2.0

//! Sockets and socket options, where nix lacks a protocol or option on some target.

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, sock_filter, socklen_t};
use nix::errno::Errno;

use crate::classic_bpf;

/// Opens a socket; close-on-exec. `kind` may have SOCK_NONBLOCK.
///
/// # Errors
/// The kernel's error.
pub fn open(family: c_int, kind: c_int, protocol: c_int) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = Errno::result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just made it; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the routing mark of packets that a socket sends (SO_MARK), which nix lacks for Android.
///
/// # Errors
/// The kernel's error: `EPERM` without CAP_NET_ADMIN.
pub fn set_mark(socket: BorrowedFd<'_>, mark: u32) -> nix::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_MARK, &mark)
}

/// Sets an integer option.
///
/// # Errors
/// The kernel's error.
pub fn set_int(socket: impl AsFd, level: c_int, name: c_int, value: c_int) -> nix::Result<()> {
    set(socket.as_fd(), level, name, &value)
}

/// Sets an option whose value is a structure, given as bytes.
///
/// # Errors
/// The kernel's error.
pub fn set_bytes(socket: impl AsFd, level: c_int, name: c_int, value: &[u8]) -> nix::Result<()> {
    let len = socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads at most `len` bytes of a slice of that length.
    let done = unsafe {
        let socket = socket.as_fd().as_raw_fd();
        libc::setsockopt(socket, level, name, value.as_ptr().cast(), len)
    };
    Errno::result(done).map(drop)
}

/// Sets an option whose value is a classic BPF program.
///
/// # Errors
/// The kernel's error: `EINVAL` for an invalid program.
pub fn set_program(
    socket: impl AsFd,
    level: c_int,
    name: c_int,
    program: &[sock_filter],
) -> nix::Result<()> {
    set(socket.as_fd(), level, name, &classic_bpf::program(program)?)
}

/// Reads an integer option.
///
/// # Errors
/// The kernel's error.
pub fn get_int(socket: impl AsFd, level: c_int, name: c_int) -> nix::Result<c_int> {
    let mut value = [0; size_of::<c_int>()];
    get_bytes(socket, level, name, &mut value)?;
    Ok(c_int::from_ne_bytes(value))
}

/// Reads an option into `value`.
///
/// # Errors
/// The kernel's error.
pub fn get_bytes(
    socket: impl AsFd,
    level: c_int,
    name: c_int,
    value: &mut [u8],
) -> nix::Result<()> {
    let mut len = socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `len` bytes to a slice of that length.
    let done = unsafe {
        let socket = socket.as_fd().as_raw_fd();
        libc::getsockopt(socket, level, name, value.as_mut_ptr().cast(), &mut len)
    };
    Errno::result(done).map(drop)
}

fn set<T: Copy>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> nix::Result<()> {
    // SAFETY: the kernel reads at most as many bytes as the value has.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            len_of::<T>(),
        )
    };
    Errno::result(done).map(drop)
}

pub(crate) fn len_of<T>() -> socklen_t {
    // Only ever small structures.
    socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{getsockopt, sockopt};

    use super::*;

    #[test]
    fn a_mark_is_set() {
        if !nix::unistd::geteuid().is_root() {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
            eprintln!("SKIPPED: needs root for SO_MARK");
            return;
        }
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        set_mark(socket.as_fd(), 0xf_0015).expect("set");
        assert_eq!(getsockopt(&socket, sockopt::Mark), Ok(0xf_0015));
    }
}
