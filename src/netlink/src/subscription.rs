// SPDX-License-Identifier: Apache-2.0

//! What changes in the kernel's view of the network, as it changes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};
use nix::errno::Errno;

use crate::request::{for_each_message, number, number_at};

/// What a subscription is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Interfaces.
    Links,
    /// What IPv6 has of interfaces: among it the MTU that a router advertises (since Linux 5.15).
    Links6,
    /// IPv4 addresses.
    Addresses4,
    /// IPv6 addresses.
    Addresses6,
    /// IPv4 routes.
    Routes4,
    /// IPv6 routes.
    Routes6,
    /// Neighbours. There are many.
    Neighbours,
    /// Queueing disciplines, and the filters that hang on them.
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

/// What has changed, each with the index of the interface that it belongs to. What is there now is
/// for the reader to look up: the kernel may have changed it again, and may drop messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// An interface came, went, or is another.
    Link(u32),
    /// An address came, went, or is another.
    Address(u32),
    /// A route came or went; by no interface, or by several, it has none.
    Route(Option<u32>),
    /// A neighbour came, went, or is another.
    Neighbour(u32),
    /// A queueing discipline, a class or a filter came, went, or is another.
    TrafficControl(u32),
    /// The kernel had more to tell than there was room for: anything may have changed.
    Missed,
}

impl Change {
    fn parse(kind: u16, message: &[u8]) -> Option<Self> {
        /// Where all but routes have the interface's index; routes have it in an attribute.
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

/// A subscription, in the network namespace of the thread that made it. Its descriptor becomes
/// readable with each change.
pub struct Subscription(Socket);

impl Subscription {
    /// Subscribes. Changes from here on are not missed.
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

    /// Takes away all that was told, so that the descriptor is no longer readable.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn read(&self) -> io::Result<BTreeSet<Change>> {
        let mut changes = BTreeSet::new();
        // Of the longest, those about links, the end may be missing; what is looked at here stands
        // in front.
        let mut buffer = [0; 4096];
        loop {
            match self.0.recv(&mut &mut buffer[..], 0) {
                Ok(len) => {
                    let told = buffer.get(..len).unwrap_or(&buffer);
                    // One that is cut short cannot be read on.
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
