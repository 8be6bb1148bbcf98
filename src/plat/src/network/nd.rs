// SPDX-License-Identifier: Apache-2.0

//! Neighbour discovery (RFC 4861), answers to duplicate address detection (RFC 4862 §5.4), and
//! which station has which address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use clat_packet::nd::{self, option, Message};

use super::wire::Packet;
use crate::fairness::Shares;
use crate::frame::Mac;

/// Most addresses remembered.
const MAX_NEIGHBOURS: usize = 1024;

/// The contents of a valid message of a guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Router solicitation.
    Router,
    /// Neighbour solicitation for this address.
    Neighbour(Ipv6Addr),
    /// An advertisement: this address is at this Ethernet address.
    Advertised(Ipv6Addr, Mac),
    /// Nothing that matters here.
    Nothing,
}

/// How long the station that has an address may take to answer when another one uses it (RFC 6620
/// §3.3.2, TENT_LT).
const ANSWER: Duration = Duration::from_millis(500);
/// Time after which it is asked again.
const ASKED: Duration = Duration::from_secs(10);

/// Whether the station that sent a packet may use its source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The address belongs to the station.
    Owned,
    /// It belongs to the station from now on: the previous one did not answer.
    MovedFrom(Mac),
    /// It belongs to another station, which has to be solicited if `ask` is set.
    Foreign {
        /// The station that has it.
        owner: Mac,
        /// Whether it has not been solicited yet.
        ask: bool,
    },
}

/// Which station has which address. An address belongs to the first station that uses it, as long
/// as that answers (RFC 6620), so that no station can use another's. IPv4 addresses are
/// IPv4-mapped.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: HashMap<Ipv6Addr, Neighbour>,
    next: u64,
    /// The addresses of each station, by a number of when it was last heard, which may be outdated.
    shares: Shares<u64, Ipv6Addr>,
}

#[derive(Debug)]
struct Neighbour {
    /// The Ethernet address that frames for it are sent to.
    mac: Mac,
    /// The station that has the address, by the source address of its frames.
    station: Mac,
    /// A growing number of when the station was last heard, and the one that its entry in `shares`
    /// has.
    heard: u64,
    share: u64,
    /// When it was solicited because another station uses its address.
    asked: Option<Instant>,
    /// Whether the address stays with it.
    reserved: bool,
}

impl Neighbour {
    fn new(station: Mac, heard: u64) -> Self {
        Self { mac: station, station, heard, share: heard, asked: None, reserved: false }
    }
}

impl Neighbours {
    pub(super) fn get(&self, addr: Ipv6Addr) -> Option<Mac> {
        self.known.get(&addr).map(|neighbour| neighbour.mac)
    }

    /// The station that an address belongs to.
    pub(super) fn station(&self, addr: Ipv6Addr) -> Option<Mac> {
        self.known.get(&addr).map(|neighbour| neighbour.station)
    }

