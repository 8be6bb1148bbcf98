// SPDX-License-Identifier: Apache-2.0

//! Addresses of interfaces.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::request::{attribute, number, number_at, request};

/// struct ifaddrmsg (linux/if_addr.h): family, prefix length, flags, scope, index; attributes
/// follow.
const PREFIX_LEN: usize = 1;
const FLAGS: usize = 2;
const INDEX: usize = 4;
const HEADER_LEN: usize = 8;

/// Adds the address `v4`/32 to the interface `index`, unless it has it.
///
/// # Errors
/// `ENODEV` if there is no such interface; those of netlink(7).
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

/// The IPv4 addresses of the interface `index`.
///
/// # Errors
/// Those of netlink(7).
pub fn addresses4(index: u32) -> io::Result<Vec<Ipv4Addr>> {
    const IFA_LOCAL: u16 = 2;
    let mut found = Vec::new();
    dump(AddressFamily::Inet, index, |_, attributes| {
        let address = attribute(attributes, IFA_LOCAL).and_then(|local| local.first_chunk::<4>());
        found.extend(address.copied().map(Ipv4Addr::from));
    })?;
    Ok(found)
}

/// An IPv6 address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address6 {
    /// The address.
    pub address: Ipv6Addr,
    /// Length in bits of its network's prefix.
    pub prefix_len: u8,
    /// Whether new connections may use it as source: it is neither tentative, nor deprecated, nor a
    /// duplicate (RFC 4862 §2).
    pub is_preferred: bool,
}

/// The IPv6 addresses of the interface `index`.
///
/// # Errors
/// Those of netlink(7).
pub fn addresses6(index: u32) -> io::Result<Vec<Address6>> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_FLAGS: u16 = 8;
    /// IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE
    const NOT_PREFERRED: u32 = 0x08 | 0x20 | 0x40;
    let mut found = Vec::new();
    dump(AddressFamily::Inet6, index, |header, attributes| {
        let address =
            attribute(attributes, IFA_ADDRESS).and_then(|value| value.first_chunk::<16>());
        let flags = number(attributes, IFA_FLAGS).unwrap_or_else(|| header[FLAGS].into());
        found.extend(address.map(|address| Address6 {
            address: Ipv6Addr::from(*address),
            prefix_len: header[PREFIX_LEN],
            is_preferred: flags & NOT_PREFERRED == 0,
        }));
    })?;
    Ok(found)
}

/// Calls `each` with header and attributes of each address of an interface.
fn dump(
    family: AddressFamily,
    index: u32,
    mut each: impl FnMut(&[u8; HEADER_LEN], &[u8]),
) -> io::Result<()> {
    let mut addresses = AddressMessage::default();
    addresses.header.family = family;
    addresses.header.index = index;
    request(RouteNetlinkMessage::GetAddress(addresses), NLM_F_DUMP, |message| {
        if let Some((header, attributes)) = message.split_first_chunk() {
            if number_at(header, INDEX) == Some(index) {
                each(header, attributes);
            }
        }
    })
}
