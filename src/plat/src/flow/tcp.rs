// SPDX-License-Identifier: Apache-2.0

//! The guest's end of a TCP connection (RFC 9293): segments on one side, a stream on the other.
//!
//! No I/O and no clock: a [`Stream`] stands for the host's socket, a [`Wire`] for the way to the guest. What the guest sends
//! in order goes straight into the stream; what waits for the guest waits in a ring until it is acknowledged.

use std::io::{self, ErrorKind, IoSliceMut};
use std::time::{Duration, Instant};

use super::ring::Ring;

/// Flags of the TCP header.
pub mod flag {
    #![allow(missing_docs)]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}
use flag::{ACK, FIN, PSH, RST, SYN};

/// Our window scale: windows up to 4 MiB.
const SCALE: u8 = 6;
/// How much a flow may keep in either direction, at most.
pub const MOST: usize = 1 << 20;
/// Pieces of data out of order that are kept.
const PIECES: usize = 128;
/// Bytes of memory that one takes besides its own.
const PIECE: usize = 32;
const RTO_FIRST: Duration = Duration::from_secs(1);
const RTO_LEAST: Duration = Duration::from_millis(200);
const RTO_MOST: Duration = Duration::from_secs(60);
/// Retransmissions before the guest is given up (RFC 9293 §3.8.3, R2; about four minutes).
const RETRIES: u8 = 10;
/// Those of a SYN or SYN-ACK.
const SYN_RETRIES: u8 = 5;
/// RFC 6146 §4: TCP_EST, TCP_TRANS.
pub const ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// A connection that opens, or that both ends have closed.
pub const TRANSITORY: Duration = Duration::from_secs(4 * 60);

/// After so much idling, memory is given back.
const TIDY: Duration = Duration::from_secs(1);

/// A stream of bytes to the other end: a non-blocking socket.
pub trait Stream {
    /// Reads what there is into `room`. 0 is the end.
    ///
    /// # Errors
    /// As a socket's: `WouldBlock` when there is nothing.
    fn read(&mut self, room: &mut [IoSliceMut<'_>]) -> io::Result<usize>;
    /// Writes what fits.
    ///
    /// # Errors
    /// As a socket's: `WouldBlock` when nothing fits.
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;
    /// Says that nothing more will be written.
    fn shutdown(&mut self);
}

/// A segment on its way to the guest. Longer than [`Tcp::mss`] it is to be cut by whoever sends it.
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

/// The way to the guest.
pub trait Wire {
    /// Sends a segment.
    fn send(&mut self, segment: &Segment<'_>);
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

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It goes on.
    Open,
    /// Both ends have closed it.
    Closed,
    /// The guest has reset it, or is gone: the stream is to be reset.
    GuestReset,
    /// The stream broke; the guest has been told.
    HostReset,
}

/// What the other end of a connection allows for now.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that may be kept in either direction.
    pub buffer: usize,
    /// Bytes of memory that it may come to hold.
    pub memory: usize,
    /// Bytes of data in one segment to [`Wire::send`], at least the MSS.
    pub burst: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The stream connects; nothing has been said to the guest.
    Connecting,
    /// A SYN-ACK is out.
    SynReceived,
    /// A SYN is out (a connection from outside).
    SynSent,
    Established,
}

/// The connection.
#[derive(Debug)]
pub struct Tcp {
    state: State,
    /// Oldest byte that the guest has not acknowledged, next to be sent, and highest that was ever sent.
    una: u32,
    nxt: u32,
    max: u32,
    /// The right edge that the guest allows.
    guest_window: u32,
    window_seq: u32,
    window_ack: u32,
    guest_scale: u8,
    scale: u8,
    mss: u16,
    own_mss: u16,
    sack: bool,
    /// Data from `una` on.
    tx: Ring,
    /// No more will come from the stream.
    host_ended: bool,
    /// The sequence number of our FIN, once sent.
    fin: Option<u32>,
    /// What may be in flight: all that the guest's window allows, but after a time-out. There is no congestion control: the
    /// guest is one hop away, over a queue of this machine that tells when it is full (`Link::is_full`), and no one else's
    /// packets are on that hop. A sender that slowed down for a loss there would only leave it idle.
    cwnd: u32,
    dup_acks: u8,
    /// In recovery up to here.
    recover: Option<u32>,
    /// Where the recovery has come to.
    resent: u32,
    /// What the guest holds above `una`.
    sacked: Vec<(u32, u32)>,
    rto: Duration,
    rtt: Option<(Duration, Duration)>,
    timed: Option<(u32, Instant)>,
    retries: u8,
    timer: Option<Instant>,

    rcv_nxt: u32,
    /// The right edge that the guest has been told.
    rcv_edge: u32,
    /// What the stream did not take yet.
    rx: Ring,
    pieces: Vec<(u32, Vec<u8>)>,
    /// The sequence number of the guest's FIN, once seen.
    guest_fin: Option<u32>,
    shut: bool,
    ack_due: bool,
    readable: bool,
    writable: bool,
    /// There was no memory for what the stream has, and nothing of the guest's is to come that would bring another try.
    starved: bool,
    last: Instant,
}

/// Whether `a` comes before `b` (RFC 9293 §3.4).
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Tcp {
    /// A connection that a guest's SYN asks for. Nothing is sent before [`Tcp::connected`].
    #[must_use]
    pub fn accept(syn: &Incoming<'_>, isn: u32, own_mss: u16, now: Instant) -> Self {
        let mut tcp = Self::new(isn, own_mss, now);
        tcp.take_syn(syn);
        tcp
    }

    /// A connection to the guest; [`Tcp::connected`] sends the SYN.
    #[must_use]
    pub fn connect(isn: u32, own_mss: u16, now: Instant) -> Self {
        let mut tcp = Self::new(isn, own_mss, now);
        tcp.state = State::SynSent;
        tcp
    }

    fn new(isn: u32, own_mss: u16, now: Instant) -> Self {
        Self {
            state: State::Connecting,
            una: isn,
            nxt: isn,
            max: isn,
            guest_window: isn,
            window_seq: 0,
            window_ack: 0,
            guest_scale: 0,
            scale: 0,
            mss: own_mss.min(536),
            own_mss,
            sack: false,
            tx: Ring::default(),
            host_ended: false,
            fin: None,
            cwnd: u32::MAX >> 2,
            dup_acks: 0,
            recover: None,
            resent: isn,
            sacked: Vec::new(),
            rto: RTO_FIRST,
            rtt: None,
            timed: None,
            retries: 0,
            timer: None,
            rcv_nxt: 0,
            rcv_edge: 0,
            rx: Ring::default(),
            pieces: Vec::new(),
            guest_fin: None,
            shut: false,
            ack_due: false,
            readable: false,
            writable: true,
            starved: false,
            last: now,
        }
    }

    fn take_syn(&mut self, syn: &Incoming<'_>) {
        let options = Options::parse(syn.options);
        self.mss = options.mss.unwrap_or(536).clamp(64, self.own_mss);
        self.sack = options.sack;
        if let Some(scale) = options.scale {
            (self.guest_scale, self.scale) = (scale.min(14), SCALE);
        }
        self.rcv_nxt = syn.seq.wrapping_add(1);
        self.rcv_edge = self.rcv_nxt;
        self.guest_window = self.una.wrapping_add(1 + u32::from(syn.window));
        (self.window_seq, self.window_ack) = (syn.seq, self.una);
    }

    /// Bytes of data in a packet to the guest.
    #[must_use]
    pub fn mss(&self) -> u16 {
        self.mss
    }

    /// Bytes of memory that its data takes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.tx.held()
            + self.rx.held()
            + self.pieces.iter().map(|(_, data)| data.capacity() + PIECE).sum::<usize>()
    }

    fn room(&self, limits: Limits) -> usize {
        limits.memory.saturating_sub(self.held())
    }

    /// Whether [`Tcp::pump`] has to be called again when [`Limits::memory`] is 2 KiB more than [`Tcp::held`]: the stream has
    /// something, and there was no memory for any of it.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// Whether the stream is still connecting.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    /// The sequence number of the guest's SYN.
    #[must_use]
    pub fn syn_seq(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(1)
    }

    /// Its state in a word, as other tools name it.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        match (self.state, self.guest_fin.is_some(), self.host_ended) {
            (State::Connecting, ..) => "connecting",
            (State::SynReceived, ..) => "syn-received",
            (State::SynSent, ..) => "syn-sent",
            (State::Established, false, false) => "established",
            (State::Established, true, false) => "half-closed by guest",
            (State::Established, false, true) => "half-closed by host",
            (State::Established, true, true) => "closing",
        }
    }

