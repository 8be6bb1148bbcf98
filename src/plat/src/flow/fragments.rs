// SPDX-License-Identifier: Apache-2.0

//! Datagrams of the guest that came in pieces, put together again: bounded in number, size and
//! time.

use std::time::{Duration, Instant};

use clat_packet::reassembly::{Outcome, Policy, Reassembly};

use super::wire;
use crate::frame::Mac;

/// All guests together.
const POLICY: Policy = Policy {
    // RFC 8200 §4.5 says 60 s; half of it is Linux's for IPv4.
    timeout: Duration::from_secs(30),
    datagrams: 64,
    bytes: 8 << 20,
    // One that is alone may have all of it.
    share: 1,
};

/// The longest packet that can come out: an IPv6 header and as much behind it.
const LARGEST: usize = 40 + 65_535;

/// Datagrams on their way to be whole.
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
    /// Takes a fragment of a guest, from its IP header on, and returns the protocol and the whole
    /// L4 packet with the last of them.
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
mod tests {
    use clat_packet::{ipv6, Ip};

    use super::*;

    const MAC: Mac = Mac([2; 6]);
    const MOST: usize = POLICY.datagrams;
    const PATIENCE: Duration = POLICY.timeout;

    /// A fragment of a UDP datagram; `offset` is in bytes.
    fn fragment(id: u32, offset: usize, more: bool, payload: &[u8]) -> Vec<u8> {
        let fragment =
            clat_packet::Fragment { offset: u16::try_from(offset / 8).unwrap(), more, id };
        let ip = Ip {
            src: 0x2001_0db8 << 96 | 1,
            dst: 0x2001_0db8 << 96 | 2,
            class: 0,
            hops: 64,
            protocol: wire::UDP,
            fragment: Some(fragment),
            dont_fragment: true,
            header_len: 0,
            len: 0,
        };
        let mut packet = vec![0; ipv6::header_len(&ip)];
        ipv6::write(&mut packet, &ip, payload.len());
        packet.extend_from_slice(payload);
        packet
    }

    #[test]
    fn in_any_order_but_never_overlapping() {
        let now = Instant::now();
        let mut fragments = Fragments::default();
        assert_eq!(fragments.offer(MAC, &fragment(1, 16, false, &[3; 5]), now), None);
        assert_eq!(fragments.offer(MAC, &fragment(1, 0, true, &[1; 8]), now), None);
        let (_, whole) = fragments.offer(MAC, &fragment(1, 8, true, &[2; 8]), now).unwrap();
        assert_eq!(whole, [&[1; 8][..], &[2; 8], &[3; 5]].concat());
        assert_eq!(fragments.offer(MAC, &fragment(2, 0, true, &[1; 16]), now), None);
        assert_eq!(fragments.offer(MAC, &fragment(2, 8, false, &[1; 16]), now), None);
        assert_eq!(fragments.reassembly.fragments(), 0);
        for id in 0..1000 {
            fragments.offer(MAC, &fragment(id, 0, true, &[1; 8]), now);
        }
        assert_eq!(fragments.reassembly.datagrams(), MOST);
        fragments.offer(MAC, &fragment(7777, 0, true, &[1; 8]), now + PATIENCE);
        assert_eq!(fragments.reassembly.datagrams(), 1);
    }

    /// RFC 8200 §4.5: Next Header may differ, and only the first fragment's counts.
    #[test]
    fn the_protocol_is_that_of_the_first() {
        const NEXT_HEADER: usize = 40;
        let now = Instant::now();
        for order in [[0, 1], [1, 0]] {
            let mut pieces = [fragment(1, 0, true, &[1; 8]), fragment(1, 8, false, &[2; 3])];
            pieces[1][NEXT_HEADER] = wire::TCP;
            let mut fragments = Fragments::default();
            assert_eq!(fragments.offer(MAC, &pieces[order[0]], now), None);
            let whole = [&[1; 8][..], &[2; 3]].concat();
            assert_eq!(fragments.offer(MAC, &pieces[order[1]], now), Some((wire::UDP, whole)));
        }
    }

    /// Whoever begins more datagrams than it ends is in nobody's way, nor can it add to what is
    /// another's.
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
            assert!(fragments.reassembly.datagrams() <= MOST);
        }
        fragments.offer(greedy, &fragment(7, 8, false, &[2; 8]), now);
        for id in 0..20 {
            let whole = fragments.offer(modest, &fragment(id, 8, false, &[1; 8]), now);
            assert_eq!(whole, Some((wire::UDP, vec![1; 16])), "{id}");
        }
    }
}
