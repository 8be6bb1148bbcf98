// SPDX-License-Identifier: Apache-2.0

//! The raw IPv6 socket: what it sends takes the kernel's own way, one packet a call.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use clat_packet::nd;
use clat_sys::{set_nonblocking, socket};
use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::sys::socket::{self as sys, sockopt, MsgFlags, SockaddrIn6};

use super::set_send_queue;

/// Where IPv6 packets go out: a raw socket on the uplink, with the mark. It also holds the
/// membership of a group, or of an anycast address.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    is_connected: bool,
}

impl RawSocket {
    /// Opens one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(interface: &str, mark: u32) -> io::Result<Self> {
        let fd = open_raw_socket()?;
        sys::setsockopt(&fd, sockopt::BindToDevice, &interface.into())?;
        socket::set_mark(fd.as_fd(), mark)?;
        Self::tune(fd)
    }

    /// Takes over one that the caller has opened and bound.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Self::tune(fd)
    }

    fn tune(fd: OwnedFd) -> io::Result<Self> {
        // The path MTU is the sender's to learn, from the Packet Too Big that we translate: the
        // kernel must not drop what exceeds the one that it remembers.
        let probe = libc::IPV6_PMTUDISC_PROBE;
        socket::set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
        set_send_queue(&fd)?;
        Ok(Self { fd, is_connected: false })
    }

    /// Has all that is sent from now on take the way to `destination`, whatever its own is, so that
    /// no call has to say where to: an address on the link can name another interface. Without a
    /// route it stays as it is.
    pub fn connect(&mut self, destination: Ipv6Addr) {
        let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, 0));
        self.is_connected = sys::connect(self.fd.as_raw_fd(), &to)
            .inspect_err(|errno| log::info!("no way to {destination} yet: {errno}"))
            .is_ok();
    }

    /// Whether it sends without being told where to.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Sends one IPv6 packet, headers and all, to the destination in it.
    ///
    /// # Errors
    /// What the kernel said; the packet is lost then. `EINVAL` for what is shorter than an IPv6
    /// header.
    pub fn send(&self, packet: &[u8]) -> Result<(), Errno> {
        if self.is_connected {
            return sys::send(self.fd.as_raw_fd(), packet, MsgFlags::empty()).map(drop);
        }
        self.send_on(packet, 0)
    }

    /// The same on the interface `index`, which a destination on the link needs.
    ///
    /// # Errors
    /// As of [`Self::send`].
    pub fn send_on(&self, packet: &[u8], index: u32) -> Result<(), Errno> {
        let destination = packet.get(24..40).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        let destination = Ipv6Addr::from(destination.ok_or(Errno::EINVAL)?);
        let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, index));
        sys::sendto(self.fd.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        Ok(())
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens a raw socket that IPv6 packets leave by, headers and all.
///
/// # Errors
/// What the kernel said.
pub fn open_raw_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
    // IPPROTO_RAW: the header is ours.
    Ok(socket::open(libc::AF_INET6, kind, libc::IPPROTO_RAW)?)
}

/// Makes `v6` an anycast address of the interface `index`, so that the kernel answers neighbour
/// discovery for it, for as long as this IPv6 socket is open.
///
/// # Errors
/// `EADDRNOTAVAIL` when no prefix of the interface covers it (on a host; see `ipv6_sock_ac_join`),
/// `EINVAL` when an interface has it already.
pub fn join_anycast(fd: BorrowedFd<'_>, index: u32, v6: Ipv6Addr) -> io::Result<()> {
    join(fd, libc::IPV6_JOIN_ANYCAST, index, v6)
}

/// Has the interface `index` hear those who ask for `v6` (RFC 4861 §2.3), for as long as this IPv6
/// socket is open: its link layer, and the network, which is told (RFC 3810).
///
/// # Errors
/// What the kernel said.
pub fn join_solicited_node(fd: BorrowedFd<'_>, index: u32, v6: Ipv6Addr) -> io::Result<()> {
    join(fd, libc::IPV6_ADD_MEMBERSHIP, index, nd::solicited_node(v6))
}

fn join(fd: BorrowedFd<'_>, how: c_int, index: u32, address: Ipv6Addr) -> io::Result<()> {
    // struct ipv6_mreq, whose index has another sign in every C library.
    let mut request = [0; 20];
    request[..16].copy_from_slice(&address.octets());
    request[16..].copy_from_slice(&index.to_ne_bytes());
    Ok(socket::set_bytes(fd, libc::IPPROTO_IPV6, how, &request)?)
}

/// What the path of packets with `mark` towards `to` carries, in bytes of IPv6; of the one by
/// `interface`, if given.
///
/// # Errors
/// What the kernel said; `ENETUNREACH` without a route.
pub fn path_mtu(interface: Option<&str>, mark: u32, to: Ipv6Addr) -> io::Result<u32> {
    let fd = socket::open(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
    if let Some(interface) = interface {
        sys::setsockopt(&fd, sockopt::BindToDevice, &interface.into())?;
    }
    // None is there already, and setting it takes a privilege that who was handed its sockets does
    // not have.
    if mark != 0 {
        socket::set_mark(fd.as_fd(), mark)?;
    }
    // Nothing is sent by connecting a datagram socket; any port will do.
    sys::connect(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(to, 53, 0, 0)))?;
    let mtu = socket::get_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU)?;
    u32::try_from(mtu).map_err(|_| Errno::EINVAL.into())
}