    /// When it ends unless something happens; and when the timer wants [`Tcp::on_timer`].
    #[must_use]
    pub fn deadline(&self) -> Instant {
        let tidy = self.tx.is_empty() && self.tx.held() > 0;
        let idle = self.last + if tidy { TIDY } else { self.patience() };
        self.timer.map_or(idle, |timer| timer.min(idle))
    }

    /// The stream is connected: the guest is told by a SYN-ACK (or asked by a SYN).
    pub fn connected(&mut self, wire: &mut impl Wire, limits: Limits, now: Instant) {
        if self.state == State::Connecting {
            self.state = State::SynReceived;
        }
        self.nxt = self.una.wrapping_add(1);
        self.max = self.nxt;
        self.timed = Some((self.nxt, now));
        self.send_syn(wire, limits, now);
    }

    fn send_syn(&mut self, wire: &mut impl Wire, limits: Limits, now: Instant) {
        let [m0, m1] = self.own_mss.to_be_bytes();
        let mut options = vec![2, 4, m0, m1];
        let flags = if self.state == State::SynSent { SYN } else { SYN | ACK };
        if self.state == State::SynSent || self.scale > 0 {
            options.extend([1, 3, 3, SCALE]);
        }
        if self.state == State::SynSent || self.sack {
            options.extend([1, 1, 4, 2]);
        }
        // Not scaled in a SYN.
        let window = u16::try_from(limits.buffer).unwrap_or(u16::MAX);
        if self.state == State::SynReceived {
            self.rcv_edge = self.rcv_nxt.wrapping_add(window.into());
        }
        let ack = if self.state == State::SynSent { 0 } else { self.rcv_nxt };
        let segment = Segment {
            seq: self.una,
            ack,
            flags,
            window,
            options: &options,
            payload: [&[]; 2],
            mss: self.mss,
        };
        wire.send(&segment);
        self.timer = Some(now + self.rto);
    }

