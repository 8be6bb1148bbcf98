// SPDX-License-Identifier: Apache-2.0

//! How flows are identified: by their ends, and by their place in the table.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::wire;
use crate::frame::Mac;

/// Most guests that may have flows at a time.
pub(crate) const GUESTS: usize = 256;

/// The key of a flow. A mapping that does not depend on the remote end (UDP, echo) has `::` there
/// and the number of the host's address family as port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) protocol: u8,
    pub(crate) guest: (Ipv6Addr, u16),
    pub(crate) remote: (Ipv6Addr, u16),
}

/// For the log.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, guest, remote } = self;
        let name = match *protocol {
            wire::TCP => "tcp",
            wire::UDP => "udp",
            _ => "echo",
        };
        let end = |ip: Ipv6Addr, port| SocketAddr::new(IpAddr::V6(ip).to_canonical(), port);
        if remote.0.is_unspecified() {
            write!(f, "{name} {} (IPv{})", end(guest.0, guest.1), remote.1)
        } else {
            write!(f, "{name} {} -> {}", end(guest.0, guest.1), end(remote.0, remote.1))
        }
    }
}

/// A flow's index in the table, and how many flows have had that index before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Id {
    /// As a number, with the index in its lower half.
    #[must_use]
    pub fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The flow with this number.
    #[must_use]
    pub fn from_token(token: u64) -> Self {
        let half = |n: u64| u32::try_from(n & 0xffff_ffff).unwrap_or(0);
        Self { slot: half(token), generation: half(token >> 32) }
    }
}

/// A flow's position among its guest's flows that wait for something; earlier ones have smaller
/// numbers.
pub(crate) type Place = (Mac, u64);
