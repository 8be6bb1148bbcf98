// SPDX-License-Identifier: Apache-2.0

//! Which ICMP errors are written (RFC 7915 §4.4 and §5.4 leave it to whoever configures).

use std::time::{Duration, Instant};

use clap::ValueEnum;
use clat_packet::rate_limit::{Bucket, Rate};

/// `--icmp-errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum IcmpErrors {
    /// All
    Sent,
    /// As many as a CLAT sends, by the times of the capture: 50 at once to either side, and 100 a
    /// second
    Limited,
    /// None: the packets are dropped in silence
    None,
}

/// Decides about one error after the other.
pub(super) struct Answers {
    policy: IcmpErrors,
    /// One for errors to IPv4, one for errors to IPv6: neither side uses up what the other has.
    buckets: [Bucket; 2],
    /// A moment to count from, and what the capture calls it.
    epoch: Option<(Instant, Duration)>,
}

impl Answers {
    pub(super) fn new(policy: IcmpErrors) -> Self {
        Self { policy, buckets: Default::default(), epoch: None }
    }

    /// Whether this error is sent, at a time that the capture gives, from 1970 on. A time before
    /// that of the first packet asked about counts as that.
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
        // The other side has its own.
        assert_eq!(sent(6, 510), 50);
        // A capture whose clock was set back.
        assert_eq!((sent(4, 0), sent(4, 530)), (0, 2));
        for (policy, count) in [(IcmpErrors::Sent, 100), (IcmpErrors::None, 0)] {
            let mut answers = Answers::new(policy);
            let sent = (0..100).filter(|_| answers.may_send(&[0x45], Duration::ZERO));
            assert_eq!(sent.count(), count);
        }
    }
}
