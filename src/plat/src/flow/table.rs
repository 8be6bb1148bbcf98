// SPDX-License-Identifier: Apache-2.0

//! Flows by key, by age and by guest.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Instant;

use super::key::{Id, Key, Place, GUESTS};
use crate::frame::Mac;

const NONE: u32 = u32::MAX;

/// Most stale alarms kept, beside one for each flow.
const SPARE_ALARMS: usize = 64;

pub(crate) struct Entry<F> {
    pub(crate) key: Key,
    pub(crate) mac: Mac,
    pub(crate) flow: F,
    /// Whether it is in a list of flows to serve.
    pub(crate) queued: bool,
    /// Bytes of memory accounted for it.
    pub(crate) held: usize,
    /// Its position among flows that wait for memory.
    pub(crate) waits: Option<Place>,
    /// Its position among connections that guests are opening.
    pub(crate) connects: Option<Place>,
    /// The earliest alarm in the heap.
    alarm: Option<Instant>,
    older: u32,
    newer: u32,
}

/// A guest's flows: the least and the most recently used.
struct Guest {
    oldest: u32,
    newest: u32,
    count: usize,
    /// When one of them was last used, as a growing number.
    used: u64,
}

struct Slot<F> {
    generation: u32,
    entry: Option<Entry<F>>,
}

/// The flows. All operations take constant time, or logarithmic for alarms.
pub(crate) struct Table<F> {
    slots: Vec<Slot<F>>,
    free: Vec<u32>,
    index: HashMap<Key, u32>,
    guests: HashMap<Mac, Guest>,
    alarms: BinaryHeap<Reverse<(Instant, Id)>>,
    most: usize,
    most_each: usize,
    uses: u64,
}

