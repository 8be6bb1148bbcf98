// SPDX-License-Identifier: Apache-2.0

//! Which guest loses an entry, and rate limits of errors.

use super::*;

const INTERVAL: Duration = ICMP_ERRORS.interval;

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

#[test]
fn the_oldest_of_who_has_most() {
    let all = [(1, 5, 'a'), (2, 1, 'b'), (1, 3, 'c'), (1, 4, 'd'), (2, 2, 'e')];
    let of = |all: &[(u8, u32, char)]| to_evict(all.iter().map(|(g, age, n)| (mac(*g), age, *n)));
    assert_eq!(of(&all), Some(('c', 3)));
    assert_eq!(of(&all[..4]), Some(('c', 3)));
    assert_eq!(of(&all[1..3]), Some(('b', 1)));
    assert_eq!(of(&[]), None);
}

/// The ordered set gives the same result as counting anew, after any changes.
#[test]
fn shares_agree_with_counting() {
    fastrand::seed(1);
    let (mut shares, mut all) = (Shares::default(), Vec::new());
    for age in 0..2000u32 {
        // More come at first, and more go in the end.
        if all.is_empty() || fastrand::u32(..2000) > age {
            let guest = mac(fastrand::u8(..5));
            shares.insert(guest, age, age);
            all.push((guest, age, age));
        } else {
            let (guest, age, _) = all.swap_remove(fastrand::usize(..all.len()));
            shares.remove(guest, age);
        }
        let wanted = to_evict(all.iter().copied()).map(|(name, _)| name);
        assert_eq!(shares.to_evict().map(|(_, _, name)| name), wanted);
    }
}

/// Each guest has its turn, and what it has waits in order.
#[test]
fn one_of_each_guest_in_turn() {
    let mut turns = Turns::default();
    for (guest, item) in [(1, "a1"), (1, "a2"), (1, "a3"), (3, "c1"), (2, "b1"), (2, "b2")] {
        turns.push(mac(guest), item);
    }
    let mut take = |n| (0..n).filter_map(|_| turns.pop()).collect::<Vec<_>>();
    assert_eq!(take(4), ["a1", "b1", "c1", "a2"]);
    turns.push(mac(1), "a4");
    turns.push(mac(4), "d1");
    let mut take = |n| (0..n).filter_map(|_| turns.pop()).collect::<Vec<_>>();
    assert_eq!(take(9), ["b2", "d1", "a3", "a4"]);
    assert!(turns.pop().is_none() && turns.is_empty());
}

#[test]
fn errors_of_one_guest_are_not_counted_as_anothers() {
    let mut now = Instant::now();
    let buckets = Buckets::new(Rate { interval: INTERVAL, burst: 10 });
    let count = |guest, now| (0..100).filter(|_| buckets.take(guest, now)).count();
    assert_eq!((count(mac(1), now), count(mac(2), now)), (10, 10));
    now += 4 * INTERVAL;
    assert_eq!((count(mac(1), now), count(mac(3), now)), (4, 10));
    // A guest with many addresses delays others no longer than its share lasts.
    for n in 0..=255 {
        buckets.take(mac(n), now);
    }
    assert!(!buckets.take(Mac([9; 6]), now));
    assert!(buckets.take(Mac([9; 6]), now + 2 * INTERVAL));
    assert!(buckets.buckets.borrow().len() <= GUESTS);
}

/// The network's own errors and those about flows share one limit.
#[test]
fn a_copy_counts_with_the_original() {
    let (now, buckets) = (Instant::now(), Buckets::default());
    let copy = buckets.clone();
    let taken = |buckets: &Buckets| (0..70).filter(|_| buckets.take(mac(1), now)).count();
    assert_eq!((taken(&buckets), taken(&copy)), (70, 30));
}
