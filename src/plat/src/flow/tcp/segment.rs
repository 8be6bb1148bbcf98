// SPDX-License-Identifier: Apache-2.0

//! Segments (RFC 9293 §3.1), and the trait that sends them.

/// Flags of the TCP header.
pub mod flag {
    #![allow(missing_docs)]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}

/// A segment to the guest. The sender splits one that is longer than its MSS.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// [`flag`]s.
    pub flags: u8,
    /// The window field, scaled.
    pub window: u16,
    /// Options, a multiple of four bytes.
    pub options: &'a [u8],
    /// The data, in up to two pieces.
    pub payload: [&'a [u8]; 2],
    /// Most bytes of data in a packet to the guest.
    pub mss: u16,
}

/// A segment from the guest; see [`Segment`].
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

/// Sends segments to the guest.
pub trait Wire {
    /// Sends a segment.
    fn send(&mut self, segment: &Segment<'_>);
}

/// What every segment tells about the other direction: acknowledgement number and window field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    pub(super) number: u32,
    pub(super) window: u16,
}

/// Whether sequence number `a` comes before `b` (RFC 9293 §3.4).
pub(super) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// A length as a difference of sequence numbers; no segment or buffer is longer than 32 bits can
/// say.
pub(super) fn distance(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(0)
}
