// SPDX-License-Identifier: Apache-2.0

//! Packets that tests send.

use clat_packet::{ipv6, protocol, Fragment, Ip};

/// A fragment of a UDP datagram; `offset` is in bytes.
#[must_use]
pub(crate) fn fragment(id: u32, offset: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    let fragment = Fragment { offset: u16::try_from(offset / 8).unwrap(), more, id };
    let ip = Ip {
        src: 0x2001_0db8 << 96 | 1,
        dst: 0x2001_0db8 << 96 | 2,
        class: 0,
        hops: 64,
        protocol: protocol::UDP,
        fragment: Some(fragment),
        dont_fragment: true,
        header_len: 0,
        len: 0,
    };
    let mut packet = vec![0; ipv6::header_len(&ip)];
    ipv6::write(&mut packet, &ip, payload.len());
    packet.extend_from_slice(payload);
    packet
}
