// SPDX-License-Identifier: Apache-2.0

//! IPv4 default routes by a device that needs no next hop.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::request::{attribute, number, number_at, request};

/// An IPv4 default route in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Index of the outgoing interface.
    pub oif: u32,
    /// Preferred source address.
    pub source: Ipv4Addr,
    /// Of several default routes the lowest metric wins; 0 lets the kernel choose one.
    pub metric: u32,
}

/// Adds a default route by a router on the link of the interface `oif`, on which no address of the
/// router's subnet is needed (RTNH_F_ONLINK).
///
/// # Errors
/// Those of netlink(7).
pub fn add_default_route_via(oif: u32, router: Ipv4Addr) -> io::Result<()> {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: AddressFamily::Inet,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        flags: RouteFlags::Onlink,
        ..RouteHeader::default()
    };
    route.attributes =
        vec![RouteAttribute::Oif(oif), RouteAttribute::Gateway(RouteAddress::Inet(router))];
    request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE, |_| ())
}

/// What to do with an existing default route of the same metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Keep it, and fail.
    Refuse,
    /// Replace it. Packets use either the old or the new route.
    Replace,
    /// Keep it beside the new one.
    Keep,
}

/// linux/rtnetlink.h
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;

/// The preferred source addresses of IPv4 default routes by the interface `index`, in all tables;
/// the unspecified address for a route without one.
///
/// # Errors
/// Those of netlink(7).
pub fn default_sources4(index: u32) -> io::Result<Vec<Ipv4Addr>> {
    let mut sources = Vec::new();
    each_default(&[RouteAttribute::Oif(index)], |attributes| {
        // struct rtnexthop: length, flags, hops, index; attributes follow.
        let mut hops = attribute(attributes, RTA_MULTIPATH).unwrap_or_default();
        let mut is_by = number(attributes, RTA_OIF) == Some(index);
        while let Some(length) = hops.first_chunk().map(|length| u16::from_ne_bytes(*length)) {
            is_by |= number_at(hops, 4) == Some(index);
            hops = hops.get(usize::from(length).max(8).next_multiple_of(4)..).unwrap_or_default();
        }
        let source =
            attribute(attributes, RTA_PREFSRC).and_then(|source| source.first_chunk::<4>());
        sources
            .extend(is_by.then(|| source.copied().map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from)));
    })?;
    Ok(sources)
}

/// Calls `each` with the attributes of each IPv4 default route. Kernels that can filter return only
/// those with the attributes of `filter`.
fn each_default(filter: &[RouteAttribute], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    // struct rtmsg (linux/rtnetlink.h): family, destination's length, source's length, TOS, table,
    // protocol, scope, type, …; attributes follow.
    const DESTINATION: usize = 1;
    const TYPE: usize = 7;
    const HEADER_LEN: usize = 12;
    let mut routes = RouteMessage::default();
    routes.header.address_family = AddressFamily::Inet;
    routes.attributes = filter.to_vec();
    request(RouteNetlinkMessage::GetRoute(routes), NLM_F_DUMP, |route| {
        let is_unicast = route.get(TYPE) == Some(&u8::from(RouteType::Unicast));
        if route.get(DESTINATION) == Some(&0) && is_unicast {
            each(route.get(HEADER_LEN..).unwrap_or_default());
        }
    })
}

impl DefaultRoute {
    /// Adds the route.
    ///
    /// # Errors
    /// `EEXIST` if there is one and `existing` is [`Existing::Refuse`]; those of netlink(7).
    pub fn set(&self, existing: Existing) -> io::Result<()> {
        let how = match existing {
            Existing::Refuse => NLM_F_EXCL,
            Existing::Replace => NLM_F_REPLACE,
            Existing::Keep => 0,
        };
        request(RouteNetlinkMessage::NewRoute(self.message()), NLM_F_CREATE | how, |_| ())
    }

    /// Removes the route. It is no error if it no longer exists.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn delete(&self) -> io::Result<()> {
        const GONE: [i32; 2] = [Errno::ESRCH as i32, Errno::ENODEV as i32];
        match request(RouteNetlinkMessage::DelRoute(self.message()), 0, |_| ()) {
            Err(e) if e.raw_os_error().is_some_and(|errno| GONE.contains(&errno)) => Ok(()),
            done => done,
        }
    }

    /// Whether the route exists.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn is_set(&self) -> io::Result<bool> {
        let mut is_set = false;
        each_default(&[], |attributes| {
            is_set |= number(attributes, RTA_OIF) == Some(self.oif)
                && number(attributes, RTA_PRIORITY).unwrap_or(0) == self.metric;
        })?;
        Ok(is_set)
    }

    fn message(&self) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Link;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![
            RouteAttribute::Oif(self.oif),
            RouteAttribute::PrefSource(RouteAddress::Inet(self.source)),
        ];
        if self.metric > 0 {
            route.attributes.push(RouteAttribute::Priority(self.metric));
        }
        route
    }
}
