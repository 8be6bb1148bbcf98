//! Neighbour discovery about one address, below IP.

use std::io::{self, IoSliceMut};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::uio::readv;

use super::{
    attach_filter, bind_packet, bound_to, ethernet_address, len_of, link_address, packet_socket,
    ETH_P_IPV6,
};
use crate::filter;

/// Neighbour discovery about one address, seen and sent below IP: AF_PACKET without link headers.
#[derive(Debug)]
pub struct NeighbourSocket {
    fd: OwnedFd,
    index: u32,
}

impl NeighbourSocket {
    /// Opens one on the Ethernet interface `index` for solicitations and advertisements about `target`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(index: u32, target: Ipv6Addr) -> io::Result<Self> {
        let fd = packet_socket(libc::SOCK_DGRAM)?;
        attach_filter(&fd, &filter::neighbours(target))?;
        bind_packet(&fd, index, ETH_P_IPV6)?;
        Ok(Self { fd, index })
    }

    /// The interface's own link address, as it is now.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn own_address(&self) -> io::Result<[u8; 6]> {
        Ok(ethernet_address(&bound_to(&self.fd)?))
    }

    /// Sends an IPv6 packet to an Ethernet address.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn send(&self, packet: &[u8], address: [u8; 6]) -> io::Result<()> {
        let mut to = link_address(self.index, ETH_P_IPV6);
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&address);
        // SAFETY: the packet and the address are valid for the lengths given, for the call.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                len_of::<libc::sockaddr_ll>(),
            )
        };
        Errno::result(sent)?;
        Ok(())
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
