// SPDX-License-Identifier: Apache-2.0

//! How busy a thread is: the share of time in which it does not wait. The caller tells the time.

use std::time::{Duration, Instant};

/// How long a thread has waited since a point in time.
#[derive(Debug)]
pub struct Load {
    since: Instant,
    waited: Duration,
}

impl Load {
    /// Begins at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { since: now, waited: Duration::ZERO }
    }

    /// Adds a time of waiting.
    pub fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// The share of time, in percent, that was not spent waiting, and starts again; `None` until
    /// `window` has passed.
    pub fn busy(&mut self, now: Instant, window: Duration) -> Option<u128> {
        let all = now.duration_since(self.since);
        if all < window {
            return None;
        }
        let busy = all.saturating_sub(self.waited).as_nanos() * 100 / all.as_nanos().max(1);
        *self = Self::new(now);
        Some(busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_waited() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut load = Load::new(start);
        load.waited(ms(10));
        assert_eq!(load.busy(start + ms(39), ms(40)), None);
        load.waited(ms(20));
        assert_eq!(load.busy(start + ms(40), ms(40)), Some(25));
        assert_eq!(load.busy(start + ms(80), ms(40)), Some(100));
        load.waited(ms(90));
        assert_eq!(load.busy(start + ms(120), ms(40)), Some(0), "more than there was");
    }
}
