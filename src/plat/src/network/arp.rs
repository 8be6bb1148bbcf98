// SPDX-License-Identifier: Apache-2.0

//! ARP (RFC 826): the router's address, for guests with `--dual-stack`.

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use crate::frame::Mac;

/// The answer to a request for `router`; `None` for anything else.
pub(super) fn answer(bytes: &[u8], router: Ipv4Addr, mac: Mac) -> Option<Vec<u8>> {
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&ArpPacket::new_checked(bytes).ok()?).ok()?
    else {
        return None;
    };
    // Who asks for the address and says it is theirs (RFC 5227 §2.4) learns that it is not.
    if target_protocol_addr != router {
        return None;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: router,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut message = vec![0; reply.buffer_len()];
    reply.emit(&mut ArpPacket::new_unchecked(&mut message));
    Some(message)
}
