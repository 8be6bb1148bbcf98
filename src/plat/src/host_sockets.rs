// SPDX-License-Identifier: Apache-2.0

//! The kernel's sockets, for flows and for resolvers.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use clat_sys::datagram;
use clat_sys::socket::{get_bytes, set_int};
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

use crate::flow::tcp::{PeerState, Stream};
use crate::flow::{Connection, Datagrams, Ends, Id, Ready, Received, Report, Sockets};
use crate::icmp_error::IcmpError;
use crate::settings::Outbound;

/// From this hop limit on, packets are of ordinary programs; only traceroute's smaller ones are
/// passed on.
const ORDINARY: u8 = 32;
/// Bytes of the control messages of a datagram.
const CONTROL: usize = 128;
/// The ECN bits of a traffic class (RFC 3168 §5).
const ECN: u8 = 3;

/// Events of streams, edge-triggered.
pub(crate) const EDGE: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLET);

/// Sockets watched by an epoll instance, with the id of their flow as token.
#[derive(Debug)]
pub struct HostSockets {
    epoll: Rc<Epoll>,
    outbound: Outbound,
}

impl HostSockets {
    /// Sockets watched by this epoll instance.
    #[must_use]
    pub fn new(epoll: Rc<Epoll>) -> Self {
        Self { epoll, outbound: Outbound::default() }
    }

    /// The same, with new sockets bound like this.
    #[must_use]
    pub fn bound(self, outbound: Outbound) -> Self {
        Self { outbound, ..self }
    }

    fn watch(&self, fd: impl AsFd, id: Id, flags: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(flags, id.token()))?)
    }
}

impl Sockets for HostSockets {
    type Connection = HostConnection;
    type Datagrams = HostDatagrams;

    fn connect(&self, remote: SocketAddr, hops: u8, class: u8) -> io::Result<HostConnection> {
        let class = class & !ECN;
        tcp_connect(remote, hops, class, &self.outbound)
            .map(|stream| HostConnection { class, ..HostConnection::from(stream) })
    }

    fn pair(&self) -> io::Result<(HostConnection, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        // The standard library has no type for both families; a TCP stream serves for a Unix
        // stream.
        let stream = TcpStream::from(OwnedFd::from(ours));
        Ok((HostConnection { stream, class: 0, is_pair: true }, theirs))
    }

