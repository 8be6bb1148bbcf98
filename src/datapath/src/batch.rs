// SPDX-License-Identifier: Apache-2.0

//! Buffer for a batch of packets. Each has its own slot, in which it is translated in place.

use std::ops::Range;

use clat_tun::VirtioHeader;
use clat_xlat::{HEADROOM, TAILROOM};

/// Most packets read from one side before the other side is served.
pub const CAPACITY: usize = clat_sys::mmsg::MAX_MESSAGES;

/// Bytes of the longest link header known, Ethernet's.
pub const LINK_HEADER: usize = 14;

/// Offset in the slot at which a packet's IP header is read. In front of it, translation needs
/// [`clat_xlat::HEADROOM`], and the translated packet gets a link header and a virtio header.
pub const FRONT: usize = 128;

const _: () = assert!(FRONT >= HEADROOM + LINK_HEADER + VirtioHeader::LEN);

/// Bytes from slot to slot: room for the largest packet, and one byte to notice a larger one. An
/// odd multiple of 64, so that the headers of all slots do not compete for the same cache sets.
pub const STRIDE: usize = (FRONT + 40 + 65535 + 1 + TAILROOM).next_multiple_of(128) + 64;

/// Slots, of which the first few hold packets.
#[derive(Debug)]
pub struct Batch {
    memory: Vec<u8>,
    packets: Vec<(VirtioHeader, usize)>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { memory: vec![0; CAPACITY * STRIDE], packets: Vec::with_capacity(CAPACITY) }
    }
}

impl Batch {
    /// The memory of all slots.
    pub fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// The memory of one slot.
    pub fn slot(&mut self, index: usize) -> &mut [u8] {
        &mut self.memory[index * STRIDE..(index + 1) * STRIDE]
    }

    /// Number of packets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there are no packets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The virtio header of a packet, its offsets counted from the IP header, and the packet's
    /// range in its slot.
    #[must_use]
    pub fn packet(&self, index: usize) -> (VirtioHeader, Range<usize>) {
        let (vnet, len) = self.packets.get(index).copied().unwrap_or_default();
        (vnet, FRONT..FRONT + len)
    }

    /// Notes that the next slot now has a packet of `len` bytes.
    pub fn push(&mut self, vnet: VirtioHeader, len: usize) {
        self.packets.push((vnet, len));
    }

    /// Removes all packets.
    pub fn clear(&mut self) {
        self.packets.clear();
    }
}
