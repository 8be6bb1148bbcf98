//! Routes, kinds and the removal of devices, by netlink (rtnetlink(7)).

use std::io;
use std::net::Ipv4Addr;

use clat_netlink::netlink::{ask, request};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::RouteNetlinkMessage;
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
    /// Sets it; where `is_ours` says so, in place of one that is there.
    pub(super) fn add(
        index: u32,
        source: Ipv4Addr,
        metric: u32,
        is_ours: bool,
    ) -> io::Result<Self> {
        let mut route = RouteMessage::default();
        route.header.address_family = netlink_packet_route::AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Link;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![
            RouteAttribute::Oif(index),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)),
            RouteAttribute::Priority(metric),
        ];
        let how = if is_ours { NLM_F_REPLACE } else { NLM_F_EXCL };
        request(RouteNetlinkMessage::NewRoute(route.clone()), NLM_F_CREATE | how)?;
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