    /// Takes a segment of the guest. [`Tcp::pump`] is due afterwards, once for all segments that came together.
    pub fn input<S: Stream>(
        &mut self,
        segment: &Incoming<'_>,
        stream: &mut S,
        wire: &mut impl Wire,
        limits: Limits,
        now: Instant,
    ) -> Disposition {
        match self.state {
            State::Connecting => {
                let reset = segment.flags & RST != 0 && segment.seq == self.rcv_nxt;
                return if reset { Disposition::GuestReset } else { Disposition::Open };
            }
            State::SynSent => return self.answer_to_syn(segment, now),
            State::SynReceived | State::Established => {}
        }
        let len = u32::try_from(segment.payload.len()).unwrap_or(0);
        let window = self.rcv_edge.wrapping_sub(self.rcv_nxt);
        let ahead = segment.seq.wrapping_sub(self.rcv_nxt);
        if segment.flags & RST != 0 {
            // RFC 5961 §3.2.
            if ahead == 0 {
                // All has been said, and only the last acknowledgement was lost: the guest knows no more of it.
                let done = self.shut && self.host_ended && self.tx.is_empty();
                return if done { Disposition::Closed } else { Disposition::GuestReset };
            }
            self.ack_due |= ahead < window;
            return Disposition::Open;
        }
        if segment.flags & SYN != 0 {
            // A repeated SYN, or RFC 5961 §4.2's challenge.
            if self.state == State::SynReceived && segment.seq.wrapping_add(1) == self.rcv_nxt {
                self.send_syn(wire, limits, now);
            } else {
                self.ack_due = true;
            }
            return Disposition::Open;
        }
        if segment.flags & ACK == 0 {
            return Disposition::Open;
        }
        // RFC 9293 §3.10.7.4. What is old is a repetition, or asks whether we are there.
        let end = segment.seq.wrapping_add(len);
        if before(end, self.rcv_nxt) || (ahead as i32 > 0 && ahead > window) {
            self.ack_due = true;
            return Disposition::Open;
        }
        if before(self.max, segment.ack) {
            self.ack_due = true;
            return Disposition::Open;
        }
        self.last = now;
        if self.state == State::SynReceived {
            if segment.ack == self.una {
                return Disposition::Open;
            }
            self.establish(now);
        }
        self.take_ack(segment, len, wire, limits, now);
        if len > 0 {
            if let Err(disposition) = self.take_data(segment, stream, limits, wire) {
                return disposition;
            }
        }
        if segment.flags & FIN != 0 && self.guest_fin.is_none() && !before(end, self.rcv_nxt) {
            self.guest_fin = Some(end);
        }
        if self.guest_fin == Some(self.rcv_nxt) {
            self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
            self.ack_due = true;
        } else if segment.flags & FIN != 0 {
            self.ack_due = true;
        }
        Disposition::Open
    }

