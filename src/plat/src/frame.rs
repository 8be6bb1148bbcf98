// SPDX-License-Identifier: Apache-2.0

//! Ethernet frames for the guest, in one buffer.

use std::fmt;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::str::FromStr;

use clat_tun::VirtioHeader;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// The largest frame: an IPv6 header and the largest Payload Length.
pub const MAX_FRAME: usize = ETHERNET + 40 + 65535;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it is a group address (the I/G bit).
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The address that a station has in a /64 by autoconfiguration (RFC 4291, appendix A).
    #[must_use]
    pub fn address_in(self, prefix: Ipv6Addr) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let identifier = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        (prefix.to_bits() | u128::from(identifier)).into()
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    /// Reads what [`Display`](fmt::Display) writes: the address of one station.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':').map(|part| u8::from_str_radix(part, 16).ok());
        let mac = [(); 6].map(|()| parts.next().flatten());
        let [Some(a), Some(b), Some(c), Some(d), Some(e), Some(f)] = mac else {
            return Err("write it like 02:00:00:00:04:64");
        };
        let mac = Self([a, b, c, d, e, f]);
        if parts.next().is_some() || mac.is_multicast() || mac == Self::default() {
            return Err("it is no address of one station; write it like 02:00:00:00:04:64");
        }
        Ok(mac)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Frames for the guest, each with what its receiver has to complete.
///
/// They are consecutive in one buffer that is reused, so that a frame costs no allocation.
#[derive(Debug, Default)]
pub struct Out {
    buf: Vec<u8>,
    frames: Vec<(Range<usize>, VirtioHeader)>,
}

impl Out {
    /// Adds a complete frame: Ethernet header, payload, all checksums.
    pub fn push(&mut self, frame: &[u8]) {
        self.push_with(VirtioHeader::default(), |buf| buf.extend_from_slice(frame));
    }

    /// Adds the frame that `write` appends to the buffer; if nothing is appended, no frame is
    /// added.
    pub fn push_with(&mut self, vnet: VirtioHeader, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.buf.len();
        write(&mut self.buf);
        if self.buf.len() > start {
            self.frames.push((start..self.buf.len(), vnet));
        }
    }

    /// Adds a frame given in pieces.
    pub fn push_parts(&mut self, vnet: &VirtioHeader, parts: &[&[u8]]) {
        self.push_with(*vnet, |buf| parts.iter().for_each(|part| buf.extend_from_slice(part)));
    }

    /// The frames, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (&VirtioHeader, &[u8])> {
        self.frames.iter().map(|(range, vnet)| (vnet, &self.buf[range.clone()]))
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of all frames together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buf.len()
    }

    /// Whether there are no frames.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Removes all frames; the buffer stays.
    pub fn clear(&mut self) {
        self.buf.clear();
        self.frames.clear();
    }
}
