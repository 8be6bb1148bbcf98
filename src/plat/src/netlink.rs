// SPDX-License-Identifier: Apache-2.0

//! Configures devices inside a namespace: state, address and route.

use std::io;
use std::net::Ipv4Addr;

use clat_netlink::{DefaultRoute, Existing};
use nix::net::if_::if_nametoindex;

/// Brings a device up, with this MTU if one is given.
pub(crate) fn up(name: &str, mtu: Option<u32>) -> io::Result<()> {
    clat_netlink::set_up(if_nametoindex(name)?, mtu)
}

/// Adds an address and an IPv4 default route through the device.
pub(crate) fn configure(name: &str, v4: Ipv4Addr) -> io::Result<()> {
    let oif = if_nametoindex(name)?;
    clat_netlink::add_address(oif, v4)?;
    DefaultRoute { oif, source: v4, metric: 0 }.set(Existing::Keep)
}

/// Adds an address and an IPv4 default route through a router.
pub(crate) fn configure_via(name: &str, v4: Ipv4Addr, router: Ipv4Addr) -> io::Result<()> {
    let oif = if_nametoindex(name)?;
    clat_netlink::add_address(oif, v4)?;
    clat_netlink::add_default_route_via(oif, router)
}
