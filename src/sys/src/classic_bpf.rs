// SPDX-License-Identifier: Apache-2.0

//! Steps of classic BPF (linux/bpf_common.h), which libc lacks for Android: programs that say which
//! packets a socket hears, and which system calls a thread may make.

pub use libc::sock_filter;
use libc::sock_fprog;
use nix::errno::Errno;

/// Load an absolute word.
pub const LOAD_WORD: u16 = 0x20;
/// Load an absolute byte.
pub const LOAD_BYTE: u16 = 0x30;
/// Load a half word, so many bytes behind what is kept.
pub const LOAD_HALF_BEHIND: u16 = 0x48;
/// Keep the length of the IPv4 header that begins at a byte.
pub const KEEP_IPV4_LENGTH: u16 = 0xb1;
/// Jump if what is loaded equals a constant.
pub const JUMP_IF_EQUAL: u16 = 0x15;
/// Jump if it is at least a constant.
pub const JUMP_IF_AT_LEAST: u16 = 0x35;
/// Jump if it is more than a constant.
pub const JUMP_IF_MORE: u16 = 0x25;
/// Jump always.
pub const JUMP_ALWAYS: u16 = 0x05;
/// Keep what is loaded as an operand.
pub const KEEP: u16 = 0x07;
/// Load what is kept.
pub const LOAD_KEPT: u16 = 0x87;
/// Add what is kept.
pub const ADD_KEPT: u16 = 0x0c;
/// Multiply by a constant.
pub const MULTIPLY: u16 = 0x24;
/// Shift right by a constant.
pub const SHIFT_RIGHT: u16 = 0x74;
/// Take the bits of a constant.
pub const AND: u16 = 0x54;
/// Return a constant.
pub const RETURN: u16 = 0x06;
/// Return what is loaded.
pub const RETURN_LOADED: u16 = 0x16;

/// A step that is no conditional jump.
#[must_use]
pub const fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// A conditional jump: over `jt` steps if so, over `jf` if not.
#[must_use]
pub const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// A program as the kernel takes it, which only reads it; valid as long as its steps are.
pub(crate) fn program(steps: &[sock_filter]) -> nix::Result<sock_fprog> {
    let len = steps.len().try_into().map_err(|_| Errno::EINVAL)?;
    Ok(sock_fprog { len, filter: steps.as_ptr().cast_mut() })
}
