// SPDX-License-Identifier: Apache-2.0

//! The raw IPv6 socket, which sends by the kernel's routes, one packet per call.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use clat_packet::nd;
use clat_sys::{set_nonblocking, socket};
use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::sys::socket::{self as sys, sockopt, MsgFlags, SockaddrIn6};

use super::set_send_queue;

/// Sends IPv6 packets by a raw socket on the uplink, with the mark. It can also hold the membership
/// of a multicast group or an anycast address.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    is_connected: bool,
}

impl RawSocket {
    /// Opens one.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(interface: &str, mark: u32) -> io::Result<Self> {
        let fd = open_raw_socket()?;
        sys::setsockopt(&fd, sockopt::BindToDevice, &interface.into())?;
        socket::set_mark(fd.as_fd(), mark)?;
        Self::tune(fd)
    }

    /// Uses a socket that the caller has opened and bound.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Self::tune(fd)
    }

    fn tune(fd: OwnedFd) -> io::Result<Self> {
        // The sender learns the path MTU from a translated Packet Too Big. The kernel must not drop
        // packets that exceed the path MTU it has cached.
        let probe = libc::IPV6_PMTUDISC_PROBE;
        socket::set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
        set_send_queue(&fd)?;
        Ok(Self { fd, is_connected: false })
    }

    /// Connects the socket, so that all packets take the route to `destination`, whatever their own
    /// destination is. Then no call has to name one: an address with scope can name another
    /// interface. Without a route the socket stays unconnected.
    pub fn connect(&mut self, destination: Ipv6Addr) {
        let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, 0));
        self.is_connected = sys::connect(self.fd.as_raw_fd(), &to)
            .inspect_err(|errno| log::info!("no route to {destination} yet: {errno}"))
            .is_ok();
    }

    /// Whether it is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Sends one IPv6 packet, headers included, to its own destination.
    ///
    /// # Errors
    /// The kernel's error; the packet is lost. `EINVAL` if it is shorter than an IPv6 header.
    pub fn send(&self, packet: &[u8]) -> Result<(), Errno> {
        if self.is_connected {
            return sys::send(self.fd.as_raw_fd(), packet, MsgFlags::empty()).map(drop);
        }
        self.send_on(packet, 0)
    }

    /// The same by the interface `index`, which a link-local destination needs.
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

/// Opens a raw socket that sends IPv6 packets, headers included.
///
/// # Errors
/// The kernel's error.
pub fn open_raw_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
    // IPPROTO_RAW: we supply the header.
    Ok(socket::open(libc::AF_INET6, kind, libc::IPPROTO_RAW)?)
}

/// Makes `v6` an anycast address of the interface `index`, for which the kernel answers neighbour
/// discovery while this IPv6 socket is open.
///
/// # Errors
/// `EADDRNOTAVAIL` if no prefix of the interface covers it (on a host; see `ipv6_sock_ac_join`),
/// `EINVAL` if an interface has it already.
pub fn join_anycast(fd: BorrowedFd<'_>, index: u32, v6: Ipv6Addr) -> io::Result<()> {
    join(fd, libc::IPV6_JOIN_ANYCAST, index, v6)
}

/// Joins the solicited-node group of `v6` on the interface `index` (RFC 4861 §2.3) while this IPv6
/// socket is open, so that the link layer and snooping switches (RFC 3810) deliver solicitations.
///
/// # Errors
/// The kernel's error.
pub fn join_solicited_node(fd: BorrowedFd<'_>, index: u32, v6: Ipv6Addr) -> io::Result<()> {
    join(fd, libc::IPV6_ADD_MEMBERSHIP, index, nd::solicited_node(v6))
}

fn join(fd: BorrowedFd<'_>, how: c_int, index: u32, address: Ipv6Addr) -> io::Result<()> {
    // struct ipv6_mreq, whose index is signed in some C libraries and unsigned in others.
    let mut request = [0; 20];
    request[..16].copy_from_slice(&address.octets());
    request[16..].copy_from_slice(&index.to_ne_bytes());
    Ok(socket::set_bytes(fd, libc::IPPROTO_IPV6, how, &request)?)
}

/// The path MTU of packets with `mark` to `to`, in bytes; by `interface`, if given.
///
/// # Errors
/// The kernel's error; `ENETUNREACH` without a route.
pub fn path_mtu(interface: Option<&str>, mark: u32, to: Ipv6Addr) -> io::Result<u32> {
    let fd = socket::open(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
    if let Some(interface) = interface {
        sys::setsockopt(&fd, sockopt::BindToDevice, &interface.into())?;
    }
    // The mark is 0 already. Setting it needs a capability, which a process that was given its
    // sockets does not have.
    if mark != 0 {
        socket::set_mark(fd.as_fd(), mark)?;
    }
    // Connecting a datagram socket sends nothing; the port does not matter.
    sys::connect(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(to, 53, 0, 0)))?;
    let mtu = socket::get_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU)?;
    u32::try_from(mtu).map_err(|_| Errno::EINVAL.into())
}
