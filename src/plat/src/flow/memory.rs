// SPDX-License-Identifier: Apache-2.0

//! Memory for the data of flows, divided among guests.
//!
//! Each guest has a part of its own, and may use two thirds of what others leave of the rest. So a
//! guest that is alone may have most of the memory and leaves enough for the next one, and every
//! guest's own part is free whatever others hold.

use std::collections::{BTreeMap, HashMap};

use super::key::{Id, Place, GUESTS};
use super::ring::FIRST;
use super::tcp::{Limits, MOST};
use crate::frame::Mac;

/// The share of all memory that is divided into the guests' own parts: one in this many.
const OWN: usize = 8;

/// How much each guest holds, and which flows wait for memory.
pub(crate) struct Memory {
    /// Bytes of a guest's own part.
    own: usize,
    /// Bytes of the common part, and how many of these are in use.
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

    /// Bytes held by all guests.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// How much a guest may hold, and how much of that is free.
    fn share(&self, mac: Mac) -> (usize, usize) {
        let held = self.guests.get(&mac).copied().unwrap_or(0);
        let others = self.taken - held.saturating_sub(self.own);
        let share = self.own + (self.common - others) / 3 * 2;
        (share, share.saturating_sub(held))
    }

    /// The limits of a guest's flow that holds this many bytes.
    pub(crate) fn limits(&self, mac: Mac, held: usize) -> Limits {
        let (share, room) = self.share(mac);
        // The less is left, the less each flow may have.
        let buffer = match room {
            room if room > share / 4 => MOST,
            room if room > share / 8 => 64 * 1024,
            _ => 8 * 1024,
        };
        Limits { buffer, memory: held + room, burst: 65_280 }
    }

    /// Notes that a flow holds `new` bytes instead of `old`.
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

    /// Notes that a guest's flow waits for memory.
    pub(crate) fn wait(&mut self, mac: Mac, id: Id) -> Place {
        self.next += 1;
        self.waiting.insert((mac, self.next), id);
        (mac, self.next)
    }

    /// Notes that it no longer waits.
    pub(crate) fn forget(&mut self, place: Place) {
        self.waiting.remove(&place);
    }

    /// For each guest that has memory again, the flow that has waited longest; these no longer
    /// wait.
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
#[path = "../../tests/unit/memory.rs"]
mod tests;
