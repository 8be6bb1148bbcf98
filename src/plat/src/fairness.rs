// SPDX-License-Identifier: Apache-2.0

//! Fair shares of what all guests have in common. A guest is an Ethernet address.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::HashMap;
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