    fn answer_to_syn(&mut self, segment: &Incoming<'_>, now: Instant) -> Disposition {
        let acceptable = segment.flags & ACK != 0 && segment.ack == self.nxt;
        if segment.flags & RST != 0 {
            return if acceptable { Disposition::GuestReset } else { Disposition::Open };
        }
        if acceptable && segment.flags & SYN != 0 {
            self.take_syn(segment);
            self.establish(now);
            self.guest_window = segment.ack.wrapping_add(segment.window.into());
            self.window_ack = segment.ack;
            self.last = now;
            self.ack_due = true;
        }
        Disposition::Open
    }

    /// The SYN is acknowledged.
    fn establish(&mut self, now: Instant) {
        self.state = State::Established;
        self.una = self.una.wrapping_add(1);
        self.resent = self.una;
        self.measure(self.una, now);
        self.retries = 0;
        self.timer = None;
        self.readable = true;
    }

    fn take_ack(
        &mut self,
        segment: &Incoming<'_>,
        len: u32,
        wire: &mut impl Wire,
        limits: Limits,
        now: Instant,
    ) {
        let ack = segment.ack;
        let edge = ack.wrapping_add(u32::from(segment.window) << self.guest_scale);
        let same_window = edge == self.guest_window;
        if !before(ack, self.una)
            && (before(self.window_seq, segment.seq)
                || (self.window_seq == segment.seq && !before(ack, self.window_ack)))
        {
            self.guest_window = edge;
            (self.window_seq, self.window_ack) = (segment.seq, ack);
        }
        if self.sack && !segment.options.is_empty() {
            self.take_sack(segment.options);
        }
        let closed = edge == self.una;
        if closed {
            // An answer to a probe: the guest is there.
            self.retries = 0;
        }
        if before(self.una, ack) {
            let acked = ack.wrapping_sub(self.una);
            // A FIN is one beyond the data.
            self.tx.consume(acked as usize);
            self.tx.thin();
            self.una = ack;
            if before(self.nxt, ack) {
                self.nxt = ack;
            }
            self.sacked.retain(|(_, end)| before(ack, *end));
            self.measure(ack, now);
            self.retries = 0;
            self.dup_acks = 0;
            self.cwnd = self.cwnd.saturating_add(acked).min(u32::MAX >> 2);
            self.timer = (self.max != self.una).then(|| now + self.rto);
            match self.recover {
                Some(recover) if before(ack, recover) => self.resend(wire, limits, 2),
                Some(_) => self.recover = None,
                None => {}
            }
        } else if ack == self.una && self.max != self.una && len == 0 && segment.flags & FIN == 0 {
            if closed || (!same_window && self.sacked.is_empty()) {
                return;
            }
            self.dup_acks = self.dup_acks.saturating_add(1);
            if self.recover.is_some() {
                self.resend(wire, limits, 2);
            } else if self.dup_acks == 3 {
                self.recover = Some(self.max);
                self.resent = self.una;
                self.timed = None;
                self.resend(wire, limits, 4);
            }
        }
    }

    /// RFC 6298 §2, with Karn's rule: nothing that was sent twice is timed.
    fn measure(&mut self, ack: u32, now: Instant) {
        let Some((seq, sent)) = self.timed else { return };
        if before(ack, seq) {
            return;
        }
        self.timed = None;
        let r = now.saturating_duration_since(sent);
        let (srtt, var) = match self.rtt {
            None => (r, r / 2),
            Some((srtt, var)) => ((srtt * 7 + r) / 8, (var * 3 + srtt.abs_diff(r)) / 4),
        };
        self.rtt = Some((srtt, var));
        self.rto = (srtt + var * 4).clamp(RTO_LEAST, RTO_MOST);
    }

