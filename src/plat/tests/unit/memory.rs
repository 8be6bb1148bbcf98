// SPDX-License-Identifier: Apache-2.0

//! Shares of memory: guests that hoard, flows that wait.

use proptest::prelude::*;

use super::*;

const BOUND: usize = 256 << 20;

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn id(slot: u32) -> Id {
    Id { slot, generation: 0 }
}

/// Takes all that a guest may have.
fn hoard(memory: &mut Memory, guest: Mac) -> usize {
    let all = memory.share(guest).1;
    memory.change(guest, 0, all);
    all
}

#[test]
fn hoarders_leave_enough() {
    let mut memory = Memory::new(BOUND);
    assert_eq!(memory.limits(mac(0), 0).buffer, MOST);
    let first = hoard(&mut memory, mac(0));
    assert!(first > BOUND / 2);
    assert_eq!(memory.share(mac(0)).1, 0);
    let second = hoard(&mut memory, mac(1));
    assert!(second > BOUND / 8, "{second}");
    // For any number of guests.
    for n in 2..=254 {
        hoard(&mut memory, mac(n));
    }
    assert!(memory.held() <= BOUND);
    assert!(hoard(&mut memory, mac(255)) >= BOUND / OWN / GUESTS);
    assert!(memory.held() <= BOUND);
    // Memory freed by one is not all for the other.
    memory.change(mac(0), first, 0);
    assert!(memory.share(mac(1)).1 > 0);
    assert!(hoard(&mut memory, mac(7)) < first);
}

#[test]
fn who_waits_longest_is_served_first_and_no_guest_for_all() {
    let mut memory = Memory::new(BOUND);
    let all = hoard(&mut memory, mac(0));
    for n in 0..10 {
        memory.wait(mac(0), id(n));
    }
    let place = memory.wait(mac(1), id(10));
    assert_eq!(memory.served(), [id(10)]);
    assert_eq!(memory.served(), []);
    memory.forget(place);
    memory.change(mac(0), all, all - FIRST);
    assert_eq!(memory.served(), [id(0)]);
    assert_eq!(memory.served(), [id(1)]);
    memory.change(mac(0), all - FIRST, all);
    assert_eq!(memory.served(), []);
}

proptest! {
    /// For any sequence of taking and freeing: no more is held than exists, no guest has more than
    /// its share, and each has its own part.
    #[test]
    fn no_more_is_held_than_there_is(
        bound in 0..1_usize << 20,
        steps in proptest::collection::vec((0..6_u8, any::<bool>(), 0..100_usize), 0..200),
    ) {
        let mut memory = Memory::new(bound);
        let mut held = [0; 6];
        for (guest, gives, percent) in steps {
            let room = memory.share(mac(guest)).1;
            let held = &mut held[usize::from(guest)];
            prop_assert!(*held + room >= memory.own);
            let new = if gives { *held * percent / 100 } else { *held + room * percent / 100 };
            memory.change(mac(guest), *held, new);
            *held = new;
            prop_assert!(*held <= memory.own + memory.common / 3 * 2);
            prop_assert!(memory.held() <= bound);
        }
        prop_assert_eq!(memory.held(), held.iter().sum::<usize>());
        for (guest, held) in (0..).zip(held) {
            memory.change(mac(guest), held, 0);
        }
        prop_assert_eq!((memory.held(), memory.taken, memory.guests.len()), (0, 0, 0));
    }
}
