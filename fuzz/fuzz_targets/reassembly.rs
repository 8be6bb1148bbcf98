// SPDX-License-Identifier: Apache-2.0

//! Fragments in any order, each after two bytes of length. The result must be a whole, atomic
//! packet.
#![no_main]

use std::time::{Duration, Instant};

use clat_packet::reassembly::{Outcome, Policy, Reassembly};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (timeout, bytes) = (Duration::from_secs(60), 1 << 20);
    let mut reassembly = Reassembly::new(Policy { timeout, datagrams: 64, bytes, share: 4 });
    let mut out = vec![0; 40 + 65535];
    let mut now = Instant::now();
    let mut rest = data;
    while let Some((&[a, b], more)) = rest.split_first_chunk() {
        // The upper bits are a time to wait, in units of 8 s.
        let len = usize::from(u16::from_be_bytes([a & 0x0f, b]));
        now += Duration::from_secs(u64::from(a >> 4) * 8);
        let (fragment, more) = more.split_at(len.min(more.len()));
        rest = more;
        if let Outcome::Whole { len, .. } = reassembly.offer((), fragment, now, &mut out) {
            let packet = &out[..len];
            let declared = match packet[0] >> 4 {
                4 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
                _ => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
            };
            assert_eq!(declared, len);
        }
    }
});