    fn take_sack(&mut self, options: &[u8]) {
        for (start, end) in Options::parse(options).blocks() {
            if before(start, end) && !before(start, self.una) && !before(self.max, end) {
                insert(&mut self.sacked, start, end);
            }
        }
        self.sacked.truncate(64);
    }

    /// Sends again what the guest lacks, `count` packets of it at most: with SACK (RFC 6675, simplified) each hole once in a
    /// recovery, without it (RFC 6582) only what is oldest.
    fn resend(&mut self, wire: &mut impl Wire, limits: Limits, count: usize) {
        if self.sacked.is_empty() {
            self.send_data(self.una, self.una.wrapping_add(u32::from(self.mss)), wire, limits);
            return;
        }
        if before(self.resent, self.una) {
            self.resent = self.una;
        }
        for _ in 0..count {
            // Up to the first byte of the next block that the guest has.
            let Some((mut at, mut end)) = self.hole(self.resent) else { return };
            if before(at, self.resent) {
                at = self.resent;
            }
            let most = at.wrapping_add(u32::from(self.mss));
            if before(most, end) {
                end = most;
            }
            self.resent = end;
            self.send_data(at, end, wire, limits);
        }
    }

    /// The next hole from `from` on that lies below something that the guest has.
    fn hole(&self, from: u32) -> Option<(u32, u32)> {
        let mut at = from;
        for (start, end) in &self.sacked {
            if before(at, *start) {
                return Some((at, *start));
            }
            if before(at, *end) {
                at = *end;
            }
        }
        None
    }

    fn take_data<S: Stream>(
        &mut self,
        segment: &Incoming<'_>,
        stream: &mut S,
        limits: Limits,
        wire: &mut impl Wire,
    ) -> Result<(), Disposition> {
        let mut data = segment.payload;
        let mut seq = segment.seq;
        if before(seq, self.rcv_nxt) {
            let old = self.rcv_nxt.wrapping_sub(seq) as usize;
            self.ack_due = true;
            let Some(new) = data.get(old..) else { return Ok(()) };
            (data, seq) = (new, self.rcv_nxt);
        }
        let room = self.rcv_edge.wrapping_sub(seq) as usize;
        data = &data[..data.len().min(room)];
        if let Some(fin) = self.guest_fin {
            if before(fin, seq) {
                return Ok(());
            }
            data = &data[..data.len().min(fin.wrapping_sub(seq) as usize)];
        }
        if data.is_empty() {
            self.ack_due = true;
            return Ok(());
        }
        if seq != self.rcv_nxt {
            self.keep_piece(seq, data, limits);
            // A duplicate acknowledgement at once (RFC 5681 §4.2).
            self.send_ack(wire, limits);
            return Ok(());
        }
        self.ack_due = true;
        self.deliver(data, stream, limits, wire)?;
        while let Some(i) = self.pieces.iter().position(|(seq, _)| !before(self.rcv_nxt, *seq)) {
            let (seq, data) = self.pieces.swap_remove(i);
            if let Some(new) = data.get(self.rcv_nxt.wrapping_sub(seq) as usize..) {
                self.deliver(new, stream, limits, wire)?;
            }
        }
        Ok(())
    }

    /// Gives data in order to the stream; what that does not take waits, within limits. What does not fit counts as lost.
    fn deliver<S: Stream>(
        &mut self,
        data: &[u8],
        stream: &mut S,
        limits: Limits,
        wire: &mut impl Wire,
    ) -> Result<(), Disposition> {
        let mut taken = 0;
        if self.rx.is_empty() && self.writable {
            match stream.write(data) {
                Ok(n) => taken = n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Err(self.break_off(wire)),
            }
            self.writable = taken == data.len();
        }
        let most = limits.buffer.saturating_sub(self.rx.len());
        let waits = &data[taken..];
        let waits = &waits[..waits.len().min(most)];
        let kept = if waits.is_empty() { 0 } else { self.rx.extend(waits, self.room(limits)) };
        let taken = u32::try_from(taken + kept).unwrap_or(0);
        self.rcv_nxt = self.rcv_nxt.wrapping_add(taken);
        Ok(())
    }

