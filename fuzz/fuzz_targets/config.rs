// SPDX-License-Identifier: Apache-2.0

//! A translator's configuration from a fuzzer's bytes.

use clat_xlat::{Config, HopPolicy, UdpZero};

/// Takes three bytes for the configuration and returns the rest, the packet.
pub fn split(data: &[u8]) -> Option<(Config, &[u8])> {
    let (&[mtu4, mtu6, flags], packet) = data.split_first_chunk()?;
    if packet.is_empty() {
        return None;
    }
    let config = Config {
        mtu4: [68, 576, 1280, 1500, 65535][usize::from(mtu4 % 5)],
        mtu6: [1280, 1492, 1500, 65575][usize::from(mtu6 % 4)],
        lowest_ipv6_mtu: [1280, 1400, 1500, 65575][usize::from(mtu6 / 4 % 4)],
        udp_zero: [UdpZero::Compute, UdpZero::Drop, UdpZero::Forward][usize::from(flags % 3)],
        hop: if flags & 0x80 == 0 { HopPolicy::Copy } else { HopPolicy::Decrement },
        router6: crate::common::ROUTER6,
        ..Config::default()
    };
    Some((config, packet))
}
