// SPDX-License-Identifier: Apache-2.0

//! Entries of the kernel's neighbour cache (RFC 4861 §5.1).

use std::io;
use std::net::Ipv6Addr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::request::{attribute, number_at, Connection};

/// struct ndmsg (linux/neighbour.h): family, padding, index, state of 16 bits, flags, type;
/// attributes follow.
const INDEX: usize = 4;
const STATE: std::ops::Range<usize> = 8..10;
const HEADER_LEN: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_STALE: u16 = 0x04;
/// NUD_REACHABLE, NUD_DELAY, NUD_PROBE, NUD_NOARP, NUD_PERMANENT: states in which the kernel sends
/// to the link-layer address.
const NUD_USABLE: u16 = NUD_STALE | 0x02 | 0x08 | 0x10 | 0x40 | 0x80;

/// A neighbour whose link-layer address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address.
    pub address: [u8; 6],
    /// Whether its reachability has not been confirmed for a while (STALE). The kernel probes it
    /// only after sending a packet itself, so whoever sends past the kernel has to let it send one.
    pub is_stale: bool,
}

impl Connection {
    /// Looks up `address` among the neighbours on the interface `oif`; `None` if it is not
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
            found = found.or_else(|| resolved(message, oif, address));
        })?;
        Ok(found)
    }
}

/// As [`Connection::neighbour`], by a new [`Connection`].
///
/// # Errors
/// Those of netlink(7).
pub fn neighbour(oif: u32, address: Ipv6Addr) -> io::Result<Option<Neighbour>> {
    Connection::new()?.neighbour(oif, address)
}

fn resolved(message: &[u8], oif: u32, wanted: Ipv6Addr) -> Option<Neighbour> {
    let state = u16::from_ne_bytes(message.get(STATE)?.try_into().ok()?);
    let attributes = message.get(HEADER_LEN..)?;
    let is_wanted = number_at(message, INDEX)? == oif
        && state & NUD_USABLE != 0
        && attribute(attributes, NDA_DST)? == wanted.octets();
    let address = attribute(attributes, NDA_LLADDR)?.try_into().ok()?;
    is_wanted.then_some(Neighbour { address, is_stale: state & NUD_STALE != 0 })
}
