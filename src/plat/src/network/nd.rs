// SPDX-License-Identifier: Apache-2.0

//! Neighbour discovery (RFC 4861) and the other side of duplicate address detection (RFC 4862
//! §5.4).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use clat_packet::nd::{self, option, Message};

use super::wire::Packet;
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

    /// Reads one of the five messages, whose checksum is right, by the rules of RFC 4861 §6.1.1,
    /// §7.1.1 and §7.1.2. `None` for one that breaks them.
    pub(super) fn read(&mut self, packet: &Packet<'_>, message: &[u8]) -> Option<Asked> {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src, packet.dst) else { return None };
        let by = packet.link.guest;
        match Message::read(message, packet.hops)? {
            Message::RouterSolicitation { options } => {
                if src.is_unspecified() {
                    return (!has_source(options)).then_some(Asked::Router);
                }
                if let Some(mac) = nd::ethernet_address(options, option::SOURCE) {
                    self.learn(src, Mac(mac), by);
                }
                Some(Asked::Router)
            }
            Message::NeighbourSolicitation { target, options } => {
                if src.is_unspecified() {
                    let valid = !has_source(options) && dst == nd::solicited_node(target);
                    return valid.then_some(Asked::Neighbour(target));
                }
                if let Some(mac) = nd::ethernet_address(options, option::SOURCE) {
                    self.learn(src, Mac(mac), by);
                }
                Some(Asked::Neighbour(target))
            }
            Message::NeighbourAdvertisement { flags, target, options } => {
                if flags & nd::SOLICITED != 0 && dst.is_multicast() {
                    return None;
                }
                // Without the option it is the frame's (RFC 4861 §7.2.4: it may be left out towards
                // who knows it).
                self.learn(
                    target,
                    nd::ethernet_address(options, option::TARGET).map_or(by, Mac),
                    by,
                );
                Some(Asked::Nothing)
            }
            // Other routers' advertisements, and redirects, are not for a router.
            Message::RouterAdvertisement { .. } | Message::Redirect { .. } => Some(Asked::Nothing),
        }
    }
}

fn has_source(options: &[u8]) -> bool {
    nd::options(options).any(|(kind, _)| kind == option::SOURCE)
}

/// An advertisement of `target` as a router's, without its checksum (RFC 4861 §4.4).
pub(super) fn advertisement(target: Ipv6Addr, mac: Mac, solicited: bool) -> Vec<u8> {
    let flags = nd::ROUTER | nd::OVERRIDE | if solicited { nd::SOLICITED } else { 0 };
    nd::advertisement(target, flags, mac.0).to_vec()
}

/// A solicitation for `target`, without its checksum (RFC 4861 §4.3).
pub(super) fn solicitation(target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    nd::solicitation(target, option::SOURCE, mac.0).to_vec()
}
