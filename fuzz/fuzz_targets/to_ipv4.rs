// SPDX-License-Identifier: Apache-2.0

//! Arbitrary IPv6 packets: three bytes choose the configuration, the rest is the packet.
#![no_main]

#[path = "../../src/xlat/tests/common/mod.rs"]
mod common;
mod config;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((config, packet)) = config::split(data) else { return };
    let mut packet = packet.to_vec();
    packet[0] = 0x60 | (packet[0] & 0xf);
    if packet.len() >= 40 {
        packet[24..40].copy_from_slice(&common::LOCAL6.octets());
    }
    common::survive(config, &packet);
});
