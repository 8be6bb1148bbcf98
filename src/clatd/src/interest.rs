// SPDX-License-Identifier: Apache-2.0

//! What the loop waits for: packets to read, or room for packets read. A direction whose output is
//! full is not read until there is room.

use clat_datapath::forward::Forwarder;
use clat_datapath::path::{Direction, Full};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

/// Epoll data of a queue's descriptors: the queue's number times [`NAMES`], plus one of these.
const TUN: u64 = 0;
const UPLINK: u64 = 1;
const RAW: u64 = 2;
/// Numbers reserved for each queue.
const NAMES: u64 = 4;

/// The kernel always reports these.
const BROKEN: EpollFlags = EpollFlags::EPOLLERR.union(EpollFlags::EPOLLHUP);

/// What each direction of a queue waits for: room in an output, or with `None` a packet.
#[derive(Debug)]
pub struct Interest {
    first_name: u64,
    egress: Option<Full>,
    ingress: Option<Full>,
}

impl Interest {
    /// For the queue of this number; both directions wait for packets.
    #[must_use]
    pub fn new(queue: u32) -> Self {
        Self { first_name: u64::from(queue) * NAMES, egress: None, ingress: None }
    }

    /// The number of the queue that an event belongs to. For data close to `u64::MAX`, which
    /// belongs to no queue, this is a number that no queue has.
    #[must_use]
    pub fn queue(event: &EpollEvent) -> u64 {
        event.data() / NAMES
    }

    /// Adds the queue's descriptors to `epoll`.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn enter(&self, epoll: &Epoll, forwarder: &Forwarder) -> nix::Result<()> {
        let [tun, packet, raw] = self.events();
        epoll.add(forwarder.tun(), tun)?;
        epoll.add(forwarder.uplink().packet_socket(), packet)?;
        epoll.add(forwarder.uplink().raw_socket(), raw)
    }

    /// Removes the queue's descriptors from `epoll`.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn leave(epoll: &Epoll, forwarder: &Forwarder) -> nix::Result<()> {
        epoll.delete(forwarder.tun())?;
        epoll.delete(forwarder.uplink().packet_socket())?;
        epoll.delete(forwarder.uplink().raw_socket())
    }

    /// Whether one of these events is what `direction` waits for.
    #[must_use]
    pub fn is_met(&self, direction: Direction, events: &[EpollEvent]) -> bool {
        let (own, full) = match direction {
            Direction::Egress => (TUN, self.egress),
            Direction::Ingress => (UPLINK, self.ingress),
        };
        let (source, wanted) = match full {
            None => (own, EpollFlags::EPOLLIN),
            Some(full) => (name(full), EpollFlags::EPOLLOUT),
        };
        let (own, source) = (self.first_name + own, self.first_name + source);
        events.iter().any(|event| {
            event.data() == source && event.events().intersects(wanted | BROKEN)
                || event.data() == own && event.events().intersects(BROKEN)
        })
    }

    /// Makes `direction` wait for a packet, or for room.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn wait(
        &mut self,
        epoll: &Epoll,
        forwarder: &Forwarder,
        direction: Direction,
        full: Option<Full>,
    ) -> nix::Result<()> {
        let before = match direction {
            Direction::Egress => std::mem::replace(&mut self.egress, full),
            Direction::Ingress => std::mem::replace(&mut self.ingress, full),
        };
        if before == full && full != Some(Full::Raw) {
            return Ok(());
        }
        let [mut tun, mut packet, mut raw] = self.events();
        epoll.modify(forwarder.tun(), &mut tun)?;
        epoll.modify(forwarder.uplink().packet_socket(), &mut packet)?;
        epoll.modify(forwarder.uplink().raw_socket(), &mut raw)
    }

    /// The events to watch on the TUN device, the packet socket and the raw socket.
    fn events(&self) -> [EpollEvent; 3] {
        let of = |wanted, flags| if wanted { flags } else { EpollFlags::empty() };
        let (readable, writable) = (EpollFlags::EPOLLIN, EpollFlags::EPOLLOUT);
        let tun =
            of(self.egress.is_none(), readable) | of(self.ingress == Some(Full::Tun), writable);
        let packet =
            of(self.ingress.is_none(), readable) | of(self.egress == Some(Full::Packet), writable);
        // One-shot: the socket is nearly always writable, which is of interest only while a packet
        // waits for it.
        let raw = of(self.egress == Some(Full::Raw), writable) | EpollFlags::EPOLLONESHOT;
        [(tun, TUN), (packet, UPLINK), (raw, RAW)]
            .map(|(flags, name)| EpollEvent::new(flags, self.first_name + name))
    }
}

fn name(full: Full) -> u64 {
    match full {
        Full::Tun => TUN,
        Full::Packet => UPLINK,
        Full::Raw => RAW,
    }
}
