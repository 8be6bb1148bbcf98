// SPDX-License-Identifier: Apache-2.0

//! A stream for platd's DNS server, in pieces: a byte with the number of cuts, two bytes for each,
//! and the stream.
#![no_main]

#[path = "../../src/plat/tests/invariants/mod.rs"]
#[allow(dead_code)]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&count, rest)) = data.split_first() else { return };
    let (cuts, stream) = rest.split_at((usize::from(count & 15) * 2).min(rest.len()));
    let cuts: Vec<u16> = cuts.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect();
    invariants::dns_over_tcp(stream, &cuts);
});
