// SPDX-License-Identifier: Apache-2.0

//! The addresses of packet sockets (packet(7)), which nix reads but does not make.

use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd};

use libc::c_int;
use nix::errno::Errno;

use crate::socket::len_of;

/// What a packet socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index; `None` once it is gone.
    pub index: Option<u32>,
    /// Its ARPHRD type.
    pub hardware: u16,
    /// The first bytes of its link-layer address, as it is now: all of an Ethernet's.
    pub address: [u8; 6],
}

/// Binds a packet socket to the interface `index`, for packets of an Ethernet protocol (host byte
/// order); of protocol 0 it hears nothing.
///
/// # Errors
/// What the kernel said.
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
/// `EAFNOSUPPORT` for a socket of another family; what else the kernel said.
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
    // SAFETY: integers and arrays of such, for which all zeroes are a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().unwrap_or_default();
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.try_into().unwrap_or_default();
    address
}
