// SPDX-License-Identifier: Apache-2.0

//! Arbitrary packets for platd's flows, and errors about them: two and four bytes choose the error,
//! one whether a router reports it, the rest is the packet.
#![no_main]

#[path = "../../src/plat/tests/invariants/mod.rs"]
#[allow(dead_code)]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[kind, code, a, b, c, d, router], packet)) = data.split_first_chunk() else {
        return;
    };
    let mut packet = packet.to_vec();
    let len = usize::from(packet.first().map_or(0, |first| first & 0xf)) * 4;
    if let Some(header) = packet.get_mut(..len.max(20)).filter(|header| header[0] >> 4 == 4) {
        header[10..12].fill(0);
        let mut sum: u32 = header.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let check = !(sum as u16);
        header[10..12].copy_from_slice(&check.to_be_bytes());
    }
    invariants::packet(&packet);
    let router = match router & 3 {
        0 => None,
        1 => Some("64:ff9b::192.0.2.9".parse().expect("an address")),
        2 => Some("::ffff:192.0.2.9".parse().expect("an address")),
        _ => Some(u128::from(router).into()),
    };
    invariants::error(kind, code, u32::from_be_bytes([a, b, c, d]), router, &packet);
});
