// SPDX-License-Identifier: Apache-2.0

//! Whether the peer is alive. A guest's last byte is acknowledged, and its keepalive answered, once
//! the peer has done so, not when this host has the data: otherwise a guest would never learn that
//! its peer is dead (RFC 9293 §3.8.4, RFC 5482).

use std::time::{Duration, Instant};

use super::stream::{PeerState, Stream};

/// Shortest and longest interval at which the stream is asked: no event tells that a peer has
/// acknowledged.
const SOONEST: Duration = Duration::from_millis(1);
const RAREST: Duration = Duration::from_secs(1);
/// Round trips in which data is expected to be acknowledged.
const TRIPS: u32 = 8;
/// A peer heard within this time is alive.
const FRESH: Duration = Duration::from_secs(1);

/// What is still to be confirmed.
#[derive(Debug, Default)]
pub(super) struct Confirmation {
    /// Data was written to the stream, and the peer has not acknowledged all of it.
    pub(super) is_pending: bool,
    /// When data was last written.
    given: Option<Instant>,
    /// When the guest sent a keepalive.
    asked: Option<Instant>,
    /// When to ask the stream again.
    check: Option<Instant>,
    gap: Duration,
}

impl Confirmation {
    /// Notes that data was written to the stream.
    pub(super) fn data_given(&mut self, now: Instant) {
        self.is_pending = true;
        self.given = Some(now);
        self.look_soon(now);
    }

    /// Handles a guest's keepalive; returns whether the peer is known to be alive.
    pub(super) fn ask<S: Stream>(&mut self, stream: &mut S, now: Instant) -> bool {
        if stream.peer().is_none_or(|peer| peer.unheard < FRESH) {
            return true;
        }
        stream.set_probing(true);
        self.asked = Some(now);
        self.look_soon(now);
        false
    }

    fn look_soon(&mut self, now: Instant) {
        if self.check.is_none() {
            self.gap = SOONEST;
            self.check = Some(now + SOONEST);
        }
    }

    /// When [`Self::look`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.check
    }

    /// Asks the stream; returns whether the guest has to be told.
    pub(super) fn look<S: Stream>(&mut self, stream: &mut S, now: Instant) -> bool {
        let waited = self.is_pending || self.asked.is_some();
        let Some(PeerState { unheard, rtt, has_all }) = stream.peer() else {
            *self = Self::default();
            return waited;
        };
        let answered =
            self.asked.is_some_and(|asked| unheard < now.saturating_duration_since(asked));
        if answered {
            stream.set_probing(false);
            self.asked = None;
        }
        let confirmed = self.is_pending && has_all;
        if confirmed {
            self.is_pending = false;
        }
        let rtt = rtt.clamp(SOONEST, RAREST);
        let is_soon = self.given.is_some_and(|given| now < given + rtt * TRIPS);
        self.gap = if is_soon { rtt } else { (self.gap * 2).clamp(SOONEST, RAREST) };
        self.check = (self.is_pending || self.asked.is_some()).then(|| now + self.gap);
        answered || confirmed
    }
}
