// SPDX-License-Identifier: Apache-2.0

//! Sends and captures packets: AF_PACKET and raw sockets inside a namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    recvfrom, sendto, setsockopt, socket, sockopt, AddressFamily, LinkAddr, MsgFlags, SockFlag,
    SockProtocol, SockType, SockaddrStorage,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::Netns;
use crate::packet::Seen;

/// Captures the packets of one interface in both directions, from the IP header on.
#[derive(Debug)]
pub struct Sniffer {
    fd: OwnedFd,
    index: usize,
}

impl Sniffer {
    /// Captures on `dev` from now on.
    ///
    /// # Errors
    /// If there is no such interface, or no permission.
    pub fn new(ns: &Netns, dev: &str) -> Result<Self> {
        ns.enter(|| {
            let index = if_nametoindex(dev).with_context(|| format!("no interface {dev}"))?;
            let flags = SockFlag::SOCK_CLOEXEC;
            // Not bound: it receives from every interface, and the address of each packet tells
            // which. An address for bind would need unsafe code.
            let kind = SockType::Datagram;
            let fd = socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll)?;
            setsockopt(&fd, sockopt::RcvBufForce, &(16 << 20))?;
            Ok(Self { fd, index: usize::try_from(index)? })
        })
    }

    /// The next packet, or `None` after `patience`.
    ///
    /// # Errors
    /// Those of recv.
    pub fn next(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        let mut buf = vec![0; 1 << 17];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let micros = i64::try_from(left.as_micros())?.max(1);
            setsockopt(&self.fd, sockopt::ReceiveTimeout, &TimeVal::microseconds(micros))?;
            match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buf) {
                Ok((len, from)) => {
                    if from.is_none_or(|from| from.ifindex() != self.index) {
                        continue;
                    }
                    buf.truncate(len);
                    return Ok(Some(buf));
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(e) => bail!("recvfrom: {e}"),
            }
        }
    }

    /// Waits for a packet that `wanted` accepts, and skips others.
    ///
    /// # Errors
    /// Those of recv, and if none comes within `patience`; with a list of the others.
    pub fn wait(&self, patience: Duration, wanted: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let deadline = Instant::now() + patience;
        let mut others = Vec::new();
        while let Some(packet) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            match Seen::read(&packet) {
                Some(seen) if wanted(&seen) => return Ok(seen),
                Some(seen) => {
                    others.push(format!("{} > {} proto {}", seen.src, seen.dst, seen.proto));
                }
                None => {}
            }
        }
        bail!("the packet did not come; these did: {others:#?}")
    }
}

/// Calls `f` again after EINTR. A call on a socket with a timeout is interrupted if the machine is
/// stopped and continued; such calls are not restarted (signal(7)).
///
/// # Errors
/// Any other of `f`.
pub fn uninterrupted<T>(mut f: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match f() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Sends a packet with its IP header from inside `ns`; the kernel routes it.
///
/// # Errors
/// Those of sendto: no route, larger than the MTU.
pub fn send_raw(ns: &Netns, packet: &[u8]) -> Result<()> {
    let to = Seen::read(packet).context("not an IP packet")?.dst;
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    ns.enter(|| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Raw, flags, SockProtocol::Raw).context("raw socket")?;
        sendto(fd.as_raw_fd(), packet, &address(to), MsgFlags::empty()).context("sendto")?;
        Ok(())
    })
}

fn address(ip: IpAddr) -> SockaddrStorage {
    SocketAddr::new(ip, 0).into()
}
