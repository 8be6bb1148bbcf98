// SPDX-License-Identifier: Apache-2.0

//! The guest's end of a TCP connection (RFC 9293): segments on one side, a stream on the other.
//!
//! No I/O and no clock: a [`Stream`] is the host's socket, a [`Wire`] sends to the guest. In-order
//! data from the guest is written to the stream at once; data for the guest stays in a ring until
//! it is acknowledged.

mod blocks;
mod confirmation;
mod options;
mod receiver;
mod recovery;
mod segment;
mod sender;
mod stream;

use std::time::{Duration, Instant};

use options::Options;
use receiver::{Receiver, Room, SCALE};
use segment::{before, distance};
use sender::Sender;

pub use segment::{flag, Incoming, Segment, Wire};
pub use stream::{PeerState, Stream};

use flag::{ACK, RST, SYN};

/// Most bytes that a flow may keep in either direction.
pub const MOST: usize = 1 << 20;
/// Retransmissions before the connection is given up (RFC 9293 §3.8.3, R2; about four minutes).
const RETRIES: u8 = 10;
/// Retransmissions of a SYN or SYN-ACK.
const SYN_RETRIES: u8 = 5;
/// RFC 6146 §4: TCP_EST, TCP_TRANS.
pub const ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// Idle time of a connection that is opening, or that both ends have closed.
pub const TRANSITORY: Duration = Duration::from_secs(4 * 60);

/// Idle time after which memory is freed.
const TIDY: Duration = Duration::from_secs(1);
/// Most reads of a stream before other flows are served.
const ROUNDS: usize = 4;

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Keep it.
    Open,
    /// Remove it: both ends have closed it.
    Closed,
    /// Reset the stream: the guest has reset the connection, or no longer answers.
    GuestReset,
    /// Remove it: the stream failed, and the guest has been sent a reset.
    HostReset,
}

/// The limits of a connection for now.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that may wait in either direction.
    pub buffer: usize,
    /// Bytes of memory that it may hold.
    pub memory: usize,
    /// Bytes of data in one segment to [`Wire::send`], at least the MSS.
    pub burst: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The stream is connecting; nothing has been sent to the guest.
    Connecting,
    /// A SYN-ACK has been sent.
    SynReceived,
    /// A SYN has been sent (a connection from outside).
    SynSent,
    Established,
}

/// The connection.
#[derive(Debug)]
pub struct Tcp {
    state: State,
    /// The MSS that we announce.
    own_mss: u16,
    /// Whether SACK is used.
    sack: bool,
    sender: Sender,
    receiver: Receiver,
    /// When either end last sent something.
    last: Instant,
}

impl Tcp {
    /// A connection for a guest's SYN. Nothing is sent before [`Tcp::connected`].
    #[must_use]
    pub fn accept(syn: &Incoming<'_>, isn: u32, own_mss: u16, now: Instant) -> Self {
        let mut tcp = Self::new(State::Connecting, isn, own_mss, now);
        tcp.take_syn(syn);
        tcp
    }

    /// A connection to the guest; [`Tcp::connected`] sends the SYN.
    #[must_use]
    pub fn connect(isn: u32, own_mss: u16, now: Instant) -> Self {
        Self::new(State::SynSent, isn, own_mss, now)
    }

    fn new(state: State, isn: u32, own_mss: u16, now: Instant) -> Self {
        Self {
            state,
            own_mss,
            sack: false,
            sender: Sender::new(isn, own_mss),
            receiver: Receiver::new(),
            last: now,
        }
    }

    fn take_syn(&mut self, syn: &Incoming<'_>) {
        let options = Options::parse(syn.options);
        self.sack = options.sack;
        let scale = options.scale.map_or(0, |scale| scale.min(14));
        self.sender.take_syn(syn, options.mss, self.own_mss, scale);
        self.receiver.take_syn(syn, options.scale.is_some());
    }

    /// Bytes of data in a packet to the guest.
    #[must_use]
    pub fn mss(&self) -> u16 {
        self.sender.mss
    }

    /// Reduces the MSS towards the guest, for a hop with a smaller MTU.
    pub fn limit_mss(&mut self, mss: u16) {
        self.sender.mss = self.sender.mss.min(mss);
    }

