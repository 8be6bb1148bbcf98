// SPDX-License-Identifier: Apache-2.0

//! How many reads to try on a level-triggered descriptor.

/// Number of single reads after a message came alone.
const ALONE: u8 = 8;

/// A budget for messages that come in batches or alone. If the last attempt found a single one, the
/// next few read one and do not try a second: that saves a failing system call per message of a
/// dialogue, and costs a batch a few rounds of the loop.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReadBudget(u8);

impl ReadBudget {
    /// How many to read now, at most `most`.
    pub(crate) fn most(self, most: usize) -> usize {
        if self.0 > 0 {
            1
        } else {
            most
        }
    }

    /// Notes how many were read.
    pub(crate) fn found(&mut self, count: usize) {
        self.0 = match (self.0, count) {
            (0, 1) => ALONE,
            (left, 1..) => left.saturating_sub(1),
            (_, 0) => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_again_for_batches() {
        let mut budget = ReadBudget::default();
        assert_eq!(budget.most(64), 64);
        budget.found(1);
        for _ in 0..ALONE {
            assert_eq!(budget.most(64), 1);
            budget.found(1);
        }
        assert_eq!(budget.most(64), 64);
        budget.found(64);
        assert_eq!(budget.most(64), 64);
    }
}
