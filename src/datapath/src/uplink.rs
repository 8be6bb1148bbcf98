//! Sending on the uplink: whole batches past the kernel's IPv6 where the way is known, else packet by packet through it.

use std::io::IoSlice;
use std::time::Instant;

use clat_tun::VirtioHeader;
use nix::errno::Errno;

use crate::batch::{BATCH, LINK_HEADER};
use crate::coalesce::Group;
use crate::next_hop::Way;
use crate::socket::{PacketSocket, RawSocket};

/// How many packets are sent through the raw socket before it is asked again whether it has room: it has if half of its
/// queue is free, which is far more than these.
const ASK_EVERY: u32 = 16;

/// What takes no more for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The TUN device.
    Tun,
    /// The packet socket of the uplink.
    Packet,
    /// The raw socket of the uplink.
    Raw,
}

/// Both sockets of the uplink, and the way from there.
#[derive(Debug)]
pub struct Uplink {
    packet: PacketSocket,
    raw: RawSocket,
    way: Way,
    /// What stands in front of the packets of this batch, and its length; none if they go through the raw socket.
    link_header: Option<([u8; LINK_HEADER], usize)>,
    /// Packets sent through the raw socket since it was asked.
    unasked: u32,
    /// The interface was found to be down.
    went_down: bool,
}

impl Uplink {
    /// Sends by `packet` where `way` knows how, else by `raw`.
    #[must_use]
    pub fn new(packet: PacketSocket, raw: RawSocket, way: Way) -> Self {
        Self { packet, raw, way, link_header: None, unasked: 0, went_down: false }
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
    pub fn begin(&mut self) {
        self.link_header = self.way.link_header(&self.packet, Instant::now()).map(|known| {
            let mut header = [0; LINK_HEADER];
            header[..known.len()].copy_from_slice(known);
            (header, known.len())
        });
    }

    /// The longest packet that may leave, in bytes.
    #[must_use]
    pub fn mtu6(&self) -> u32 {
        self.way.mtu6()
    }

    /// Whether this batch may leave as a [`Group`].
    #[must_use]
    pub fn takes_groups(&self) -> bool {
        self.link_header.is_some()
    }

    /// Sends what waits in `group`, whose packets lie in `memory`. Those that the kernel does not take are counted in
    /// `lost`.
    ///
    /// # Errors
    /// [`Full::Packet`]: the rest is still waiting.
    pub fn send_group(
        &mut self,
        group: &mut Group,
        memory: &mut [u8],
        lost: &mut u64,
    ) -> Result<(), Full> {
        let Some((header, len)) = self.link_header else { return Ok(()) };
        for message in group.waiting() {
            let Some(start) = group.pieces(message).first().map(|piece| piece.start) else {
                continue;
            };
            memory[start - len..start].copy_from_slice(&header[..len]);
            let vnet = behind(message.vnet, len).to_bytes();
            memory[start - len - vnet.len()..start - len].copy_from_slice(&vnet);
        }
        while !group.waiting().is_empty() {
            let mut pieces = [IoSlice::new(&[]); BATCH];
            let mut ends = [0; BATCH];
            let (mut used, mut count) = (0, 0);
            for (message, end) in group.waiting().iter().zip(&mut ends) {
                let mut head = VirtioHeader::LEN + len;
                for piece in group.pieces(message) {
                    // There are no more pieces than slots.
                    pieces[used] = IoSlice::new(&memory[piece.start - head..piece.end]);
                    (used, head) = (used + 1, 0);
                }
                (*end, count) = (used, count + 1);
            }
            match self.packet.send(&pieces[..used], &ends[..count]) {
                Ok(taken) => group.leave(taken),
                Err(Errno::EAGAIN) => return Err(Full::Packet),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    // Who sends is told instead of who receives, and only once.
                    self.went_down |= matches!(errno, Errno::ENETDOWN | Errno::ENXIO);
                    *lost += group.waiting()[0].count as u64;
                    group.leave(1);
                }
            }
        }
        Ok(())
    }

    /// Whether the interface was found to be down since this was last asked.
    pub fn went_down(&mut self) -> bool {
        std::mem::take(&mut self.went_down)
    }

    /// Makes sure that the raw socket takes another packet.
    ///
    /// # Errors
    /// [`Full::Raw`].
    pub fn make_room(&mut self) -> Result<(), Full> {
        self.unasked += 1;
        if self.unasked >= ASK_EVERY {
            if !self.raw.has_room() {
                return Err(Full::Raw);
            }
            self.unasked = 0;
        }
        Ok(())
    }

    /// Sends one packet, complete with its checksums, by the raw socket.
    ///
    /// # Errors
    /// What the kernel said; the packet is lost then.
    pub fn send(&self, packet: &[u8]) -> Result<(), Errno> {
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
