// SPDX-License-Identifier: Apache-2.0

//! A router that says what a test wants.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use clat_packet::icmp::v6::ROUTER_SOLICITATION;
use clat_packet::ra;
use clat_xlat::Prefix;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    recv, sendto, setsockopt, socket, sockopt, AddressFamily, MsgFlags, SockFlag, SockProtocol,
    SockType, SockaddrIn6,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::Netns;

/// A router on one link that sends given advertisements.
#[derive(Debug)]
pub struct Router {
    socket: OwnedFd,
    to: SockaddrIn6,
}

impl Router {
    /// On this interface.
    ///
    /// # Errors
    /// If there is no such interface, or no permission.
    pub fn new(ns: &Netns, iface: &str) -> Result<Self> {
        ns.enter(|| {
            let index = if_nametoindex(iface)?;
            let flags = SockFlag::SOCK_CLOEXEC;
            let icmpv6 = SockProtocol::IcmpV6;
            let socket = socket(AddressFamily::Inet6, SockType::Raw, flags, icmpv6)?;
            setsockopt(&socket, sockopt::Ipv6MulticastHops, &255)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            Ok(Self { socket, to: SocketAddrV6::new(all, 0, 0, index).into() })
        })
    }

    /// Sends an ICMPv6 message, whose checksum the kernel makes, to all nodes on the link.
    ///
    /// # Errors
    /// Those of sendto.
    pub fn send(&self, message: &[u8]) -> Result<()> {
        sendto(self.socket.as_raw_fd(), message, &self.to, MsgFlags::empty())?;
        Ok(())
    }

    /// Advertises these NAT64 prefixes with their lifetimes in seconds, and perhaps a DNS server.
    ///
    /// # Errors
    /// If a prefix has a length that RFC 6052 does not have; those of sendto.
    pub fn advertise(&self, prefixes: &[(&str, u16)], dns: Option<&str>) -> Result<()> {
        // Addresses and routes of the lab are set by hand.
        let mut message = ra::header(64, 0, 0).to_vec();
        for (text, lifetime) in prefixes {
            let prefix: Prefix = text.parse().ok().context("a prefix")?;
            let option = ra::pref64(prefix.addr(), prefix.bits(), *lifetime).context("a length")?;
            message.extend(option);
        }
        if let Some(server) = dns {
            message.extend(ra::rdnss(server.parse()?, 1800));
        }
        self.send(&message)
    }

    /// Whether a router was solicited within 50 ms.
    ///
    /// # Errors
    /// Those of recv.
    pub fn is_solicited(&self) -> Result<bool> {
        let mut message = [0; 1500];
        match recv(self.socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
            Ok(_) => Ok(message[0] == ROUTER_SOLICITATION),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
