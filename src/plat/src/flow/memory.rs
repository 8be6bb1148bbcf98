// SPDX-License-Identifier: Apache-2.0

//! Memory for the data of flows, shared out among guests.
//!
//! Each guest has a part of its own, which nobody else can take, and two thirds of what others
//! leave of the rest. So one that is alone may have most of it, and leaves the next one enough; and
//! whatever all others hold, there is its own part.

use std::collections::{BTreeMap, HashMap};

use super::key::{Id, Place, GUESTS};
use super::ring::FIRST;
use super::tcp::{Limits, MOST};
use crate::frame::Mac;

/// The share of all memory that is divided into the guests' own parts.
const OWN: usize = 8;

/// Who holds how much, and who waits for some.
pub(crate) struct Memory {
    /// A guest's own part.
    own: usize,
    /// What is nobody's own, and how much of that is taken.
    common: usize,
    taken: usize,
    held: usize,
    guests: HashMap<Mac, usize>,
    waiting: BTreeMap<Place, Id>,
    next: u64,
}

impl Memory {
    pub(crate) fn new(bound: usize) -> Self {
        let own = bound / OWN / GUESTS;
        Self {
            own,
            common: bound - own * GUESTS,
            taken: 0,
            held: 0,
            guests: HashMap::new(),
            waiting: BTreeMap::new(),
            next: 0,
        }
    }

    /// Bytes that are held by all.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// What a guest may hold, and how much of that it does not.
    fn share(&self, mac: Mac) -> (usize, usize) {
        let held = self.guests.get(&mac).copied().unwrap_or(0);
        let others = self.taken - held.saturating_sub(self.own);
        let share = self.own + (self.common - others) / 3 * 2;
        (share, share.saturating_sub(held))
    }

    /// What a flow of a guest may have for now, which holds so many bytes.
    pub(crate) fn limits(&self, mac: Mac, held: usize) -> Limits {
        let (share, room) = self.share(mac);
        // The less is left, the less each may have.
        let buffer = match room {
            room if room > share / 4 => MOST,
            room if room > share / 8 => 64 * 1024,
            _ => 8 * 1024,
        };
        Limits { buffer, memory: held + room, burst: 65_280 }
    }

    /// A flow holds `new` bytes where it has held `old`.
    pub(crate) fn change(&mut self, mac: Mac, old: usize, new: usize) {
        if old == new {
            return;
        }
        self.held = self.held - old + new;
        let held = self.guests.entry(mac).or_insert(0);
        let before = held.saturating_sub(self.own);
        *held = *held - old + new;
        self.taken = self.taken - before + held.saturating_sub(self.own);
        if *held == 0 {
            self.guests.remove(&mac);
        }
    }

    /// A flow of a guest has something for which there was no room.
    pub(crate) fn wait(&mut self, mac: Mac, id: Id) -> Place {
        self.next += 1;
        self.waiting.insert((mac, self.next), id);
        (mac, self.next)
    }

    /// It waits no longer.
    pub(crate) fn forget(&mut self, place: Place) {
        self.waiting.remove(&place);
    }

    /// Of each guest for which there is room again, the flow that has waited longest; they wait no
    /// longer.
    pub(crate) fn served(&mut self) -> Vec<Id> {
        let mut served = Vec::new();
        let mut from = (Mac::default(), 0);
        while let Some(place) = self.waiting.range(from..).next().map(|(place, _)| *place) {
            if self.share(place.0).1 >= FIRST {
                served.extend(self.waiting.remove(&place));
            }
            from = (place.0, u64::MAX);
        }
        served
    }
}

#[cfg(test)]
mod tests {
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
        // However many there are.
        for n in 2..=254 {
            hoard(&mut memory, mac(n));
        }
        assert!(memory.held() <= BOUND);
        assert!(hoard(&mut memory, mac(255)) >= BOUND / OWN / GUESTS);
        assert!(memory.held() <= BOUND);
        // What one gives back is not the other's alone.
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
        /// Whoever takes what it may, and gives back what it likes: no more is held than there is,
        /// by nobody more than its share, and each has its own part.
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
}
