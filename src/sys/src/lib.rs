// SPDX-License-Identifier: Apache-2.0

//! System calls that nix lacks, on some targets or on all, behind functions that are safe to call.
//! With `clat_tun`, which has the ioctls of its device, this crate has the `unsafe` of the
//! programs.
//!
//! Errors are what the kernel said. Descriptors that are made here are close-on-exec.

pub mod classic_bpf;
mod fd;
mod host_error;
pub mod mmsg;
pub mod packet_socket;
pub mod pidfd;
mod poll;
mod posix_spawn;
pub mod privileges;
mod random;
pub mod seccomp;
mod signal;
pub mod socket;
mod spawn;

pub use fd::{adopt, link_open_file, replace_standard, set_nonblocking, status_flags};
pub use host_error::{errno_of, HostError};
pub use poll::wait_readable;
pub use random::random_bytes;
pub use signal::tgkill;
pub use spawn::spawn;

/// Whether netd is there: it knows which interface belongs to which network, sets the routes, and
/// owns the chain of the drop rules.
pub const HAS_NETD: bool = cfg!(target_os = "android");
