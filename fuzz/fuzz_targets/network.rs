// SPDX-License-Identifier: Apache-2.0

//! Frames of any kind into the network that platd plays: two bytes of length before each.
#![no_main]

mod plat;

use std::time::Duration;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut plat = plat::Plat::new();
    let mut rest = data;
    while let Some((&[a, b], more)) = rest.split_first_chunk() {
        // The upper bits are seconds to wait.
        let len = usize::from(u16::from_be_bytes([a & 0x0f, b]));
        plat.now += Duration::from_secs(u64::from(a >> 4) * 8);
        plat.poll();
        let (frame, more) = more.split_at(len.min(more.len()));
        rest = more;
        plat.frame(&mut frame.to_vec());
        // Whoever is asked says the same.
        plat.resolve(<[u8]>::to_vec);
    }
});
