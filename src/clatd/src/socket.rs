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

use crate::filter;

/// What may wait to be received, and to be sent, in bytes. A burst must not be lost while the other direction is
/// served; what is too much for the link is the queue's to drop, not ours.
const QUEUE: usize = 8 << 20;

/// The longest link header that is understood, Ethernet's.
pub const LINK_HEADER: usize = 14;

/// Not in `libc` for every C library (linux/if_packet.h).
const PACKET_STATISTICS: c_int = 6;
const PACKET_VNET_HDR: c_int = 15;
const PACKET_IGNORE_OUTGOING: c_int = 23;
const ETH_P_IPV6: u16 = 0x86dd;
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
        let fd = open_packet_socket()?;
        configure_packet_socket(fd.as_fd(), index, v6)?;
        Self::from_fd(fd)
    }

    /// Takes over one that the caller has opened, filtered and bound.
    ///
    /// # Errors
    /// What the kernel said; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let (link_header, hardware) = link_of(&fd)?;
        set(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, &1)?;
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
        // struct tpacket_stats: packets, drops.
        let mut stats = [0u32; 2];
        let _ = get(&self.fd, libc::SOL_PACKET, PACKET_STATISTICS, &mut stats);
        stats[1].into()
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
        let fd = open_raw_socket()?;
        sys::setsockopt(&fd, sockopt::BindToDevice, &interface.into())?;
        set_mark(fd.as_fd(), mark)?;
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
        attach_filter(&fd, &filter::neighbours(target))?;
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

/// Makes this process one that no other of its user may look into (PR_SET_DUMPABLE).
///
/// # Errors
/// What the kernel said.
pub fn become_undumpable() -> io::Result<()> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    Ok(())
}

/// Keeps this process from ever gaining a privilege (PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// What the kernel said.
pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}

/// Opens a packet socket with a virtio header in front of each packet. It hears nothing until it is configured.
///
/// # Errors
/// What the kernel said.
pub fn open_packet_socket() -> io::Result<OwnedFd> {
    let fd = packet_socket(libc::SOCK_RAW)?;
    set(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, &1)?;
    Ok(fd)
}

/// Binds a packet socket to the interface `index`, for packets to `v6`. Nothing else is ever queued: the filter is
/// there before the socket hears anything.
///
/// # Errors
/// What the kernel said; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
pub fn configure_packet_socket(fd: BorrowedFd<'_>, index: u32, v6: Ipv6Addr) -> io::Result<()> {
    // Bound to no protocol it hears nothing, but knows what the interface is.
    bind_packet(&fd, index, 0)?;
    let (link_header, _) = link_of(&fd)?;
    attach_filter(&fd, &filter::destination(link_header, v6))?;
    // Before 4.20 there is no such option; what we send is not ETH_P_IPV6 traffic to v6 anyway.
    let _ = set(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1);
    if sys::setsockopt(&fd, sockopt::RcvBufForce, &QUEUE).is_err() {
        sys::setsockopt(&fd, sockopt::RcvBuf, &QUEUE)?;
    }
    bind_packet(&fd, index, ETH_P_IPV6)
}

/// Opens a raw socket that IPv6 packets leave by, headers and all.
///
/// # Errors
/// What the kernel said.
pub fn open_raw_socket() -> io::Result<OwnedFd> {
    let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // IPPROTO_RAW: the header is ours.
    socket(libc::AF_INET6, flags, libc::IPPROTO_RAW)
}

/// Sets the mark of what a socket sends (SO_MARK).
///
/// # Errors
/// What the kernel said.
pub fn set_mark(fd: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    set(&fd, libc::SOL_SOCKET, libc::SO_MARK, &mark)
}

