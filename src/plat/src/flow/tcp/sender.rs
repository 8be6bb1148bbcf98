// SPDX-License-Identifier: Apache-2.0

//! The direction to the guest: data from the stream stays in a ring until it is acknowledged.

use std::io::ErrorKind;
use std::time::Instant;

use super::recovery::Recovery;
use super::segment::flag::{ACK, FIN, PSH};
use super::segment::{before, distance, Ack, Incoming, Segment, Wire};
use super::stream::{Broken, Stream};
use crate::flow::ring::Ring;

/// The MSS of a guest that does not tell one (RFC 9293 §3.7.1).
const DEFAULT_MSS: u16 = 536;

#[derive(Debug)]
pub(super) struct Sender {
    /// Sequence numbers: the oldest unacknowledged, the next to send, and the highest that was ever
    /// sent.
    pub(super) una: u32,
    pub(super) nxt: u32,
    pub(super) max: u32,
    /// The right edge of the guest's window.
    edge: u32,
    /// Sequence and acknowledgement number of the segment that told the edge (RFC 9293 §3.10.7.4).
    edge_seq: u32,
    edge_ack: u32,
    /// The guest's window scale.
    scale: u8,
    /// Most bytes of data in a packet to the guest.
    pub(super) mss: u16,
    /// Data from `una` on.
    pub(super) ring: Ring,
    /// The stream has ended.
    pub(super) ended: bool,
    /// The sequence number of our FIN, once sent.
    fin: Option<u32>,
    /// The stream may have data.
    pub(super) readable: bool,
    /// There was no memory for the stream's data, and no acknowledgement of the guest is due that
    /// would cause another try.
    pub(super) starved: bool,
    pub(super) recovery: Recovery,
}

impl Sender {
    pub(super) fn new(isn: u32, own_mss: u16) -> Self {
        Self {
            una: isn,
            nxt: isn,
            max: isn,
            edge: isn,
            edge_seq: 0,
            edge_ack: 0,
            scale: 0,
            mss: own_mss.min(DEFAULT_MSS),
            ring: Ring::default(),
            ended: false,
            fin: None,
            readable: false,
            starved: false,
            recovery: Recovery::new(isn),
        }
    }

    /// Handles a guest's SYN.
    pub(super) fn take_syn(
        &mut self,
        syn: &Incoming<'_>,
        mss: Option<u16>,
        own_mss: u16,
        scale: u8,
    ) {
        self.mss = mss.unwrap_or(DEFAULT_MSS).clamp(64, own_mss);
        self.scale = scale;
        self.edge = self.una.wrapping_add(1 + u32::from(syn.window));
        (self.edge_seq, self.edge_ack) = (syn.seq, self.una);
    }

    /// Notes that our SYN has been sent.
    pub(super) fn syn_sent(&mut self, now: Instant) {
        self.nxt = self.una.wrapping_add(1);
        self.max = self.nxt;
        self.recovery.time(self.nxt, now);
    }

    /// Handles the acknowledgement of our SYN.
    pub(super) fn establish(&mut self, now: Instant) {
        self.una = self.una.wrapping_add(1);
        self.recovery.establish(self.una, now);
        self.readable = true;
    }

    /// Handles the window of the guest's SYN-ACK.
    pub(super) fn take_window_of_syn_ack(&mut self, segment: &Incoming<'_>) {
        self.edge = segment.ack.wrapping_add(segment.window.into());
        self.edge_ack = segment.ack;
    }

    /// The sequence number behind the data in the ring.
    fn data_end(&self) -> u32 {
        self.una.wrapping_add(distance(self.ring.len()))
    }

    /// Whether a FIN has to be sent, or is unacknowledged.
    fn fin_open(&self) -> bool {
        self.ended && self.fin.is_none_or(|fin| !before(fin, self.una))
    }

