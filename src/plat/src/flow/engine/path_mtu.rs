// SPDX-License-Identifier: Apache-2.0

//! Path MTUs behind guests (RFC 8201; RFC 1191 for IPv4), kept for as long as the RFC allows.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

/// RFC 8201 §4: then a larger packet may be tried again.
const LIFETIME: Duration = Duration::from_secs(600);
/// Most destinations remembered.
const MOST: usize = 1024;

/// MTU by the guest's address, and when it was learned.
#[derive(Debug, Default)]
pub(super) struct PathMtus(HashMap<Ipv6Addr, (u16, Instant)>);

impl PathMtus {
    /// The path MTU towards a guest's address, on a link with `mtu`.
    pub(super) fn get(&self, guest: Ipv6Addr, mtu: u16, now: Instant) -> u16 {
        let told = self.0.get(&guest).filter(|(_, since)| now < *since + LIFETIME);
        told.map_or(mtu, |(told, _)| mtu.min(*told))
    }

    pub(super) fn learn(&mut self, guest: Ipv6Addr, mtu: u16, now: Instant) {
        if self.0.len() >= MOST {
            self.0.retain(|_, (_, since)| now < *since + LIFETIME);
        }
        if self.0.len() < MOST || self.0.contains_key(&guest) {
            self.0.insert(guest, (mtu, now));
        }
    }
}
