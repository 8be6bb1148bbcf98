// SPDX-License-Identifier: Apache-2.0

//! The direction from the guest: in-order data is written to the stream at once, other data waits.

use std::io::ErrorKind;

use super::blocks::{self, Block};
use super::confirmation::Confirmation;
use super::segment::flag::FIN;
use super::segment::{before, distance, Ack, Incoming};
use super::stream::{Broken, Stream};
use crate::flow::ring::Ring;

/// Our window scale: windows up to 4 MiB.
pub(super) const SCALE: u8 = 6;
/// Most pieces of out-of-order data that are kept.
const PIECES: usize = 128;
/// Bytes of memory per piece, beside its data.
const PIECE: usize = 32;
/// Most SACK blocks in an acknowledgement, beside other options.
const BLOCKS: usize = 3;

/// The limits of the direction from the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Bytes that may wait.
    pub(super) buffer: usize,
    /// Bytes of memory that it may hold.
    pub(super) memory: usize,
}

#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// The next expected sequence number.
    pub(super) nxt: u32,
    /// The right edge of the window that the guest was told.
    edge: u32,
    /// The scale of the window that the guest is told.
    scale: u8,
    /// In-order data that the stream has not taken yet.
    ring: Ring,
    /// Out-of-order data.
    pieces: Vec<(u32, Vec<u8>)>,
    /// The sequence number of the guest's FIN, once received.
    pub(super) fin: Option<u32>,
    /// The FIN has been passed to the stream.
    pub(super) shut: bool,
    pub(super) ack_due: bool,
    /// The stream takes data, as far as known.
    pub(super) writable: bool,
    /// The stream has taken data that the peer has to acknowledge.
    pub(super) has_given: bool,
    pub(super) confirmation: Confirmation,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self { writable: true, ..Self::default() }
    }

    /// Handles a guest's SYN; windows that we send are scaled if `scaled`.
    pub(super) fn take_syn(&mut self, syn: &Incoming<'_>, scaled: bool) {
        self.scale = if scaled { SCALE } else { 0 };
        self.nxt = syn.seq.wrapping_add(1);
        self.edge = self.nxt;
    }

    /// Notes the window of our SYN-ACK, where it is not scaled.
    pub(super) fn told_by_syn(&mut self, window: u16) {
        self.edge = self.nxt.wrapping_add(window.into());
    }

    /// Whether windows are scaled.
    pub(super) fn is_scaled(&self) -> bool {
        self.scale > 0
    }

    /// The window as the guest knows it.
    pub(super) fn told_window(&self) -> u32 {
        self.edge.wrapping_sub(self.nxt)
    }

    /// Bytes of memory for its data.
    pub(super) fn held(&self) -> usize {
        self.ring.held()
            + self.pieces.iter().map(|(_, data)| data.capacity() + PIECE).sum::<usize>()
    }

    fn spare(&self, room: Room) -> usize {
        room.memory.saturating_sub(self.held())
    }

    /// Handles a segment's data. `true` if it was out of order, which has to be acknowledged at
    /// once (RFC 5681 §4.2).
    pub(super) fn take_data<S: Stream>(
        &mut self,
        segment: &Incoming<'_>,
        stream: &mut S,
        room: Room,
    ) -> Result<bool, Broken> {
        let mut data = segment.payload;
        let mut seq = segment.seq;
        if before(seq, self.nxt) {
            let old = self.nxt.wrapping_sub(seq) as usize;
            self.ack_due = true;
            let Some(new) = data.get(old..) else { return Ok(false) };
            (data, seq) = (new, self.nxt);
        }
        let fits = self.edge.wrapping_sub(seq) as usize;
        data = &data[..data.len().min(fits)];
        if let Some(fin) = self.fin {
            if before(fin, seq) {
                return Ok(false);
            }
            data = &data[..data.len().min(fin.wrapping_sub(seq) as usize)];
        }
        if data.is_empty() {
            self.ack_due = true;
            return Ok(false);
        }
        if seq != self.nxt {
            self.keep_piece(seq, data, room);
            return Ok(true);
        }
        self.ack_due = true;
        self.deliver(data, stream, room)?;
        while let Some(i) = self.pieces.iter().position(|(seq, _)| !before(self.nxt, *seq)) {
            let (seq, data) = self.pieces.swap_remove(i);
            if let Some(new) = data.get(self.nxt.wrapping_sub(seq) as usize..) {
                self.deliver(new, stream, room)?;
            }
        }
        Ok(false)
    }

    /// Writes in-order data to the stream; the rest waits if there is memory, and otherwise counts
    /// as lost. Data inside the window that was told is taken in any case: else the guest would
    /// wait for its retransmission timer.
    fn deliver<S: Stream>(
        &mut self,
        data: &[u8],
        stream: &mut S,
        room: Room,
    ) -> Result<(), Broken> {
        let mut taken = 0;
        if self.ring.is_empty() && self.writable {
            match stream.write(data) {
                Ok(n) => taken = n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Err(Broken),
            }
            self.has_given |= taken > 0 && stream.has_peer();
            self.writable = taken == data.len();
        }
        let waits = &data[taken..];
        let kept = if waits.is_empty() { 0 } else { self.ring.extend(waits, self.spare(room)) };
        self.nxt = self.nxt.wrapping_add(distance(taken + kept));
        Ok(())
    }

    fn keep_piece(&mut self, seq: u32, data: &[u8], room: Room) {
        let have: usize = self.pieces.iter().map(|(_, data)| data.len()).sum();
        let fits = have + data.len() <= room.buffer && data.len() + PIECE <= self.spare(room);
        if self.pieces.len() < PIECES && fits {
            let same = |(at, old): &(u32, Vec<u8>)| *at == seq && old.len() >= data.len();
            if !self.pieces.iter().any(same) {
                self.pieces.push((seq, data.to_vec()));
            }
        }
    }

    /// Handles a segment's FIN, whose data ends at `end`.
    pub(super) fn take_fin(&mut self, flags: u8, end: u32) {
        if flags & FIN != 0 && self.fin.is_none() && !before(end, self.nxt) {
            self.fin = Some(end);
        }
        if self.fin == Some(self.nxt) {
            self.nxt = self.nxt.wrapping_add(1);
            self.ack_due = true;
        } else if flags & FIN != 0 {
            self.ack_due = true;
        }
    }

    /// Writes waiting data to the stream, and then the end.
    pub(super) fn flush<S: Stream>(&mut self, stream: &mut S) -> Result<(), Broken> {
        while self.writable && !self.ring.is_empty() {
            match stream.write(self.ring.slices(0, self.ring.len())[0]) {
                Ok(n) => {
                    self.ring.consume(n);
                    self.has_given |= stream.has_peer();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => return Err(Broken),
            }
        }
        self.ring.release();
        let ended = self.fin.is_some_and(|fin| before(fin, self.nxt));
        if ended && self.ring.is_empty() && !self.shut {
            self.shut = true;
            stream.shutdown();
        }
        Ok(())
    }

    /// The window to tell. Data that the stream takes at once needs no memory.
    fn window(&self, room: Room) -> usize {
        // The largest window that can be told.
        let most = room.buffer.min(usize::from(u16::MAX) << self.scale);
        let most = most.saturating_sub(self.ring.len());
        let straight = self.writable && self.ring.is_empty();
        if straight {
            most
        } else {
            most.min(self.ring.spare().saturating_add(self.spare(room)))
        }
    }

    /// Whether the window has opened far enough for an update (RFC 9293 §3.8.6.2.2); at once if it
    /// was closed.
    pub(super) fn has_opened(&self, room: Room, mss: u16, most: usize) -> bool {
        let (told, least) = (self.told_window() as usize, 2 * usize::from(mss));
        let enough = if told < least { least } else { least.max(room.buffer / 2).min(most) };
        self.window(room).saturating_sub(told) >= enough
    }

    /// Acknowledgement and window of the next segment. The window is in units of the scale, rounded
    /// down: what is offered has to be taken (RFC 7323 §2.4).
    pub(super) fn acknowledgement(&self, room: Room) -> Ack {
        let window = u32::try_from(self.window(room)).unwrap_or(u32::MAX >> 2);
        let told = self.told_window();
        let told = if told as i32 > 0 { told } else { 0 };
        let field = (window.max(told) >> self.scale).min(u16::MAX.into());
        // The last byte, or the FIN, is acknowledged only when the peer has acknowledged it.
        let held_back = u32::from(self.has_given || self.confirmation.is_pending);
        Ack {
            number: self.nxt.wrapping_sub(held_back),
            window: u16::try_from(field).unwrap_or(u16::MAX),
        }
    }

    /// Notes an acknowledgement that was sent. Earlier ones hold as well.
    pub(super) fn acknowledged(&mut self, ack: Ack) {
        let edge = ack.number.wrapping_add(u32::from(ack.window) << self.scale);
        if before(self.edge, edge) {
            self.edge = edge;
        }
        self.ack_due = false;
    }

    /// The out-of-order data for a SACK option, the most recent block first (RFC 2018 §4).
    pub(super) fn blocks(&self) -> Vec<Block> {
        let mut told = Vec::new();
        let block = |(seq, data): &(u32, Vec<u8>)| (*seq, seq.wrapping_add(distance(data.len())));
        for piece in self.pieces.iter().rev().map(block) {
            if told.len() < BLOCKS || !blocks::merges(&told, piece) {
                blocks::insert(&mut told, piece);
            }
        }
        told.retain(|(start, _)| before(self.nxt, *start));
        if let Some((seq, _)) = self.pieces.last() {
            let last = told.iter().position(|(s, e)| !before(*seq, *s) && before(*seq, *e));
            if let Some(last) = last {
                told.swap(0, last);
            }
        }
        told.truncate(BLOCKS);
        told
    }
}