    /// A hop did not take the packet that began with this sequence number; only `mss` bytes of data
    /// fit. What was sent is retransmitted in smaller packets (RFC 8201 §5.4). `false` if no such
    /// packet is in flight.
    pub fn handle_path_mtu(&mut self, seq: u32, mss: u16) -> bool {
        let sender = &mut self.sender;
        let under_way = !before(seq, sender.una) && before(seq, sender.max);
        if self.state != State::Established || !under_way {
            return false;
        }
        if mss < sender.mss {
            self.limit_mss(mss);
            self.sender.rewind();
        }
        true
    }

    /// Bytes of memory for its data.
    #[must_use]
    pub fn held(&self) -> usize {
        self.sender.ring.held() + self.receiver.held()
    }

    /// The limits of the direction from the guest.
    fn room(&self, limits: Limits) -> Room {
        let memory = limits.memory.saturating_sub(self.sender.ring.held());
        Room { buffer: limits.buffer, memory }
    }

    /// Whether the stream has data for which there was no memory at all. [`Tcp::poll_transmit`] has
    /// to be called again when [`Limits::memory`] is 2 KiB more than [`Tcp::held`].
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.sender.starved
    }

    /// Whether the stream is still connecting.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    /// Whether the handshake is complete.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.state == State::Established
    }

    /// The sequence number of the guest's SYN.
    #[must_use]
    pub fn syn_seq(&self) -> u32 {
        self.receiver.nxt.wrapping_sub(1)
    }

    /// The name of its state, as other tools show it.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        match (self.state, self.receiver.fin.is_some(), self.sender.ended) {
            (State::Connecting, ..) => "connecting",
            (State::SynReceived, ..) => "syn-received",
            (State::SynSent, ..) => "syn-sent",
            (State::Established, false, false) => "established",
            (State::Established, true, false) => "half-closed by guest",
            (State::Established, false, true) => "half-closed by host",
            (State::Established, true, true) => "closing",
        }
    }

    /// When [`Tcp::handle_timeout`] is due: for a timer, or at the end of the idle time.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        let tidy = self.sender.ring.is_empty() && self.sender.ring.held() > 0;
        let idle = self.last + if tidy { TIDY } else { self.patience() };
        let timers = [self.sender.recovery.timer, self.receiver.confirmation.poll_timeout()];
        timers.into_iter().flatten().fold(idle, Instant::min)
    }

    /// Handles the stream being connected: sends the guest a SYN-ACK (or a SYN).
    pub fn connected(&mut self, wire: &mut impl Wire, limits: Limits, now: Instant) {
        if self.state == State::Connecting {
            self.state = State::SynReceived;
        }
        self.sender.syn_sent(now);
        self.send_syn(wire, limits, now);
    }

    fn send_syn(&mut self, wire: &mut impl Wire, limits: Limits, now: Instant) {
        // A SYN-ACK has only options that the guest's SYN had.
        let first = self.state == State::SynSent;
        let scale = (first || self.receiver.is_scaled()).then_some(SCALE);
        let options = options::of_syn(self.own_mss, scale, first || self.sack);
        // The window of a SYN is not scaled.
        let window = u16::try_from(limits.buffer).unwrap_or(u16::MAX);
        if self.state == State::SynReceived {
            self.receiver.told_by_syn(window);
        }
        wire.send(&Segment {
            seq: self.sender.una,
            ack: if first { 0 } else { self.receiver.nxt },
            flags: if first { SYN } else { SYN | ACK },
            window,
            options: &options,
            payload: [&[]; 2],
            mss: self.mss(),
        });
        self.sender.recovery.start_timer(now);
    }

    /// Handles a segment from the guest. [`Tcp::poll_transmit`] is due afterwards, once for all
    /// segments of a batch.
    pub fn handle_input<S: Stream>(
        &mut self,
        segment: &Incoming<'_>,
        stream: &mut S,
        wire: &mut impl Wire,
        limits: Limits,
        now: Instant,
    ) -> Disposition {
        match self.state {
            State::Connecting => {
                let reset = segment.flags & RST != 0 && segment.seq == self.receiver.nxt;
                return if reset { Disposition::GuestReset } else { Disposition::Open };
            }
            State::SynSent => return self.answer_to_syn(segment, now),
            State::SynReceived | State::Established => {}
        }
        let len = distance(segment.payload.len());
        let window = self.receiver.told_window();
        let ahead = segment.seq.wrapping_sub(self.receiver.nxt);
        if segment.flags & RST != 0 {
            // RFC 5961 §3.2.
            if ahead == 0 {
                // Both directions are complete, and only the last acknowledgement was lost: the
                // guest has forgotten the connection.
                let done = self.receiver.shut && self.sender.ended && self.sender.ring.is_empty();
                return if done { Disposition::Closed } else { Disposition::GuestReset };
            }
            self.receiver.ack_due |= ahead < window;
            return Disposition::Open;
        }
        if segment.flags & SYN != 0 {
            // A repeated SYN, or the challenge ACK of RFC 5961 §4.2.
            if self.state == State::SynReceived && segment.seq.wrapping_add(1) == self.receiver.nxt
            {
                self.send_syn(wire, limits, now);
            } else {
                self.receiver.ack_due = true;
            }
            return Disposition::Open;
        }
        if segment.flags & ACK == 0 {
            return Disposition::Open;
        }
        // RFC 9293 §3.10.7.4. An old segment is a retransmission or a keepalive.
        let end = segment.seq.wrapping_add(len);
        let is_old = before(end, self.receiver.nxt);
        if is_old && self.is_keepalive(segment) && !self.receiver.confirmation.ask(stream, now) {
            return Disposition::Open;
        }
        if is_old || (ahead as i32 > 0 && ahead > window) || before(self.sender.max, segment.ack) {
            self.receiver.ack_due = true;
            return Disposition::Open;
        }
        self.last = now;
        if self.state == State::SynReceived {
            if segment.ack == self.sender.una {
                return Disposition::Open;
            }
            self.establish(now);
        }
        let own = self.receiver.acknowledgement(self.room(limits));
        if self.sender.take_ack(segment, len, self.sack, (&mut *wire, own), now) {
            self.receiver.acknowledged(own);
        }
        if len > 0 {
            match self.receiver.take_data(segment, stream, self.room(limits)) {
                Ok(true) => self.send_ack(wire, limits),
                Ok(false) => {}
                Err(_) => return self.break_off(wire),
            }
        }
        self.receiver.take_fin(segment.flags, end);
        self.note_given(now);
        Disposition::Open
    }

    /// Whether a segment without new data is a keepalive (RFC 1122 §4.2.3.6), and not the
    /// retransmission of a byte whose acknowledgement is held back.
    fn is_keepalive(&self, segment: &Incoming<'_>) -> bool {
        self.state == State::Established
            && segment.payload.len() <= 1
            && segment.seq.wrapping_add(1) == self.receiver.nxt
            && !self.receiver.confirmation.is_pending
    }

    fn note_given(&mut self, now: Instant) {
        if std::mem::take(&mut self.receiver.has_given) {
            self.receiver.confirmation.data_given(now);
        }
    }

    /// If due, asks the stream whether the peer has acknowledged the guest's data, and whether it
    /// is alive. Returns whether [`Tcp::poll_transmit`] has to tell the guest.
    pub fn handle_peer_timeout<S: Stream>(&mut self, stream: &mut S, now: Instant) -> bool {
        let confirmation = &mut self.receiver.confirmation;
        let due = confirmation.poll_timeout().is_some_and(|at| at <= now);
        let tells = due && confirmation.look(stream, now);
        self.receiver.ack_due |= tells;
        tells
    }

    fn answer_to_syn(&mut self, segment: &Incoming<'_>, now: Instant) -> Disposition {
        let acceptable = segment.flags & ACK != 0 && segment.ack == self.sender.nxt;
        if segment.flags & RST != 0 {
            return if acceptable { Disposition::GuestReset } else { Disposition::Open };
        }
        if acceptable && segment.flags & SYN != 0 {
            self.take_syn(segment);
            self.establish(now);
            self.sender.take_window_of_syn_ack(segment);
            self.last = now;
            self.receiver.ack_due = true;
        }
        Disposition::Open
    }

    /// Handles the acknowledgement of our SYN.
    fn establish(&mut self, now: Instant) {
        self.state = State::Established;
        self.sender.establish(now);
    }

    /// Notes that the stream has data, or may have ended.
    pub fn set_readable(&mut self) {
        self.sender.readable = true;
    }

    /// Notes that the stream takes data again.
    pub fn set_writable(&mut self) {
        self.receiver.writable = true;
    }

    /// Moves data in both directions, and acknowledges received data. The second value tells
    /// whether there is more to move, which was left so that others are served.
    pub fn poll_transmit<S: Stream>(
        &mut self,
        stream: &mut S,
        wire: &mut impl Wire,
        limits: Limits,
        now: Instant,
    ) -> (Disposition, bool) {
        if self.state != State::Established {
            if std::mem::take(&mut self.receiver.ack_due) && self.state == State::SynReceived {
                self.send_ack(wire, limits);
            }
            return (Disposition::Open, false);
        }
        if self.receiver.flush(stream).is_err() {
            return (self.break_off(wire), false);
        }
        self.note_given(now);
        // Data from the peer shows that it is alive.
        let confirmation = &mut self.receiver.confirmation;
        if self.sender.readable && confirmation.is_pending && confirmation.look(stream, now) {
            self.receiver.ack_due = true;
        }
        let mut more = false;
        self.sender.starved = false;
        for round in 0..ROUNDS {
            if self.sender.readable && !self.sender.ended {
                let room = limits.memory.saturating_sub(self.held());
                match self.sender.fill(stream, limits.buffer, room) {
                    Ok(true) => self.last = now,
                    Ok(false) => {}
                    Err(_) => return (self.break_off(wire), false),
                }
            }
            let own = self.receiver.acknowledgement(self.room(limits));
            if !self.sender.transmit(wire, own, limits.burst, now) {
                break;
            }
            self.receiver.acknowledged(own);
            more = self.sender.readable && round + 1 == ROUNDS;
        }
        let room = self.room(limits);
        if self.receiver.fin.is_none() && self.receiver.has_opened(room, self.own_mss, MOST / 2) {
            self.receiver.ack_due = true;
        }
        if self.receiver.ack_due {
            self.send_ack(wire, limits);
        }
        if self.sender.recovery.timer.is_none() && self.sender.has_unsent() {
            // The window is closed: send probes.
            self.sender.recovery.start_timer(now);
        }
        let confirmed = !self.receiver.confirmation.is_pending;
        let closed = self.receiver.shut && self.sender.is_done() && confirmed;
        (if closed { Disposition::Closed } else { Disposition::Open }, more && !closed)
    }

    fn send_ack(&mut self, wire: &mut impl Wire, limits: Limits) {
        let blocks = if self.sack { self.receiver.blocks() } else { Vec::new() };
        let own = self.receiver.acknowledgement(self.room(limits));
        wire.send(&Segment {
            seq: self.sender.nxt,
            ack: own.number,
            flags: ACK,
            window: own.window,
            options: &options::of_ack(&blocks),
            payload: [&[]; 2],
            mss: self.mss(),
        });
        self.receiver.acknowledged(own);
    }

    /// Handles the failure of the stream: sends the guest a reset.
    pub fn break_off(&mut self, wire: &mut impl Wire) -> Disposition {
        wire.send(&Segment {
            seq: if self.is_connecting() { 0 } else { self.sender.nxt },
            ack: self.receiver.nxt,
            flags: RST | ACK,
            window: 0,
            options: &[],
            payload: [&[]; 2],
            mss: self.mss(),
        });
        Disposition::HostReset
    }

    /// Handles timers: retransmission (RFC 6298 §5), window probes, and the idle time.
    pub fn handle_timeout(
        &mut self,
        wire: &mut impl Wire,
        limits: Limits,
        now: Instant,
    ) -> Disposition {
        if self.sender.ring.is_empty() && now >= self.last + TIDY {
            self.sender.ring.release();
        }
        if self.sender.recovery.timer.is_none_or(|timer| now < timer) {
            let over = now >= self.last + self.patience();
            return if over { self.break_off(wire) } else { Disposition::Open };
        }
        self.sender.recovery.timer = None;
        let syn = self.state != State::Established;
        if !syn && self.sender.is_quiet() && !self.sender.has_unsent() {
            return Disposition::Open;
        }
        self.sender.recovery.retries += 1;
        if self.sender.recovery.retries > if syn { SYN_RETRIES } else { RETRIES } {
            return self.break_off(wire);
        }
        if syn {
            self.sender.recovery.back_off();
            self.send_syn(wire, limits, now);
            return Disposition::Open;
        }
        let own = self.receiver.acknowledgement(self.room(limits));
        self.sender.handle_timeout(wire, own, limits.burst, now);
        self.receiver.acknowledged(own);
        Disposition::Open
    }

    fn patience(&self) -> Duration {
        let closing = self.receiver.fin.is_some() && self.sender.ended;
        if self.state == State::Established && !closing {
            ESTABLISHED
        } else {
            TRANSITORY
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/tcp.rs"]
mod tests;
