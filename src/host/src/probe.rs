// SPDX-License-Identifier: Apache-2.0

//! Whether a NAT64 prefix works: the connectivity check of RFC 7050 §3.1, with an address on the
//! IPv4 internet that the administrator has configured.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clat_sys::socket;
use clat_xlat::Prefix;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{connect, recv, send, setsockopt, sockopt, MsgFlags, SockaddrIn6};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::{Fwmark, IfaceName};

/// How long an answer may take on any network.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// Number of echo requests in that time.
const TRIES: u16 = 3;

/// linux/icmpv6.h
const ICMPV6_FILTER: i32 = 1;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// The destination of the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeTarget {
    /// A host, by ICMP echo.
    Echo(Ipv4Addr),
    /// A host's port, by TCP.
    Tcp(SocketAddrV4),
}

impl FromStr for ProbeTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let echo = text.parse().map(Self::Echo);
        echo.or_else(|_| text.parse().map(Self::Tcp))
            .map_err(|_| "neither an IPv4 address nor one with a port, like 192.0.2.1:443")
    }
}

/// Whether `target` answers within `patience` through the PLAT of `prefix`, over IPv6 with `mark`
/// on `uplink`.
///
/// # Errors
/// If the probe cannot be sent: `EPERM` without CAP_NET_RAW.
pub fn probe(
    uplink: &IfaceName,
    mark: Fwmark,
    prefix: &Prefix,
    target: ProbeTarget,
    patience: Duration,
) -> io::Result<bool> {
    let open = |kind, protocol, host, port| -> io::Result<(OwnedFd, SockaddrIn6)> {
        let fd = socket::open(libc::AF_INET6, kind, protocol)?;
        setsockopt(&fd, sockopt::BindToDevice, &OsString::from(uplink.as_str()))?;
        socket::set_mark(fd.as_fd(), mark.bits())?;
        Ok((fd, SocketAddrV6::new(prefix.embed(host), port, 0, 0).into()))
    };
    let asked = match target {
        ProbeTarget::Echo(host) => {
            let (fd, to) = open(libc::SOCK_RAW, libc::IPPROTO_ICMPV6, host, 0)?;
            // Block all but echo replies.
            let mut filter = [0xff; 32];
            let word = usize::from(ECHO_REPLY / 32) * 4;
            let bits: u32 = !(1 << (ECHO_REPLY % 32));
            filter[word..word + 4].copy_from_slice(&bits.to_ne_bytes());
            socket::set_bytes(&fd, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
            connect(fd.as_raw_fd(), &to).and_then(|()| echo(&fd, patience / TRIES.into()))
        }
        ProbeTarget::Tcp(host) => {
            let (fd, to) = open(libc::SOCK_STREAM, 0, *host.ip(), host.port())?;
            setsockopt(&fd, sockopt::SendTimeout, &time_of(patience))?;
            match connect(fd.as_raw_fd(), &to) {
                // A refusal is an answer, too.
                Ok(()) | Err(Errno::ECONNREFUSED) => Ok(true),
                Err(errno) => Err(errno),
            }
        }
    };
    match asked {
        Ok(answered) => Ok(answered),
        Err(
            Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::EACCES
            | Errno::EADDRNOTAVAIL
            | Errno::EINPROGRESS
            | Errno::ETIMEDOUT
            | Errno::ENETDOWN,
        ) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends echo requests at this interval until one is answered.
fn echo(fd: &OwnedFd, interval: Duration) -> nix::Result<bool> {
    let [id @ .., a, b, c, d, e, f] = clat_sys::random_bytes::<8>()?;
    for sequence in 0..TRIES {
        // The kernel computes the checksum.
        let request =
            [&[ECHO_REQUEST, 0, 0, 0], &id[..], &sequence.to_be_bytes(), &[a, b, c, d, e, f]];
        let request = request.concat();
        send(fd.as_raw_fd(), &request, MsgFlags::empty())?;
        let until = Instant::now() + interval;
        let mut reply = [0; 64];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            setsockopt(fd, sockopt::ReceiveTimeout, &time_of(left))?;
            match recv(fd.as_raw_fd(), &mut reply, MsgFlags::empty()) {
                // A reply to any of the requests.
                Ok(len) if reply[..len].get(4..6) == Some(&id[..]) && len == request.len() => {
                    return Ok(true);
                }
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(false)
}

/// At least a microsecond: 0 would mean no timeout.
fn time_of(time: Duration) -> TimeVal {
    TimeVal::microseconds(i64::try_from(time.as_micros()).unwrap_or(i64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let host = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!("192.0.2.1".parse(), Ok(ProbeTarget::Echo(host)));
        assert_eq!("192.0.2.1:443".parse(), Ok(ProbeTarget::Tcp(SocketAddrV4::new(host, 443))));
        for text in ["", "192.0.2", "host", "::1", "192.0.2.1:", "192.0.2.1:65536"] {
            assert!(text.parse::<ProbeTarget>().is_err(), "{text}");
        }
    }
}
