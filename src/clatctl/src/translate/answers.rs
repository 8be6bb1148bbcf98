// SPDX-License-Identifier: Apache-2.0

//! Which ICMP errors are written (RFC 7915 §4.4 and §5.4 leave it to configuration).

use std::time::{Duration, Instant};

use clap::ValueEnum;
use clat_packet::rate_limit::{Bucket, Rate};

/// `--icmp-errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum IcmpErrors {
    /// All
    Sent,
    /// As many as a CLAT sends, by the capture's times: bursts of 50 and 100 a second to either
    /// side
    Limited,
    /// None: packets are dropped silently
    None,
}

/// Decides for each error whether it is sent.
pub(super) struct Answers {
    policy: IcmpErrors,
    /// One for errors to IPv4, one for errors to IPv6, so that neither side uses up the other's.
    buckets: [Bucket; 2],
    /// The start of the clock, and the capture's time then.
    epoch: Option<(Instant, Duration)>,
}

impl Answers {
    pub(super) fn new(policy: IcmpErrors) -> Self {
        Self { policy, buckets: Default::default(), epoch: None }
    }

    /// Whether this error is sent at the capture's time `at`, since 1970. A time before the first
    /// one counts as the first.
    pub(super) fn may_send(&mut self, error: &[u8], at: Duration) -> bool {
        match self.policy {
            IcmpErrors::Sent => true,
            IcmpErrors::None => false,
            IcmpErrors::Limited => {
                let (start, first) = *self.epoch.get_or_insert_with(|| (Instant::now(), at));
                let is_v6 = error.first().is_some_and(|byte| byte >> 4 == 6);
                let now = start + at.saturating_sub(first);
                self.buckets[usize::from(is_v6)].take(Rate::ICMP_ERRORS, now)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limited_by_the_times_of_the_capture() {
        let mut answers = Answers::new(IcmpErrors::Limited);
        let mut sent = |family: u8, millis| {
            let at = Duration::from_secs(1_700_000_000) + Duration::from_millis(millis);
            (0..100).filter(|_| answers.may_send(&[family << 4], at)).count()
        };
        assert_eq!((sent(4, 500), sent(4, 509), sent(4, 510)), (50, 0, 1));
        // The other side has its own bucket.
        assert_eq!(sent(6, 510), 50);
        // The capture's clock was set back.
        assert_eq!((sent(4, 0), sent(4, 530)), (0, 2));
        for (policy, count) in [(IcmpErrors::Sent, 100), (IcmpErrors::None, 0)] {
            let mut answers = Answers::new(policy);
            let sent = (0..100).filter(|_| answers.may_send(&[0x45], Duration::ZERO));
            assert_eq!(sent.count(), count);
        }
    }
}
