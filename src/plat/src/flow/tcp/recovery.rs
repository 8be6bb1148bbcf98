// SPDX-License-Identifier: Apache-2.0

//! Loss recovery: the retransmission timer (RFC 6298), fast retransmit with SACK (RFC 6675,
//! simplified) or without it (RFC 6582).
//!
//! There is no congestion control. The guest is one hop away, over a queue of this machine that
//! reports when it is full (`Link::is_full`), and no other traffic shares that hop: slowing down
//! after a loss would only leave it idle. The guest's window limits what is in flight; after a
//! retransmission timeout it is a few segments, until more is acknowledged.

use std::time::{Duration, Instant};

use super::blocks::{self, Block};
use super::options::Options;
use super::segment::before;

const RTO_FIRST: Duration = Duration::from_secs(1);
const RTO_LEAST: Duration = Duration::from_millis(200);
const RTO_MOST: Duration = Duration::from_secs(60);
/// More than any window.
const NO_LIMIT: u32 = u32::MAX >> 2;
/// Most SACK blocks remembered.
const BLOCKS: usize = 64;

/// The state of recovery towards the guest.
#[derive(Debug)]
pub(super) struct Recovery {
    /// Most bytes in flight.
    pub(super) cwnd: u32,
    /// Number of duplicate acknowledgements in a row.
    dup_acks: u8,
    /// The end of the recovery, while in one.
    recover: Option<u32>,
    /// How far the recovery has retransmitted.
    resent: u32,
    /// The blocks that the guest has above its acknowledgement.
    sacked: Vec<Block>,
    rto: Duration,
    /// The smoothed round-trip time, and its variation.
    rtt: Option<(Duration, Duration)>,
    /// The sequence number whose acknowledgement is timed, and when it was sent.
    timed: Option<(u32, Instant)>,
    pub(super) retries: u8,
    /// Number of window probes in a row.
    probes: u32,
    pub(super) timer: Option<Instant>,
}

impl Recovery {
    pub(super) fn new(isn: u32) -> Self {
        Self {
            cwnd: NO_LIMIT,
            dup_acks: 0,
            recover: None,
            resent: isn,
            sacked: Vec::new(),
            rto: RTO_FIRST,
            rtt: None,
            timed: None,
            retries: 0,
            probes: 0,
            timer: None,
        }
    }

    /// Begins with an established connection: `una` is the first byte of data.
    pub(super) fn establish(&mut self, una: u32, now: Instant) {
        self.resent = una;
        self.measure(una, now);
        self.retries = 0;
        self.timer = None;
    }

    /// Starts the timer.
    pub(super) fn start_timer(&mut self, now: Instant) {
        self.timer = Some(now + self.rto);
    }

    /// Starts the timer for the next window probe. Its interval grows, independently of the
    /// retransmission timer's (RFC 9293 §3.8.6.1).
    pub(super) fn start_probe_timer(&mut self, now: Instant) {
        self.probes += 1;
        let factor = 1 << self.probes.min(16);
        self.timer = Some(now + self.rto.saturating_mul(factor).min(RTO_MOST));
    }

    /// Notes that the window is open again, which ends the probes' interval.
    pub(super) fn window_opened(&mut self) {
        self.probes = 0;
        self.timer = None;
    }

    /// Times the acknowledgement of `seq`, sent now for the first time, unless another one is
    /// timed.
    pub(super) fn time(&mut self, seq: u32, now: Instant) {
        if self.timed.is_none() {
            self.timed = Some((seq, now));
        }
    }

    /// Stops timing: the segment is retransmitted.
    pub(super) fn forget_time(&mut self) {
        self.timed = None;
    }

    /// Measures a round trip (RFC 6298 §2); by Karn's rule, not of retransmitted segments.
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

    /// Handles a SACK option while `una` to `max` is in flight.
    pub(super) fn take_sack(&mut self, options: &[u8], una: u32, max: u32) {
        for (start, end) in Options::parse(options).blocks() {
            if before(start, end) && !before(start, una) && !before(max, end) {
                blocks::insert(&mut self.sacked, (start, end));
            }
        }
        self.sacked.truncate(BLOCKS);
    }

    /// Whether the guest has data above its acknowledgement.
    pub(super) fn has_sacked(&self) -> bool {
        !self.sacked.is_empty()
    }

    /// Handles the acknowledgement of `acked` more bytes, up to `ack`; returns how many packets to
    /// retransmit.
    pub(super) fn acknowledged(
        &mut self,
        ack: u32,
        acked: u32,
        all: bool,
        now: Instant,
    ) -> Option<usize> {
        self.sacked.retain(|(_, end)| before(ack, *end));
        self.measure(ack, now);
        self.retries = 0;
        self.dup_acks = 0;
        self.cwnd = self.cwnd.saturating_add(acked).min(NO_LIMIT);
        self.timer = (!all).then(|| now + self.rto);
        match self.recover {
            Some(recover) if before(ack, recover) => Some(2),
            Some(_) => {
                self.recover = None;
                None
            }
            None => None,
        }
    }

    /// Handles a duplicate acknowledgement of `una` while up to `max` is in flight; returns how
    /// many packets to retransmit.
    pub(super) fn duplicate(&mut self, una: u32, max: u32) -> Option<usize> {
        self.dup_acks = self.dup_acks.saturating_add(1);
        if self.recover.is_some() {
            return Some(2);
        }
        if self.dup_acks != 3 {
            return None;
        }
        self.recover = Some(max);
        self.resent = una;
        self.timed = None;
        Some(4)
    }

    /// The next block to retransmit in a recovery, at most `mss` bytes: each hole once.
    pub(super) fn next_hole(&mut self, una: u32, mss: u16) -> Option<Block> {
        if before(self.resent, una) {
            self.resent = una;
        }
        // Up to the next block that the guest has.
        let (mut at, mut end) = blocks::hole(&self.sacked, self.resent)?;
        if before(at, self.resent) {
            at = self.resent;
        }
        let most = at.wrapping_add(u32::from(mss));
        if before(most, end) {
            end = most;
        }
        self.resent = end;
        Some((at, end))
    }

    /// Doubles the timeout after it has expired (RFC 6298 §5.5).
    pub(super) fn back_off(&mut self) {
        self.timed = None;
        self.rto = (self.rto * 2).min(RTO_MOST);
    }

    /// Begins retransmission from `una` on, with a few segments at first.
    pub(super) fn restart(&mut self, una: u32, mss: u16) {
        self.sacked.clear();
        self.recover = None;
        self.dup_acks = 0;
        self.resent = una;
        self.cwnd = u32::from(mss) * 4;
    }
}
