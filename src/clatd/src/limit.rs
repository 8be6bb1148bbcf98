//! How often an ICMP error may be sent (RFC 4443 §2.4(f)): a token bucket that is told the time.

use std::time::{Duration, Instant};

/// A token every 10 ms.
const INTERVAL: Duration = Duration::from_millis(10);
/// At most 50 tokens at once, as Linux has it (`icmp_msgs_burst`).
const BURST: u32 = 50;

/// The bucket, kept as the moment at which it will be full again.
#[derive(Debug, Default)]
pub struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// Takes a token, if there is one at `now`.
    pub fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at - now > INTERVAL * (BURST - 1) {
            return false;
        }
        self.full_at = Some(full_at + INTERVAL);
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
    }
}
