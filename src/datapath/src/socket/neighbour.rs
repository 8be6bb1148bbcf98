// SPDX-License-Identifier: Apache-2.0

//! Neighbour discovery about one address, below IP.

use std::io::{self, IoSliceMut};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use clat_sys::{packet_socket as sys, socket};
use nix::errno::Errno;
use nix::libc;
use nix::sys::uio::readv;

use super::{packet_socket, ETH_P_IPV6};
use crate::filter;

/// Neighbour discovery about one address, seen and sent below IP: AF_PACKET without link headers.
#[derive(Debug)]
pub struct NeighbourSocket {
    fd: OwnedFd,
    index: u32,
}

impl NeighbourSocket {
    /// Opens one on the Ethernet interface `index` for solicitations and advertisements about
    /// `target`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(index: u32, target: Ipv6Addr) -> io::Result<Self> {
        let fd = packet_socket(libc::SOCK_DGRAM)?;
        let program = filter::neighbours(target);
        socket::set_program(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        sys::bind(&fd, index, ETH_P_IPV6)?;
        Ok(Self { fd, index })
    }

    /// The interface's own link address, as it is now.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn own_address(&self) -> io::Result<[u8; 6]> {
        Ok(sys::interface(&self.fd)?.address)
    }

    /// Sends an IPv6 packet to an Ethernet address.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn send(&self, packet: &[u8], address: [u8; 6]) -> io::Result<()> {
        Ok(sys::send_to(&self.fd, packet, (self.index, ETH_P_IPV6), address)?)
    }

    /// Reads one packet and returns its length in bytes.
    ///
    /// # Errors
    /// `EAGAIN` when none waits.
    pub fn recv(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        readv(&self.fd, &mut [IoSliceMut::new(buf)])
    }
}

impl AsFd for NeighbourSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
