//! What the kernel says of an interface.

use std::io;

use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::RouteNetlinkMessage;

use crate::netlink;

/// Of struct ifinfomsg, which attributes follow.
const HEADER_LEN: usize = 16;
/// linux/if_link.h
const IFLA_MTU: u16 = 4;

/// The MTU of the interface with this index, in bytes of an IP packet.
///
/// # Errors
/// `ENODEV` where there is none; those of netlink(7).
pub fn link_mtu(index: u32) -> io::Result<Option<u32>> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut mtu = None;
    netlink::ask(RouteNetlinkMessage::GetLink(link), |link| {
        let found = link.get(HEADER_LEN..).and_then(|all| netlink::attribute(all, IFLA_MTU));
        mtu = found.and_then(|value| Some(u32::from_ne_bytes(value.try_into().ok()?)));
    })?;
    Ok(mtu)
}
