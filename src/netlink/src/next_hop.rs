// SPDX-License-Identifier: Apache-2.0

//! The next hop of an uplink towards a prefix, by the kernel's IPv6 routes over that uplink. Routes
//! over other interfaces are ignored even where the kernel prefers them: a CLAT's packets are bound
//! to their uplink.

use std::cmp::Reverse;
use std::io;
use std::net::Ipv6Addr;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NLM_F_DUMP};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RoutePreference,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::request::Connection;

/// linux/rtnetlink.h
const RTM_NEWROUTE: u16 = 24;

/// Destination, interface and source of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index of the uplink.
    pub oif: u32,
    /// Source of the packets: a route may be for certain sources only (RFC 8043).
    pub source: Ipv6Addr,
    /// The prefix of the destinations.
    pub prefix: Ipv6Addr,
    /// Its length in bits. Only routes to all of the prefix count.
    pub prefix_len: u8,
}

/// The neighbour that packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// The destination itself.
    OnLink,
    /// A router, by its address on the link.
    Gateway(Ipv6Addr),
}

impl NextHop {
    /// The neighbour for packets to `destination`.
    #[must_use]
    pub fn towards(self, destination: Ipv6Addr) -> Ipv6Addr {
        match self {
            Self::OnLink => destination,
            Self::Gateway(router) => router,
        }
    }
}

impl Connection {
    /// Looks up the next hop in the kernel's routes of all tables: the longest prefix wins, then
    /// the longest source prefix, the lowest metric, the highest router preference (RFC 4191), the
    /// first. `None` without a route.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn next_hop(&self, target: &Target) -> io::Result<Option<NextHop>> {
        let mut routes = RouteMessage::default();
        routes.header.address_family = AddressFamily::Inet6;
        routes.attributes = vec![RouteAttribute::Oif(target.oif)];
        let mut header = NetlinkHeader::default();
        header.message_type = RTM_NEWROUTE;
        let mut best = None;
        self.request(RouteNetlinkMessage::GetRoute(routes), NLM_F_DUMP, |route| {
            match RouteNetlinkMessage::deserialize(&header, route) {
                Ok(RouteNetlinkMessage::NewRoute(route)) => {
                    let candidate = candidate(target, &route);
                    if candidate.as_ref().map(|(rank, _)| rank)
                        > best.as_ref().map(|(rank, _)| rank)
                    {
                        best = candidate;
                    }
                }
                Ok(_) => {}
                Err(e) => log::debug!("a route that cannot be read: {e}"),
            }
        })?;
        Ok(best.map(|(_, next_hop)| next_hop))
    }
}

/// As [`Connection::next_hop`], by a new [`Connection`].
///
/// # Errors
/// Those of netlink(7).
pub fn next_hop(target: &Target) -> io::Result<Option<NextHop>> {
    Connection::new()?.next_hop(target)
}

/// Order of preference among routes; more is better.
type Rank = (u8, u8, Reverse<u32>, u8);

/// Rank and next hop of a route, if it applies to the target.
fn candidate(target: &Target, route: &RouteMessage) -> Option<(Rank, NextHop)> {
    let header = &route.header;
    let unusable = RouteFlags::Dead | RouteFlags::Cloned;
    if header.kind != RouteType::Unicast || header.flags.intersects(unusable) {
        return None;
    }
    let (mut to, mut from) = (Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let (mut metric, mut preference) = (0, 1);
    let mut next_hop = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = *address,
            RouteAttribute::Source(RouteAddress::Inet6(address)) => from = *address,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Preference(RoutePreference::High) => preference = 2,
            RouteAttribute::Preference(RoutePreference::Low) => preference = 0,
            // One is enough: all packets of a flow have to take the same next hop.
            RouteAttribute::MultiPath(ways) => {
                let way = ways.iter().find(|way| {
                    way.interface_index == target.oif
                        && !way.flags.contains(RouteNextHopFlags::Dead)
                });
                next_hop = way.and_then(|way| hop(&way.attributes));
            }
            RouteAttribute::Oif(oif) if *oif == target.oif => {
                next_hop = hop(&route.attributes);
            }
            _ => {}
        }
    }
    let (to_len, from_len) = (header.destination_prefix_length, header.source_prefix_length);
    let fits = to_len <= target.prefix_len
        && covers(to, to_len, target.prefix)
        && covers(from, from_len, target.source);
    Some(((to_len, from_len, Reverse(metric), preference), next_hop?)).filter(|_| fits)
}

/// The next hop of a route with these attributes; `None` for a route that encapsulates.
fn hop(attributes: &[RouteAttribute]) -> Option<NextHop> {
    let mut next_hop = NextHop::OnLink;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet6(router)) => {
                next_hop = NextHop::Gateway(*router);
            }
            RouteAttribute::Encap(_) | RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    Some(next_hop)
}

/// Whether the first `len` bits are equal.
fn covers(prefix: Ipv6Addr, len: u8, address: Ipv6Addr) -> bool {
    let differs = u128::from(prefix) ^ u128::from(address);
    differs.leading_zeros() >= len.into()
}
