// SPDX-License-Identifier: Apache-2.0

//! Devices inside a namespace: up, with an address and a route (rtnetlink(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use clat_netlink::netlink::request;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::if_nametoindex;

/// Brings a device up, with this MTU if one is given.
pub(crate) fn up(name: &str, mtu: Option<u32>) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = if_nametoindex(name)?;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = mtu.map(LinkAttribute::Mtu).into_iter().collect();
    request(RouteNetlinkMessage::SetLink(link), 0)
}

/// Gives a device an address of its own.
pub(crate) fn add_address(name: &str, v4: Ipv4Addr) -> io::Result<()> {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 32;
    address.header.scope = AddressScope::Universe;
    address.header.index = if_nametoindex(name)?;
    address.attributes =
        vec![AddressAttribute::Local(IpAddr::V4(v4)), AddressAttribute::Address(IpAddr::V4(v4))];
    request(RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Sends all of IPv4 by a device.
pub(crate) fn add_default_route(name: &str, source: Ipv4Addr) -> io::Result<()> {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Link;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![
        RouteAttribute::Oif(if_nametoindex(name)?),
        RouteAttribute::PrefSource(RouteAddress::Inet(source)),
    ];
    request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE)
}
