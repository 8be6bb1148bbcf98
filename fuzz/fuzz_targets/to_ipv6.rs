// SPDX-License-Identifier: Apache-2.0

//! Arbitrary IPv4 packets: three bytes choose the configuration, the rest is the packet.
#![no_main]

#[path = "../../src/xlat/tests/common/mod.rs"]
mod common;
mod config;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((config, packet)) = config::split(data) else { return };
    let mut packet = packet.to_vec();
    packet[0] = 0x40 | (packet[0] & 0xf);
    if packet.len() >= 20 {
        packet[12..16].copy_from_slice(&common::LOCAL4.octets());
    }
    common::mend_ipv4_checksum(&mut packet);
    common::survive(config, &packet);
});
