// SPDX-License-Identifier: Apache-2.0

//! Network interfaces.

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use crate::request::{attribute, number, number_at, request, Connection};

/// struct ifinfomsg (linux/rtnetlink.h): family, padding, type of 16 bits, index, flags, change;
/// attributes follow.
const TYPE: std::ops::Range<usize> = 2..4;
const INDEX: usize = 4;
const FLAGS: usize = 8;
const HEADER_LEN: usize = 16;
/// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// An interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its ARPHRD number (linux/if_arp.h), which tells what its packets begin with.
    pub hardware: u16,
    /// Its MTU in bytes of IP packet.
    pub mtu: u32,
    /// Whether it is administratively up (IFF_UP).
    pub is_up: bool,
    /// Whether it is up and has a carrier (IFF_LOWER_UP).
    pub has_carrier: bool,
    /// Its kind of virtual device ("veth", "bridge"); empty for others.
    pub kind: String,
    /// The index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// Its link-layer address, if that has six bytes.
    pub address: Option<[u8; 6]>,
}

impl Link {
    fn parse(message: &[u8]) -> Option<Self> {
        let attributes = message.get(HEADER_LEN..)?;
        let text = |value: &[u8]| {
            String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
        };
        let flags = number_at(message, FLAGS)?;
        let running = (LinkFlags::Up | LinkFlags::Running).bits();
        let info = attribute(attributes, IFLA_LINKINFO).unwrap_or_default();
        Some(Self {
            index: number_at(message, INDEX)?,
            name: text(attribute(attributes, IFLA_IFNAME)?),
            hardware: u16::from_ne_bytes(message.get(TYPE)?.try_into().ok()?),
            mtu: number(attributes, IFLA_MTU)?,
            is_up: flags & LinkFlags::Up.bits() != 0,
            has_carrier: flags & running == running,
            kind: attribute(info, IFLA_INFO_KIND).map(text).unwrap_or_default(),
            master: number(attributes, IFLA_MASTER),
            address: attribute(attributes, IFLA_ADDRESS).and_then(|it| it.try_into().ok()),
        })
    }
}

/// The interface with this index.
///
/// # Errors
/// `ENODEV` if there is none; those of netlink(7).
pub fn link(index: u32) -> io::Result<Link> {
    Connection::new()?.link(index)
}

/// All interfaces.
///
/// # Errors
/// Those of netlink(7).
pub fn links() -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP, |link| {
        links.extend(Link::parse(link));
    })?;
    Ok(links)
}

impl Connection {
    /// The interface with this index.
    ///
    /// # Errors
    /// `ENODEV` if there is none; those of netlink(7).
    pub fn link(&self, index: u32) -> io::Result<Link> {
        Link::parse(&self.message_of(index)?).ok_or_else(|| Errno::ENODEV.into())
    }

    fn message_of(&self, index: u32) -> io::Result<Vec<u8>> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let mut message = Vec::new();
        self.request(RouteNetlinkMessage::GetLink(link), 0, |link| message = link.to_vec())?;
        Ok(message)
    }
}

/// Number of open queues of a TUN device, attached or detached; `None` if the kernel does not tell
/// (before 4.17, or for a device with a single queue).
///
/// # Errors
/// `ENODEV` if there is none; those of netlink(7).
pub fn tun_queues(index: u32) -> io::Result<Option<u32>> {
    let message = Connection::new()?.message_of(index)?;
    let info = attribute(message.get(HEADER_LEN..).unwrap_or_default(), IFLA_LINKINFO);
    let tun = attribute(info.unwrap_or_default(), IFLA_INFO_DATA).unwrap_or_default();
    let (used, disabled) = (IFLA_TUN_NUM_QUEUES, IFLA_TUN_NUM_DISABLED_QUEUES);
    Ok(number(tun, used).zip(number(tun, disabled)).and_then(|(a, b)| a.checked_add(b)))
}

/// Brings an interface up, and sets its MTU if one is given.
///
/// # Errors
/// `ENODEV` if there is none, `EINVAL` for an MTU out of range; those of netlink(7).
pub fn set_up(index: u32, mtu: Option<u32>) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = mtu.map(LinkAttribute::Mtu).into_iter().collect();
    request(RouteNetlinkMessage::SetLink(link), 0, |_| ())
}

/// Removes an interface, if it exists.
///
/// # Errors
/// `EOPNOTSUPP` for one that cannot be removed; those of netlink(7).
pub fn delete_link(index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    match request(RouteNetlinkMessage::DelLink(link), 0, |_| ()) {
        Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
        done => done,
    }
}
