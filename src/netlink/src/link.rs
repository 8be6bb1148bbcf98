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
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// The MTU of the interface with this index, in bytes of an IP packet.
///
/// # Errors
/// `ENODEV` where there is none; those of netlink(7).
pub fn link_mtu(index: u32) -> io::Result<Option<u32>> {
    Ok(number(&attributes_of(index)?, IFLA_MTU))
}

/// How many queues of a TUN device are open, whether in use or not; `None` where the kernel does not tell (before 4.17, or of
/// a device that takes one only).
///
/// # Errors
/// `ENODEV` where there is none; those of netlink(7).
pub fn tun_queues(index: u32) -> io::Result<Option<u32>> {
    let info = attribute(&attributes_of(index)?, IFLA_LINKINFO).unwrap_or_default();
    let tun = attribute(&info, IFLA_INFO_DATA).unwrap_or_default();
    let (used, disabled) = (IFLA_TUN_NUM_QUEUES, IFLA_TUN_NUM_DISABLED_QUEUES);
    Ok(number(&tun, used).zip(number(&tun, disabled)).and_then(|(a, b)| a.checked_add(b)))
}

fn attributes_of(index: u32) -> io::Result<Vec<u8>> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut attributes = Vec::new();
    netlink::ask(RouteNetlinkMessage::GetLink(link), |link| {
        attributes = link.get(HEADER_LEN..).unwrap_or_default().to_vec();
    })?;
    Ok(attributes)
}

/// The value of the first attribute of a kind.
fn attribute(all: &[u8], kind: u16) -> Option<Vec<u8>> {
    let mut attributes = NlasIterator::new(all).map_while(Result::ok);
    attributes.find(|attribute| attribute.kind() == kind).map(|attribute| attribute.value().into())
}

fn number(all: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(attribute(all, kind)?.try_into().ok()?))
}
