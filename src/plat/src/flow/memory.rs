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
#[path = "../../tests/unit/memory.rs"]
mod tests;
