// SPDX-License-Identifier: Apache-2.0

//! Reassembly of guests' fragments, bounded in number, size and time.

use std::time::{Duration, Instant};

use clat_packet::reassembly::{Outcome, Policy, Reassembly};

use super::wire;
use crate::frame::Mac;

/// For all guests together.
const POLICY: Policy = Policy {
    // RFC 8200 §4.5 says 60 s; Linux waits 30 s for IPv4.
    timeout: Duration::from_secs(30),
    datagrams: 64,
    bytes: 8 << 20,
    // A guest that is alone may use all of it.
    share: 1,
};

/// The longest result: an IPv6 header and 65,535 bytes.
const LARGEST: usize = 40 + 65_535;

/// Incomplete datagrams.
pub struct Fragments {
    reassembly: Reassembly<Mac>,
    buf: Vec<u8>,
}

impl Default for Fragments {
    fn default() -> Self {
        Self { reassembly: Reassembly::new(POLICY), buf: vec![0; LARGEST] }
    }
}

impl Fragments {
    /// Takes a fragment of a guest, from its IP header on. Returns protocol and L4 packet once the
    /// datagram is complete.
    pub fn offer(&mut self, mac: Mac, packet: &[u8], now: Instant) -> Option<(u8, Vec<u8>)> {
        match self.reassembly.offer(mac, packet, now, &mut self.buf) {
            Outcome::Whole { len, .. } => {
                let whole = wire::parse(&self.buf[..len])?;
                Some((whole.protocol, whole.payload.to_vec()))
            }
            Outcome::Kept | Outcome::Dropped => None,
        }
    }
}

#[cfg(test)]
#[path = "../../tests/unit/fragments.rs"]
mod tests;
