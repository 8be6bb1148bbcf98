// SPDX-License-Identifier: Apache-2.0

//! Many packets a call: recvmmsg and sendmmsg.
//!
//! nix has both, but what it prepares for a call is bound to the buffers of that call, so that each
//! would allocate.

use std::io::IoSlice;
use std::mem::zeroed;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use libc::{iovec, mmsghdr};
use nix::errno::Errno;

/// The most messages that one call takes.
pub const MAX_MESSAGES: usize = 32;

/// Reads up to as many messages as `lens` has room for, [`MAX_MESSAGES`] at most, without waiting:
/// each into the bytes `room` of its own `stride` of `memory`. Notes their lengths and returns
/// their number.
///
/// # Errors
/// `EAGAIN` when none waits; what else the kernel said.
pub fn receive(
    socket: impl AsFd,
    (memory, stride): (&mut [u8], usize),
    room: &Range<usize>,
    lens: &mut [usize],
) -> nix::Result<usize> {
    // SAFETY: integers and pointers, for which all zeroes are a value; the kernel is shown only
    // those set below.
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
    // SAFETY: the first `count` headers each have one place, which is borrowed mutably for the call
    // and as long as said.
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

/// Sends messages, [`MAX_MESSAGES`] at most and without waiting, that each lie in some of the
/// `pieces`, up to the end of which `ends` tells. Returns how many were taken.
///
/// # Errors
/// What the kernel said about the first.
pub fn send(socket: impl AsFd, pieces: &[IoSlice<'_>], ends: &[usize]) -> nix::Result<usize> {
    // SAFETY: as above.
    let mut headers: [mmsghdr; MAX_MESSAGES] = unsafe { zeroed() };
    let (mut count, mut from) = (0, 0);
    for (header, end) in headers.iter_mut().zip(ends) {
        let parts = pieces.get(from..*end).ok_or(Errno::EINVAL)?;
        // An IoSlice is an iovec (its documentation says so), and the kernel only reads it.
        header.msg_hdr.msg_iov = parts.as_ptr().cast_mut().cast();
        #[allow(clippy::useless_conversion)] // not size_t in every C library
        let len = parts.len().try_into().map_err(|_| Errno::EINVAL)?;
        header.msg_hdr.msg_iovlen = len;
        (count, from) = (count + 1, *end);
    }
    // SAFETY: the first `count` headers have pieces that are borrowed for the call.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT as _,
        )
    };
    Ok(usize::try_from(Errno::result(sent)?).unwrap_or_default())
}
