// SPDX-License-Identifier: Apache-2.0

//! Notifications of changes to interfaces, addresses, routes, neighbours and traffic control.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};
use nix::errno::Errno;

use crate::request::{for_each_message, number, number_at};

/// What to subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Interfaces.
    Links,
    /// IPv6 parameters of interfaces, such as the MTU that a router advertises (since Linux 5.15).
    Links6,
    /// IPv4 addresses.
    Addresses4,
    /// IPv6 addresses.
    Addresses6,
    /// IPv4 routes.
    Routes4,
    /// IPv6 routes.
    Routes6,
    /// Neighbours; these change often.
    Neighbours,
    /// Queueing disciplines and their filters.
    TrafficControl,
}

impl Topic {
    /// Its multicast group (linux/rtnetlink.h).
    fn group(self) -> u32 {
        match self {
            Self::Links => 1,
            Self::Neighbours => 3,
            Self::TrafficControl => 4,
            Self::Addresses4 => 5,
            Self::Routes4 => 7,
            Self::Addresses6 => 9,
            Self::Routes6 => 11,
            Self::Links6 => 12,
        }
    }
}

/// What has changed, with the index of its interface. The reader has to look up the current state:
/// it may have changed again, and the kernel may drop notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// An interface was added, removed or changed.
    Link(u32),
    /// An address was added, removed or changed.
    Address(u32),
    /// A route was added or removed; `None` if it has no single interface.
    Route(Option<u32>),
    /// A neighbour was added, removed or changed.
    Neighbour(u32),
    /// A queueing discipline, class or filter was added, removed or changed.
    TrafficControl(u32),
    /// The kernel dropped notifications (ENOBUFS): anything may have changed.
    Missed,
}

impl Change {
    fn parse(kind: u16, message: &[u8]) -> Option<Self> {
        /// Offset of the interface's index; routes have it in an attribute instead.
        const INDEX: usize = 4;
        const ROUTE_HEADER_LEN: usize = 12;
        const RTA_OIF: u16 = 4;
        match kind {
            // RTM_NEW… and RTM_DEL… (linux/rtnetlink.h)
            16 | 17 => number_at(message, INDEX).map(Self::Link),
            20 | 21 => number_at(message, INDEX).map(Self::Address),
            24 | 25 => Some(Self::Route(number(message.get(ROUTE_HEADER_LEN..)?, RTA_OIF))),
            28 | 29 => number_at(message, INDEX).map(Self::Neighbour),
            36 | 37 | 40 | 41 | 44 | 45 => number_at(message, INDEX).map(Self::TrafficControl),
            _ => None,
        }
    }
}

/// A subscription in the network namespace of the thread that made it. Its descriptor is readable
/// while there are notifications.
pub struct Subscription(Socket);

impl Subscription {
    /// Subscribes; changes from here on are reported.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn new(topics: &[Topic]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for topic in topics {
            socket.add_membership(topic.group())?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Takes all waiting notifications, after which the descriptor is no longer readable.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn read(&self) -> io::Result<BTreeSet<Change>> {
        let mut changes = BTreeSet::new();
        // The end of long ones (links) may be cut; what is read here is at the start.
        let mut buffer = [0; 4096];
        loop {
            match self.0.recv(&mut &mut buffer[..], 0) {
                Ok(len) => {
                    let told = buffer.get(..len).unwrap_or(&buffer);
                    // Parsing ends at one that is cut.
                    let _ = for_each_message(told, |kind, message| {
                        changes.extend(Change::parse(kind, message));
                        Ok(())
                    });
                }
                Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(changes),
                    Some(Errno::EINTR) => {}
                    Some(Errno::ENOBUFS) => {
                        changes.insert(Change::Missed);
                    }
                    _ => return Err(e),
                },
            }
        }
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}
