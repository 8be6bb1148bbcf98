// SPDX-License-Identifier: Apache-2.0

//! Several packets per call: recvmmsg(2).
//!
//! nix's recvmmsg borrows the buffers in its prepared headers, so that each call would allocate.

use std::mem::zeroed;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use libc::{iovec, mmsghdr};
use nix::errno::Errno;

/// The most messages that one call takes.
pub const MAX_MESSAGES: usize = 32;

/// Reads up to `lens.len()` messages, at most [`MAX_MESSAGES`], without blocking. Message i goes to
/// the bytes `room` of the i-th `stride` of `memory`. Stores the lengths in `lens` and returns the
/// number of messages.
///
/// # Errors
/// `EAGAIN` if none waits; else the kernel's error.
pub fn receive(
    socket: impl AsFd,
    (memory, stride): (&mut [u8], usize),
    room: &Range<usize>,
    lens: &mut [usize],
) -> nix::Result<usize> {
    // SAFETY: integers and pointers, for which zeros are valid; the kernel reads only those set
    // below.
    let (mut headers, mut places): ([mmsghdr; MAX_MESSAGES], [iovec; MAX_MESSAGES]) =
        unsafe { zeroed() };
    let mut count = 0;
    for ((header, place), stride) in
        headers.iter_mut().zip(&mut places).zip(memory.chunks_exact_mut(stride)).take(lens.len())
    {
        let Some(room) = stride.get_mut(room.clone()) else { return Err(Errno::EINVAL) };
        *place = iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        header.msg_hdr.msg_iov = place;
        header.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: the first `count` headers have one iovec each, to memory that is borrowed mutably
    // during the call and has the length given.
    let got = unsafe {
        libc::recvmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    let got = usize::try_from(Errno::result(got)?).unwrap_or_default();
    for (len, header) in lens.iter_mut().zip(&headers[..got.min(MAX_MESSAGES)]) {
        *len = usize::try_from(header.msg_len).unwrap_or_default();
    }
    Ok(got)
}