    fn udp(&self, ipv6: bool) -> io::Result<HostDatagrams> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, kind, Some(Protocol::UDP))?;
        if ipv6 {
            socket.set_only_v6(true)?;
        }
        bind(&socket, &self.outbound, ipv6)?;
        let socket = HostDatagrams { socket: socket.into(), ipv6 };
        socket.prepare_udp()?;
        Ok(socket)
    }

    /// A ping socket; the kernel allows it to groups in net.ipv4.ping_group_range.
    fn echo(&self, ipv6: bool) -> io::Result<HostDatagrams> {
        let (domain, protocol) =
            if ipv6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol))?;
        if self.outbound != Outbound::default() {
            bind(&socket, &self.outbound, ipv6)?;
        }
        let socket = HostDatagrams { socket: socket.into(), ipv6 };
        socket.report_errors()?;
        socket.report_class()?;
        socket.let_cut(false)?;
        Ok(socket)
    }

    fn watch_connection(&self, connection: &HostConnection, id: Id) -> io::Result<()> {
        self.watch(&connection.stream, id, EDGE)
    }

    fn watch_datagrams(&self, socket: &HostDatagrams, id: Id) -> io::Result<()> {
        self.watch(&socket.socket, id, EpollFlags::EPOLLIN)
    }

    fn forget_connection(&self, connection: &HostConnection) -> io::Result<()> {
        Ok(self.epoll.delete(&connection.stream)?)
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
pub struct HostConnection {
    stream: TcpStream,
    /// Its traffic class; the kernel sets ECN.
    class: u8,
    /// The peer is in this process.
    is_pair: bool,
}

impl From<TcpStream> for HostConnection {
    /// `stream` is non-blocking.
    fn from(stream: TcpStream) -> Self {
        // An urgent byte is data like others (RFC 6093 §4).
        let _ = SockRef::from(&stream).set_out_of_band_inline(true);
        Self { stream, class: 0, is_pair: false }
    }
}

impl Stream for HostConnection {
    fn read(&mut self, room: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.stream.read_vectored(room)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.stream.write(data)
    }

    fn shutdown(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn has_peer(&self) -> bool {
        !self.is_pair
    }

    fn peer(&self) -> Option<PeerState> {
        (!self.is_pair).then(|| peer_state(&self.stream)).flatten()
    }

    /// By the kernel's keepalive, which probes a peer that has been silent for a second.
    fn set_probing(&mut self, probing: bool) {
        let _ = setsockopt(&self.stream, sockopt::KeepAlive, &probing);
        if probing {
            let _ = setsockopt(&self.stream, sockopt::TcpKeepIdle, &1);
        }
    }
}

/// The kernel's state of the peer (struct tcp_info, linux/tcp.h).
fn peer_state(stream: &TcpStream) -> Option<PeerState> {
    const UNACKED: usize = 24;
    const LAST_ACK_RECV: usize = 56;
    const RTT: usize = 68;
    const NOTSENT_BYTES: usize = 144;
    const LEN: usize = 148;
    let mut info = [0; LEN];
    get_bytes(stream, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).ok()?;
    let number = |at: usize| Some(u32::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    Some(PeerState {
        unheard: Duration::from_millis(number(LAST_ACK_RECV)?.into()),
        rtt: Duration::from_micros(number(RTT)?.into()),
        has_all: number(UNACKED)? == 0 && number(NOTSENT_BYTES)? == 0,
    })
}

impl Connection for HostConnection {
    fn take_error(&self) -> io::Result<()> {
        self.stream.take_error()?.map_or(Ok(()), Err)
    }

    fn reset_on_close(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    fn report(&self, buf: &mut [u8]) -> Option<Report> {
        report(self.stream.as_raw_fd(), buf).ok().flatten()
    }

    fn set_class(&mut self, class: u8) -> io::Result<()> {
        let class = class & !ECN;
        if self.class != class {
            set_class(&self.stream, self.stream.local_addr()?.is_ipv6(), class)?;
            self.class = class;
        }
        Ok(())
    }
}

/// A UDP or ping socket of the host.
#[derive(Debug)]
pub struct HostDatagrams {
    socket: OwnedFd,
    ipv6: bool,
}

impl HostDatagrams {
    /// A socket of a forwarded port, which reports destination addresses. Becomes non-blocking.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn at_port(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let ipv6 = socket.local_addr()?.is_ipv6();
        let socket = Self { socket: socket.into(), ipv6 };
        socket.prepare_udp()?;
        if ipv6 {
            setsockopt(&socket.socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket.socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        Ok(socket)
    }

    /// Enables reports of ICMP errors and UDP_GRO, and forbids fragmentation.
    fn prepare_udp(&self) -> io::Result<()> {
        self.report_errors()?;
        self.let_cut(false)?;
        // Since Linux 5.0; before, datagrams come one by one.
        let _ = setsockopt(&self.socket, sockopt::UdpGroSegment, &true);
        self.report_class()
    }

    /// Has what is received tell its traffic class.
    fn report_class(&self) -> io::Result<()> {
        let (level, option) = if self.ipv6 {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS)
        } else {
            (libc::IPPROTO_IP, libc::IP_RECVTOS)
        };
        Ok(set_int(&self.socket, level, option, 1)?)
    }

    fn report_errors(&self) -> io::Result<()> {
        report_errors(&self.socket, self.ipv6)
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Sends a datagram, or several of `size` bytes, from a given address of the host or the
    /// default one.
    fn send_from(
        &self,
        ends: Ends,
        pieces: &[IoSlice<'_>],
        size: Option<u16>,
    ) -> Result<usize, Errno> {
        let to = SockaddrStorage::from(ends.remote);
        let (info4, info6) = match ends.local {
            Some(IpAddr::V4(local)) => (Some(packet_info4(local)), None),
            Some(IpAddr::V6(local)) => (None, Some(packet_info6(local))),
            None => (None, None),
        };
        let size = size.as_ref().map(ControlMessage::UdpGsoSegments);
        let info4 = info4.as_ref().map(ControlMessage::Ipv4PacketInfo);
        let info6 = info6.as_ref().map(ControlMessage::Ipv6PacketInfo);
        let control: Vec<_> = size.into_iter().chain(info4).chain(info6).collect();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        again(|| sendmsg(self.fd(), pieces, &control, flags, Some(&to)))
    }
}

fn packet_info4(local: Ipv4Addr) -> libc::in_pktinfo {
    let any = libc::in_addr { s_addr: 0 };
    let local = libc::in_addr { s_addr: local.to_bits().to_be() };
    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: local, ipi_addr: any }
}

fn packet_info6(local: Ipv6Addr) -> libc::in6_pktinfo {
    let local = libc::in6_addr { s6_addr: local.octets() };
    libc::in6_pktinfo { ipi6_addr: local, ipi6_ifindex: 0 }
}

impl AsFd for HostDatagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Datagrams for HostDatagrams {
    fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Since Linux 4.18; before, the kernel would send a single long datagram.
    fn supports_gso(&self) -> bool {
        getsockopt(&self.socket, sockopt::UdpGsoSegment).is_ok()
    }

    fn send_gso(&self, ends: Ends, pieces: &[IoSlice<'_>], size: u16) -> Result<usize, Errno> {
        self.send_from(ends, pieces, Some(size))
    }

    fn send_some(&self, datagrams: &[(Ends, &[u8])]) -> Result<usize, Errno> {
        // For a single datagram sendto is cheaper: the kernel copies and checks less.
        if let [(Ends { remote, local: None }, data)] = datagrams {
            let to = SockaddrStorage::from(*remote);
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            return again(|| sendto(self.fd(), data, &to, flags)).map(|_| 1);
        }
        if let Some((ends @ Ends { local: Some(_), .. }, data)) = datagrams.first() {
            return self.send_from(*ends, &[IoSlice::new(data)], None).map(|_| 1);
        }
        let datagrams = datagrams.iter().take_while(|(ends, _)| ends.local.is_none());
        let mut parts: Vec<_> = datagrams
            .map(|(ends, data)| {
                let control = SendAncillaryBuffer::default();
                (SocketAddrAny::from(ends.remote), [IoSlice::new(data)], control)
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
        let mut control = [0; CONTROL];
        let (len, address, messages) = datagram::receive(&self.socket, buf, &mut control)?;
        let from = address.as_ref().and_then(to_std);
        let (mut size, mut local, mut class) = (len, None, 0);
        let number = |data: &[u8]| data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
        for (level, kind, data) in messages {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let each = number(data).and_then(|n| usize::try_from(n).ok());
                    size = each.unwrap_or(len).clamp(1, len.max(1));
                }
                // struct in_pktinfo: the interface, and the local address of the packet.
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let address = data.get(4..).and_then(<[u8]>::first_chunk::<4>);
                    local = address.map(|bytes| Ipv4Addr::from(*bytes).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    local = data.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into());
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => class = data.first().copied().unwrap_or(0),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    class = number(data).and_then(|n| u8::try_from(n).ok()).unwrap_or(0);
                }
                _ => {}
            }
        }
        Ok(Received { from, local, len, size, class })
    }

    /// By default, Linux fragments packets if it knows the path MTU, and reports nothing.
    fn let_cut(&self, cut: bool) -> io::Result<()> {
        if self.ipv6 {
            let how = if cut { Ipv6PathMtuDiscovery::DONT } else { Ipv6PathMtuDiscovery::DO };
            Ok(set_ipv6_mtu_discover(&self.socket, how)?)
        } else {
            let how = if cut { Ipv4PathMtuDiscovery::DONT } else { Ipv4PathMtuDiscovery::DO };
            Ok(set_ip_mtu_discover(&self.socket, how)?)
        }
    }

    fn set_class(&self, class: u8) -> io::Result<()> {
        set_class(&self.socket, self.ipv6, class)
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

/// Binds a socket to any port, at the interface and the address by which it is to leave the host.
pub(crate) fn bind(socket: &Socket, outbound: &Outbound, ipv6: bool) -> io::Result<()> {
    if let Some(interface) = &outbound.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    let address: IpAddr = if ipv6 {
        outbound.v6.unwrap_or(Ipv6Addr::UNSPECIFIED).into()
    } else {
        outbound.v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into()
    };
    socket.bind(&SocketAddr::new(address, 0).into())
}

fn domain(address: &IpAddr) -> Domain {
    if address.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    }
}

/// Begins a connection.
pub(crate) fn tcp_connect(
    remote: SocketAddr,
    hops: u8,
    class: u8,
    outbound: &Outbound,
) -> io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(domain(&remote.ip()), kind, Some(Protocol::TCP))?;
    socket.set_nodelay(true)?;
    if *outbound != Outbound::default() && !remote.ip().is_loopback() {
        // The port is chosen by connect(), which finds one that is free towards that destination.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        bind(&socket, outbound, remote.is_ipv6())?;
    }
    if hops < ORDINARY {
        set_hops(&socket, remote.is_ipv6(), hops)?;
        report_errors(&socket, remote.is_ipv6())?;
    }
    if class > 0 {
        set_class(&socket, remote.is_ipv6(), class)?;
    }
    match socket.connect(&remote.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(socket.into())
}

/// Enables reports of ICMP errors by the socket's error queue.
fn report_errors(socket: &impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    }
    Ok(())
}

/// Sends again after an error about an earlier datagram, of which the error queue tells more.
fn again<T>(mut send: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    match send() {
        Ok(sent) => Ok(sent),
        Err(Errno::EAGAIN) => Err(Errno::EAGAIN),
        Err(_) => send(),
    }
}

/// The next report in a socket's error queue. `Ok(None)` for one without meaning here.
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

/// The address as the standard library's type.
fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    let v6 = address.as_sockaddr_in6()?;
    // With the interface, without which a link-local address cannot be answered.
    Some(SocketAddrV6::new(v6.ip(), v6.port(), 0, v6.scope_id()).into())
}

fn set_class(socket: &impl AsFd, ipv6: bool, class: u8) -> io::Result<()> {
    if ipv6 {
        setsockopt(socket, sockopt::Ipv6TClass, &i32::from(class))?;
    } else {
        setsockopt(socket, sockopt::IpTos, &i32::from(class))?;
    }
    Ok(())
}

fn set_hops(socket: impl AsFd, ipv6: bool, hops: u8) -> io::Result<()> {
    let fd: BorrowedFd<'_> = socket.as_fd();
    if ipv6 {
        SockRef::from(&fd).set_unicast_hops_v6(hops.into())
    } else {
        SockRef::from(&fd).set_ttl(hops.into())
    }
}