    /// The addresses of a station.
    pub(super) fn of(&self, station: Mac) -> impl Iterator<Item = Ipv6Addr> + '_ {
        let own = self.known.iter().filter(move |(_, neighbour)| neighbour.station == station);
        own.map(|(address, _)| *address)
    }

    /// Reserves an address for a station.
    pub(super) fn reserve(&mut self, addr: Ipv6Addr, station: Mac) {
        let neighbour = Neighbour { reserved: true, ..Neighbour::new(station, 0) };
        self.known.insert(addr, neighbour);
    }

    /// Handles the use of a source address by a station.
    pub(super) fn claim(&mut self, addr: Ipv6Addr, station: Mac, now: Instant) -> Claim {
        self.next += 1;
        let heard = self.next;
        if let Some(known) = self.known.get_mut(&addr) {
            if known.station == station {
                (known.heard, known.asked) = (heard, None);
                return Claim::Owned;
            }
            let owner = known.station;
            match known.asked {
                _ if known.reserved => return Claim::Foreign { owner, ask: false },
                Some(asked) if now < asked + ANSWER => {
                    return Claim::Foreign { owner, ask: false };
                }
                Some(asked) if now < asked + ASKED => {
                    self.shares.remove(owner, known.share);
                    self.shares.insert(station, heard, addr);
                    *known = Neighbour::new(station, heard);
                    return Claim::MovedFrom(owner);
                }
                _ => {
                    known.asked = Some(now);
                    return Claim::Foreign { owner, ask: true };
                }
            }
        }
        if self.known.len() >= MAX_NEIGHBOURS {
            self.evict();
        }
        self.known.insert(addr, Neighbour::new(station, heard));
        self.shares.insert(station, heard, addr);
        Claim::Owned
    }

    /// Removes the least recently used address of the station with most.
    fn evict(&mut self) {
        while let Some((station, share, addr)) = self.shares.to_evict() {
            self.shares.remove(station, share);
            match self.known.get_mut(&addr) {
                // It was used since; update its number.
                Some(known) if known.heard != share => {
                    known.share = known.heard;
                    self.shares.insert(station, known.share, addr);
                }
                _ => {
                    self.known.remove(&addr);
                    return;
                }
            }
        }
    }

    /// Notes the Ethernet address that a station wants frames for its address to be sent to.
    pub(super) fn learn(&mut self, addr: Ipv6Addr, mac: Mac) {
        if let Some(neighbour) = self.known.get_mut(&addr) {
            neighbour.mac = mac;
        }
    }

    /// Parses one of the five messages, whose checksum is right and whose source is its station's,
    /// by the rules of RFC 4861 §6.1.1, §7.1.1 and §7.1.2. `None` if invalid.
    pub(super) fn read(&mut self, packet: &Packet<'_>, message: &[u8]) -> Option<Asked> {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src, packet.dst) else { return None };
        let by = packet.link.guest;
        match Message::read(message, packet.hops)? {
            Message::RouterSolicitation { options } => {
                if src.is_unspecified() {
                    return (!has_source(options)).then_some(Asked::Router);
                }
                if let Some(mac) = nd::ethernet_address(options, option::SOURCE) {
                    self.learn(src, Mac(mac));
                }
                Some(Asked::Router)
            }
            Message::NeighbourSolicitation { target, options } => {
                if src.is_unspecified() {
                    let valid = !has_source(options) && dst == nd::solicited_node(target);
                    return valid.then_some(Asked::Neighbour(target));
                }
                if let Some(mac) = nd::ethernet_address(options, option::SOURCE) {
                    self.learn(src, Mac(mac));
                }
                Some(Asked::Neighbour(target))
            }
            Message::NeighbourAdvertisement { flags, target, options } => {
                if flags & nd::SOLICITED != 0 && dst.is_multicast() {
                    return None;
                }
                // Without the option, the frame's (RFC 4861 §7.2.4: it may be omitted towards a
                // node that knows it).
                let mac = nd::ethernet_address(options, option::TARGET).map_or(by, Mac);
                Some(Asked::Advertised(target, mac))
            }
            // A router ignores other routers' advertisements, and redirects.
            Message::RouterAdvertisement { .. } | Message::Redirect { .. } => Some(Asked::Nothing),
        }
    }
}

fn has_source(options: &[u8]) -> bool {
    nd::options(options).any(|(kind, _)| kind == option::SOURCE)
}

/// A router's advertisement of `target`, without its checksum (RFC 4861 §4.4).
pub(super) fn advertisement(target: Ipv6Addr, mac: Mac, solicited: bool) -> Vec<u8> {
    let flags = nd::ROUTER | nd::OVERRIDE | if solicited { nd::SOLICITED } else { 0 };
    nd::advertisement(target, flags, mac.0).to_vec()
}

/// A solicitation for `target`, without its checksum (RFC 4861 §4.3).
pub(super) fn solicitation(target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    nd::solicitation(target, option::SOURCE, mac.0).to_vec()
}
