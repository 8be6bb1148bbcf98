// SPDX-License-Identifier: Apache-2.0

//! Fair shares of resources that all guests use. A guest is an Ethernet address.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clat_packet::rate_limit::{Bucket, Rate};

use crate::frame::Mac;

/// Which of `all` (guest, age and name) to remove if there are too many: the oldest of the guest
/// with most. Also returns how many that guest has.
pub fn to_evict<A: Ord, N>(all: impl Iterator<Item = (Mac, A, N)>) -> Option<(N, usize)> {
    let mut guests = HashMap::new();
    for (guest, age, name) in all {
        match guests.entry(guest) {
            Entry::Vacant(entry) => {
                entry.insert((1, age, name));
            }
            Entry::Occupied(mut entry) => {
                let (count, oldest, named) = entry.get_mut();
                *count += 1;
                if age < *oldest {
                    (*oldest, *named) = (age, name);
                }
            }
        }
    }
    let most = guests.into_values().max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    most.map(|(count, _, name)| (name, count))
}

/// A set from which to remove as [`to_evict`] says, for sets too large to search each time. Ages
/// are unique.
#[derive(Debug)]
pub struct Shares<A, N> {
    guests: HashMap<Mac, BTreeMap<A, N>>,
    /// Number and oldest age per guest; the last entry is the one to remove from.
    ranks: BTreeSet<(usize, Reverse<A>, Mac)>,
}

impl<A, N> Default for Shares<A, N> {
    fn default() -> Self {
        Self { guests: HashMap::new(), ranks: BTreeSet::new() }
    }
}

impl<A: Copy + Ord, N: Copy> Shares<A, N> {
    /// Adds one.
    pub fn insert(&mut self, guest: Mac, age: A, name: N) {
        self.change(guest, |own| own.insert(age, name));
    }

    /// Removes one.
    pub fn remove(&mut self, guest: Mac, age: A) {
        self.change(guest, |own| own.remove(&age));
    }

    /// The result of [`to_evict`]: guest, age and name.
    pub fn to_evict(&self) -> Option<(Mac, A, N)> {
        let (_, Reverse(age), guest) = *self.ranks.last()?;
        Some((guest, age, *self.guests.get(&guest)?.get(&age)?))
    }

    fn change(&mut self, guest: Mac, step: impl FnOnce(&mut BTreeMap<A, N>) -> Option<N>) {
        let own = self.guests.entry(guest).or_default();
        let rank = |own: &BTreeMap<A, N>| {
            own.first_key_value().map(|(oldest, _)| (own.len(), Reverse(*oldest), guest))
        };
        let before = rank(own);
        step(own);
        let after = rank(own);
        if after.is_none() {
            self.guests.remove(&guest);
        }
        if before != after {
            before.map(|before| self.ranks.remove(&before));
            self.ranks.extend(after);
        }
    }
}

/// What waits for its turn: one of each guest, round and round.
#[derive(Debug)]
pub struct Turns<T> {
    /// By guest and age.
    waiting: BTreeMap<(Mac, u64), T>,
    added: u64,
    /// The guest that had the last turn.
    last: Mac,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), added: 0, last: Mac::default() }
    }
}

impl<T> Turns<T> {
    /// Adds one, behind the others of its guest.
    pub fn push(&mut self, guest: Mac, item: T) {
        self.added += 1;
        self.waiting.insert((guest, self.added), item);
    }

    /// Takes the oldest of the guest whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let mut behind = self.waiting.range((self.last, u64::MAX)..);
        let place = *behind.next().or_else(|| self.waiting.first_key_value())?.0;
        self.last = place.0;
        self.waiting.remove(&place)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Most guests whose errors are counted.
const GUESTS: usize = 256;
/// The rate limit of RFC 4443 §2.4(f): 1000 a second, in bursts of 100.
pub const ICMP_ERRORS: Rate = Rate { interval: Duration::from_millis(1), burst: 100 };

/// Rate limit of errors to each guest. Clones share their buckets.
#[derive(Clone, Debug)]
pub struct Buckets {
    rate: Rate,
    buckets: Rc<RefCell<HashMap<Mac, Bucket>>>,
}

impl Default for Buckets {
    fn default() -> Self {
        Self::new(ICMP_ERRORS)
    }
}

impl Buckets {
    pub fn new(rate: Rate) -> Self {
        Self { rate, buckets: Rc::default() }
    }

    /// Takes one token of a guest's bucket, if there is one.
    pub fn take(&self, guest: Mac, now: Instant) -> bool {
        let mut buckets = self.buckets.borrow_mut();
        if buckets.len() >= GUESTS && !buckets.contains_key(&guest) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
            if buckets.len() >= GUESTS {
                return false;
            }
        }
        buckets.entry(guest).or_default().take(self.rate, now)
    }
}

#[cfg(test)]
#[path = "../tests/unit/fairness.rs"]
mod tests;
