// SPDX-License-Identifier: Apache-2.0

//! Sockets for router advertisements, DHCPv4 and DNS on uplinks.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use clat_datapath::filter;
use clat_sys::{packet_socket, socket};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{recvfrom, sendto, setsockopt, sockopt, MsgFlags, SockaddrIn6};

use clat_host::IfaceName;

/// Bytes of the longest message that is read.
const LONGEST: usize = 4096;

/// The all-routers group of a link (RFC 4291 §2.7.1).
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// A router solicitation without options (RFC 4861 §4.1); the kernel fills in the checksum.
const SOLICITATION: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];
/// linux/icmpv6.h, linux/in6.h
const ICMPV6_FILTER: libc::c_int = 1;
const ADVERTISEMENT: usize = 134;
/// linux/if_ether.h
const ETH_P_IP: u16 = 0x0800;

/// Receives router advertisements of all links, beside the kernel, and sends solicitations.
#[derive(Debug)]
pub(super) struct Routers(OwnedFd);

impl Routers {
    /// Opens the socket, which needs CAP_NET_RAW; using it does not.
    pub(super) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
        let fd = socket::open(libc::AF_INET6, kind, libc::IPPROTO_ICMPV6)?;
        // A set bit blocks a type.
        let mut types = [0xff; 32];
        let word = !(1_u32 << (ADVERTISEMENT % 32));
        types[ADVERTISEMENT / 32 * 4..][..4].copy_from_slice(&word.to_ne_bytes());
        socket::set_bytes(&fd, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &types)?;
        let program = filter::of_the_link();
        socket::set_program(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        socket::set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 255)?;
        Ok(Self(fd))
    }

    /// The next advertisement with hop limit 255 and a valid checksum: the index of its link, its
    /// sender and the message.
    pub(super) fn receive(&self) -> Option<(u32, Ipv6Addr, Vec<u8>)> {
        let mut buffer = [0; LONGEST];
        loop {
            let (len, from) = match recvfrom::<SockaddrIn6>(self.0.as_raw_fd(), &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return None,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    log::debug!("router advertisements: {e}");
                    return None;
                }
            };
            if let Some(from) = from.filter(|from| from.scope_id() != 0) {
                return Some((from.scope_id(), from.ip(), buffer.get(..len)?.to_vec()));
            }
        }
    }

    /// Solicits the routers of a link.
    pub(super) fn solicit(&self, index: u32) -> io::Result<()> {
        let all = SockaddrIn6::from(SocketAddrV6::new(ALL_ROUTERS, 0, 0, index));
        sendto(self.0.as_raw_fd(), &SOLICITATION, &all, MsgFlags::empty())?;
        Ok(())
    }
}

impl AsFd for Routers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Receives messages of DHCPv4 servers on one link.
#[derive(Debug)]
pub(super) struct Dhcpv4 {
    socket: OwnedFd,
    address: [u8; 6],
}

impl Dhcpv4 {
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let socket = socket::open(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?;
        let program = filter::udp4_to(68);
        socket::set_program(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        packet_socket::bind(&socket, index, ETH_P_IP)?;
        let address = packet_socket::interface(&socket)?.address;
        Ok(Self { socket, address })
    }

    /// The Ethernet address of the interface.
    pub(super) fn address(&self) -> [u8; 6] {
        self.address
    }

    /// The next IPv4 packet to a DHCPv4 client.
    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; LONGEST];
        let (len, _) = recvfrom::<()>(self.socket.as_raw_fd(), &mut buffer).ok()?;
        buffer.get(..len).map(<[u8]>::to_vec)
    }

    /// Its inode, by which the kernel's tables name it.
    pub(super) fn inode(&self) -> io::Result<u64> {
        Ok(std::fs::metadata(format!("/proc/self/fd/{}", self.socket.as_raw_fd()))?.ino())
    }
}

impl AsFd for Dhcpv4 {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One question to a resolver over its uplink.
#[derive(Debug)]
pub(super) struct Question {
    socket: UdpSocket,
    resolver: SocketAddr,
}

impl Question {
    pub(super) fn ask(
        uplink: &IfaceName,
        resolver: SocketAddr,
        question: &[u8],
    ) -> io::Result<Self> {
        let any: SocketAddr = match resolver {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        // The kernel chooses a random port (RFC 5452 §9.2).
        let socket = UdpSocket::bind(any)?;
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(uplink.as_str()))?;
        socket.connect(resolver)?;
        socket.set_nonblocking(true)?;
        socket.send(question)?;
        Ok(Self { socket, resolver })
    }

    pub(super) fn resolver(&self) -> SocketAddr {
        self.resolver
    }

    /// The resolver's answer; an error if it cannot be reached.
    pub(super) fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = [0; LONGEST];
        let len = self.socket.recv(&mut buffer)?;
        Ok(buffer.get(..len).unwrap_or_default().to_vec())
    }
}

impl AsFd for Question {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
