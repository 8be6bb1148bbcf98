// SPDX-License-Identifier: Apache-2.0

//! Arbitrary messages for platd's DHCPv6 and DHCP servers; the first byte chooses the server.
#![no_main]

mod plat;

use std::net::{Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;

const GUEST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

fuzz_target!(|data: &[u8]| {
    let mut plat = plat::Plat::new();
    let Some((kind, message)) = data.split_first() else { return };
    // Twice, since the second message meets the state that the first has left.
    for _ in 0..2 {
        if kind & 1 == 0 {
            plat.udp((GUEST.into(), SERVERS.into()), 547, message);
        } else {
            let everybody = Ipv4Addr::BROADCAST;
            plat.udp((Ipv4Addr::UNSPECIFIED.into(), everybody.into()), 67, message);
        }
    }
    plat.resolve(<[u8]>::to_vec);
});