/// Makes `v6` an anycast address of the interface `index`, so that the kernel answers neighbour discovery for it, for
/// as long as this IPv6 socket is open.
///
/// # Errors
/// `EADDRNOTAVAIL` when no prefix of the interface covers it (on a host; see `ipv6_sock_ac_join`), `EINVAL` when
/// an interface has it already.
pub fn join_anycast(fd: BorrowedFd<'_>, index: u32, v6: Ipv6Addr) -> io::Result<()> {
    // struct ipv6_mreq, whose index has another sign in every C library.
    let mut request = [0; 20];
    request[..16].copy_from_slice(&v6.octets());
    request[16..].copy_from_slice(&index.to_ne_bytes());
    set(&fd, libc::IPPROTO_IPV6, libc::IPV6_JOIN_ANYCAST, &request)
}

/// The kernel's number of a socket (SO_COOKIE), which no other socket ever gets.
///
/// # Errors
/// What the kernel said.
pub fn socket_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0;
    get(&fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut cookie)?;
    Ok(cookie)
}

/// What the path of packets with `mark` towards `to` carries, in bytes of IPv6; of the one by `interface`, if given.
///
/// # Errors
/// What the kernel said; `ENETUNREACH` without a route.
pub fn path_mtu(interface: Option<&str>, mark: u32, to: Ipv6Addr) -> io::Result<u32> {
    let fd = socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
    if let Some(interface) = interface {
        sys::setsockopt(&fd, sockopt::BindToDevice, &interface.into())?;
    }
    // None is there already, and setting it takes a privilege that who was handed its sockets does not have.
    if mark != 0 {
        set_mark(fd.as_fd(), mark)?;
    }
    // Nothing is sent by connecting a datagram socket; any port will do.
    sys::connect(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(to, 53, 0, 0)))?;
    let mut mtu: c_int = 0;
    get(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU, &mut mtu)?;
    u32::try_from(mtu).map_err(|_| Errno::EINVAL.into())
}

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

fn set<T>(fd: &impl AsFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads at most as many bytes as the value has.
    let done = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (value as *const T).cast(),
            len_of::<T>(),
        )
    };
    Errno::result(done)?;
    Ok(())
}

fn get<T>(fd: &impl AsFd, level: c_int, name: c_int, value: &mut T) -> io::Result<()> {
    let mut len = len_of::<T>();
    // SAFETY: the kernel writes at most `len` bytes to a value of that size; it is only used for integers and
    // structures of such, for which any bytes are a value.
    let done = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, (value as *mut T).cast(), &mut len)
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

fn bind_packet(fd: &impl AsFd, index: u32, protocol: u16) -> io::Result<()> {
    let address = link_address(index, protocol);
    // SAFETY: the address is valid for the length given, for the call.
    let done = unsafe {
        libc::bind(
            fd.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            len_of::<libc::sockaddr_ll>(),
        )
    };
    Errno::result(done)?;
    Ok(())
}

/// The interface that a packet socket is bound to, and that interface's ARPHRD type.
fn bound_to(fd: &impl AsFd) -> io::Result<(c_int, u16)> {
    let mut address = link_address(0, 0);
    let mut len = len_of::<libc::sockaddr_ll>();
    // SAFETY: the kernel writes at most `len` bytes to a structure of that size.
    let done =
        unsafe { libc::getsockname(fd.as_fd().as_raw_fd(), (&raw mut address).cast(), &mut len) };
    Errno::result(done)?;
    if c_int::from(address.sll_family) != libc::AF_PACKET {
        return Err(Errno::EAFNOSUPPORT.into());
    }
    Ok((address.sll_ifindex, address.sll_hatype))
}

/// Length of the link header on the interface that a packet socket is bound to, and that interface's ARPHRD type.
fn link_of(fd: &impl AsFd) -> io::Result<(usize, u16)> {
    let (_, hardware) = bound_to(fd)?;
    match hardware {
        libc::ARPHRD_ETHER => Ok((LINK_HEADER, hardware)),
        libc::ARPHRD_NONE | libc::ARPHRD_PPP | ARPHRD_RAWIP | ARPHRD_RAWIP_OLD => Ok((0, hardware)),
        _ => Err(Errno::EAFNOSUPPORT.into()),
    }
}

fn attach_filter(fd: &impl AsFd, filter: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len().try_into().map_err(|_| Errno::EINVAL)?,
        // The kernel only reads it.
        filter: filter.as_ptr().cast_mut(),
    };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}
