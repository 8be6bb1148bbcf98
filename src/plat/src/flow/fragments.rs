// SPDX-License-Identifier: Apache-2.0

//! Datagrams of the guest that came in pieces, put together again: bounded in number, size and time.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::wire::Packet;
use crate::fairness;
use crate::frame::Mac;

/// Datagrams that are waited for at a time, of all guests.
const MOST: usize = 64;
/// RFC 8200 §4.5 says 60 s; half of it is Linux's for IPv4.
const PATIENCE: Duration = Duration::from_secs(30);
const LARGEST: usize = 65535;

/// Whose it is, its ends, its protocol and its identification.
type Name = (Mac, Ipv6Addr, Ipv6Addr, u8, u32);

struct Partial {
    since: Instant,
    data: Vec<u8>,
    /// What is there, in order and apart.
    have: Vec<(usize, usize)>,
    /// How much that is.
    bytes: usize,
    total: Option<usize>,
}

/// Datagrams on their way to be whole.
#[derive(Default)]
pub(crate) struct Fragments {
    partial: HashMap<Name, Partial>,
}

impl Fragments {
    /// Takes a fragment of a guest, and returns the whole L4 packet with the last of them. Overlapping fragments drop the
    /// datagram (RFC 5722).
    pub(crate) fn offer(&mut self, mac: Mac, packet: &Packet<'_>, now: Instant) -> Option<Vec<u8>> {
        let fragment = packet.fragment?;
        let (start, end) = (fragment.offset, fragment.offset + packet.payload.len());
        if end > LARGEST || (fragment.more && packet.payload.len() % 8 != 0) || start == end {
            return None;
        }
        let name = (mac, packet.src, packet.dst, packet.protocol, fragment.id);
        self.partial.retain(|_, p| now.saturating_duration_since(p.since) < PATIENCE);
        if self.partial.len() >= MOST && !self.partial.contains_key(&name) {
            // The one that waits longest goes, of the guest that has most.
            let all = self.partial.iter().map(|(name, partial)| (name.0, partial.since, *name));
            let (oldest, _) = fairness::to_evict(all)?;
            self.partial.remove(&oldest);
        }
        let partial = self.partial.entry(name).or_insert_with(|| Partial {
            since: now,
            data: Vec::new(),
            have: Vec::new(),
            bytes: 0,
            total: None,
        });
        let at = partial.have.partition_point(|(s, _)| *s < start);
        // They are apart, so that the neighbours tell.
        let overlaps = (at > 0 && partial.have[at - 1].1 > start)
            || partial.have.get(at).is_some_and(|(s, _)| *s < end);
        let beyond = partial.total.is_some_and(|total| end > total || !fragment.more)
            || (!fragment.more && partial.data.len() > end);
        if overlaps || beyond {
            self.partial.remove(&name);
            return None;
        }
        if !fragment.more {
            partial.total = Some(end);
        }
        if partial.data.len() < end {
            partial.data.resize(end, 0);
        }
        partial.data[start..end].copy_from_slice(packet.payload);
        partial.have.insert(at, (start, end));
        partial.bytes += end - start;
        if partial.total != Some(partial.bytes) {
            return None;
        }
        self.partial.remove(&name).map(|partial| partial.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::fragment;

    const MAC: Mac = Mac([2; 6]);

    #[test]
    fn in_any_order_but_never_overlapping() {
        let now = Instant::now();
        let mut fragments = Fragments::default();
        assert_eq!(fragments.offer(MAC, &fragment(1, 16, false, &[3; 5]), now), None);
        assert_eq!(fragments.offer(MAC, &fragment(1, 0, true, &[1; 8]), now), None);
        let whole = fragments.offer(MAC, &fragment(1, 8, true, &[2; 8]), now).unwrap();
        assert_eq!(whole, [&[1; 8][..], &[2; 8], &[3; 5]].concat());
        assert_eq!(fragments.offer(MAC, &fragment(2, 0, true, &[1; 16]), now), None);
        assert_eq!(fragments.offer(MAC, &fragment(2, 8, false, &[1; 16]), now), None);
        assert!(fragments.partial.is_empty());
        for id in 0..1000 {
            fragments.offer(MAC, &fragment(id, 0, true, &[1; 8]), now);
        }
        assert_eq!(fragments.partial.len(), MOST);
        fragments.offer(MAC, &fragment(7777, 0, true, &[1; 8]), now + PATIENCE);
        assert_eq!(fragments.partial.len(), 1);
    }

    /// Whoever begins more datagrams than it ends is in nobody's way, nor can it add to what is another's.
    #[test]
    fn a_guest_has_its_place_beside_another() {
        let now = Instant::now();
        let (greedy, modest) = (Mac([4; 6]), MAC);
        let mut fragments = Fragments::default();
        for id in 0..20 {
            assert_eq!(fragments.offer(modest, &fragment(id, 0, true, &[1; 8]), now), None);
        }
        for id in 0..1000 {
            fragments.offer(greedy, &fragment(id, 0, true, &[2; 8]), now);
            assert!(fragments.partial.len() <= MOST);
        }
        fragments.offer(greedy, &fragment(7, 8, false, &[2; 8]), now);
        for id in 0..20 {
            let whole = fragments.offer(modest, &fragment(id, 8, false, &[1; 8]), now);
            assert_eq!(whole, Some(vec![1; 16]), "{id}");
        }
    }
}
