// SPDX-License-Identifier: Apache-2.0

//! The ioctls of a TUN device; all `unsafe` code of this crate.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{c_char, c_int, c_short, c_uint, ifreq};
use nix::{
    ioctl_read_bad, ioctl_write_int_bad, ioctl_write_ptr_bad, request_code_read, request_code_write,
};

ioctl_write_ptr_bad!(tunsetiff, request_code_write!(b'T', 202, size_of::<c_int>()), ifreq);
ioctl_write_int_bad!(tunsetowner, request_code_write!(b'T', 204, size_of::<c_int>()));
ioctl_write_int_bad!(tunsetoffload, request_code_write!(b'T', 208, size_of::<c_uint>()));
ioctl_read_bad!(tungetiff, request_code_read!(b'T', 210, size_of::<c_uint>()), ifreq);
ioctl_read_bad!(tungetvnethdrsz, request_code_read!(b'T', 215, size_of::<c_int>()), c_int);

/// Takes ownership of a descriptor that a call has just returned.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller passes what recvmsg() has just returned, which has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// TUNSETIFF: makes `fd` a queue of the device `name`. The name is shorter than IFNAMSIZ, the flags
/// fit 16 bits.
pub(crate) fn set_iff(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> Result<(), Errno> {
    let mut request = empty();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    // The kernel reads the field as unsigned: IFF_TUN_EXCL is its highest bit.
    let [low, high, ..] = flags.to_le_bytes();
    request.ifr_ifru.ifru_flags = c_short::from_le_bytes([low, high]);
    // SAFETY: the kernel reads an ifreq, which this is.
    unsafe { tunsetiff(fd.as_raw_fd(), &request) }?;
    Ok(())
}

/// TUNSETOWNER: the user who may open queues of the device without CAP_NET_ADMIN.
pub(crate) fn set_owner(fd: BorrowedFd<'_>, uid: u32) -> Result<(), Errno> {
    // The kernel reads it as unsigned.
    let uid = c_int::from_ne_bytes(uid.to_ne_bytes());
    // SAFETY: no memory is passed.
    unsafe { tunsetowner(fd.as_raw_fd(), uid) }?;
    Ok(())
}

/// TUNSETOFFLOAD: what the reader completes itself, as TUN_F_ flags; `EINVAL` for one that the
/// kernel does not know.
pub(crate) fn set_offload(fd: BorrowedFd<'_>, flags: c_int) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    unsafe { tunsetoffload(fd.as_raw_fd(), flags) }?;
    Ok(())
}

/// TUNGETIFF: the device's name and flags.
pub(crate) fn get_iff(fd: BorrowedFd<'_>) -> Result<(String, c_int), Errno> {
    let mut request = empty();
    // SAFETY: the kernel writes an ifreq, which this is.
    unsafe { tungetiff(fd.as_raw_fd(), &mut request) }?;
    // SAFETY: the kernel has written the flags; any bits are a c_short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let name = request.ifr_name.iter().take_while(|c| **c != 0).map(|c| c.to_ne_bytes()[0]);
    let name = String::from_utf8_lossy(&name.collect::<Vec<u8>>()).into_owned();
    let [low, high] = flags.to_le_bytes();
    Ok((name, c_int::from_le_bytes([low, high, 0, 0])))
}

/// TUNGETVNETHDRSZ: bytes of the virtio header.
pub(crate) fn vnet_header_len(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut len = 0;
    // SAFETY: the kernel writes an int, which this is.
    unsafe { tungetvnethdrsz(fd.as_raw_fd(), &mut len) }?;
    usize::try_from(len).map_err(|_| Errno::EINVAL)
}

fn empty() -> ifreq {
    // SAFETY: an ifreq is integers and raw pointers, for which all zeroes are a value.
    unsafe { std::mem::zeroed() }
}
