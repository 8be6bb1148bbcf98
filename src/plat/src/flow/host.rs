// SPDX-License-Identifier: Apache-2.0

//! Sockets of the host.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    getsockopt, recvmsg, sendmsg, sendto, setsockopt, sockopt, ControlMessage, ControlMessageOwned,
    MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
};
use rustix::net::sockopt::{
    set_ip_mtu_discover, set_ipv6_mtu_discover, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery,
};
use rustix::net::{sendmmsg, MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny};
use socket2::{Domain, Protocol, Socket, Type};

use super::stats::Stats;
use super::tcp::Stream;
use crate::icmp_error::IcmpError;

/// Above this, a hop limit is what any program has, and no traceroute's.
const ORDINARY: u8 = 32;

/// A connection, as [`Stream`].
pub(crate) struct TcpIo<'a> {
    pub(crate) socket: &'a TcpStream,
    pub(crate) stats: &'a mut Stats,
}

impl Stream for TcpIo<'_> {
    fn read(&mut self, room: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let n = self.socket.read_vectored(room)?;
        self.stats.bytes_down += n as u64;
        Ok(n)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.socket.write(data)?;
        self.stats.bytes_up += n as u64;
        Ok(n)
    }

    fn shutdown(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

fn domain(address: &IpAddr) -> Domain {
    if address.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    }
}

/// A connection that is being opened.
pub(crate) fn tcp_connect(remote: SocketAddr, hops: u8) -> io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(domain(&remote.ip()), kind, Some(Protocol::TCP))?;
    socket.set_nodelay(true)?;
    set_hops(&socket, remote.is_ipv6(), hops)?;
    match socket.connect(&remote.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(socket.into())
}

/// A connection inside this process: the flow's end (a stream as good as any, whatever the library calls it) and the other.
pub(crate) fn pair() -> io::Result<(TcpStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok((OwnedFd::from(ours).into(), theirs))
}

/// A socket for datagrams to any destination of a family, which tells of ICMP errors.
pub(crate) fn udp(ipv6: bool) -> io::Result<UdpSocket> {
    let any: SocketAddr =
        if ipv6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(domain(&any.ip()), kind, Some(Protocol::UDP))?;
    if ipv6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&any.into())?;
    prepare_udp(&socket, ipv6)?;
    Ok(socket.into())
}

/// ICMP errors are told, trains of datagrams come as one, and nothing leaves in fragments (see [`let_cut`]).
pub(crate) fn prepare_udp(socket: &impl AsFd, ipv6: bool) -> io::Result<()> {
    report_errors(socket, ipv6)?;
    let_cut(socket, ipv6, false)?;
    // Not before Linux 5.0; then they come one by one.
    let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
    Ok(())
}

/// Whether the host cuts trains of datagrams: not before Linux 4.18, which would send one as a single long datagram.
pub(crate) fn cuts_trains(socket: &impl AsFd) -> bool {
    getsockopt(socket, sockopt::UdpGsoSegment).is_ok()
}

/// Sends a train, in pieces: datagrams of `size` bytes, the last of which may be shorter.
pub(crate) fn send_train(
    socket: &impl AsRawFd,
    to: SocketAddr,
    pieces: &[IoSlice<'_>],
    size: u16,
) -> Result<usize, Errno> {
    let (fd, to) = (socket.as_raw_fd(), SockaddrStorage::from(to));
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let cmsg = [ControlMessage::UdpGsoSegments(&size)];
    again(|| sendmsg(fd, pieces, &cmsg, flags, Some(&to)))
}

/// Sends the first of these datagrams, and behind it as many as go by the same call. Says how many went.
pub(crate) fn send_some(
    socket: &(impl AsFd + AsRawFd),
    datagrams: &[(SocketAddr, &[u8])],
) -> Result<usize, Errno> {
    // One alone: the kernel has less to copy and to check.
    if let [(to, data)] = datagrams {
        let (fd, to) = (socket.as_raw_fd(), SockaddrStorage::from(*to));
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        return again(|| sendto(fd, data, &to, flags)).map(|_| 1);
    }
    let mut parts: Vec<_> = datagrams
        .iter()
        .map(|(to, data)| {
            let control = SendAncillaryBuffer::default();
            (SocketAddrAny::from(*to), [IoSlice::new(data)], control)
        })
        .collect();
    let mut messages: Vec<_> = parts
        .iter_mut()
        .map(|(to, data, control)| MMsgHdr::new_with_addr(to, data, control))
        .collect();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    again(|| sendmmsg(socket, &mut messages, flags).map_err(|e| Errno::from_raw(e.raw_os_error())))
}

/// Sends once more after an error of an earlier datagram, which the error queue tells more about.
fn again<T>(mut send: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    match send() {
        Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => send(),
        result => result,
    }
}

/// A ping socket, which the kernel gives to those whom net.ipv4.ping_group_range names.
pub(crate) fn echo(ipv6: bool) -> io::Result<Socket> {
    let (domain, protocol) =
        if ipv6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol))?;
    report_errors(&socket, ipv6)?;
    let_cut(&socket, ipv6, false)?;
    Ok(socket)
}

