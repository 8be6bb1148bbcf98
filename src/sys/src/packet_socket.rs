// SPDX-License-Identifier: Apache-2.0

//! Addresses of packet sockets (packet(7)), which nix can read but not create.

use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd};

use libc::c_int;
use nix::errno::Errno;

use crate::socket::len_of;

/// The interface that a packet socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index; `None` if it no longer exists.
    pub index: Option<u32>,
    /// Its ARPHRD type.
    pub hardware: u16,
    /// The first six bytes of its current link-layer address, which is all of an Ethernet address.
    pub address: [u8; 6],
}

/// Binds a packet socket to the interface `index`, for packets of an EtherType (host byte order).
/// With protocol 0 it receives nothing.
///
/// # Errors
/// The kernel's error.
pub fn bind(socket: impl AsFd, index: u32, protocol: u16) -> nix::Result<()> {
    let address = link_address(index, protocol);
    // SAFETY: the address is valid for the length given, for the call.
    let done = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            len_of::<libc::sockaddr_ll>(),
        )
    };
    Errno::result(done).map(drop)
}

/// The interface that a packet socket is bound to.
///
/// # Errors
/// `EAFNOSUPPORT` for a socket of another family; else the kernel's error.
pub fn interface(socket: impl AsFd) -> nix::Result<Interface> {
    let mut address = link_address(0, 0);
    let mut len = len_of::<libc::sockaddr_ll>();
    // SAFETY: the kernel writes at most `len` bytes to a structure of that size.
    let done = unsafe {
        libc::getsockname(
            socket.as_fd().as_raw_fd(),
            std::ptr::from_mut(&mut address).cast(),
            &mut len,
        )
    };
    Errno::result(done)?;
    if c_int::from(address.sll_family) != libc::AF_PACKET {
        return Err(Errno::EAFNOSUPPORT);
    }
    let [a, b, c, d, e, f, ..] = address.sll_addr;
    Ok(Interface {
        index: u32::try_from(address.sll_ifindex).ok().filter(|index| *index > 0),
        hardware: address.sll_hatype,
        address: [a, b, c, d, e, f],
    })
}

fn link_address(index: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: integers and arrays of integers, for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().unwrap_or_default();
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.try_into().unwrap_or_default();
    address
}
