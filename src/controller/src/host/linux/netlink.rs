//! Routes, kinds and the removal of devices, by netlink (rtnetlink(7)).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use clat_route::netlink::{ask, request};
use netlink_packet_core::{NlasIterator, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

/// What kind of device an interface is: its ARPHRD number.
pub(super) fn link_type(index: u32) -> io::Result<u16> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut found = None;
    // struct ifinfomsg: family, padding, type.
    ask(RouteNetlinkMessage::GetLink(link), |link| {
        found = link.get(2..4).and_then(|kind| Some(u16::from_ne_bytes(kind.try_into().ok()?)));
    })?;
    found.ok_or_else(|| Errno::ENODEV.into())
}

/// The interface by which packets from `source` to `destination` are routed where `index` is preferred.
pub(super) fn route_by(
    index: u32,
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> io::Result<Option<u32>> {
    /// Of struct rtmsg, which attributes follow.
    const HEADER_LEN: usize = 12;
    /// linux/rtnetlink.h
    const RTA_OIF: u16 = 4;
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet6;
    route.header.destination_prefix_length = 128;
    route.header.source_prefix_length = 128;
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet6(destination)),
        RouteAttribute::Source(RouteAddress::Inet6(source)),
        RouteAttribute::Oif(index),
    ];
    let mut by = None;
    ask(RouteNetlinkMessage::GetRoute(route), |route| {
        let mut attributes = NlasIterator::new(route.get(HEADER_LEN..).unwrap_or_default());
        let oif = attributes.find_map(|nla| nla.ok().filter(|nla| nla.kind() == RTA_OIF));
        by = oif.and_then(|oif| Some(u32::from_ne_bytes(oif.value().try_into().ok()?)));
    })?;
    Ok(by)
}

/// Removes a device, unless it is gone.
pub(super) fn delete_link(index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    match request(RouteNetlinkMessage::DelLink(link), 0) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        done => done,
    }
}

/// An IPv4 default route that goes away when dropped.
#[derive(Debug)]
pub struct DefaultRoute(RouteMessage);

impl DefaultRoute {
    pub(super) fn add(index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Self> {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Link;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![
            RouteAttribute::Oif(index),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)),
            RouteAttribute::Priority(metric),
        ];
        request(RouteNetlinkMessage::NewRoute(route.clone()), NLM_F_CREATE | NLM_F_EXCL)?;
        Ok(Self(route))
    }
}

impl Drop for DefaultRoute {
    fn drop(&mut self) {
        match request(RouteNetlinkMessage::DelRoute(self.0.clone()), 0) {
            // Gone before us, with its device or by someone's hand.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => {}
            Err(e) => log::error!("cannot remove the IPv4 default route: {e}"),
            Ok(()) => {}
        }
    }
}
