// SPDX-License-Identifier: Apache-2.0

//! Token buckets, such as for ICMP errors (RFC 4443 §2.4 (f)); the caller tells the time.

use std::time::{Duration, Instant};

/// Size of a bucket, and how fast it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time until one token is added.
    pub interval: Duration,
    /// Tokens in a full bucket, at least 1.
    pub burst: u32,
}

impl Rate {
    /// A CLAT's ICMP errors to one side (RFC 4443 §2.4 (f)): 100 a second, and bursts as large as
    /// Linux's (`icmp_msgs_burst`).
    pub const ICMP_ERRORS: Self = Self { interval: Duration::from_millis(10), burst: 50 };

    /// The rate for each of `buckets` buckets that together give as many tokens as one.
    #[must_use]
    pub fn shared_by(self, buckets: u32) -> Self {
        let buckets = buckets.clamp(1, self.burst.max(1));
        Self { interval: self.interval * buckets, burst: self.burst / buckets }
    }
}

/// A token bucket, kept as the time at which it will be full again. A new one is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// Takes a token, if there is one at `now`.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at - now > rate.interval * rate.burst.saturating_sub(1) {
            return false;
        }
        self.full_at = Some(full_at + rate.interval);
        true
    }

    /// Whether the bucket is full at `now`; it need not be kept then.
    #[must_use]
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at.map_or(true, |at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate() {
        let rate = Rate { interval: Duration::from_millis(10), burst: 50 };
        let mut bucket = Bucket::default();
        let start = Instant::now();
        let taken =
            |bucket: &mut Bucket, rate, at| (0..1000).filter(|_| bucket.take(rate, at)).count();
        assert!(bucket.is_full(start));
        assert_eq!(taken(&mut bucket, rate, start), 50);
        assert_eq!(taken(&mut bucket, rate, start + Duration::from_millis(9)), 0);
        assert_eq!(taken(&mut bucket, rate, start + Duration::from_millis(10)), 1);
        assert_eq!(taken(&mut bucket, rate, start + Duration::from_millis(60)), 5);
        assert!(!bucket.is_full(start + Duration::from_millis(559)));
        assert!(bucket.is_full(start + Duration::from_millis(560)));
        assert_eq!(taken(&mut bucket, rate, start + Duration::from_secs(3600)), 50);
        let (mut bucket, rate) = (Bucket::default(), rate.shared_by(4));
        assert_eq!(taken(&mut bucket, rate, start), 12);
        assert_eq!(taken(&mut bucket, rate, start + Duration::from_millis(39)), 0);
        assert_eq!(taken(&mut bucket, rate, start + Duration::from_millis(80)), 2);
    }
}
