// SPDX-License-Identifier: Apache-2.0

//! The host's sockets, as the kernel has them, for flows and for resolvers.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    getsockopt, recvmsg, sendmsg, sendto, setsockopt, sockopt, ControlMessage, ControlMessageOwned,
    MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
};
use rustix::net::sockopt::{
    set_ip_mtu_discover, set_ipv6_mtu_discover, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery,
};
use rustix::net::{sendmmsg, MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::flow::tcp::Stream;
use crate::flow::{Connection, Datagrams, Id, Ready, Received, Report, Sockets};
use crate::icmp_error::IcmpError;

/// Above this, a hop limit is what any program has, and no traceroute's.
const ORDINARY: u8 = 32;

/// What a stream is watched for: its owner waits for what comes next.
pub(crate) const EDGE: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLET);

/// Sockets that an epoll instance waits for, by the token of their flow.
#[derive(Debug)]
pub struct HostSockets {
    epoll: Rc<Epoll>,
}

impl HostSockets {
    /// Sockets that this one waits for.
    #[must_use]
    pub fn new(epoll: Rc<Epoll>) -> Self {
        Self { epoll }
    }

    fn watch(&self, fd: impl AsFd, id: Id, flags: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(flags, id.token()))?)
    }
}

impl Sockets for HostSockets {
    type Connection = HostConnection;
    type Datagrams = HostDatagrams;

    fn connect(&self, remote: SocketAddr, hops: u8) -> io::Result<HostConnection> {
        tcp_connect(remote, hops).map(HostConnection)
    }

    fn pair(&self) -> io::Result<(HostConnection, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        // A stream as good as any, whatever the library calls it.
        Ok((HostConnection(OwnedFd::from(ours).into()), theirs))
    }

    fn udp(&self, ipv6: bool) -> io::Result<HostDatagrams> {
        let any: SocketAddr = if ipv6 {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        };
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(domain(&any.ip()), kind, Some(Protocol::UDP))?;
        if ipv6 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&any.into())?;
        let socket = HostDatagrams { socket: socket.into(), ipv6 };
        socket.prepare_udp()?;
        Ok(socket)
    }

    /// A ping socket, which the kernel gives to those whom net.ipv4.ping_group_range names.
    fn echo(&self, ipv6: bool) -> io::Result<HostDatagrams> {
        let (domain, protocol) =
            if ipv6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol))?;
        let socket = HostDatagrams { socket: socket.into(), ipv6 };
        socket.report_errors()?;
        socket.let_cut(false)?;
        Ok(socket)
    }

    fn watch_connection(&self, connection: &HostConnection, id: Id) -> io::Result<()> {
        self.watch(&connection.0, id, EDGE)
    }

    fn watch_datagrams(&self, socket: &HostDatagrams, id: Id) -> io::Result<()> {
        self.watch(&socket.socket, id, EpollFlags::EPOLLIN)
    }

    fn forget(&self, socket: &HostDatagrams) -> io::Result<()> {
        Ok(self.epoll.delete(&socket.socket)?)
    }
}

impl From<EpollFlags> for Ready {
    fn from(flags: EpollFlags) -> Self {
        let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        Self {
            readable: flags.intersects(readable),
            writable: flags.contains(EpollFlags::EPOLLOUT),
            failed: flags.contains(EpollFlags::EPOLLERR),
            hung_up: flags.contains(EpollFlags::EPOLLHUP),
        }
    }
}

/// A TCP connection of the host.
#[derive(Debug)]
pub struct HostConnection(TcpStream);

impl From<TcpStream> for HostConnection {
    /// `stream` does not block.
    fn from(stream: TcpStream) -> Self {
        Self(stream)
    }
}

