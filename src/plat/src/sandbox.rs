// SPDX-License-Identifier: Apache-2.0

//! Giving up what carrying packets does not need: user, groups, capabilities, and most system
//! calls.

use anyhow::bail;
use clat_sandbox::{become_user, close_standard_input_and_output, drop_privileges, Filter};
use nix::libc::{self, c_int};
use nix::unistd::{geteuid, Gid, Uid};

/// The user that owns no files.
const NOBODY: u32 = 65534;

/// Drops everything. Of the standard descriptors only stderr is left, for the log. `user` is whom
/// root becomes, instead of nobody.
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
                // Root of a user namespace may have nobody to become; what it has it may lose all
                // the same.
                log::debug!("staying root of this namespace ({error:#}), without capabilities");
            }
        }
    }
    Ok(())
}

/// What carrying packets needs. No file can be opened, no program run, no process touched.
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
        libc::SYS_fcntl,
        // The end of a guest's process, and of the command that runs inside.
        libc::SYS_pidfd_open,
        libc::SYS_wait4,
        libc::SYS_waitid,
        libc::SYS_getrandom,
    ])?
    // TCP, UDP and ping of both families, nothing else.
    .only(libc::SYS_socket, 0, &[libc::AF_INET, libc::AF_INET6])?
    // Non-blocking, by the standard library. No other: by TIOCSTI a process types into its
    // terminal, as if a person did.
    .only(libc::SYS_ioctl, 1, &[c_int::try_from(libc::FIONBIO)?])?
    // Between flows and the DNS server.
    .only(libc::SYS_socketpair, 0, &[libc::AF_UNIX])
}

#[cfg(test)]
#[path = "../tests/unit/sandbox.rs"]
mod tests;
