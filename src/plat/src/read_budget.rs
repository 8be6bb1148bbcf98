// SPDX-License-Identifier: Apache-2.0

//! How much to read at once from a descriptor that is watched level-triggered.

/// How often a single one is read after one came alone.
const ALONE: u8 = 8;

/// A reader of single things that come in batches or alone. Where the last look found one and no
/// second, the next few take one and do not look for a second: in a conversation of question and
/// answer that saves each turn a system call that brings nothing, and in a batch it costs a few
/// rounds of the loop.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReadBudget(u8);

impl ReadBudget {
    /// How many to take now, of `most` that may be taken.
    pub(crate) fn most(self, most: usize) -> usize {
        if self.0 > 0 {
            1
        } else {
            most
        }
    }

    /// So many were there.
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
