// SPDX-License-Identifier: Apache-2.0

//! Whether the other end is there. A guest's last byte is acknowledged, and a keepalive of a guest
//! is answered, once the other end has done so, and not because this host has taken it: else a
//! guest would never learn that its peer is dead (RFC 9293 §3.8.4, RFC 5482).

use std::time::{Duration, Instant};

use super::stream::{PeerState, Stream};

/// How soon, and how rarely, the stream is looked at: nothing tells when a peer acknowledges.
const SOONEST: Duration = Duration::from_millis(1);
const RAREST: Duration = Duration::from_secs(1);
/// So many round trips after data was given it is still expected to be acknowledged soon.
const TRIPS: u32 = 8;
/// Whoever was heard so lately is there.
const FRESH: Duration = Duration::from_secs(1);

/// What is not known yet.
#[derive(Debug, Default)]
pub(super) struct Confirmation {
    /// Data was given to the stream, and the other end has not acknowledged all of it.
    pub(super) is_pending: bool,
    /// When data was last given.
    given: Option<Instant>,
    /// When the guest asked whether the other end is there.
    asked: Option<Instant>,
    /// When to look again.
    check: Option<Instant>,
    gap: Duration,
}

impl Confirmation {
    /// Data was given to the stream.
    pub(super) fn data_given(&mut self, now: Instant) {
        self.is_pending = true;
        self.given = Some(now);
        self.look_soon(now);
    }

    /// The guest asks whether the other end is there. Whether that is known.
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

    /// Looks whether more is known; if so, the guest is to be told.
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
