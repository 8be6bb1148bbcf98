// SPDX-License-Identifier: Apache-2.0

//! Fragments in any order, of several guests. The time is an argument.

#[path = "../packets/mod.rs"]
mod packets;

use super::*;
use packets::fragment;

const MAC: Mac = Mac([2; 6]);
const MOST: usize = POLICY.datagrams;
const PATIENCE: Duration = POLICY.timeout;

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

/// A guest with many incomplete datagrams does not affect others, nor can it add to theirs.
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
