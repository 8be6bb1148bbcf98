// SPDX-License-Identifier: Apache-2.0

//! Fair shares of what all guests have in common. A guest is an Ethernet address.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clat_packet::rate_limit::{Bucket, Rate};

use crate::frame::Mac;

/// Which of `all` (its guest, its age, its name) is to go where there are too many: the oldest of
/// the guest that has most. Also returns how many that guest has.
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

/// What all guests have of something, of which there is so much that [`to_evict`] would take too
/// long each time. Ages are unique.
#[derive(Debug)]
pub struct Shares<A, N> {
    guests: HashMap<Mac, BTreeMap<A, N>>,
    /// How many each has, and the age of its oldest: the last is the one to give up something.
    ranks: BTreeSet<(usize, Reverse<A>, Mac)>,
}

impl<A, N> Default for Shares<A, N> {
    fn default() -> Self {
        Self { guests: HashMap::new(), ranks: BTreeSet::new() }
    }
}

impl<A: Copy + Ord, N: Copy> Shares<A, N> {
    /// A guest has one more.
    pub fn insert(&mut self, guest: Mac, age: A, name: N) {
        self.change(guest, |own| own.insert(age, name));
    }

    /// It has that one no more.
    pub fn remove(&mut self, guest: Mac, age: A) {
        self.change(guest, |own| own.remove(&age));
    }

    /// What [`to_evict`] says: its guest, its age and its name.
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

/// Guests whose errors are counted at a time.
const GUESTS: usize = 256;
/// The limit of RFC 4443 §2.4(f), at the rate of a fast router.
pub const ICMP_ERRORS: Rate = Rate { interval: Duration::from_millis(1), burst: 100 };

/// How often errors may be sent to each guest. Copies share the same buckets.
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

    /// Takes one token of a guest's, if there is one.
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
