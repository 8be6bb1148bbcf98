// SPDX-License-Identifier: Apache-2.0

//! The uplink: packets are sent by the packet socket, past the kernel's IPv6, if the next hop is
//! known, else by the raw socket.
//!
//! All fragments of a datagram take the same socket: connection tracking (nf_defrag_ipv6) holds
//! those that go through the kernel until it has all of them.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use clat_packet::protocol::FRAGMENT;
use clat_tun::VirtioHeader;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::batch::{CAPACITY, LINK_HEADER};
use crate::coalesce::Coalescer;
use crate::next_hop::NextHopCache;
use crate::path::{Full, Output};
use crate::socket::{PacketSocket, RawSocket};

/// Number of packets sent one by one before the sockets are polled for room again. Writable means
/// that half of the queue is free, far more than these need.
const ASK_EVERY: u32 = 16;

/// The uplink's sockets and next hop.
#[derive(Debug)]
pub struct Uplink {
    packet: PacketSocket,
    raw: RawSocket,
    next_hop: NextHopCache,
    /// The link header of packets of this batch, and its length; `None` if they go through the raw
    /// socket.
    link_header: Option<([u8; LINK_HEADER], usize)>,
    /// The next packet that is no fragment goes through the raw socket
    /// ([`NextHopCache::confirmed`]).
    confirm: bool,
    /// Packets sent one by one since the sockets were polled.
    unasked: u32,
    /// The interface was found to be down.
    went_down: bool,
}

impl Uplink {
    /// Sends by `packet` where `next_hop` is known, else by `raw`.
    #[must_use]
    pub fn new(packet: PacketSocket, raw: RawSocket, next_hop: NextHopCache) -> Self {
        Self {
            packet,
            raw,
            next_hop,
            link_header: None,
            confirm: false,
            unasked: 0,
            went_down: false,
        }
    }

    /// The packet socket.
    #[must_use]
    pub fn packet_socket(&self) -> &PacketSocket {
        &self.packet
    }

    /// The raw socket.
    #[must_use]
    pub fn raw_socket(&self) -> &RawSocket {
        &self.raw
    }

    /// Decides which socket sends the next batch.
    pub fn begin(&mut self, now: Instant) {
        let known = self.next_hop.link_header(&self.packet, now);
        self.confirm = known.is_some_and(|(_, confirm)| confirm);
        self.link_header = known.map(|(known, _)| {
            let mut header = [0; LINK_HEADER];
            header[..known.len()].copy_from_slice(known);
            (header, known.len())
        });
    }

    /// The longest packet that may be sent, in bytes.
    #[must_use]
    pub fn mtu6(&self) -> u32 {
        self.next_hop.mtu6()
    }

    /// Whether the interface was found to be down since the last call.
    pub fn went_down(&mut self) -> bool {
        std::mem::take(&mut self.went_down)
    }
}

impl Output for Uplink {
    fn takes_batches(&self) -> bool {
        self.link_header.is_some() && !self.confirm
    }

    fn send_batch(
        &mut self,
        coalescer: &mut Coalescer,
        memory: &mut [u8],
        lost: &mut u64,
    ) -> Result<(), Full> {
        let Some((header, len)) = self.link_header else { return Ok(()) };
        for message in coalescer.waiting() {
            let Some(start) = coalescer.pieces(message).first().map(|piece| piece.start) else {
                continue;
            };
            memory[start - len..start].copy_from_slice(&header[..len]);
            let vnet = behind(message.vnet, len).to_bytes();
            memory[start - len - vnet.len()..start - len].copy_from_slice(&vnet);
        }
        while !coalescer.waiting().is_empty() {
            let mut pieces = [IoSlice::new(&[]); CAPACITY];
            let mut ends = [0; CAPACITY];
            let (mut used, mut count) = (0, 0);
            for (message, end) in coalescer.waiting().iter().zip(&mut ends) {
                let mut head = VirtioHeader::LEN + len;
                for piece in coalescer.pieces(message) {
                    // There are at most as many pieces as slots.
                    pieces[used] = IoSlice::new(&memory[piece.start - head..piece.end]);
                    (used, head) = (used + 1, 0);
                }
                (*end, count) = (used, count + 1);
            }
            match self.packet.send(&pieces[..used], &ends[..count]) {
                Ok(taken) => coalescer.remove(taken),
                Err(Errno::EAGAIN) => return Err(Full::Packet),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    // The kernel reports ENETDOWN once; receiving will not report it again.
                    self.went_down |= is_down(errno);
                    *lost += coalescer.waiting()[0].count as u64;
                    coalescer.remove(1);
                }
            }
        }
        Ok(())
    }

    fn make_room(&mut self) -> Result<(), Full> {
        self.unasked += 1;
        if self.unasked >= ASK_EVERY {
            if !has_room(self.raw.as_fd()) {
                return Err(Full::Raw);
            }
            if !has_room(self.packet.as_fd()) {
                return Err(Full::Packet);
            }
            self.unasked = 0;
        }
        Ok(())
    }

    fn forward(&mut self, packet: &[u8]) -> Result<(), Errno> {
        let is_fragment = packet.get(6) == Some(&FRAGMENT);
        let Some((header, len)) = self.link_header.filter(|_| is_fragment || !self.confirm) else {
            return self.send(packet);
        };
        let mut head = [0; VirtioHeader::LEN + LINK_HEADER];
        head[VirtioHeader::LEN..].copy_from_slice(&header);
        let pieces = [IoSlice::new(&head[..VirtioHeader::LEN + len]), IoSlice::new(packet)];
        let sent = self.packet.send(&pieces, &[2]);
        self.went_down |= sent.is_err_and(is_down);
        sent.map(drop)
    }

    fn send(&mut self, packet: &[u8]) -> Result<(), Errno> {
        if packet.get(6) != Some(&FRAGMENT) {
            self.confirm = false;
            self.next_hop.confirmed();
        }
        self.raw.send(packet)
    }
}

/// Whether a socket has room for a packet: at least half of its queue is free.
fn has_room(socket: BorrowedFd<'_>) -> bool {
    let mut fd = [PollFd::new(socket, PollFlags::POLLOUT)];
    poll(&mut fd, PollTimeout::ZERO) != Ok(0)
}

/// Whether the interface is down or no longer exists.
fn is_down(errno: Errno) -> bool {
    matches!(errno, Errno::ENETDOWN | Errno::ENXIO)
}

/// The same virtio header for a packet behind a link header of `len` bytes.
fn behind(vnet: VirtioHeader, len: usize) -> VirtioHeader {
    if !vnet.needs_csum {
        return vnet;
    }
    // 0 or 14.
    let len = u16::try_from(len).unwrap_or_default();
    VirtioHeader { hdr_len: vnet.hdr_len + len, csum_start: vnet.csum_start + len, ..vnet }
}
