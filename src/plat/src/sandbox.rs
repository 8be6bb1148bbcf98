// SPDX-License-Identifier: Apache-2.0

//! Drops what carrying packets does not need: user, groups, capabilities, and most system calls.

use anyhow::bail;
use clat_sandbox::{become_user, close_standard_input_and_output, drop_privileges, Filter};
use nix::libc::{self, c_int};
use nix::unistd::{geteuid, Gid, Uid};

/// The user without files.
const NOBODY: u32 = 65534;

/// Drops all privileges, and stdin and stdout. Root becomes `user`, or nobody.
///
/// # Errors
/// The step that failed; the caller must not go on.
pub(crate) fn enter(user: Option<(Uid, Gid)>) -> anyhow::Result<()> {
    close_standard_input_and_output()?;
    drop_privileges(|| change_user(user))?;
    filter()?.apply()
}

fn change_user(user: Option<(Uid, Gid)>) -> anyhow::Result<()> {
    match user {
        Some((uid, _)) if !geteuid().is_root() && uid != geteuid() => {
            bail!("--runas: only root can become another user")
        }
        _ if !geteuid().is_root() => {}
        Some((uid, gid)) => become_user(uid, gid)?,
        None => {
            if let Err(error) = become_user(Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)) {
                // In a user namespace, root may have no user to become; it can drop its
                // capabilities all the same.
                log::debug!("staying root of this namespace ({error:#}), without capabilities");
            }
        }
    }
    Ok(())
}

/// The system calls for carrying packets. They can open no file, run no program, and touch no other
/// process.
fn filter() -> anyhow::Result<Filter> {
    Filter::new(&[
        // Links and flows.
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_setsockopt,
        libc::SYS_accept4,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_recvmsg,
        libc::SYS_shutdown,
        libc::SYS_getpeername,
        // To notice the end of a guest's process, and of the command in the namespace.
        libc::SYS_pidfd_open,
        libc::SYS_wait4,
        libc::SYS_waitid,
        libc::SYS_getrandom,
    ])?
    // TCP, UDP and ping of both families, nothing else.
    .only(libc::SYS_socket, 0, &[libc::AF_INET, libc::AF_INET6])?
    // FIONBIO, for non-blocking descriptors. No other: with TIOCSTI a process can type into its
    // terminal.
    .only(libc::SYS_ioctl, 1, &[c_int::try_from(libc::FIONBIO)?])?
    // Copies; debug builds of the standard library check descriptors. No other: with F_SETOWN and
    // O_ASYNC, a descriptor has the kernel send signals to any process of this user.
    .only(libc::SYS_fcntl, 1, &[libc::F_DUPFD_CLOEXEC, libc::F_GETFD])?
    // Between flows and the DNS server. Of datagrams, one could be sent to any socket of the host.
    .only_all(
        libc::SYS_socketpair,
        &[(0, libc::AF_UNIX), (1, libc::SOCK_STREAM | libc::SOCK_CLOEXEC)],
    )
}

#[cfg(test)]
#[path = "../tests/unit/sandbox.rs"]
mod tests;