    fn keep_piece(&mut self, seq: u32, data: &[u8], limits: Limits) {
        let have: usize = self.pieces.iter().map(|(_, data)| data.len()).sum();
        let fits = have + data.len() <= limits.buffer && data.len() + PIECE <= self.room(limits);
        if self.pieces.len() < PIECES && fits {
            let same = |(at, old): &(u32, Vec<u8>)| *at == seq && old.len() >= data.len();
            if !self.pieces.iter().any(same) {
                self.pieces.push((seq, data.to_vec()));
            }
        }
    }

    /// The stream has something to read, or may have ended.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// The stream takes data again.
    pub fn set_writable(&mut self) {
        self.writable = true;
    }

    /// Moves what can be moved, in both directions, and acknowledges what came. The second value tells whether there is more
    /// to be moved at once, which was left for the sake of others.
    pub fn pump<S: Stream>(
        &mut self,
        stream: &mut S,
        wire: &mut impl Wire,
        limits: Limits,
        now: Instant,
    ) -> (Disposition, bool) {
        if self.state != State::Established {
            if std::mem::take(&mut self.ack_due) && self.state == State::SynReceived {
                self.send_ack(wire, limits);
            }
            return (Disposition::Open, false);
        }
        while self.writable && !self.rx.is_empty() {
            match stream.write(self.rx.slices(0, self.rx.len())[0]) {
                Ok(n) => self.rx.consume(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => return (self.break_off(wire), false),
            }
        }
        self.rx.release();
        if self.guest_fin.is_some_and(|fin| before(fin, self.rcv_nxt))
            && self.rx.is_empty()
            && !self.shut
        {
            self.shut = true;
            stream.shutdown();
        }
        let mut more = false;
        self.starved = false;
        // A few rounds, then it is others' turn.
        for round in 0..4 {
            if self.readable && !self.host_ended {
                // No more than the guest can take now, or little.
                let allowed = self.guest_window.wrapping_sub(self.una) as i32;
                let allowed = usize::try_from(allowed).unwrap_or(0).max(usize::from(self.mss) * 4);
                let (most, room) = (allowed.min(limits.buffer), self.room(limits));
                let mut asked = false;
                let read = |room: &mut [IoSliceMut<'_>]| {
                    asked = true;
                    stream.read(room)
                };
                match self.tx.fill(most, room, read) {
                    Ok(0) => self.host_ended = true,
                    Ok(_) => self.last = now,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        self.readable = !asked;
                        self.starved = !asked && self.tx.is_empty();
                    }
                    Err(_) => return (self.break_off(wire), false),
                }
            }
            if !self.transmit(wire, limits, now) {
                break;
            }
            more = self.readable && round == 3;
        }
        // The window has opened by enough to tell (RFC 9293 §3.8.6.2.2).
        let told = self.rcv_edge.wrapping_sub(self.rcv_nxt) as usize;
        let opened = self.window(limits).saturating_sub(told);
        if self.guest_fin.is_none()
            && opened >= (2 * usize::from(self.own_mss)).max(limits.buffer / 2).min(MOST / 2)
        {
            self.ack_due = true;
        }
        if self.ack_due {
            self.send_ack(wire, limits);
        }
        if self.timer.is_none() && self.has_unsent() {
            // A closed window: probes.
            self.timer = Some(now + self.rto);
        }
        let fin_acked = self.fin.is_some_and(|fin| before(fin, self.una));
        let closed = self.shut && fin_acked;
        (if closed { Disposition::Closed } else { Disposition::Open }, more && !closed)
    }

    /// Sequence number behind the data that waits in the ring.
    fn data_end(&self) -> u32 {
        // The ring holds little more than MOST.
        self.una.wrapping_add(u32::try_from(self.tx.len()).unwrap_or(0))
    }

    /// Whether the FIN is still to be acknowledged, or to be sent.
    fn fin_open(&self) -> bool {
        self.host_ended && self.fin.is_none_or(|fin| !before(fin, self.una))
    }

    fn has_unsent(&self) -> bool {
        before(self.nxt, self.data_end()) || (self.fin_open() && self.nxt == self.data_end())
    }

