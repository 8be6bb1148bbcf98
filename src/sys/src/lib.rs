// SPDX-License-Identifier: Apache-2.0

//! Safe functions for system calls that nix lacks on some or all targets. All `unsafe` code of the
//! programs is here and in `clat_tun`, which has the ioctls of its device.
//!
//! Errors are the kernel's errno. Descriptors made here are close-on-exec.

mod argument;
pub mod classic_bpf;
pub mod datagram;
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

pub use argument::{like, whole};
pub use fd::{adopt, link_open_file, lock_record, replace_standard, set_nonblocking, status_flags};
pub use host_error::{errno_of, HostError};
pub use poll::wait_readable;
pub use random::random_bytes;
pub use signal::tgkill;
pub use spawn::spawn;

/// Whether Android's netd runs here: it knows the network of each interface, sets routes, and owns
/// the firewall chain of the drop rules.
pub const HAS_NETD: bool = cfg!(target_os = "android");

/// The environment variable that has the number of a descriptor by which clatd tells whoever has
/// started it why it ends. Its log has the same, where others read it, or nobody.
pub const ERROR_FD: &str = "CLATD_ERROR_FD";
