// SPDX-License-Identifier: Apache-2.0

//! Arbitrary frames for platd's network, each after two bytes of length.
#![no_main]

mod plat;

use std::time::Duration;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut plat = plat::Plat::new();
    let mut rest = data;
    while let Some((&[a, b], more)) = rest.split_first_chunk() {
        // The upper bits are a time to wait, in units of 8 s.
        let len = usize::from(u16::from_be_bytes([a & 0x0f, b]));
        plat.now += Duration::from_secs(u64::from(a >> 4) * 8);
        plat.poll();
        let (frame, more) = more.split_at(len.min(more.len()));
        rest = more;
        plat.frame(&mut frame.to_vec());
        // The resolver answers with the question.
        plat.resolve(<[u8]>::to_vec);
    }
});
