// SPDX-License-Identifier: Apache-2.0

//! AF_PACKET on the uplink: many packets per call, each with a virtio header and its link header.

use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use clat_netlink::LinkKind;
use clat_sys::{mmsg, packet_socket as sys, set_nonblocking, socket};
use clat_tun::VirtioHeader;
use clat_xlat::TAILROOM;
use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::sys::uio::writev;

use super::{packet_socket, set_queue, set_send_queue, ETH_P_IPV6};
use crate::batch::{Batch, CAPACITY, FRONT, LINK_HEADER, STRIDE};
use crate::filter;

/// Not in `libc` for every C library (linux/if_packet.h).
const PACKET_STATISTICS: c_int = 6;
const PACKET_VNET_HDR: c_int = 15;
const PACKET_FANOUT: c_int = 18;
/// Fanout by BPF program. It runs for every packet that arrives on the interface, whatever its
/// destination, and costs a fraction of the kernel's own flow hash.
const PACKET_FANOUT_CBPF: c_int = 6;
/// Asks for a group number that is free in the network namespace.
const PACKET_FANOUT_FLAG_UNIQUEID: c_int = 0x2000;
const PACKET_FANOUT_DATA: c_int = 22;
const PACKET_IGNORE_OUTGOING: c_int = 23;

/// Receives IPv6 packets to the CLAT's address, and sends packets, GSO packets included.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    link: LinkKind,
}

impl PacketSocket {
    /// Opens one on the interface `index` for packets to `v6`. The filter is attached before the
    /// socket receives anything, so nothing else is ever queued.
    ///
    /// # Errors
    /// The kernel's error; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
    pub fn open(index: u32, v6: Ipv6Addr) -> io::Result<Self> {
        let fd = open_packet_socket()?;
        configure_packet_socket(fd.as_fd(), index, v6)?;
        Self::from_fd(fd)
    }

    /// Opens `count` more sockets that form a fanout group with this one on the interface `index`:
    /// all packets of a flow reach the same socket, and so do all fragments from one source.
    ///
    /// # Errors
    /// The kernel's error: `EINVAL` when the interface is down.
    pub fn share(&self, index: u32, v6: Ipv6Addr, count: usize) -> io::Result<Vec<Self>> {
        let program = PACKET_FANOUT_CBPF << 16;
        let new = program | PACKET_FANOUT_FLAG_UNIQUEID << 16;
        socket::set_int(&self.fd, libc::SOL_PACKET, PACKET_FANOUT, new)?;
        let flow = filter::flow();
        socket::set_program(&self.fd, libc::SOL_PACKET, PACKET_FANOUT_DATA, &flow)?;
        let group = socket::get_int(&self.fd, libc::SOL_PACKET, PACKET_FANOUT)?;
        let more = || {
            let fd = open_packet_socket()?;
            // Until it is in the group, it would receive what the first socket receives.
            attach(&fd, &filter::nothing())?;
            sys::bind(&fd, index, ETH_P_IPV6)?;
            let join = program | group & 0xffff;
            socket::set_int(&fd, libc::SOL_PACKET, PACKET_FANOUT, join)?;
            tune_packet_socket(fd.as_fd(), v6)?;
            Self::from_fd(fd)
        };
        (0..count).map(|_| more()).collect()
    }

    /// Uses a socket that the caller has opened, filtered and bound.
    ///
    /// # Errors
    /// The kernel's error; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let link = link_of(&fd)?;
        socket::set_int(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
        Ok(Self { fd, link })
    }

