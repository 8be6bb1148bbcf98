// SPDX-License-Identifier: Apache-2.0

//! Room for a batch of packets, each in a slot of its own, where it is translated in place.

use std::ops::Range;

use clat_tun::VirtioHeader;
use clat_xlat::{HEADROOM, TAILROOM};

/// Packets that are read from one side before the other gets its turn.
pub const CAPACITY: usize = clat_sys::mmsg::MAX_MESSAGES;

/// The longest link header that is understood, Ethernet's.
pub const LINK_HEADER: usize = 14;

/// Where in its slot a packet's IP header is read to. In front of that the translator wants some
/// room; what it makes of the packet gets a link header and a virtio header in front.
pub const FRONT: usize = 128;

const _: () = assert!(FRONT >= HEADROOM + LINK_HEADER + VirtioHeader::LEN);

/// Bytes from slot to slot: room for the largest packet, and a byte by which to notice a larger
/// one. An odd multiple of a cache line, lest the headers of all slots compete for the same few
/// lines.
pub const STRIDE: usize = (FRONT + 40 + 65535 + 1 + TAILROOM).next_multiple_of(128) + 64;

/// The slots, of which the first some hold packets.
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
    /// All of the memory.
    pub fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// The memory of one slot.
    pub fn slot(&mut self, index: usize) -> &mut [u8] {
        &mut self.memory[index * STRIDE..(index + 1) * STRIDE]
    }

    /// How many packets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// What was noted of a packet, offsets from its IP header on, and where in its slot it lies.
    #[must_use]
    pub fn packet(&self, index: usize) -> (VirtioHeader, Range<usize>) {
        let (vnet, len) = self.packets.get(index).copied().unwrap_or_default();
        (vnet, FRONT..FRONT + len)
    }

    /// The next slot has a packet of `len` bytes now.
    pub fn push(&mut self, vnet: VirtioHeader, len: usize) {
        self.packets.push((vnet, len));
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.packets.clear();
    }
}
