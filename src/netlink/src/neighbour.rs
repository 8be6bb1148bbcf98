// SPDX-License-Identifier: Apache-2.0

//! What the kernel knows of a neighbour on a link (RFC 4861 §5.1).

use std::io;
use std::net::Ipv6Addr;

use netlink_packet_core::{Parseable, NLM_F_DUMP};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourMessageBuffer, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::request::Connection;

/// A neighbour whose link address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its link address, Ethernet's.
    pub address: [u8; 6],
    /// Whether nobody has heard of it for a while. The kernel finds out when next it sends it a
    /// packet itself, and only then: whoever sends past the kernel has to let it have one.
    pub is_stale: bool,
}

impl Connection {
    /// Looks up `address` among the neighbours on the interface `oif`; `None` while it is not
    /// resolved.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn neighbour(&self, oif: u32, address: Ipv6Addr) -> io::Result<Option<Neighbour>> {
        let mut neighbours = NeighbourMessage::default();
        neighbours.header.family = AddressFamily::Inet6;
        neighbours.attributes = vec![NeighbourAttribute::IfIndex(oif)];
        let mut found = None;
        self.request(RouteNetlinkMessage::GetNeighbour(neighbours), NLM_F_DUMP, |message| {
            let parsed = NeighbourMessageBuffer::new_checked(&message)
                .and_then(|m| NeighbourMessage::parse(&m));
            match parsed {
                Ok(message) if message.header.ifindex == oif => {
                    found = found.or_else(|| resolved(&message, address));
                }
                Ok(_) => {}
                Err(e) => log::debug!("a neighbour that cannot be read: {e}"),
            }
        })?;
        Ok(found)
    }
}

/// The same by a [`Connection`] of its own.
///
/// # Errors
/// Those of netlink(7).
pub fn neighbour(oif: u32, address: Ipv6Addr) -> io::Result<Option<Neighbour>> {
    Connection::new()?.neighbour(oif, address)
}

fn resolved(message: &NeighbourMessage, wanted: Ipv6Addr) -> Option<Neighbour> {
    let is_stale = match message.header.state {
        NeighbourState::Stale => true,
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent
        | NeighbourState::Noarp => false,
        _ => return None,
    };
    let is_wanted = message.attributes.iter().any(|attribute| {
        let NeighbourAttribute::Destination(address) = attribute else { return false };
        matches!(address, NeighbourAddress::Inet6(address) if *address == wanted)
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLocalAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    address.filter(|_| is_wanted).map(|address| Neighbour { address, is_stale })
}
