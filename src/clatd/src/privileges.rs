// SPDX-License-Identifier: Apache-2.0

//! Giving up what the loop does not need: user, groups, capabilities, and most system calls.

use anyhow::{bail, Context};
use clat_sandbox::{become_user, drop_privileges, Filter};
use nix::libc::{self, c_int};
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::unistd::{getegid, geteuid, Gid, Uid, User};

/// Whom to become, the first that exists: Android's own user (AID_CLAT, 1029, which its C library knows by this name),
/// or whoever owns nothing.
const USERS: [&str; 2] = ["clat", "nobody"];

/// Not in `libc` for every C library (linux/prctl.h).
const PR_SET_VMA: c_int = 0x5356_4d41;

/// Drops user, groups and capabilities. Threads that are made from then on have none either.
///
/// # Errors
/// The step that failed; the caller must not go on.
pub fn drop_all() -> anyhow::Result<()> {
    set_no_new_privs().context("cannot set no_new_privs")?;
    drop_privileges(|| {
        let (uid, gid) = target()?;
        become_user(uid, gid)
    })?;
    if geteuid().is_root() {
        bail!("still root after becoming another");
    }
    // Nobody of the same user may look into us.
    set_dumpable(false).context("cannot become undumpable")
}

fn target() -> anyhow::Result<(Uid, Gid)> {
    if !geteuid().is_root() {
        // Of a set-user-id program, which Android's module has: whoever started it remains its real user otherwise.
        return Ok((geteuid(), getegid()));
    }
    for name in USERS {
        if let Some(user) =
            User::from_name(name).with_context(|| format!("cannot look up user {name}"))?
        {
            return Ok((user.uid, user.gid));
        }
    }
    bail!("there is neither a user clat nor a user nobody; create one with `useradd -r clat`")
}

/// Filters the system calls of all threads, as the last step before packets are forwarded.
///
/// # Errors
/// What the kernel said; the caller must not go on.
pub fn filter_all_threads() -> anyhow::Result<()> {
    Filter::new(&[
        libc::SYS_recvmmsg,
        libc::SYS_sendmmsg,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_ppoll,
        // How many processors there are, as glibc's allocator asks when it serves another thread.
        libc::SYS_sched_getaffinity,
    ])?
    // Questions about routes and neighbours.
    .only(libc::SYS_socket, 0, &[libc::AF_NETLINK])?
    // The standard library asks before it closes, in debug builds.
    .only(libc::SYS_fcntl, 1, &[libc::F_GETFD])?
    // Android's allocator names its mappings.
    .only(libc::SYS_prctl, 0, &[PR_SET_VMA])?
    .apply()
}
