// SPDX-License-Identifier: Apache-2.0

//! Blackhole routes: addresses whose packets the kernel drops without an ICMP error.

use std::io;
use std::net::Ipv6Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::request::{attribute, request};

/// Routing protocol number of our routes, which no known routing daemon uses (iproute2's
/// rt_protos).
const PROTOCOL: u8 = 64;
const PREFIX_LEN: u8 = 128;
/// linux/rtnetlink.h
const RT_TABLE_LOCAL: u8 = 255;

/// A blackhole route in the table `local`, which the kernel consults first, so that it neither
/// answers nor forwards packets to the address. tc programs and packet sockets see packets earlier;
/// neighbour discovery is not affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blackhole(pub Ipv6Addr);

impl Blackhole {
    /// Adds the route, unless it exists.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn set(self) -> io::Result<()> {
        let how = NLM_F_CREATE | NLM_F_EXCL;
        match request(RouteNetlinkMessage::NewRoute(self.message()), how, |_| ()) {
            Err(e) if e.raw_os_error() == Some(Errno::EEXIST as i32) => Ok(()),
            done => done,
        }
    }

    /// Removes the route, if it exists.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn delete(self) -> io::Result<()> {
        match request(RouteNetlinkMessage::DelRoute(self.message()), 0, |_| ()) {
            Err(e) if e.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
            done => done,
        }
    }

    /// All existing routes that [`Self::set`] has added.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn all() -> io::Result<Vec<Self>> {
        let mut routes = RouteMessage::default();
        routes.header.address_family = AddressFamily::Inet6;
        let mut all = Vec::new();
        request(RouteNetlinkMessage::GetRoute(routes), NLM_F_DUMP, |route| {
            all.extend(Self::parse(route));
        })?;
        Ok(all)
    }

    fn parse(route: &[u8]) -> Option<Self> {
        // struct rtmsg (linux/rtnetlink.h): family, the destination's length, the source's, TOS,
        // table, protocol, scope, type, flags; attributes follow.
        const HEADER_LEN: usize = 12;
        const RTA_DST: u16 = 1;
        let [_, length, _, _, table, protocol, _, kind, ..] = route else { return None };
        let is_ours = *length == PREFIX_LEN
            && *table == RT_TABLE_LOCAL
            && *protocol == PROTOCOL
            && *kind == u8::from(RouteType::BlackHole);
        let address = attribute(route.get(HEADER_LEN..)?, RTA_DST)?;
        is_ours.then_some(Self(<[u8; 16]>::try_from(address).ok()?.into()))
    }

    fn message(self) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet6;
        route.header.destination_prefix_length = PREFIX_LEN;
        route.header.table = RT_TABLE_LOCAL;
        route.header.protocol = RouteProtocol::from(PROTOCOL);
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::BlackHole;
        route.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet6(self.0))];
        route
    }
}

/// Removes the route that the kernel has made for an anycast address of the interface `index`: the
/// kernel still answers neighbour solicitations for the address, but no longer takes packets to it.
///
/// # Errors
/// Those of netlink(7).
pub fn delete_anycast_route(index: u32, address: Ipv6Addr) -> io::Result<()> {
    let mut route = Blackhole(address).message();
    route.header.protocol = RouteProtocol::Kernel;
    route.header.kind = RouteType::Anycast;
    route.attributes.push(RouteAttribute::Oif(index));
    request(RouteNetlinkMessage::DelRoute(route), 0, |_| ())
}
