//! The sockets of the uplink, and every `unsafe` of this crate.

use std::io::{self, IoSliceMut};
use std::mem::size_of;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use clat_tun::VirtioHeader;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::libc::{self, c_int, sock_filter};
use nix::sys::socket::{self as sys, sockopt, MsgFlags, SockaddrIn6};
use nix::sys::uio::readv;

/// What may wait to be received, and to be sent, in bytes. A burst must not be lost while the other direction is
/// served; what is too much for the link is the queue's to drop, not ours.
const QUEUE: usize = 8 << 20;

/// The longest link header that is understood, Ethernet's.
pub const LINK_HEADER: usize = 14;

/// Not in `libc` (linux/if_packet.h, linux/in6.h).
const PACKET_VNET_HDR: c_int = 15;
const PACKET_IGNORE_OUTGOING: c_int = 23;
/// Raw IP devices of phones: `ARPHRD_RAWIP`, and what Qualcomm used before that existed.
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_RAWIP_OLD: u16 = 530;

/// Takes over a descriptor that the caller of this program has left open for it; close-on-exec from now on.
///
/// # Errors
/// `EBADF` when there is none of that number.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // A copy is ours alone whatever the number stood for; the original is closed, so that no second owner remains.
    let copy = fcntl(number, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD_CLOEXEC has just made it, nobody else has it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    nix::unistd::close(number)?;
    Ok(copy)
}

/// Where IPv6 packets for the CLAT's address come in: AF_PACKET on the uplink, with a virtio header in front of each.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    link_header: usize,
    hardware: u16,
}

impl PacketSocket {
    /// Opens one on the interface `index` for packets to `v6`. Nothing else is ever queued: the filter is there
    /// before the socket hears anything.
    ///
    /// # Errors
    /// What the kernel said; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
    pub fn open(index: u32, v6: Ipv6Addr) -> io::Result<Self> {
        let fd = packet_socket(libc::SOCK_RAW)?;
        // Bound to no protocol it hears nothing, but knows what the interface is.
        bind_packet(&fd, index, 0)?;
        let socket = Self::of_known_link(fd)?;
        attach_filter(&socket.fd, &destination_filter(socket.link_header, v6))?;
        set(&socket.fd, libc::SOL_PACKET, PACKET_VNET_HDR, &1)?;
        // Before 4.20 there is no such option; what we send is not ETH_P_IPV6 traffic to v6 anyway.
        let _ = set(&socket.fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1);
        if sys::setsockopt(&socket.fd, sockopt::RcvBufForce, &QUEUE).is_err() {
            sys::setsockopt(&socket.fd, sockopt::RcvBuf, &QUEUE)?;
        }
        bind_packet(&socket.fd, index, ETH_P_IPV6)?;
        Ok(socket)
    }