fn report_errors(socket: &impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    }
    Ok(())
}

/// Whether the host, and routers, may cut what is too long for the path. If not, sending such a packet is `EMSGSIZE`, and the
/// error queue has the path's MTU. By itself Linux would cut where it knows that MTU, and its program would not hear of it.
pub(crate) fn let_cut(socket: &impl AsFd, ipv6: bool, cut: bool) -> io::Result<()> {
    if ipv6 {
        let how = if cut { Ipv6PathMtuDiscovery::DONT } else { Ipv6PathMtuDiscovery::DO };
        Ok(set_ipv6_mtu_discover(socket, how)?)
    } else {
        let how = if cut { Ipv4PathMtuDiscovery::DONT } else { Ipv4PathMtuDiscovery::DO };
        Ok(set_ip_mtu_discover(socket, how)?)
    }
}

/// Gives the guest's hop limit on, where it is a small one.
pub(crate) fn set_hops(socket: &impl AsFd, ipv6: bool, hops: u8) -> io::Result<()> {
    if hops >= ORDINARY {
        return Ok(());
    }
    let socket = socket2::SockRef::from(socket);
    if ipv6 {
        socket.set_unicast_hops_v6(hops.into())
    } else {
        socket.set_ttl(hops.into())
    }
}

/// Whether hop limits `a` and `b` need different settings of a socket.
pub(crate) fn hops_differ(a: u8, b: u8) -> bool {
    a != b && (a < ORDINARY || b < ORDINARY)
}

/// Sets any hop limit, also an ordinary one again.
pub(crate) fn reset_hops(socket: &impl AsFd, ipv6: bool, hops: u8) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    if ipv6 {
        socket.set_unicast_hops_v6(hops.into())
    } else {
        socket.set_ttl(hops.into())
    }
}

/// Something that the host's kernel has learned about what a socket sent.
pub(crate) struct Report {
    pub(crate) error: IcmpError,
    /// Whether it never left: it was too long for what the host knows of the path.
    pub(crate) too_long: bool,
    /// Where the packet went, or would have gone (the port may be missing then).
    pub(crate) remote: Option<SocketAddr>,
    /// Who told.
    pub(crate) router: Option<IpAddr>,
    /// Bytes of what was sent, at the start of the buffer.
    pub(crate) len: usize,
}

/// The next report in a socket's error queue. `Ok(None)` is one that means nothing here.
pub(crate) fn report(socket: &impl AsRawFd, buf: &mut [u8]) -> Result<Option<Report>, Errno> {
    let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, [u8; 64]);
    let mut iov = [IoSliceMut::new(buf)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
    let remote = message.address.as_ref().and_then(to_std);
    let mut found = None;
    for cmsg in message.cmsgs()? {
        let (error, router): (_, Option<IpAddr>) = match cmsg {
            ControlMessageOwned::Ipv4RecvErr(error, from) => {
                (error, from.map(|a| SockaddrIn::from(a).ip().into()))
            }
            ControlMessageOwned::Ipv6RecvErr(error, from) => {
                (error, from.map(|a| SockaddrIn6::from(a).ip().into()))
            }
            _ => continue,
        };
        let (kind, code, info) = (error.ee_type, error.ee_code, error.ee_info);
        let too_long =
            error.ee_origin == libc::SO_EE_ORIGIN_LOCAL && error.ee_errno == Errno::EMSGSIZE as u32;
        let error = match error.ee_origin {
            libc::SO_EE_ORIGIN_ICMP => IcmpError::from_icmp4(kind, code, info),
            libc::SO_EE_ORIGIN_ICMP6 => IcmpError::from_icmp6(kind, code, info),
            _ if too_long => {
                Some(IcmpError::too_big(matches!(cmsg, ControlMessageOwned::Ipv6RecvErr(..)), info))
            }
            _ => i32::try_from(error.ee_errno)
                .ok()
                .and_then(|e| IcmpError::from_errno(Errno::from_raw(e))),
        };
        if let Some(error) = error {
            found = Some(Report { error, too_long, remote, router, len: message.bytes });
        }
    }
    Ok(found)
}

/// The address in the standard library's form.
pub(crate) fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    let v6 = address.as_sockaddr_in6()?;
    // With the interface: without it a link-local address cannot be answered.
    Some(SocketAddrV6::new(v6.ip(), v6.port(), 0, v6.scope_id()).into())
}
