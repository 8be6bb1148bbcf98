//! How often an ICMP error may be sent (RFC 4443 §2.4(f)): a token bucket that is told the time.

use std::time::{Duration, Instant};

/// A token every 10 ms.
const INTERVAL: Duration = Duration::from_millis(10);
/// At most 50 tokens at once, as Linux has it (`icmp_msgs_burst`).
const BURST: u32 = 50;

/// The bucket, kept as the moment at which it will be full again.
#[derive(Debug)]
pub struct Bucket {
    full_at: Option<Instant>,
    /// How many buckets share the rate and the burst.
    shares: u32,
}

impl Default for Bucket {
    fn default() -> Self {
        Self::one_of(1)
    }
}

impl Bucket {
    /// One of several that together give as many tokens as one.
    #[must_use]
    pub fn one_of(shares: u32) -> Self {
        Self { full_at: None, shares: shares.clamp(1, BURST) }
    }

    /// Takes a token, if there is one at `now`.
    pub fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        let interval = INTERVAL * self.shares;
        if full_at - now > interval * (BURST / self.shares - 1) {
            return false;
        }
        self.full_at = Some(full_at + interval);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate() {
        let mut bucket = Bucket::default();
        let start = Instant::now();
        let taken = |bucket: &mut Bucket, at| (0..1000).filter(|_| bucket.take(at)).count();
        assert_eq!(taken(&mut bucket, start), 50);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(9)), 0);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(10)), 1);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(60)), 5);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(3600)), 50);
        let mut bucket = Bucket::one_of(4);
        assert_eq!(taken(&mut bucket, start), 12);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(39)), 0);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(80)), 2);
    }
}
