// SPDX-License-Identifier: Apache-2.0

//! A virtio header and a packet: its checksum is completed, it is segmented, or both are left open.
#![no_main]

use clat_tun::VirtioHeader;
use clat_datapath::partial_checksum::{complete, PartialChecksum};
use clat_datapath::segment::Segments;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(vnet) = VirtioHeader::from_bytes(data) else { return };
    let packet = &data[VirtioHeader::LEN..];
    let mut completed = packet.to_vec();
    if !complete(&mut completed, &vnet) {
        assert_eq!(completed, packet, "what cannot be completed stays as it was");
    }
    if let Some(partial) = PartialChecksum::of(packet, &vnet) {
        assert!(partial.count() > 0);
        let mut left = packet.to_vec();
        let again = partial.carry_over(&mut left).expect("what was sound stays so");
        assert!(again.needs_csum && complete(&mut left, &again));
    }
    let Some(mut segments) = Segments::new(packet, &vnet) else { return };
    let mut out = vec![0; 40 + 65535];
    let mut total = 0;
    while let Some(len) = segments.next(&mut out) {
        assert!(len <= packet.len());
        total += 1;
        assert!(total <= packet.len(), "each segment has payload");
    }
});
