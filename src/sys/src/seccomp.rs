// SPDX-License-Identifier: Apache-2.0

//! System call filters (seccomp(2)).

use libc::{c_uint, sock_filter};
use nix::errno::Errno;

use crate::classic_bpf;

/// linux/seccomp.h; libc has them for Android only since 2025.
const SECCOMP_SET_MODE_FILTER: c_uint = 1;
const SECCOMP_FILTER_FLAG_TSYNC: c_uint = 1;

/// Installs a classic BPF program that filters the system calls of all threads of the process,
/// permanently. It reads a `struct seccomp_data`.
///
/// # Errors
/// The kernel's error: `EACCES` without no_new_privs, `EINVAL` for an invalid program, `ESRCH` if a
/// thread has other filters.
pub fn filter_all_threads(program: &[sock_filter]) -> nix::Result<()> {
    let program = classic_bpf::program(program)?;
    let (mode, flags) = (SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: the kernel reads a sock_fprog and the steps that it counts, which live through the
    // call.
    let failed = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &program) };
    match Errno::result(failed)? {
        0 => Ok(()),
        // The id of a thread with other filters.
        _ => Err(Errno::ESRCH),
    }
}
