// SPDX-License-Identifier: Apache-2.0

//! What the loop waits for: something to read, or room for what was read. A direction whose packets
//! find no room is not read until they do.

use clat_datapath::forward::Forwarder;
use clat_datapath::path::{Direction, Full};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

/// The epoll data of a queue's descriptors: the queue's number times [`NAMES`], plus one of these.
const TUN: u64 = 0;
const UPLINK: u64 = 1;
const RAW: u64 = 2;
/// How many such numbers are set aside for a queue.
const NAMES: u64 = 4;

/// The kernel reports these whether they were asked for or not.
const BROKEN: EpollFlags = EpollFlags::EPOLLERR.union(EpollFlags::EPOLLHUP);

/// What each direction of a queue waits for, `None` for something to read.
#[derive(Debug)]
pub struct Interest {
    first_name: u64,
    egress: Option<Full>,
    ingress: Option<Full>,
}

impl Interest {
    /// Waits for something to read in both directions of the queue of this number.
    #[must_use]
    pub fn new(queue: u32) -> Self {
        Self { first_name: u64::from(queue) * NAMES, egress: None, ingress: None }
    }

    /// The number of the queue that an event belongs to. Data close to `u64::MAX`, which others
    /// use, gives a number that no queue has.
    #[must_use]
    pub fn queue(event: &EpollEvent) -> u64 {
        event.data() / NAMES
    }

    /// Has `epoll` tell of what is waited for.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn enter(&self, epoll: &Epoll, forwarder: &Forwarder) -> nix::Result<()> {
        let [tun, packet, raw] = self.events();
        epoll.add(forwarder.tun(), tun)?;
        epoll.add(forwarder.uplink().packet_socket(), packet)?;
        epoll.add(forwarder.uplink().raw_socket(), raw)
    }

    /// Has `epoll` tell of it no longer.
    ///
    /// # Errors
    /// What the kernel said.
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

    /// Has `direction` wait for something to read, or for room.
    ///
    /// # Errors
    /// What the kernel said.
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

    /// What the TUN device, the packet socket and the raw socket are to tell of.
    fn events(&self) -> [EpollEvent; 3] {
        let of = |wanted, flags| if wanted { flags } else { EpollFlags::empty() };
        let (readable, writable) = (EpollFlags::EPOLLIN, EpollFlags::EPOLLOUT);
        let tun =
            of(self.egress.is_none(), readable) | of(self.ingress == Some(Full::Tun), writable);
        let packet =
            of(self.ingress.is_none(), readable) | of(self.egress == Some(Full::Packet), writable);
        // One-shot: the socket is nearly always writable, which matters only while it is waited
        // for.
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