    /// Takes over one that the caller has opened, filtered and bound.
    ///
    /// # Errors
    /// What the kernel said; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let socket = Self::of_known_link(fd)?;
        set(&socket.fd, libc::SOL_PACKET, PACKET_VNET_HDR, &1)?;
        Ok(socket)
    }

    fn of_known_link(fd: OwnedFd) -> io::Result<Self> {
        let (_, hardware) = bound_to(&fd)?;
        let link_header = match hardware {
            libc::ARPHRD_ETHER => LINK_HEADER,
            libc::ARPHRD_NONE | libc::ARPHRD_PPP | ARPHRD_RAWIP | ARPHRD_RAWIP_OLD => 0,
            _ => return Err(Errno::EAFNOSUPPORT.into()),
        };
        Ok(Self { fd, link_header, hardware })
    }

    /// Whether the uplink is Ethernet, where addresses are resolved.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        self.hardware == libc::ARPHRD_ETHER
    }

    /// Whether the interface is still there (it may be down).
    #[must_use]
    pub fn has_interface(&self) -> bool {
        bound_to(&self.fd).is_ok_and(|(index, _)| index > 0)
    }

    /// How many packets the kernel has dropped since this was last asked, because too many were waiting.
    #[must_use]
    pub fn overruns(&self) -> u64 {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        match get(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats) {
            Ok(()) => stats.tp_drops.into(),
            Err(_) => 0,
        }
    }

    /// Reads one packet into `buf`, link header first, and returns its virtio header, offsets from the IP header on,
    /// and where in `buf` it is.
    ///
    /// # Errors
    /// `EAGAIN` when none waits, `ENETDOWN` when the interface has gone down, `EMSGSIZE` for one that does not fit or
    /// is shorter than its link header, `EINVAL` for a kind of segmentation that the kernel cannot describe.
    pub fn recv(&self, buf: &mut [u8]) -> Result<(VirtioHeader, Range<usize>), Errno> {
        let mut head = [0; VirtioHeader::LEN];
        let capacity = buf.len();
        let got = readv(&self.fd, &mut [IoSliceMut::new(&mut head), IoSliceMut::new(buf)])?;
        let len = got.saturating_sub(head.len());
        // One that fills the buffer may have been cut.
        if len <= self.link_header || len >= capacity {
            return Err(Errno::EMSGSIZE);
        }
        let mut vnet = VirtioHeader::from_bytes(&head).unwrap_or_default();
        // At most 14: it fits.
        let link_header = u16::try_from(self.link_header).unwrap_or_default();
        if vnet.needs_csum {
            vnet.csum_start = vnet.csum_start.checked_sub(link_header).ok_or(Errno::EMSGSIZE)?;
        }
        vnet.hdr_len = vnet.hdr_len.saturating_sub(link_header);
        Ok((vnet, self.link_header..len))
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where IPv6 packets go out: a raw socket on the uplink, with the mark. It also holds the anycast membership.
#[derive(Debug)]
pub struct RawSocket(OwnedFd);

impl RawSocket {
    /// Opens one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(interface: &str, mark: u32) -> io::Result<Self> {
        let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // IPPROTO_RAW: the header is ours.
        let fd = socket(libc::AF_INET6, flags, libc::IPPROTO_RAW)?;
        sys::setsockopt(&fd, sockopt::BindToDevice, &interface.into())?;
        sys::setsockopt(&fd, sockopt::Mark, &mark)?;
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
        // The path MTU is the sender's to learn, from the Packet Too Big that we translate: the kernel must not
        // drop what exceeds the one that it remembers.
        set(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_PROBE)?;
        let queue = c_int::try_from(QUEUE).unwrap_or(c_int::MAX);
        if set(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &queue).is_err() {
            sys::setsockopt(&fd, sockopt::SndBuf, &QUEUE)?;
        }
        Ok(Self(fd))
    }

    /// Makes `v6` an anycast address of the interface, so that the kernel answers neighbour discovery for it, for as
    /// long as this socket is open.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` when no prefix of the interface covers it (on a host; see `ipv6_sock_ac_join`), `EINVAL` when
    /// an interface has it already.
    pub fn join_anycast(&self, index: u32, v6: Ipv6Addr) -> io::Result<()> {
        let request = libc::ipv6_mreq {
            ipv6mr_multiaddr: libc::in6_addr { s6_addr: v6.octets() },
            ipv6mr_interface: index,
        };
        set(&self.0, libc::IPPROTO_IPV6, libc::IPV6_JOIN_ANYCAST, &request)
    }

    /// Sends one IPv6 packet, headers and all, to the destination in it.
    ///
    /// # Errors
    /// What the kernel said; the packet is lost then. `EINVAL` for what is shorter than an IPv6 header.
    pub fn send(&self, packet: &[u8]) -> Result<(), Errno> {
        let destination = packet.get(24..40).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        let destination = Ipv6Addr::from(destination.ok_or(Errno::EINVAL)?);
        let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, 0));
        sys::sendto(self.0.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        Ok(())
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Neighbour discovery about one address, seen and sent below IP: AF_PACKET without link headers.
#[derive(Debug)]
pub struct NeighbourSocket {
    fd: OwnedFd,
    index: u32,
}

impl NeighbourSocket {
    /// Opens one on the Ethernet interface `index` for solicitations and advertisements about `target`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(index: u32, target: Ipv6Addr) -> io::Result<Self> {
        let fd = packet_socket(libc::SOCK_DGRAM)?;
        attach_filter(&fd, &neighbour_filter(target))?;
        bind_packet(&fd, index, ETH_P_IPV6)?;
        Ok(Self { fd, index })
    }

    /// Sends an IPv6 packet to the Ethernet address of its multicast group.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn send_multicast(&self, packet: &[u8], group: Ipv6Addr) -> io::Result<()> {
        let mut to = link_address(self.index, ETH_P_IPV6);
        to.sll_halen = 6;
        // RFC 2464 §7.
        to.sll_addr[..2].fill(0x33);
        to.sll_addr[2..6].copy_from_slice(&group.octets()[12..]);
        // SAFETY: the packet and the address are valid for the lengths given, for the call.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                len_of::<libc::sockaddr_ll>(),
            )
        };
        Errno::result(sent)?;
        Ok(())
    }

    /// Reads one packet and returns its length in bytes.
    ///
    /// # Errors
    /// `EAGAIN` when none waits.
    pub fn recv(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        readv(&self.fd, &mut [IoSliceMut::new(buf)])
    }
}

impl AsFd for NeighbourSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the uplink and the path beyond it carry towards `to`, in bytes of IPv6.
///
/// # Errors
/// What the kernel said; `ENETUNREACH` without a route.
pub fn path_mtu(interface: &str, mark: u32, to: Ipv6Addr) -> io::Result<u32> {
    let fd = socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
    sys::setsockopt(&fd, sockopt::BindToDevice, &interface.into())?;
    sys::setsockopt(&fd, sockopt::Mark, &mark)?;
    // Nothing is sent by connecting a datagram socket; any port will do.
    sys::connect(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(to, 53, 0, 0)))?;
    let mut mtu: c_int = 0;
    get(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU, &mut mtu)?;
    u32::try_from(mtu).map_err(|_| Errno::EINVAL.into())
}

const ETH_P_IPV6: u16 = 0x86dd;

fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = Errno::result(unsafe { libc::socket(family, kind, protocol) })?;
    // SAFETY: the kernel has just made it, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A packet socket that hears nothing yet: its protocol is 0.
