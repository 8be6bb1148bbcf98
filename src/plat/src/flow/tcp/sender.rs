// SPDX-License-Identifier: Apache-2.0

//! The direction to the guest: what the stream gives waits in a ring until it is acknowledged.

use std::io::ErrorKind;
use std::time::Instant;

use super::recovery::Recovery;
use super::segment::flag::{ACK, FIN, PSH};
use super::segment::{before, distance, Ack, Incoming, Segment, Wire};
use super::stream::{Broken, Stream};
use crate::flow::ring::Ring;

/// What a guest takes that does not say (RFC 9293 §3.7.1).
const DEFAULT_MSS: u16 = 536;

#[derive(Debug)]
pub(super) struct Sender {
    /// Oldest number that the guest has not acknowledged, next to be sent, and highest that was
    /// ever sent.
    pub(super) una: u32,
    pub(super) nxt: u32,
    pub(super) max: u32,
    /// The right edge that the guest allows.
    edge: u32,
    /// Where the segment was, and what it acknowledged, that said so last (RFC 9293 §3.10.7.4).
    edge_seq: u32,
    edge_ack: u32,
    /// The guest's window scale.
    scale: u8,
    /// Bytes of data in a packet to the guest.
    pub(super) mss: u16,
    /// Data from `una` on.
    pub(super) ring: Ring,
    /// No more will come from the stream.
    pub(super) ended: bool,
    /// The number of our FIN, once sent.
    fin: Option<u32>,
    /// The stream may have something to read.
    pub(super) readable: bool,
    /// There was no memory for what the stream has, and nothing of the guest's is to come that
    /// would bring another try.
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

    /// Takes what a SYN of the guest says.
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

    /// Our SYN is out.
    pub(super) fn syn_sent(&mut self, now: Instant) {
        self.nxt = self.una.wrapping_add(1);
        self.max = self.nxt;
        self.recovery.time(self.nxt, now);
    }

    /// Our SYN is acknowledged.
    pub(super) fn establish(&mut self, now: Instant) {
        self.una = self.una.wrapping_add(1);
        self.recovery.establish(self.una, now);
        self.readable = true;
    }

    /// The guest's SYN-ACK allows this much.
    pub(super) fn take_window_of_syn_ack(&mut self, segment: &Incoming<'_>) {
        self.edge = segment.ack.wrapping_add(segment.window.into());
        self.edge_ack = segment.ack;
    }

    /// Number behind the data that waits in the ring.
    fn data_end(&self) -> u32 {
        self.una.wrapping_add(distance(self.ring.len()))
    }

    /// Whether the FIN is still to be acknowledged, or to be sent.
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

    /// Reads from the stream no more than the guest can take now, or little, so that `most` bytes
    /// wait and `room` more bytes of memory are held at most. Whether anything came.
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

    /// Sends what the window allows, `burst` bytes in one segment; whether anything was sent.
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
        // Whole packets but for the last.
        let burst = burst - burst % u32::from(self.mss);
        let mut sent = false;
        while before(self.nxt, end) && before(self.nxt, edge) {
            let mut stop = self.nxt.wrapping_add(burst);
            for bound in [end, edge] {
                if before(bound, stop) {
                    stop = bound;
                }
            }
            // No slivers while something is on its way (RFC 9293 §3.8.6.2.1).
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

    /// Sends the data between two numbers; whether a FIN went with it.
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

    /// Takes what a segment with `len` bytes of data acknowledges; whether something was sent again
    /// at once.
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
            }
        }
        if sack && !segment.options.is_empty() {
            self.recovery.take_sack(segment.options, self.una, self.max);
        }
        let closed = edge == self.una;
        if closed {
            // An answer to a probe: the guest is there.
            self.recovery.retries = 0;
        }
        let resend = if before(self.una, ack) {
            let acked = ack.wrapping_sub(self.una);
            // A FIN is one beyond the data.
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

    /// Sends again what the guest lacks, `count` packets of it at most: with SACK each hole once in
    /// a recovery, without it only what is oldest. Whether there was any.
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

    /// Has all that is not acknowledged sent again.
    pub(super) fn rewind(&mut self) {
        self.nxt = self.una;
        self.recovery.forget_time();
    }

    /// Whether the guest takes nothing now.
    fn is_closed(&self) -> bool {
        !before(self.una, self.edge)
    }

    /// The timer went off: sends all again from what is oldest on, as the window allows, or asks
    /// whether that is still closed.
    pub(super) fn handle_timeout(
        &mut self,
        wire: &mut impl Wire,
        ack: Ack,
        burst: usize,
        now: Instant,
    ) {
        // What is sent next begins with what is oldest, whatever was sent to ask.
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