impl Stream for HostConnection {
    fn read(&mut self, room: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.read_vectored(room)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn shutdown(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

impl Connection for HostConnection {
    fn take_error(&self) -> io::Result<()> {
        self.0.take_error()?.map_or(Ok(()), Err)
    }

    fn reset_on_close(&self) {
        let _ = SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
    }
}

/// A UDP or ping socket of the host.
#[derive(Debug)]
pub struct HostDatagrams {
    socket: OwnedFd,
    ipv6: bool,
}

impl HostDatagrams {
    /// A socket at a port of the owner's. It does not block from now on.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn at_port(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let ipv6 = socket.local_addr()?.is_ipv6();
        let socket = Self { socket: socket.into(), ipv6 };
        socket.prepare_udp()?;
        Ok(socket)
    }

    /// ICMP errors are told, trains of datagrams come as one, and nothing leaves in fragments.
    fn prepare_udp(&self) -> io::Result<()> {
        self.report_errors()?;
        self.let_cut(false)?;
        // Not before Linux 5.0; then they come one by one.
        let _ = setsockopt(&self.socket, sockopt::UdpGroSegment, &true);
        Ok(())
    }

    fn report_errors(&self) -> io::Result<()> {
        if self.ipv6 {
            setsockopt(&self.socket, sockopt::Ipv6RecvErr, &true)?;
        } else {
            setsockopt(&self.socket, sockopt::Ipv4RecvErr, &true)?;
        }
        Ok(())
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Datagrams for HostDatagrams {
    fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Not before Linux 4.18, which would send a train as a single long datagram.
    fn cuts_trains(&self) -> bool {
        getsockopt(&self.socket, sockopt::UdpGsoSegment).is_ok()
    }

    fn send_train(
        &self,
        to: SocketAddr,
        pieces: &[IoSlice<'_>],
        size: u16,
    ) -> Result<usize, Errno> {
        let to = SockaddrStorage::from(to);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let cmsg = [ControlMessage::UdpGsoSegments(&size)];
        again(|| sendmsg(self.fd(), pieces, &cmsg, flags, Some(&to)))
    }

    fn send_some(&self, datagrams: &[(SocketAddr, &[u8])]) -> Result<usize, Errno> {
        // One alone: the kernel has less to copy and to check.
        if let [(to, data)] = datagrams {
            let to = SockaddrStorage::from(*to);
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            return again(|| sendto(self.fd(), data, &to, flags)).map(|_| 1);
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
        again(|| {
            sendmmsg(&self.socket, &mut messages, flags)
                .map_err(|e| Errno::from_raw(e.raw_os_error()))
        })
    }

    fn recv(&self, buf: &mut [u8]) -> Result<Received, Errno> {
        // Only trains of datagrams have something to say here.
        let mut control = cmsg_space!(i32);
        let mut iov = [IoSliceMut::new(buf)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(self.fd(), &mut iov, Some(&mut control), flags)?;
        let (from, len) = (message.address.as_ref().and_then(to_std), message.bytes);
        let mut size = len;
        for cmsg in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::UdpGroSegments(n) = cmsg {
                size = usize::try_from(n).unwrap_or(len).clamp(1, len.max(1));
            }
        }
        Ok(Received { from, len, size })
    }

    /// By itself Linux would cut where it knows the path's MTU, and its program would not hear of
    /// it.
    fn let_cut(&self, cut: bool) -> io::Result<()> {
        if self.ipv6 {
            let how = if cut { Ipv6PathMtuDiscovery::DONT } else { Ipv6PathMtuDiscovery::DO };
            Ok(set_ipv6_mtu_discover(&self.socket, how)?)
        } else {
            let how = if cut { Ipv4PathMtuDiscovery::DONT } else { Ipv4PathMtuDiscovery::DO };
            Ok(set_ip_mtu_discover(&self.socket, how)?)
        }
    }

    fn hops_differ(a: u8, b: u8) -> bool {
        a != b && (a < ORDINARY || b < ORDINARY)
    }

    fn set_hops(&self, hops: u8) -> io::Result<()> {
        set_hops(&self.socket, self.ipv6, hops)
    }

    fn report(&self, buf: &mut [u8]) -> Result<Option<Report>, Errno> {
        report(self.fd(), buf)
    }

    fn clear_error(&self) {
        let _ = SockRef::from(&self.socket).take_error();
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
    if hops < ORDINARY {
        set_hops(&socket, remote.is_ipv6(), hops)?;
    }
    match socket.connect(&remote.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(socket.into())
}

/// Sends once more after an error of an earlier datagram, which the error queue tells more about.
fn again<T>(mut send: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    match send() {
        Ok(sent) => Ok(sent),
        Err(Errno::EAGAIN) => Err(Errno::EAGAIN),
        Err(_) => send(),
    }
}

/// The next report in a socket's error queue. `Ok(None)` is one that means nothing here.
fn report(socket: RawFd, buf: &mut [u8]) -> Result<Option<Report>, Errno> {
    let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, [u8; 64]);
    let mut iov = [IoSliceMut::new(buf)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket, &mut iov, Some(&mut control), flags)?;
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
fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    let v6 = address.as_sockaddr_in6()?;
    // With the interface: without it a link-local address cannot be answered.
    Some(SocketAddrV6::new(v6.ip(), v6.port(), 0, v6.scope_id()).into())
}

fn set_hops(socket: impl AsFd, ipv6: bool, hops: u8) -> io::Result<()> {
    let fd: BorrowedFd<'_> = socket.as_fd();
    if ipv6 {
        SockRef::from(&fd).set_unicast_hops_v6(hops.into())
    } else {
        SockRef::from(&fd).set_ttl(hops.into())
    }
}
