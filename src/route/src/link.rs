//! What the kernel says of an interface.

use std::io;

use netlink_packet_core::NlasIterator;
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
        let mut attributes = NlasIterator::new(link.get(HEADER_LEN..).unwrap_or_default());
        let found = attributes.find_map(|nla| nla.ok().filter(|nla| nla.kind() == IFLA_MTU));
        mtu = found.and_then(|nla| Some(u32::from_ne_bytes(nla.value().try_into().ok()?)));
    })?;
    Ok(mtu)
}
