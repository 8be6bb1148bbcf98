// SPDX-License-Identifier: Apache-2.0

//! Segments (RFC 9293 §3.1), and the way by which they leave.

/// Flags of the TCP header.
pub mod flag {
    #![allow(missing_docs)]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}

/// A segment on its way to the guest. Longer than its MSS it is to be cut by whoever sends it.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Sequence number of the first byte.
    pub seq: u32,
    /// What is expected next.
    pub ack: u32,
    /// [`flag`]s.
    pub flags: u8,
    /// The window as it stands in the header, scaled.
    pub window: u16,
    /// Options, a multiple of four bytes.
    pub options: &'a [u8],
    /// The data, in up to two pieces.
    pub payload: [&'a [u8]; 2],
    /// Bytes of data that a packet to the guest may have.
    pub mss: u16,
}

/// A segment of the guest; see [`Segment`].
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Incoming<'a> {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

/// The way to the guest.
pub trait Wire {
    /// Sends a segment.
    fn send(&mut self, segment: &Segment<'_>);
}

/// What every segment says of the other direction: the acknowledgement, and the window as it stands
/// in the header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    pub(super) number: u32,
    pub(super) window: u16,
}

/// Whether sequence number `a` comes before `b` (RFC 9293 §3.4).
pub(super) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// A length as a difference of sequence numbers: no segment and no buffer is too long for one.
pub(super) fn distance(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(0)
}