impl<F> Table<F> {
    pub(crate) fn new(most: usize, most_each: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            guests: HashMap::new(),
            alarms: BinaryHeap::new(),
            most,
            most_each,
            uses: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn find(&self, key: &Key) -> Option<Id> {
        let slot = *self.index.get(key)?;
        Some(Id { slot, generation: self.slots.get(slot as usize)?.generation })
    }

    pub(crate) fn get(&mut self, id: Id) -> Option<&mut Entry<F>> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation {
            slot.entry.as_mut()
        } else {
            None
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry<F>> {
        self.slots.iter().filter_map(|slot| slot.entry.as_ref())
    }

    pub(crate) fn ids(&self) -> Vec<Id> {
        self.index
            .values()
            .filter_map(|s| {
                Some(Id { slot: *s, generation: self.slots.get(*s as usize)?.generation })
            })
            .collect()
    }

    /// The flow to end before a guest may have another one: the guest's own least recently used one
    /// if it has its share; that of the guest with most flows if the table is full; one of the
    /// guest that has been idle longest if there are too many guests.
    pub(crate) fn to_evict(&self, mac: Mac) -> Option<Id> {
        let guest = match self.guests.get(&mac) {
            Some(guest) if guest.count >= self.most_each => Some(guest),
            None if self.guests.len() >= GUESTS => {
                self.guests.values().min_by_key(|guest| guest.used)
            }
            _ if self.len() >= self.most => self.guests.values().max_by_key(|guest| guest.count),
            _ => None,
        };
        let slot = guest?.oldest;
        Some(Id { slot, generation: self.slots.get(slot as usize)?.generation })
    }

    /// Adds a flow, after [`Self::to_evict`] has returned `None`.
    pub(crate) fn insert(&mut self, key: Key, mac: Mac, flow: F) -> Id {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, entry: None });
            u32::try_from(self.slots.len() - 1).unwrap_or(NONE)
        });
        let generation = self.slots[slot as usize].generation;
        self.slots[slot as usize].entry = Some(Entry {
            key,
            mac,
            flow,
            queued: false,
            held: 0,
            waits: None,
            connects: None,
            alarm: None,
            older: NONE,
            newer: NONE,
        });
        self.index.insert(key, slot);
        self.join(slot, mac);
        Id { slot, generation }
    }

    /// Moves the flow to another station, as its most recently used one.
    pub(crate) fn set_mac(&mut self, id: Id, mac: Mac) {
        let Some(before) = self.get(id).map(|entry| entry.mac) else { return };
        self.unlink(id.slot);
        self.leave(before);
        if let Some(entry) = self.get(id) {
            entry.mac = mac;
        }
        self.join(id.slot, mac);
    }

    fn join(&mut self, slot: u32, mac: Mac) {
        let none = Guest { oldest: NONE, newest: NONE, count: 0, used: 0 };
        self.guests.entry(mac).or_insert(none).count += 1;
        self.append(slot);
    }

    fn leave(&mut self, mac: Mac) {
        if let Some(guest) = self.guests.get_mut(&mac) {
            guest.count -= 1;
            if guest.count == 0 {
                self.guests.remove(&mac);
            }
        }
    }

    pub(crate) fn remove(&mut self, id: Id) -> Option<Entry<F>> {
        self.get(id)?;
        self.unlink(id.slot);
        let slot = &mut self.slots[id.slot as usize];
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.index.remove(&entry.key);
        self.leave(entry.mac);
        Some(entry)
    }

    /// Notes that the flow was used.
    pub(crate) fn touch(&mut self, id: Id) {
        let Some(entry) = self.get(id) else { return };
        let (mac, newest) = (entry.mac, entry.newer == NONE);
        if !newest {
            self.unlink(id.slot);
            self.append(id.slot);
        } else if let Some(guest) = self.guests.get_mut(&mac) {
            self.uses += 1;
            guest.used = self.uses;
        }
    }

    /// Makes [`Self::due`] return the flow at `at` or before. It may be early, by an alarm that has
    /// been postponed since.
    pub(crate) fn wake(&mut self, id: Id, at: Instant) {
        let Some(entry) = self.get(id) else { return };
        if entry.alarm.is_none_or(|alarm| at < alarm) {
            entry.alarm = Some(at);
            self.alarms.push(Reverse((at, id)));
            // Alarms of removed flows, and outdated ones, would stay until they are due.
            if self.alarms.len() > 2 * self.index.len() + SPARE_ALARMS {
                let slots = &self.slots;
                self.alarms.retain(|Reverse((at, id))| {
                    slots.get(id.slot as usize).is_some_and(|slot| {
                        let alarm = slot.entry.as_ref().and_then(|entry| entry.alarm);
                        slot.generation == id.generation && alarm == Some(*at)
                    })
                });
            }
        }
    }

    /// A flow whose alarm is due.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Id> {
        while let Some(Reverse((at, id))) = self.alarms.peek().copied() {
            if at > now {
                return None;
            }
            self.alarms.pop();
            if let Some(entry) = self.get(id) {
                if entry.alarm == Some(at) {
                    entry.alarm = None;
                    return Some(id);
                }
            }
        }
        None
    }

    /// When the next alarm is due.
    pub(crate) fn next_alarm(&self) -> Option<Instant> {
        self.alarms.peek().map(|Reverse((at, _))| *at)
    }

    fn entry(&mut self, slot: u32) -> Option<&mut Entry<F>> {
        self.slots.get_mut(slot as usize)?.entry.as_mut()
    }

    fn append(&mut self, slot: u32) {
        let Some(mac) = self.entry(slot).map(|entry| entry.mac) else { return };
        let Some(guest) = self.guests.get_mut(&mac) else { return };
        self.uses += 1;
        guest.used = self.uses;
        let before = std::mem::replace(&mut guest.newest, slot);
        if guest.oldest == NONE {
            guest.oldest = slot;
        }
        if let Some(entry) = self.entry(before) {
            entry.newer = slot;
        }
        if let Some(entry) = self.entry(slot) {
            (entry.older, entry.newer) = (before, NONE);
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some((mac, older, newer)) = self.entry(slot).map(|e| (e.mac, e.older, e.newer)) else {
            return;
        };
        match self.entry(older) {
            Some(entry) => entry.newer = newer,
            None => {
                if let Some(guest) = self.guests.get_mut(&mac) {
                    guest.oldest = newer;
                }
            }
        }
        match self.entry(newer) {
            Some(entry) => entry.older = older,
            None => {
                if let Some(guest) = self.guests.get_mut(&mac) {
                    guest.newest = older;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "../../tests/unit/table.rs"]
mod tests;