fn packet_socket(kind: c_int) -> io::Result<OwnedFd> {
    socket(libc::AF_PACKET, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn len_of<T>() -> libc::socklen_t {
    // Only ever small structures.
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

fn set<T>(fd: &OwnedFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads at most as many bytes as the value has.
    let done = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (value as *const T).cast(), len_of::<T>())
    };
    Errno::result(done)?;
    Ok(())
}

fn get<T>(fd: &OwnedFd, level: c_int, name: c_int, value: &mut T) -> io::Result<()> {
    let mut len = len_of::<T>();
    // SAFETY: the kernel writes at most `len` bytes to a value of that size; it is only used for integers and
    // structures of such, for which any bytes are a value.
    let done = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, (value as *mut T).cast(), &mut len)
    };
    Errno::result(done)?;
    Ok(())
}

fn link_address(index: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: integers and arrays of such, for which all zeroes are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().unwrap_or_default();
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.try_into().unwrap_or_default();
    address
}

fn bind_packet(fd: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    let address = link_address(index, protocol);
    // SAFETY: the address is valid for the length given, for the call.
    let done = unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len_of::<libc::sockaddr_ll>())
    };
    Errno::result(done)?;
    Ok(())
}

/// The interface that a packet socket is bound to, and that interface's ARPHRD type.
fn bound_to(fd: &OwnedFd) -> io::Result<(c_int, u16)> {
    let mut address = link_address(0, 0);
    let mut len = len_of::<libc::sockaddr_ll>();
    // SAFETY: the kernel writes at most `len` bytes to a structure of that size.
    let done = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &mut len) };
    Errno::result(done)?;
    if c_int::from(address.sll_family) != libc::AF_PACKET {
        return Err(Errno::EAFNOSUPPORT.into());
    }
    Ok((address.sll_ifindex, address.sll_hatype))
}

fn attach_filter(fd: &OwnedFd, filter: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len().try_into().map_err(|_| Errno::EINVAL)?,
        // The kernel only reads it.
        filter: filter.as_ptr().cast_mut(),
    };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// One step of a filter in the making: load what is at an offset, and go on only if it has one of some values.
struct Filter(Vec<sock_filter>);

impl Filter {
    const WORD: u32 = libc::BPF_W;
    const BYTE: u32 = libc::BPF_B;

    /// Rejects unless what is loaded is between two values, both included.
    fn require(&mut self, size: u32, at: u32, from: u32, to: u32) {
        let jump = |test, k, jt, jf| sock_filter {
            code: low(libc::BPF_JMP | test | libc::BPF_K),
            k,
            jt,
            jf,
        };
        self.0.push(statement(libc::BPF_LD | size | libc::BPF_ABS, at));
        // Too low goes to the rejection, and so does too high.
        self.0.push(jump(libc::BPF_JGE, from, 0, 1));
        self.0.push(jump(libc::BPF_JGT, to, 0, 1));
        self.0.push(statement(libc::BPF_RET | libc::BPF_K, 0));
    }

    fn require_address(&mut self, at: u32, address: Ipv6Addr) {
        for (at, word) in (at..).step_by(4).zip(address.octets().chunks_exact(4)) {
            let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
            self.require(Self::WORD, at, word, word);
        }
    }

    fn accept(mut self) -> Vec<sock_filter> {
        self.0.push(statement(libc::BPF_RET | libc::BPF_K, u32::MAX));
        self.0
    }
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: low(code), k, jt: 0, jf: 0 }
}

/// Operation codes have 16 bits.
fn low(code: u32) -> u16 {
    code.try_into().unwrap_or_default()
}

/// IPv6 packets for this host (as the kernel takes none with another's link address either) to `v6`.
///
/// Offsets count from the start of the frame, not from SKF_NET_OFF: before Linux 6.16 the latter does not reach into
/// the fragments of a buffer, where iwlwifi leaves the IP header.
fn destination_filter(link_header: usize, v6: Ipv6Addr) -> Vec<sock_filter> {
    let link_header = u32::try_from(link_header).unwrap_or_default();
    let ancillary = |what: c_int| u32::from_ne_bytes((libc::SKF_AD_OFF + what).to_ne_bytes());
    let mut filter = Filter(Vec::new());
    let protocol = u32::from(ETH_P_IPV6);
    filter.require(Filter::WORD, ancillary(libc::SKF_AD_PROTOCOL), protocol, protocol);
    let host = u32::from(libc::PACKET_HOST);
    filter.require(Filter::WORD, ancillary(libc::SKF_AD_PKTTYPE), host, host);
    filter.require_address(link_header + 24, v6);
    filter.accept()
}

/// Neighbour solicitations (135) and advertisements (136) about `target`, without extension headers.
fn neighbour_filter(target: Ipv6Addr) -> Vec<sock_filter> {
    let mut filter = Filter(Vec::new());
    filter.require(Filter::BYTE, 6, 58, 58);
    filter.require(Filter::BYTE, 40, 135, 136);
    filter.require_address(48, target);
    filter.accept()
}
