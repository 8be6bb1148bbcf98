// SPDX-License-Identifier: Apache-2.0

//! Flows found, aged and evicted. The time is an argument.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::*;

fn key(n: u32) -> Key {
    let guest = Ipv6Addr::from(u128::from(n));
    Key { protocol: 6, guest: (guest, 1), remote: (Ipv6Addr::LOCALHOST, 2) }
}

/// A thousand rounds of all operations on flows, in a table of `count` of them.
fn rounds(count: u32) {
    let now = Instant::now();
    let mut table = Table::new(count as usize, count as usize);
    for n in 0..count {
        assert_eq!(table.to_evict(Mac::default()), None);
        let id = table.insert(key(n), Mac::default(), ());
        table.wake(id, now + Duration::from_secs(u64::from(n)));
    }
    for n in 0..1000 {
        let id = table.find(&key(n * (count / 1000))).unwrap();
        table.touch(id);
        let oldest = table.to_evict(Mac::default()).unwrap();
        let gone = table.remove(oldest).unwrap();
        assert_eq!(table.find(&gone.key), None);
        let id = table.insert(gone.key, Mac::default(), ());
        table.wake(id, now + Duration::from_secs(1));
        assert_eq!(table.len(), count as usize);
    }
}

/// `carrier_bench` measures the cost by number of flows.
#[test]
fn a_full_table_goes_on() {
    rounds(1000);
    rounds(100_000);
}

/// A flow that is alternately busy and idle, and short flows, leave nothing behind.
#[test]
fn alarms_are_no_more_than_flows() {
    let now = Instant::now();
    let (soon, late) = (Duration::from_secs(1), Duration::from_secs(7440));
    let mut table = Table::new(10, 10);
    let busy = table.insert(key(0), Mac::default(), ());
    for second in 0..1000 {
        let now = now + soon * second;
        table.wake(busy, now + late);
        table.wake(busy, now + soon);
        assert_eq!(table.due(now + soon), Some(busy));
        let id = table.insert(key(1), Mac::default(), ());
        table.wake(id, now + late);
        table.remove(id);
        assert!(table.alarms.len() <= 2 * 2 + SPARE_ALARMS, "{}", table.alarms.len());
    }
}

#[test]
fn the_oldest_of_the_greediest_goes_first() {
    let (greedy, modest) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let mut table = Table::new(10, 8);
    let first = table.insert(key(0), modest, ());
    let mut ids: Vec<_> = (1..8).map(|n| table.insert(key(n), greedy, ())).collect();
    table.insert(key(8), modest, ());
    assert_eq!(table.to_evict(modest), None);
    ids.push(table.insert(key(9), greedy, ()));
    // The first was used again, so that the second has idled longest.
    table.touch(ids[0]);
    assert_eq!(table.to_evict(modest), Some(ids[1]));
    assert_eq!(table.to_evict(greedy), Some(ids[1]));
    table.remove(ids[1]);
    assert_eq!(table.to_evict(modest), None);
    assert!(table.get(first).is_some() && table.get(ids[1]).is_none());
    // Its index has another generation, which the old id does not match.
    let next = table.insert(key(10), modest, ());
    assert_eq!(next.slot, ids[1].slot);
    assert!(table.get(ids[1]).is_none());
}

/// Flows of many guests evict only those of idle guests.
#[test]
fn the_guest_that_idles_longest_makes_place_for_another() {
    let mac = |n: u32| Mac([2, 0, n.to_be_bytes()[0], 0, n.to_be_bytes()[2], n.to_be_bytes()[3]]);
    let mut table = Table::new(10_000, 10_000);
    let idle = [table.insert(key(9000), mac(9000), ()), table.insert(key(9001), mac(9000), ())];
    let busy = table.insert(key(8000), mac(8000), ());
    for n in 0..1000 {
        while let Some(id) = table.to_evict(mac(n)) {
            table.remove(id);
        }
        table.insert(key(n), mac(n), ());
        if n % 100 == 0 {
            table.touch(busy);
        }
        assert!(table.guests.len() <= GUESTS);
        assert_eq!(table.get(idle[1]).is_some(), n < 254);
    }
    assert!(table.get(busy).is_some() && table.get(idle[0]).is_none());
    assert_eq!(table.len(), GUESTS);
}
