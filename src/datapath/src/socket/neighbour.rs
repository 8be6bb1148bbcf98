// SPDX-License-Identifier: Apache-2.0

//! Neighbour discovery about one address, below IP.

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

/// Neighbour discovery about one address, seen and sent below IP: AF_PACKET on Ethernet.
#[derive(Debug)]
pub struct NeighbourSocket(OwnedFd);

impl NeighbourSocket {
    /// Opens one on the Ethernet interface `index` for solicitations and advertisements about
    /// `target`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(index: u32, target: Ipv6Addr) -> io::Result<Self> {
        // With link headers: without, each packet would be sent with an address that can name
        // another interface.
        let fd = packet_socket(libc::SOCK_RAW)?;
        let program = filter::neighbours(LINK_HEADER, target);
        socket::set_program(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        sys::bind(&fd, index, ETH_P_IPV6)?;
        Ok(Self(fd))
    }

    /// The interface's own link address, as it is now.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn own_address(&self) -> io::Result<[u8; 6]> {
        Ok(sys::interface(&self.0)?.address)
    }

    /// Sends an IPv6 packet to an Ethernet address.
    ///
    /// # Errors
    /// What the kernel said.
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
    /// `EAGAIN` when none waits.
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