    /// Sends what the window allows; whether anything was sent.
    fn transmit(&mut self, wire: &mut impl Wire, limits: Limits, now: Instant) -> bool {
        let window = self.guest_window.wrapping_sub(self.una);
        let window = if window as i32 > 0 { window.min(self.cwnd) } else { 0 };
        let edge = self.una.wrapping_add(window);
        let end = self.data_end();
        let burst = u32::try_from(limits.burst).unwrap_or(u32::MAX).max(self.mss.into());
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
            self.send_next(stop, wire, limits, now);
            sent = true;
        }
        if self.fin_open() && self.nxt == end && before(self.nxt, edge) {
            self.send_next(end, wire, limits, now);
            sent = true;
        }
        if sent && self.timer.is_none() {
            self.timer = Some(now + self.rto);
        }
        sent
    }

    /// Sends from `nxt` to `stop`, with a FIN if that is the end.
    fn send_next(&mut self, stop: u32, wire: &mut impl Wire, limits: Limits, now: Instant) {
        let new = self.nxt == self.max;
        let fin = self.send_data(self.nxt, stop, wire, limits);
        self.nxt = stop.wrapping_add(u32::from(fin));
        if before(self.max, self.nxt) {
            self.max = self.nxt;
        }
        if new && self.timed.is_none() {
            self.timed = Some((self.nxt, now));
        }
    }

    /// Sends the data between two sequence numbers; whether a FIN went with it.
    fn send_data(&mut self, from: u32, to: u32, wire: &mut impl Wire, limits: Limits) -> bool {
        let end = self.data_end();
        let to = if before(end, to) { end } else { to };
        let count = to.wrapping_sub(from) as usize;
        let fin = self.fin_open() && to == end;
        if fin {
            self.fin = Some(end);
        }
        let window = self.announce(limits);
        let mut flags = ACK;
        if to == end && count > 0 {
            flags |= PSH;
        }
        if fin {
            flags |= FIN;
        }
        let segment = Segment {
            seq: from,
            ack: self.rcv_nxt,
            flags,
            window,
            options: &[],
            payload: self.tx.slices(from.wrapping_sub(self.una) as usize, count),
            mss: self.mss,
        };
        wire.send(&segment);
        self.ack_due = false;
        fin
    }

    fn send_ack(&mut self, wire: &mut impl Wire, limits: Limits) {
        let mut options = Vec::new();
        if self.sack && !self.pieces.is_empty() {
            let mut blocks = Vec::new();
            // What came last is told first (RFC 2018 §4).
            for (seq, data) in self.pieces.iter().rev() {
                let end = seq.wrapping_add(u32::try_from(data.len()).unwrap_or(0));
                if blocks.len() < 3 || !merges(&blocks, *seq, end) {
                    insert(&mut blocks, *seq, end);
                }
            }
            blocks.retain(|(start, _)| before(self.rcv_nxt, *start));
            if let Some((seq, _)) = self.pieces.last() {
                if let Some(i) =
                    blocks.iter().position(|(s, e)| !before(*seq, *s) && before(*seq, *e))
                {
                    blocks.swap(0, i);
                }
            }
            blocks.truncate(3);
            if !blocks.is_empty() {
                // Two blocks are 18 bytes, and 2 to align them.
                let len = u8::try_from(2 + 8 * blocks.len()).unwrap_or(0);
                options.extend([1, 1, 5, len]);
                for (start, end) in blocks {
                    options.extend(start.to_be_bytes());
                    options.extend(end.to_be_bytes());
                }
            }
        }
        let window = self.announce(limits);
        let segment = Segment {
            seq: self.nxt,
            ack: self.rcv_nxt,
            flags: ACK,
            window,
            options: &options,
            payload: [&[]; 2],
            mss: self.mss,
        };
        wire.send(&segment);
        self.ack_due = false;
    }

    /// Bytes that may come. What the stream takes at once needs no memory.
    fn window(&self, limits: Limits) -> usize {
        let most = limits.buffer.saturating_sub(self.rx.len());
        let straight = self.writable && self.rx.is_empty();
        if straight {
            most
        } else {
            most.min(self.rx.spare().saturating_add(self.room(limits)))
        }
    }

    /// The window for a header. What was told before is never taken back.
    fn announce(&mut self, limits: Limits) -> u16 {
        let window = u32::try_from(self.window(limits)).unwrap_or(u32::MAX >> 2);
        let told = self.rcv_edge.wrapping_sub(self.rcv_nxt);
        let told = if told as i32 > 0 { told } else { 0 };
        let field = window.max(told).div_ceil(1 << self.scale).min(u16::MAX.into());
        self.rcv_edge = self.rcv_nxt.wrapping_add(field << self.scale);
        u16::try_from(field).unwrap_or(u16::MAX)
    }

    /// The stream broke: the guest is told by a reset.
    pub fn break_off(&mut self, wire: &mut impl Wire) -> Disposition {
        let connecting = self.state == State::Connecting;
        let segment = Segment {
            seq: if connecting { 0 } else { self.nxt },
            ack: self.rcv_nxt,
            flags: RST | ACK,
            window: 0,
            options: &[],
            payload: [&[]; 2],
            mss: self.mss,
        };
        wire.send(&segment);
        Disposition::HostReset
    }

    /// Does what is due: retransmission (RFC 6298 §5), window probes, the end of what idled too long.
    pub fn on_timer(&mut self, wire: &mut impl Wire, limits: Limits, now: Instant) -> Disposition {
        if self.tx.is_empty() && now >= self.last + TIDY {
            self.tx.release();
        }
        if self.timer.is_none_or(|timer| now < timer) {
            let over = now >= self.last + self.patience();
            return if over { self.break_off(wire) } else { Disposition::Open };
        }
        self.timer = None;
        let syn = self.state != State::Established;
        if !syn && self.max == self.una && !self.has_unsent() {
            return Disposition::Open;
        }
        self.retries += 1;
        if self.retries > if syn { SYN_RETRIES } else { RETRIES } {
            return self.break_off(wire);
        }
        self.timed = None;
        self.rto = (self.rto * 2).min(RTO_MOST);
        if syn {
            self.send_syn(wire, limits, now);
            return Disposition::Open;
        }
        self.timer = Some(now + self.rto);
        self.sacked.clear();
        self.recover = None;
        self.dup_acks = 0;
        self.nxt = self.una;
        self.resent = self.una;
        self.cwnd = u32::from(self.mss) * 4;
        if !self.transmit(wire, limits, now) {
            // The window is closed: one byte to ask.
            self.send_next(self.una.wrapping_add(1), wire, limits, now);
        }
        Disposition::Open
    }

    fn patience(&self) -> Duration {
        let closing = self.guest_fin.is_some() && self.host_ended;
        if self.state == State::Established && !closing {
            ESTABLISHED
        } else {
            TRANSITORY
        }
    }
}

