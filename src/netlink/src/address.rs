// SPDX-License-Identifier: Apache-2.0

//! Addresses of interfaces.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::request::request;

/// Gives the interface `index` the address `v4`/32, if it does not have it.
///
/// # Errors
/// `ENODEV` where there is no such interface; those of netlink(7).
pub fn add_address(index: u32, v4: Ipv4Addr) -> io::Result<()> {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 32;
    address.header.scope = AddressScope::Universe;
    address.header.index = index;
    address.attributes =
        vec![AddressAttribute::Local(IpAddr::V4(v4)), AddressAttribute::Address(IpAddr::V4(v4))];
    request(RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_REPLACE, |_| ())
}
