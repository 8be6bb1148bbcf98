// SPDX-License-Identifier: Apache-2.0

//! An anycast address of an interface.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use clat_packet::nd;
use clat_sys::socket;
use nix::libc::{self, c_int};
use nix::sys::socket::{sendto, MsgFlags, SockaddrIn6};

use super::join_anycast;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Not in `libc` for every C library (linux/in6.h).
const IPV6_FREEBIND: c_int = 78;
/// linux/icmpv6.h
const ICMPV6_FILTER: c_int = 1;

/// An anycast address of an interface. The kernel answers neighbour discovery for it until this is
/// dropped.
#[derive(Debug)]
pub struct AnycastAddress {
    fd: OwnedFd,
    index: u32,
}

impl AnycastAddress {
    /// Makes `v6` an anycast address of the interface `index`. Several of these may have the same
    /// address.
    ///
    /// # Errors
    /// Those of [`join_anycast`]; `EPERM` without CAP_NET_RAW.
    pub fn join(index: u32, v6: Ipv6Addr) -> io::Result<Self> {
        let fd = socket::open(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)?;
        // This socket only sends.
        socket::set_bytes(&fd, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &[0xff; 32])?;
        let hops = c_int::from(nd::HOP_LIMIT);
        socket::set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, hops)?;
        socket::set_int(&fd, libc::IPPROTO_IPV6, IPV6_FREEBIND, 1)?;
        join_anycast(fd.as_fd(), index, v6)?;
        if !clat_sys::HAS_NETD {
            // Packets to the address are for a blackhole route (docs/firewall.md).
            clat_netlink::delete_anycast_route(index, v6)?;
        }
        nix::sys::socket::bind(fd.as_raw_fd(), &address(v6, index))?;
        Ok(Self { fd, index })
    }

    /// Tells all neighbours that `v6` is at the Ethernet address `own`, replacing what they have
    /// cached (RFC 4861 §7.2.6).
    ///
    /// # Errors
    /// The kernel's error: `ENETDOWN` if the interface is down.
    pub fn announce(&self, v6: Ipv6Addr, own: [u8; 6]) -> io::Result<()> {
        let message = nd::advertisement(v6, nd::OVERRIDE, own);
        let to = address(ALL_NODES, self.index);
        sendto(self.fd.as_raw_fd(), &message, &to, MsgFlags::empty())?;
        Ok(())
    }
}

fn address(v6: Ipv6Addr, index: u32) -> SockaddrIn6 {
    SockaddrIn6::from(SocketAddrV6::new(v6, 0, 0, index))
}