/// Whether a block touches one of `blocks`.
fn merges(blocks: &[(u32, u32)], start: u32, end: u32) -> bool {
    blocks.iter().any(|(s, e)| !before(end, *s) && !before(*e, start))
}

/// Adds a block to blocks that are in order and apart.
fn insert(blocks: &mut Vec<(u32, u32)>, mut start: u32, mut end: u32) {
    blocks.retain(|(s, e)| {
        let apart = before(end, *s) || before(*e, start);
        if !apart {
            start = if before(*s, start) { *s } else { start };
            end = if before(end, *e) { *e } else { end };
        }
        apart
    });
    let at = blocks.iter().position(|(s, _)| before(start, *s)).unwrap_or(blocks.len());
    blocks.insert(at, (start, end));
}

/// TCP options that matter here.
#[derive(Clone, Copy, Debug, Default)]
struct Options<'a> {
    mss: Option<u16>,
    scale: Option<u8>,
    sack: bool,
    sacked: &'a [u8],
}

impl<'a> Options<'a> {
    /// Reads them; from the first that lies about its length on there are none.
    fn parse(mut bytes: &'a [u8]) -> Self {
        let mut options = Self::default();
        loop {
            let (kind, len) = match bytes {
                [1, rest @ ..] => {
                    bytes = rest;
                    continue;
                }
                [kind, len, ..] if *kind != 0 => (*kind, usize::from(*len)),
                _ => return options,
            };
            let Some(body) = bytes.get(2..len) else { return options };
            match (kind, body) {
                (2, [a, b]) => options.mss = Some(u16::from_be_bytes([*a, *b])),
                (3, [scale]) => options.scale = Some(*scale),
                (4, []) => options.sack = true,
                (5, blocks) => options.sacked = blocks,
                _ => {}
            }
            bytes = &bytes[len..];
        }
    }

    fn blocks(self) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.sacked.chunks_exact(8).map(|block| {
            let number =
                |i: usize| u32::from_be_bytes([block[i], block[i + 1], block[i + 2], block[i + 3]]);
            (number(0), number(4))
        })
    }
}

#[cfg(test)]
mod tests;
