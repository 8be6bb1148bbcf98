// SPDX-License-Identifier: Apache-2.0

//! Neighbour discovery messages for one address, by packet socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use clat_sys::{packet_socket as sys, socket};
use nix::errno::Errno;
use nix::libc;
use nix::sys::uio::{readv, writev};

use super::{packet_socket, ETH_P_IPV6};
use crate::batch::LINK_HEADER;
use crate::filter;

/// Receives and sends neighbour discovery messages for one address by AF_PACKET on Ethernet.
#[derive(Debug)]
pub struct NeighbourSocket(OwnedFd);

impl NeighbourSocket {
    /// Opens one on the Ethernet interface `index` for solicitations and advertisements of
    /// `target`.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(index: u32, target: Ipv6Addr) -> io::Result<Self> {
        // SOCK_RAW: with SOCK_DGRAM, each send would take an address, which can name another
        // interface.
        let fd = packet_socket(libc::SOCK_RAW)?;
        let program = filter::neighbours(LINK_HEADER, target);
        socket::set_program(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        sys::bind(&fd, index, ETH_P_IPV6)?;
        Ok(Self(fd))
    }

    /// The interface's current link-layer address.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn own_address(&self) -> io::Result<[u8; 6]> {
        Ok(sys::interface(&self.0)?.address)
    }

    /// Sends an IPv6 packet to an Ethernet address.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn send(&self, packet: &[u8], address: [u8; 6]) -> io::Result<()> {
        let mut header = [0; LINK_HEADER];
        header[..6].copy_from_slice(&address);
        header[6..12].copy_from_slice(&self.own_address()?);
        header[12..].copy_from_slice(&ETH_P_IPV6.to_be_bytes());
        writev(&self.0, &[IoSlice::new(&header), IoSlice::new(packet)])?;
        Ok(())
    }

    /// Reads one packet, without its link header, and returns its length in bytes.
    ///
    /// # Errors
    /// `EAGAIN` if none waits.
    pub fn recv(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        let mut header = [0; LINK_HEADER];
        let len = readv(&self.0, &mut [IoSliceMut::new(&mut header), IoSliceMut::new(buf)])?;
        Ok(len.saturating_sub(LINK_HEADER))
    }
}

impl AsFd for NeighbourSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
