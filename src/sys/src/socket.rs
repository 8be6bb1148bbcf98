// SPDX-License-Identifier: Apache-2.0

//! Socket options.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;
use nix::errno::Errno;

/// Sets the routing mark of what a socket sends (SO_MARK), which nix lacks for Android.
///
/// # Errors
/// What the kernel said: `EPERM` without CAP_NET_ADMIN.
pub fn set_mark(socket: BorrowedFd<'_>, mark: u32) -> nix::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_MARK, &mark)
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

fn len_of<T>() -> libc::socklen_t {
    // Only ever small structures.
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
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
