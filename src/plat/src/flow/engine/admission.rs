// SPDX-License-Identifier: Apache-2.0

//! Limits on the number of flows, and which flow is ended to make room for another.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::{Engine, Flow, Id};
use crate::flow::key::Place;
use crate::flow::sockets::{Connection, Sockets};
use crate::frame::Mac;

/// Limits on flows and on memory for their data.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most flows of all guests.
    pub flows: usize,
    /// Most flows of one guest.
    pub flows_each: usize,
    /// Most bytes of data of all flows.
    pub memory: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { flows: 100_000, flows_each: 100_000, memory: 256 << 20 }
    }
}

/// Most connections that one guest may be opening at a time, and the age at which the oldest of
/// them may be ended for another. Each takes a port of the host's, and the kernel's search for a
/// free one takes longer the more are in use: in the end milliseconds, in which no other guest is
/// served. It is open when the guest has acknowledged our SYN-ACK: a flood of SYNs does not get
/// that far.
const CONNECTING: usize = 1024;
const CONNECT: Duration = Duration::from_secs(1);

/// Connections that guests are opening, by guest and age.
#[derive(Default)]
pub(super) struct Connecting {
    all: BTreeMap<Place, (Id, Instant)>,
    counts: HashMap<Mac, usize>,
    next: u64,
}

impl Connecting {
    fn add(&mut self, mac: Mac, id: Id, now: Instant) -> Place {
        self.next += 1;
        self.all.insert((mac, self.next), (id, now));
        *self.counts.entry(mac).or_insert(0) += 1;
        (mac, self.next)
    }

    /// Removes one that is open, or has failed.
    pub(super) fn remove(&mut self, place: Place) {
        if self.all.remove(&place).is_none() {
            return;
        }
        if let Some(count) = self.counts.get_mut(&place.0) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&place.0);
            }
        }
    }

    /// The oldest one, if the guest has as many as it may.
    fn oldest_of_too_many(&self, mac: Mac) -> Option<(Id, Instant)> {
        let count = self.counts.get(&mac).copied().unwrap_or(0);
        let oldest = || self.all.range((mac, 0)..).next().map(|(_, oldest)| *oldest);
        (count >= CONNECTING).then(oldest).flatten()
    }
}

impl<S: Sockets> Engine<S> {
    /// Makes room for one more connection that a guest opens; `false` if there is none.
    pub(super) fn make_room_to_connect(&mut self, mac: Mac, now: Instant) -> bool {
        match self.connecting.oldest_of_too_many(mac) {
            Some((_, since)) if now < since + CONNECT => return false,
            Some((id, _)) => {
                self.stats.evicted += 1;
                self.end(id, "it is still connecting, and others wait");
            }
            None => {}
        }
        self.make_room(mac)
    }

    /// Notes that a guest is opening a connection.
    pub(super) fn connecting(&mut self, id: Id, now: Instant) {
        if let Some(entry) = self.table.get(id) {
            entry.connects = Some(self.connecting.add(entry.mac, id, now));
        }
    }

    /// Makes room for a flow of a guest; `false` if there is none.
    pub(super) fn make_room(&mut self, mac: Mac) -> bool {
        let mut spared = 0;
        while let Some(id) = self.table.to_evict(mac) {
            if self.table.get(id).is_some_and(|entry| entry.flow.is_forwarded()) {
                spared += 1;
                if spared > self.table.len() {
                    return false;
                }
                self.table.touch(id);
                continue;
            }
            self.stats.evicted += 1;
            self.end(id, "others need its place");
        }
        true
    }

    /// Removes a flow and releases what it holds.
    pub(super) fn remove(&mut self, id: Id, why: &str) -> Option<Flow<S>> {
        let entry = self.table.remove(id)?;
        self.memory.change(entry.mac, entry.held, 0);
        if let Some(place) = entry.waits {
            self.memory.forget(place);
        }
        if let Some(place) = entry.connects {
            self.connecting.remove(place);
        }
        log::debug!("{} ends: {why}", entry.key);
        Some(entry.flow)
    }

    /// Ends a flow early; a connection is reset.
    pub(super) fn end(&mut self, id: Id, why: &str) {
        if let Some(Flow::Tcp(_, connection, _)) = self.remove(id, why) {
            connection.reset_on_close();
        }
    }

    /// Moves the flows of an address to another station, with their memory.
    pub fn handle_moved(&mut self, address: Ipv6Addr, from: Mac, to: Mac) {
        for id in self.table.ids() {
            let Some(entry) = self.table.get(id) else { continue };
            if entry.key.guest.0 != address || entry.mac != from {
                continue;
            }
            let (held, waits) = (entry.held, entry.waits.take());
            self.memory.change(from, held, 0);
            self.memory.change(to, 0, held);
            if let Some(place) = waits {
                self.memory.forget(place);
                entry.waits = Some(self.memory.wait(to, id));
            }
            if let Some(place) = entry.connects.take() {
                let since = self.connecting.all.get(&place).map(|(_, since)| *since);
                self.connecting.remove(place);
                entry.connects = since.map(|since| self.connecting.add(to, id, since));
            }
            self.table.set_mac(id, to);
        }
    }

    /// Resets all flows, after the guest has disconnected. Forwarded ports stay for the next guest.
    pub fn clear(&mut self) {
        for id in self.table.ids() {
            if !self.table.get(id).is_some_and(|entry| entry.flow.is_forwarded()) {
                self.end(id, "the guest is gone");
            }
        }
    }
}
