// SPDX-License-Identifier: Apache-2.0

//! AF_PACKET on the uplink: many packets a call, each behind a virtio header and its link header.

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
/// By a program: it is asked about every packet that arrives on the interface, whoever it is for,
/// and takes a fraction of what the kernel's own hash of a flow does.
const PACKET_FANOUT_CBPF: c_int = 6;
/// The first asks for a number that no other group in the network namespace has.
const PACKET_FANOUT_FLAG_UNIQUEID: c_int = 0x2000;
const PACKET_FANOUT_DATA: c_int = 22;
const PACKET_IGNORE_OUTGOING: c_int = 23;

/// Where IPv6 packets for the CLAT's address come in, and super-packets go out.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    link: LinkKind,
}

impl PacketSocket {
    /// Opens one on the interface `index` for packets to `v6`. Nothing else is ever queued: the
    /// filter is there before the socket hears anything.
    ///
    /// # Errors
    /// What the kernel said; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
    pub fn open(index: u32, v6: Ipv6Addr) -> io::Result<Self> {
        let fd = open_packet_socket()?;
        configure_packet_socket(fd.as_fd(), index, v6)?;
        Self::from_fd(fd)
    }

    /// Opens `count` more that share with this one what arrives for `v6` on the interface `index`:
    /// all packets of a flow reach the same socket, and all fragments from one source.
    ///
    /// # Errors
    /// What the kernel said: `EINVAL` when the interface is down.
    pub fn share(&self, index: u32, v6: Ipv6Addr, count: usize) -> io::Result<Vec<Self>> {
        let program = PACKET_FANOUT_CBPF << 16;
        let new = program | PACKET_FANOUT_FLAG_UNIQUEID << 16;
        socket::set_int(&self.fd, libc::SOL_PACKET, PACKET_FANOUT, new)?;
        let flow = filter::flow();
        socket::set_program(&self.fd, libc::SOL_PACKET, PACKET_FANOUT_DATA, &flow)?;
        let group = socket::get_int(&self.fd, libc::SOL_PACKET, PACKET_FANOUT)?;
        let more = || {
            let fd = open_packet_socket()?;
            // Until it is one of the group, it would hear what the first hears.
            attach(&fd, &filter::nothing())?;
            sys::bind(&fd, index, ETH_P_IPV6)?;
            let join = program | group & 0xffff;
            socket::set_int(&fd, libc::SOL_PACKET, PACKET_FANOUT, join)?;
            tune_packet_socket(fd.as_fd(), v6)?;
            Self::from_fd(fd)
        };
        (0..count).map(|_| more()).collect()
    }

    /// Takes over one that the caller has opened, filtered and bound.
    ///
    /// # Errors
    /// What the kernel said; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let link = link_of(&fd)?;
        socket::set_int(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
        Ok(Self { fd, link })
    }

    /// Whether the uplink is Ethernet, where addresses are resolved.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        self.link == LinkKind::Ethernet
    }

    /// Whether the interface is still there (it may be down).
    #[must_use]
    pub fn has_interface(&self) -> bool {
        sys::interface(&self.fd).is_ok_and(|interface| interface.index.is_some())
    }

    /// How many packets the kernel has dropped since this was last asked, because too many were
    /// waiting.
    #[must_use]
    pub fn overruns(&self) -> u64 {
        // struct tpacket_stats: packets, drops.
        let mut stats = [0; 8];
        let _ = socket::get_bytes(&self.fd, libc::SOL_PACKET, PACKET_STATISTICS, &mut stats);
        let [.., a, b, c, d] = stats;
        u32::from_ne_bytes([a, b, c, d]).into()
    }

    /// The interface's index and its own link address, as it is now.
    ///
    /// # Errors
    /// `ENODEV` for an interface that is gone; what else the kernel said.
    pub fn link_address(&self) -> io::Result<(u32, [u8; 6])> {
        let interface = sys::interface(&self.fd)?;
        Ok((interface.index.ok_or(Errno::ENODEV)?, interface.address))
    }

    /// Reads up to `count` packets, each into a slot of its own, and notes there what they are.
    ///
    /// # Errors
    /// `EAGAIN` when none waits, `ENETDOWN` when the interface has gone down, `EINVAL` for a kind
    /// of segmentation that the kernel cannot describe.
    pub fn recv(&self, batch: &mut Batch, count: usize) -> Result<(), Errno> {
        let start = FRONT - header_len(self.link);
        let room = start - VirtioHeader::LEN..STRIDE - TAILROOM;
        let mut lens = [0; CAPACITY];
        let lens = &mut lens[..count.min(CAPACITY)];
        let got = mmsg::receive(&self.fd, (batch.memory(), STRIDE), &room, lens)?;
        // At most 14: it fits.
        let link_header = u16::try_from(header_len(self.link)).unwrap_or_default();
        for (at, len) in lens[..got].iter().enumerate() {
            let head = &batch.memory()[at * STRIDE + room.start..];
            let mut vnet = VirtioHeader::from_bytes(head).unwrap_or_default();
            vnet.csum_start = vnet.csum_start.wrapping_sub(link_header);
            vnet.hdr_len = vnet.hdr_len.saturating_sub(link_header);
            // One that fills the room may have been cut; it counts as one of no bytes.
            let len = if *len < room.len() { *len } else { 0 };
            batch.push(vnet, len.saturating_sub(VirtioHeader::LEN + header_len(self.link)));
        }
        Ok(())
    }

    /// Sends frames, each behind its virtio header and its link header and in some of the `pieces`,
    /// up to the end of which `ends` tells. Returns how many were taken.
    ///
    /// One a call: the address that sendmmsg(2) takes is in memory, where no filter of system calls
    /// sees it, and a packet socket sends by any interface that it is told. writev(2) knows the one
    /// only that the socket is bound to.
    ///
    /// # Errors
    /// What the kernel said about the first: `EAGAIN` when the socket is full, `ENOBUFS` when the
    /// queue of the interface is, `ENETDOWN` when it is down, `EMSGSIZE` for a frame that is too
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

/// Opens a packet socket with a virtio header in front of each packet. It hears nothing until it is
/// configured.
///
/// # Errors
/// What the kernel said.
pub fn open_packet_socket() -> io::Result<OwnedFd> {
    let fd = packet_socket(libc::SOCK_RAW)?;
    socket::set_int(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
    Ok(fd)
}

/// Binds a packet socket to the interface `index`, for packets to `v6`. Nothing else is ever
/// queued: the filter is there before the socket hears anything.
///
/// # Errors
/// What the kernel said; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
pub fn configure_packet_socket(fd: BorrowedFd<'_>, index: u32, v6: Ipv6Addr) -> io::Result<()> {
    // Bound to no protocol it hears nothing, but knows what the interface is.
    sys::bind(fd, index, 0)?;
    tune_packet_socket(fd, v6)?;
    Ok(sys::bind(fd, index, ETH_P_IPV6)?)
}

/// The filter and the queues of a packet socket that is bound to an interface.
fn tune_packet_socket(fd: BorrowedFd<'_>, v6: Ipv6Addr) -> io::Result<()> {
    attach(&fd, &filter::destination(header_len(link_of(&fd)?), v6))?;
    // Before 4.20 there is no such option; what we send is not ETH_P_IPV6 traffic to v6 anyway.
    let _ = socket::set_int(fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    set_queue(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)?;
    set_send_queue(fd)
}

fn attach(fd: &impl AsFd, program: &[libc::sock_filter]) -> io::Result<()> {
    Ok(socket::set_program(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)?)
}

/// The kind of the interface that a packet socket is bound to.
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
