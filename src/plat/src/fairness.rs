// SPDX-License-Identifier: Apache-2.0

//! What all guests share, and none may use up. A guest is an Ethernet address.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clat_packet::rate_limit::{Bucket, Rate};

use crate::frame::Mac;

/// Who has to give up one of `all` (whose it is, how old, its name) where there are too many: the
/// oldest of the guest that has most. With it, how many that guest has.
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

/// Guests whose errors are counted at a time.
const GUESTS: usize = 256;
/// A router's limit (RFC 4443 §2.4(f)), not a slow one's.
pub const ICMP_ERRORS: Rate = Rate { interval: Duration::from_millis(1), burst: 100 };

/// How often errors may be sent to each guest, whoever sends them: a copy counts with the original.
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
mod tests {
    use super::*;

    const INTERVAL: Duration = ICMP_ERRORS.interval;

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    #[test]
    fn the_oldest_of_who_has_most() {
        let all = [(1, 5, 'a'), (2, 1, 'b'), (1, 3, 'c'), (1, 4, 'd'), (2, 2, 'e')];
        let of =
            |all: &[(u8, u32, char)]| to_evict(all.iter().map(|(g, age, n)| (mac(*g), age, *n)));
        assert_eq!(of(&all), Some(('c', 3)));
        assert_eq!(of(&all[..4]), Some(('c', 3)));
        assert_eq!(of(&all[1..3]), Some(('b', 1)));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn errors_of_one_guest_are_not_counted_as_anothers() {
        let mut now = Instant::now();
        let buckets = Buckets::new(Rate { interval: INTERVAL, burst: 10 });
        let count = |guest, now| (0..100).filter(|_| buckets.take(guest, now)).count();
        assert_eq!((count(mac(1), now), count(mac(2), now)), (10, 10));
        now += 4 * INTERVAL;
        assert_eq!((count(mac(1), now), count(mac(3), now)), (4, 10));
        // Whoever has many addresses keeps others waiting for no longer than that lasts.
        for n in 0..=255 {
            buckets.take(mac(n), now);
        }
        assert!(!buckets.take(Mac([9; 6]), now));
        assert!(buckets.take(Mac([9; 6]), now + 2 * INTERVAL));
        assert!(buckets.buckets.borrow().len() <= GUESTS);
    }

    /// The network's own errors and those about flows come out of one budget.
    #[test]
    fn a_copy_counts_with_the_original() {
        let (now, buckets) = (Instant::now(), Buckets::default());
        let copy = buckets.clone();
        let taken = |buckets: &Buckets| (0..70).filter(|_| buckets.take(mac(1), now)).count();
        assert_eq!((taken(&buckets), taken(&copy)), (70, 30));
    }
}