    /// Whether our FIN is acknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.fin.is_some_and(|fin| before(fin, self.una))
    }

    pub(super) fn has_unsent(&self) -> bool {
        before(self.nxt, self.data_end()) || (self.fin_open() && self.nxt == self.data_end())
    }

    /// Whether nothing is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.max == self.una
    }

    /// Reads from the stream what the guest can take now, or little more, within `most` bytes
    /// waiting and `room` more bytes of memory. Returns whether there was data.
    pub(super) fn fill<S: Stream>(
        &mut self,
        stream: &mut S,
        most: usize,
        room: usize,
    ) -> Result<bool, Broken> {
        let allowed = self.edge.wrapping_sub(self.una) as i32;
        let allowed = usize::try_from(allowed).unwrap_or(0).max(usize::from(self.mss) * 4);
        let mut asked = false;
        let read = |room: &mut [std::io::IoSliceMut<'_>]| {
            asked = true;
            stream.read(room)
        };
        match self.ring.fill(allowed.min(most), room, read) {
            Ok(0) => self.ended = true,
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.readable = !asked;
                self.starved = !asked && self.ring.is_empty();
            }
            Err(_) => return Err(Broken),
        }
        Ok(false)
    }

    /// Sends what the window allows, up to `burst` bytes in one segment; returns whether anything
    /// was sent.
    pub(super) fn transmit(
        &mut self,
        wire: &mut impl Wire,
        ack: Ack,
        burst: usize,
        now: Instant,
    ) -> bool {
        let window = self.edge.wrapping_sub(self.una);
        let window = if window as i32 > 0 { window.min(self.recovery.cwnd) } else { 0 };
        let edge = self.una.wrapping_add(window);
        let end = self.data_end();
        let burst = u32::try_from(burst).unwrap_or(u32::MAX).max(self.mss.into());
        // A multiple of the MSS.
        let burst = burst - burst % u32::from(self.mss);
        let mut sent = false;
        while before(self.nxt, end) && before(self.nxt, edge) {
            let mut stop = self.nxt.wrapping_add(burst);
            for bound in [end, edge] {
                if before(bound, stop) {
                    stop = bound;
                }
            }
            // No small segments while data is in flight (RFC 9293 §3.8.6.2.1).
            let len = stop.wrapping_sub(self.nxt);
            if len < self.mss.into() && stop != end && self.nxt != self.una {
                break;
            }
            self.send_next(stop, wire, ack, now);
            sent = true;
        }
        if self.fin_open() && self.nxt == end && before(self.nxt, edge) {
            self.send_next(end, wire, ack, now);
            sent = true;
        }
        if sent && self.recovery.timer.is_none() {
            self.recovery.start_timer(now);
        }
        sent
    }

    /// Sends from `nxt` to `stop`, with a FIN if that is the end.
    fn send_next(&mut self, stop: u32, wire: &mut impl Wire, ack: Ack, now: Instant) {
        let new = self.nxt == self.max;
        let fin = self.send_data(self.nxt, stop, wire, ack);
        self.nxt = stop.wrapping_add(u32::from(fin));
        if before(self.max, self.nxt) {
            self.max = self.nxt;
        }
        if new {
            self.recovery.time(self.nxt, now);
        }
    }

    /// Sends the data between two sequence numbers; returns whether a FIN was sent with it.
    fn send_data(&mut self, from: u32, to: u32, wire: &mut impl Wire, ack: Ack) -> bool {
        let end = self.data_end();
        let to = if before(end, to) { end } else { to };
        let count = to.wrapping_sub(from) as usize;
        let fin = self.fin_open() && to == end;
        if fin {
            self.fin = Some(end);
        }
        let mut flags = ACK;
        if to == end && count > 0 {
            flags |= PSH;
        }
        if fin {
            flags |= FIN;
        }
        wire.send(&Segment {
            seq: from,
            ack: ack.number,
            flags,
            window: ack.window,
            options: &[],
            payload: self.ring.slices(from.wrapping_sub(self.una) as usize, count),
            mss: self.mss,
        });
        fin
    }

    /// Handles the acknowledgement in a segment with `len` bytes of data; returns whether anything
    /// was retransmitted.
    pub(super) fn take_ack(
        &mut self,
        segment: &Incoming<'_>,
        len: u32,
        sack: bool,
        (wire, own): (&mut impl Wire, Ack),
        now: Instant,
    ) -> bool {
        let ack = segment.ack;
        let edge = ack.wrapping_add(u32::from(segment.window) << self.scale);
        let (same_window, was_closed) = (edge == self.edge, self.is_closed());
        if !before(ack, self.una)
            && (before(self.edge_seq, segment.seq)
                || (self.edge_seq == segment.seq && !before(ack, self.edge_ack)))
        {
            self.edge = edge;
            (self.edge_seq, self.edge_ack) = (segment.seq, ack);
            if was_closed && before(ack, edge) {
                self.recovery.window_opened();
                // What was in flight when it was closed was not taken.
                self.rewind();
            }
        }
        if sack && !segment.options.is_empty() {
            self.recovery.take_sack(segment.options, self.una, self.max);
        }
        let closed = edge == self.una;
        if closed {
            // An answer to a probe: the guest is alive.
            self.recovery.retries = 0;
        }
        let resend = if before(self.una, ack) {
            let acked = ack.wrapping_sub(self.una);
            // A FIN takes one number behind the data.
            self.ring.consume(acked as usize);
            self.ring.thin();
            self.una = ack;
            if before(self.nxt, ack) {
                self.nxt = ack;
            }
            self.recovery.acknowledged(ack, acked, self.max == self.una, now)
        } else if ack == self.una
            && self.max != self.una
            && len == 0
            && segment.flags & FIN == 0
            && !closed
            && (same_window || self.recovery.has_sacked())
        {
            self.recovery.duplicate(self.una, self.max)
        } else {
            None
        };
        resend.is_some_and(|count| self.resend(wire, own, count))
    }

    /// Retransmits what the guest lacks, at most `count` packets: with SACK each hole once per
    /// recovery, without it only the oldest packet. Returns whether there was any.
    fn resend(&mut self, wire: &mut impl Wire, ack: Ack, count: usize) -> bool {
        if !self.recovery.has_sacked() {
            let end = self.una.wrapping_add(u32::from(self.mss));
            self.send_data(self.una, end, wire, ack);
            return true;
        }
        let mut sent = false;
        for _ in 0..count {
            let Some((at, end)) = self.recovery.next_hole(self.una, self.mss) else { break };
            self.send_data(at, end, wire, ack);
            sent = true;
        }
        sent
    }

    /// Makes all unacknowledged data be sent again.
    pub(super) fn rewind(&mut self) {
        self.nxt = self.una;
        self.recovery.forget_time();
    }

    /// Whether the guest's window is closed.
    fn is_closed(&self) -> bool {
        !before(self.una, self.edge)
    }

    /// Handles the timer: retransmits from the oldest data on, as the window allows, or probes a
    /// closed window.
    pub(super) fn handle_timeout(
        &mut self,
        wire: &mut impl Wire,
        ack: Ack,
        burst: usize,
        now: Instant,
    ) {
        // Begin with the oldest data, also after a probe.
        self.nxt = self.una;
        if self.is_closed() {
            self.recovery.start_probe_timer(now);
            let first = self.una.wrapping_add(1);
            self.send_data(self.una, first, wire, ack);
            if before(self.max, first) {
                self.max = first;
            }
            return;
        }
        self.recovery.back_off();
        self.recovery.start_timer(now);
        self.recovery.restart(self.una, self.mss);
        self.transmit(wire, ack, burst, now);
    }
}
