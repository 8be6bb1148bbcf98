// SPDX-License-Identifier: Apache-2.0

//! An arbitrary question and answers to it, each after two bytes of length.
#![no_main]

mod plat;

use std::net::Ipv6Addr;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut plat = plat::Plat::new();
    let guest = Ipv6Addr::from_bits(plat.network.settings().prefix.to_bits() | 9);
    let dns = plat.network.settings().dns();
    let mut rest = data;
    let mut next = || {
        let (&[a, b], more) = rest.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes([a & 0x0f, b]));
        let (message, more) = more.split_at(len.min(more.len()));
        rest = more;
        Some(message.to_vec())
    };
    let Some(question) = next() else { return };
    plat.udp((guest.into(), dns.into()), 53, &question);
    while let Some(answer) = next() {
        plat.resolve(|query| {
            // Makes it an answer to the question; else it would be ignored.
            let mut answer = answer.clone();
            if answer.len() >= 12 {
                answer[..2].copy_from_slice(&query[..2]);
                answer[2] |= 0x80;
                if answer[11] & 1 == 0 {
                    let records = answer.split_off(12);
                    answer[4..6].copy_from_slice(&query[4..6]);
                    answer.extend_from_slice(&query[12..]);
                    answer.extend_from_slice(&records);
                }
            }
            answer
        });
    }
});
