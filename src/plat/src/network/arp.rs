// SPDX-License-Identifier: Apache-2.0

//! ARP (RFC 826), for guests with `--dual-stack`: answers for the router's address, and resolves
//! guests'.

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use crate::frame::Mac;

/// A parsed message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arp {
    is_request: bool,
    /// The sender's Ethernet address in the message.
    mac: EthernetAddress,
    /// The sender's address; unspecified in a probe for duplicates (RFC 5227 §2.1.1).
    pub(super) sender: Ipv4Addr,
    target: Ipv4Addr,
}

impl Arp {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: mac,
            source_protocol_addr: sender,
            target_protocol_addr: target,
            ..
        } = ArpRepr::parse(&ArpPacket::new_checked(bytes).ok()?).ok()?
        else {
            return None;
        };
        Some(Self { is_request: operation == ArpOperation::Request, mac, sender, target })
    }

    /// The answer to a request for `router`; `None` for anything else. A sender that claims the
    /// router's address (RFC 5227 §2.4) is answered, too, so that it learns of the conflict.
    pub(super) fn answer(&self, router: Ipv4Addr, mac: Mac) -> Option<Vec<u8>> {
        let ours = self.is_request && self.target == router;
        ours.then(|| write(ArpOperation::Reply, (mac, router), (self.mac, self.sender)))
    }
}

/// The router's request for the Ethernet address of `target`.
pub(super) fn request(router: Ipv4Addr, mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    write(ArpOperation::Request, (mac, router), (EthernetAddress([0; 6]), target))
}

fn write(
    operation: ArpOperation,
    (mac, router): (Mac, Ipv4Addr),
    (target_hardware_addr, target_protocol_addr): (EthernetAddress, Ipv4Addr),
) -> Vec<u8> {
    let message = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: router,
        target_hardware_addr,
        target_protocol_addr,
    };
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    bytes
}
