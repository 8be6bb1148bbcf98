// SPDX-License-Identifier: Apache-2.0

//! Arbitrary neighbour discovery: a message that was read, router advertisements and PREF64 above
//! all, is written again unchanged. The first byte is the hop limit.
#![no_main]

use clat_packet::nd::{self, Message};
use clat_packet::ra;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&hop_limit, message)) = data.split_first() else { return };
    let Some(read) = Message::read(message, hop_limit) else { return };
    assert_eq!(hop_limit, 255);
    let (Message::RouterAdvertisement { options, .. }
    | Message::RouterSolicitation { options }
    | Message::NeighbourSolicitation { options, .. }
    | Message::NeighbourAdvertisement { options, .. }
    | Message::Redirect { options }) = read;
    let mut len = 0;
    for (kind, value) in nd::options(options) {
        len += value.len() + 2;
        if let Some((prefix, bits, lifetime)) = ra::read_pref64(value) {
            assert!([96, 64, 56, 48, 40, 32].contains(&bits) && lifetime % 8 == 0);
            let option = ra::pref64(prefix, bits, lifetime);
            assert!(option.is_some_and(|option| option[2..] == value[..14]));
        }
        if let Some(address) = nd::ethernet_address(options, kind) {
            assert_eq!(address[0] & 1, 0);
        }
    }
    assert_eq!(len, options.len());
});