    /// Whether the uplink is Ethernet, so that packets need a link header.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        self.link == LinkKind::Ethernet
    }

    /// Whether the interface still exists (it may be down).
    #[must_use]
    pub fn has_interface(&self) -> bool {
        sys::interface(&self.fd).is_ok_and(|interface| interface.index.is_some())
    }

    /// Number of packets that the kernel has dropped because the queue was full, since the last
    /// call.
    #[must_use]
    pub fn overruns(&self) -> u64 {
        // struct tpacket_stats: packets, drops.
        let mut stats = [0; 8];
        let _ = socket::get_bytes(&self.fd, libc::SOL_PACKET, PACKET_STATISTICS, &mut stats);
        let [.., a, b, c, d] = stats;
        u32::from_ne_bytes([a, b, c, d]).into()
    }

    /// The interface's index and its current link-layer address.
    ///
    /// # Errors
    /// `ENODEV` if the interface no longer exists; else the kernel's error.
    pub fn link_address(&self) -> io::Result<(u32, [u8; 6])> {
        let interface = sys::interface(&self.fd)?;
        Ok((interface.index.ok_or(Errno::ENODEV)?, interface.address))
    }

    /// Reads up to `count` packets, each into its own slot.
    ///
    /// # Errors
    /// `EAGAIN` if none waits, `ENETDOWN` if the interface has gone down, `EINVAL` for a GSO type
    /// that a virtio header cannot describe.
    pub fn recv(&self, batch: &mut Batch, count: usize) -> Result<(), Errno> {
        let start = FRONT - header_len(self.link);
        let room = start - VirtioHeader::LEN..STRIDE - TAILROOM;
        let mut lens = [0; CAPACITY];
        let lens = &mut lens[..count.min(CAPACITY)];
        let got = mmsg::receive(&self.fd, (batch.memory(), STRIDE), &room, lens)?;
        // At most 14.
        let link_header = u16::try_from(header_len(self.link)).unwrap_or_default();
        for (at, len) in lens[..got].iter().enumerate() {
            let head = &batch.memory()[at * STRIDE + room.start..];
            let mut vnet = VirtioHeader::from_bytes(head).unwrap_or_default();
            vnet.csum_start = vnet.csum_start.wrapping_sub(link_header);
            vnet.hdr_len = vnet.hdr_len.saturating_sub(link_header);
            // A packet that fills the slot may have been cut; it is recorded as empty.
            let len = if *len < room.len() { *len } else { 0 };
            batch.push(vnet, len.saturating_sub(VirtioHeader::LEN + header_len(self.link)));
        }
        Ok(())
    }

    /// Sends frames. Each has a virtio header and a link header in front, and consists of the
    /// `pieces` up to its entry in `ends`. Returns how many frames were sent.
    ///
    /// One frame per writev(2), which sends by the interface that the socket is bound to. The
    /// destination of sendmmsg(2) can name another interface, and is in memory, where no seccomp
    /// filter sees it.
    ///
    /// # Errors
    /// The kernel's error for the first frame: `EAGAIN` if the socket is full, `ENOBUFS` if the
    /// interface's queue is, `ENETDOWN` if the interface is down, `EMSGSIZE` if the frame is too
    /// long for it.
    pub fn send(&self, pieces: &[IoSlice<'_>], ends: &[usize]) -> Result<usize, Errno> {
        let mut from = 0;
        for (sent, end) in ends.iter().enumerate() {
            match writev(&self.fd, pieces.get(from..*end).ok_or(Errno::EINVAL)?) {
                Err(errno) if sent == 0 => return Err(errno),
                Err(_) => return Ok(sent),
                Ok(_) => from = *end,
            }
        }
        Ok(ends.len())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens a packet socket with virtio headers. It receives nothing until it is configured.
///
/// # Errors
/// The kernel's error.
pub fn open_packet_socket() -> io::Result<OwnedFd> {
    let fd = packet_socket(libc::SOCK_RAW)?;
    socket::set_int(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
    Ok(fd)
}

/// Binds a packet socket to the interface `index`, for packets to `v6`. The filter is attached
/// before the socket receives anything, so nothing else is ever queued.
///
/// # Errors
/// The kernel's error; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
pub fn configure_packet_socket(fd: BorrowedFd<'_>, index: u32, v6: Ipv6Addr) -> io::Result<()> {
    // Bound to protocol 0 it receives nothing, but getsockname(2) tells the interface's type.
    sys::bind(fd, index, 0)?;
    tune_packet_socket(fd, v6)?;
    Ok(sys::bind(fd, index, ETH_P_IPV6)?)
}

/// Sets filter and queues of a packet socket that is bound to an interface.
fn tune_packet_socket(fd: BorrowedFd<'_>, v6: Ipv6Addr) -> io::Result<()> {
    attach(&fd, &filter::destination(header_len(link_of(&fd)?), v6))?;
    // Linux before 4.20 does not have this option; the filter rejects what we send in any case.
    let _ = socket::set_int(fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    set_queue(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)?;
    set_send_queue(fd)
}

fn attach(fd: &impl AsFd, program: &[libc::sock_filter]) -> io::Result<()> {
    Ok(socket::set_program(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)?)
}

/// The link kind of the interface that a packet socket is bound to.
fn link_of(fd: &impl AsFd) -> io::Result<LinkKind> {
    let hardware = sys::interface(fd)?.hardware;
    LinkKind::from_hardware(hardware).ok_or_else(|| Errno::EAFNOSUPPORT.into())
}

/// Length of its link header in bytes.
fn header_len(link: LinkKind) -> usize {
    match link {
        LinkKind::Ethernet => LINK_HEADER,
        LinkKind::RawIp => 0,
    }
}
