// SPDX-License-Identifier: Apache-2.0

//! How many flows there may be, and which has to go for another.

use super::{Engine, Flow, Id};
use crate::flow::sockets::{Connection, Sockets};
use crate::frame::Mac;

/// How many flows, and how much memory for their data.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Flows in all.
    pub flows: usize,
    /// Flows of one guest.
    pub flows_each: usize,
    /// Bytes for the data of all flows.
    pub memory: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { flows: 100_000, flows_each: 100_000, memory: 256 << 20 }
    }
}

impl<S: Sockets> Engine<S> {
    /// Makes room for a flow of a guest; `false` when there is none.
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

    /// Takes a flow out, and gives back what it holds.
    pub(super) fn remove(&mut self, id: Id, why: &str) -> Option<Flow<S>> {
        let entry = self.table.remove(id)?;
        self.memory.change(entry.mac, entry.held, 0);
        if let Some(place) = entry.waits {
            self.memory.forget(place);
        }
        log::debug!("{} ends: {why}", entry.key);
        Some(entry.flow)
    }

    /// Ends a flow before its time: a connection is reset.
    pub(super) fn end(&mut self, id: Id, why: &str) {
        if let Some(Flow::Tcp(_, connection)) = self.remove(id, why) {
            connection.reset_on_close();
        }
    }

    /// Resets all flows: the guest is gone for good. Forwarded ports stay, for the next one.
    pub fn clear(&mut self) {
        for id in self.table.ids() {
            if !self.table.get(id).is_some_and(|entry| entry.flow.is_forwarded()) {
                self.end(id, "the guest is gone");
            }
        }
    }
}
