// SPDX-License-Identifier: Apache-2.0

//! Instructions of classic BPF (linux/bpf_common.h), which libc lacks for Android. Used for socket
//! filters and seccomp filters. A is the accumulator, X the index register.

pub use libc::sock_filter;
use libc::sock_fprog;
use nix::errno::Errno;

/// A = 32-bit word at offset k.
pub const LOAD_WORD: u16 = 0x20;
/// A = byte at offset k.
pub const LOAD_BYTE: u16 = 0x30;
/// A = 16-bit word at offset X + k.
pub const LOAD_HALF_AT_X: u16 = 0x48;
/// X = length of the IPv4 header whose first byte is at offset k.
pub const LOAD_X_IPV4_LENGTH: u16 = 0xb1;
/// Jump if A == k.
pub const JUMP_IF_EQUAL: u16 = 0x15;
/// Jump if A >= k.
pub const JUMP_IF_AT_LEAST: u16 = 0x35;
/// Jump if A > k.
pub const JUMP_IF_GREATER: u16 = 0x25;
/// Jump by k.
pub const JUMP_ALWAYS: u16 = 0x05;
/// X = A.
pub const A_TO_X: u16 = 0x07;
/// A = X.
pub const X_TO_A: u16 = 0x87;
/// A += X.
pub const ADD_X: u16 = 0x0c;
/// A *= k.
pub const MULTIPLY: u16 = 0x24;
/// A >>= k.
pub const SHIFT_RIGHT: u16 = 0x74;
/// A &= k.
pub const AND: u16 = 0x54;
/// Return k.
pub const RETURN: u16 = 0x06;
/// Return A.
pub const RETURN_A: u16 = 0x16;

/// An instruction other than a conditional jump.
#[must_use]
pub const fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// A conditional jump: skips `jt` instructions if true, `jf` if false.
#[must_use]
pub const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// The program as struct sock_fprog, which the kernel only reads; valid as long as `steps`.
pub(crate) fn program(steps: &[sock_filter]) -> nix::Result<sock_fprog> {
    let len = steps.len().try_into().map_err(|_| Errno::EINVAL)?;
    Ok(sock_fprog { len, filter: steps.as_ptr().cast_mut() })
}
