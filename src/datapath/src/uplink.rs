// SPDX-License-Identifier: Apache-2.0

//! The uplink as an end of a CLAT: batches leave past the kernel's IPv6 by the packet socket where
//! the next hop is known, else each packet by the raw socket, through the kernel.

use std::io::IoSlice;
use std::time::Instant;

use clat_tun::VirtioHeader;
use nix::errno::Errno;

use crate::batch::{CAPACITY, LINK_HEADER};
use crate::coalesce::Coalescer;
use crate::next_hop::NextHopCache;
use crate::path::{Full, Output};
use crate::socket::{PacketSocket, RawSocket};

/// How many packets are sent through the raw socket before it is asked again whether it has room:
/// it has if half of its queue is free, which is far more than these.
const ASK_EVERY: u32 = 16;

/// Both sockets of the uplink, and the next hop from there.
#[derive(Debug)]
pub struct Uplink {
    packet: PacketSocket,
    raw: RawSocket,
    next_hop: NextHopCache,
    /// What stands in front of the packets of this batch, and its length; none if they go through
    /// the raw socket.
    link_header: Option<([u8; LINK_HEADER], usize)>,
    /// Packets sent through the raw socket since it was asked.
    unasked: u32,
    /// The interface was found to be down.
    went_down: bool,
}

impl Uplink {
    /// Sends by `packet` where `next_hop` is known, else by `raw`.
    #[must_use]
    pub fn new(packet: PacketSocket, raw: RawSocket, next_hop: NextHopCache) -> Self {
        Self { packet, raw, next_hop, link_header: None, unasked: 0, went_down: false }
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

    /// Decides by which socket a new batch will leave.
    pub fn begin(&mut self, now: Instant) {
        self.link_header = self.next_hop.link_header(&self.packet, now).map(|known| {
            let mut header = [0; LINK_HEADER];
            header[..known.len()].copy_from_slice(known);
            (header, known.len())
        });
    }

    /// The longest packet that may leave, in bytes.
    #[must_use]
    pub fn mtu6(&self) -> u32 {
        self.next_hop.mtu6()
    }

    /// Whether the interface was found to be down since this was last asked.
    pub fn went_down(&mut self) -> bool {
        std::mem::take(&mut self.went_down)
    }
}

impl Output for Uplink {
    fn takes_batches(&self) -> bool {
        self.link_header.is_some()
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
                    // There are no more pieces than slots.
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
                    // The kernel reports it to one system call only: receiving will not see it.
                    self.went_down |= matches!(errno, Errno::ENETDOWN | Errno::ENXIO);
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
            if !self.raw.has_room() {
                return Err(Full::Raw);
            }
            self.unasked = 0;
        }
        Ok(())
    }

    fn send(&mut self, packet: &[u8]) -> Result<(), Errno> {
        self.raw.send(packet)
    }
}

/// The same virtio header in front of a link header of `len` bytes.
fn behind(vnet: VirtioHeader, len: usize) -> VirtioHeader {
    if !vnet.needs_csum {
        return vnet;
    }
    // 0 or 14.
    let len = u16::try_from(len).unwrap_or_default();
    VirtioHeader { hdr_len: vnet.hdr_len + len, csum_start: vnet.csum_start + len, ..vnet }
}
