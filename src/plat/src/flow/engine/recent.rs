// SPDX-License-Identifier: Apache-2.0

//! The recent peers of a socket, as many as there is memory for.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

/// Approximate bytes of one entry.
const EACH: usize = 64;
/// Entries that are not accounted for: most sockets have one or two.
const FREE: usize = 16;

/// The data of each peer, and when it was last seen.
pub(super) struct Recent<K, V> {
    all: HashMap<K, (V, Instant)>,
    latest: Option<K>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { all: HashMap::new(), latest: None }
    }
}

impl<K: Copy + Eq + Hash, V: Copy> Recent<K, V> {
    /// Whether it is the one noted last, which need not be noted again.
    pub(super) fn is_latest(&self, key: K) -> bool {
        self.latest == Some(key)
    }

    /// Notes a peer. If that would take more than `memory` bytes, the least recent ones are
    /// dropped.
    pub(super) fn note(&mut self, key: K, value: V, now: Instant, memory: usize) {
        self.latest = Some(key);
        let most = FREE + memory / EACH;
        if self.all.len() >= most && !self.all.contains_key(&key) {
            // Drop half of them, so that this is rare.
            let mut times: Vec<Instant> = self.all.values().map(|(_, last)| *last).collect();
            let half = times.len() / 2;
            let (_, &mut middle, _) = times.select_nth_unstable(half);
            self.all.retain(|_, (_, last)| *last > middle);
        }
        self.all.insert(key, (value, now));
    }

    /// The data of a peer, if it was seen since then.
    pub(super) fn get(&self, key: K, since: Option<Instant>) -> Option<V> {
        let fresh = |last: Instant| since.is_none_or(|since| last > since);
        self.all.get(&key).filter(|(_, last)| fresh(*last)).map(|(value, _)| *value)
    }

    /// Bytes of memory accounted for.
    pub(super) fn held(&self) -> usize {
        self.all.len().saturating_sub(FREE) * EACH
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn as_many_as_there_is_memory_for() {
        let (start, memory) = (Instant::now(), 1000 * EACH);
        let mut recent = Recent::default();
        for n in 0..10_000_u32 {
            recent.note(n, (), start + Duration::from_millis(n.into()), memory);
            assert!(recent.held() <= memory);
            assert!(recent.is_latest(n) && recent.get(n, None).is_some());
            let before = n.saturating_sub(400);
            assert!(recent.get(before, None).is_some(), "{before} of {n}");
        }
        assert!(recent.get(9_999, Some(start + Duration::from_secs(60))).is_none());
    }
}
