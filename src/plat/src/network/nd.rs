// SPDX-License-Identifier: Apache-2.0

//! Neighbour discovery (RFC 4861) and the other side of duplicate address detection (RFC 4862 §5.4).

use std::collections::HashMap;
use std::net::Ipv6Addr;

use smoltcp::wire::{Icmpv6Packet, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress};

use super::wire::{solicited_node, Packet};
use crate::fairness;
use crate::frame::Mac;

/// Neighbours that are remembered.
const MAX_NEIGHBOURS: usize = 1024;

/// What a valid message of a guest asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Router solicitation.
    Router,
    /// Neighbour solicitation for this address.
    Neighbour(Ipv6Addr),
    /// Nothing.
    Nothing,
}

/// Who has said which Ethernet address is theirs.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: HashMap<Ipv6Addr, Neighbour>,
    next: u64,
}

#[derive(Debug)]
struct Neighbour {
    mac: Mac,
    /// Who said so, and when, as a number that grows.
    by: Mac,
    said: u64,
}

impl Neighbours {
    pub(super) fn get(&self, addr: Ipv6Addr) -> Option<Mac> {
        self.known.get(&addr).map(|neighbour| neighbour.mac)
    }

    fn learn(&mut self, addr: Ipv6Addr, mac: Mac, by: Mac) {
        if self.known.len() >= MAX_NEIGHBOURS && !self.known.contains_key(&addr) {
            // Whoever has said most is up to something.
            let all = self.known.iter().map(|(addr, n)| (n.by, n.said, *addr));
            if let Some((oldest, _)) = fairness::to_evict(all) {
                self.known.remove(&oldest);
            }
        }
        self.next += 1;
        self.known.insert(addr, Neighbour { mac, by, said: self.next });
    }

    /// Reads one of the five messages, by the rules of RFC 4861 §6.1.1, §7.1.1 and §7.1.2. `None` for one that breaks
    /// them.
    pub(super) fn read(
        &mut self,
        packet: &Packet<'_>,
        icmp: &Icmpv6Packet<&[u8]>,
    ) -> Option<Asked> {
        let (std::net::IpAddr::V6(src), std::net::IpAddr::V6(dst)) = (packet.src, packet.dst)
        else {
            return None;
        };
        if packet.hops != 255 || icmp.msg_code() != 0 {
            return None;
        }
        match NdiscRepr::parse(icmp).ok()? {
            NdiscRepr::RouterSolicit { lladdr } => {
                if src.is_unspecified() {
                    return lladdr.is_none().then_some(Asked::Router);
                }
                if let Some(mac) = lladdr.and_then(ethernet) {
                    self.learn(src, mac, packet.link.guest);
                }
                Some(Asked::Router)
            }
            NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
                if target_addr.is_multicast() {
                    return None;
                }
                if src.is_unspecified() {
                    let valid = lladdr.is_none() && dst == solicited_node(target_addr);
                    return valid.then_some(Asked::Neighbour(target_addr));
                }
                if let Some(mac) = lladdr.and_then(ethernet) {
                    self.learn(src, mac, packet.link.guest);
                }
                Some(Asked::Neighbour(target_addr))
            }
            NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } => {
                let to_all = flags.contains(NdiscNeighborFlags::SOLICITED) && dst.is_multicast();
                if target_addr.is_multicast() || to_all {
                    return None;
                }
                // Without the option it is the frame's (RFC 4861 §7.2.4: it may be left out towards who knows it).
                let by = packet.link.guest;
                self.learn(target_addr, lladdr.and_then(ethernet).unwrap_or(by), by);
                Some(Asked::Nothing)
            }
            // Other routers' advertisements, and redirects, are not for a router.
            NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => Some(Asked::Nothing),
        }
    }
}

/// An advertisement of `target` as a router's, without its checksum (RFC 4861 §4.4).
pub(super) fn advertisement(target: Ipv6Addr, mac: Mac, solicited: bool) -> Vec<u8> {
    const ROUTER: u8 = 0x80;
    const SOLICITED: u8 = 0x40;
    const OVERRIDE: u8 = 0x20;
    let flags = ROUTER | OVERRIDE | if solicited { SOLICITED } else { 0 };
    message(136, flags, target, 2, mac)
}

/// A solicitation for `target`, without its checksum (RFC 4861 §4.3).
pub(super) fn solicitation(target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    message(135, 0, target, 1, mac)
}

fn message(kind: u8, flags: u8, target: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[option, 1]);
    message.extend_from_slice(&mac.0);
    message
}

fn ethernet(addr: RawHardwareAddress) -> Option<Mac> {
    let mac = Mac(*addr.as_bytes().first_chunk()?);
    (!mac.is_multicast()).then_some(mac)
}
