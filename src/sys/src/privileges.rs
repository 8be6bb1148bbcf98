// SPDX-License-Identifier: Apache-2.0

//! What a thread may do, and who may look into its process (prctl(2), which nix has for Linux
//! alone).

use libc::{c_int, c_ulong};
use nix::errno::Errno;

/// Whether capabilities stay permitted when the thread changes from root to another user.
///
/// # Errors
/// What the kernel said.
pub fn set_keep_capabilities(keep: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0).map(drop)
}

/// From now on no program that the thread runs gets more rights than it has: no set-user-id, no
/// capabilities of files. It cannot be taken back.
///
/// # Errors
/// What the kernel said.
pub fn set_no_new_privileges() -> nix::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Whether others of the same user may look into the process, and a crash dumps its memory.
/// Changing the user sets it to what `fs.suid_dumpable` says.
///
/// # Errors
/// What the kernel said.
pub fn set_dumpable(dumpable: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, dumpable.into(), 0).map(drop)
}

fn prctl(option: c_int, first: c_ulong, second: c_ulong) -> nix::Result<c_int> {
    const NONE: c_ulong = 0;
    // SAFETY: the options of this file take numbers, and no memory.
    Errno::result(unsafe { libc::prctl(option, first, second, NONE, NONE) })
}
