// SPDX-License-Identifier: Apache-2.0

//! Filters of system calls (seccomp(2)).

use libc::{c_uint, sock_filter};
use nix::errno::Errno;

use crate::classic_bpf;

/// linux/seccomp.h; libc has them for Android since 2025 alone.
const SECCOMP_SET_MODE_FILTER: c_uint = 1;
const SECCOMP_FILTER_FLAG_TSYNC: c_uint = 1;

/// Has a program of classic BPF decide over the system calls of all threads of the process, for
/// good. It reads a `struct seccomp_data`.
///
/// # Errors
/// What the kernel said: `EACCES` where nothing forbids new privileges, `EINVAL` for a program that
/// it does not accept. `ESRCH` where a thread has filters of its own.
pub fn filter_all_threads(program: &[sock_filter]) -> nix::Result<()> {
    let program = classic_bpf::program(program)?;
    let (mode, flags) = (SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: the kernel reads a sock_fprog and the steps that it counts, which live through the
    // call.
    let failed = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &program) };
    match Errno::result(failed)? {
        0 => Ok(()),
        // The number of that thread.
        _ => Err(Errno::ESRCH),
    }
}
