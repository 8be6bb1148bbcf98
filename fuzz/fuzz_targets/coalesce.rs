// SPDX-License-Identifier: Apache-2.0

//! Datagrams to be coalesced, each after a byte of length. As many must come out as went in.
#![no_main]

use clat_tun::{GsoType, VirtioHeader};
use clat_datapath::coalesce::{Coalescer, Kind};
use clat_datapath::segment::Segments;
use libfuzzer_sys::fuzz_target;

/// Distance of the packets in memory, in bytes.
const STRIDE: usize = 512;

fuzz_target!(|data: &[u8]| {
    let mut memory = vec![0; 32 * STRIDE];
    let mut coalescer = Coalescer::default();
    let mut payloads = 0;
    let mut rest = data;
    for slot in (0..32 * STRIDE).step_by(STRIDE) {
        let Some((len, tail)) = rest.split_first() else { break };
        let len = usize::from(*len).clamp(1, 255);
        let packet;
        (packet, rest) = tail.split_at(len.min(tail.len()));
        if packet.is_empty() {
            break;
        }
        let at = slot + 64..slot + 64 + packet.len();
        memory[at.clone()].copy_from_slice(packet);
        coalescer.push(&mut memory, at, VirtioHeader::default(), Kind::Complete, true);
        payloads += 1;
    }
    let (mut count, mut segments) = (0, 0);
    for message in coalescer.waiting() {
        count += message.count;
        let pieces = coalescer.pieces(message).iter().flat_map(|piece| &memory[piece.clone()]);
        let packet: Vec<u8> = pieces.copied().collect();
        if message.vnet.gso_type == GsoType::None {
            segments += 1;
            continue;
        }
        let mut cut = Segments::new(&packet, &message.vnet).expect("a GSO packet can be segmented");
        let mut out = [0; STRIDE];
        while cut.next(&mut out).is_some() {
            segments += 1;
        }
    }
    assert_eq!((count, segments), (payloads, payloads));
});
