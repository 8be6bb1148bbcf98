// SPDX-License-Identifier: Apache-2.0

//! The ring compared with a queue of the standard library.

use std::collections::VecDeque;
use std::io::Read;

use proptest::prelude::*;

use super::*;

proptest! {
    /// It behaves like a queue.
    #[test]
    fn is_a_queue(steps in proptest::collection::vec(
        (0u8..3, 0usize..150_000, prop_oneof![Just(usize::MAX), 0usize..10_000]), 0..40)) {
        let mut ring = Ring::default();
        let mut queue = VecDeque::new();
        let mut next = 0u8;
        for (what, count, room) in steps {
            let before = ring.held();
            let bytes = (0u8..251).cycle().map(|i| next.wrapping_add(i));
            let bytes: Vec<u8> = bytes.take(count).collect();
            next = next.wrapping_add(7);
            match what {
                0 => {
                    let taken = ring.extend(&bytes, room);
                    prop_assert!(taken == bytes.len() || room < usize::MAX);
                    queue.extend(&bytes[..taken]);
                }
                1 => {
                    let got = ring.fill(1 << 18, room, |into| (&bytes[..]).read_vectored(into));
                    prop_assert!(got.is_ok() || !ring.is_empty() || room < FIRST);
                    queue.extend(&bytes[..got.unwrap_or(0)]);
                }
                _ => {
                    ring.consume(count);
                    queue.drain(..count.min(queue.len()));
                    ring.release();
                }
            }
            prop_assert_eq!(ring.len(), queue.len());
            prop_assert!(ring.held() <= before.saturating_add(room));
            let [a, b] = ring.slices(count / 2, 70_000);
            let have: Vec<u8> = a.iter().chain(b).copied().collect();
            let want: Vec<u8> = queue.iter().skip(count / 2).take(70_000).copied().collect();
            prop_assert_eq!(have, want);
        }
    }
}
