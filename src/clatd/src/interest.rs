//! What the loop waits for: something to read, or room for what was read. A side whose packets find no room is not read
//! until they do.

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::forward::{Forwarder, Side};
use crate::uplink::Full;

/// What the descriptors are called.
pub(crate) const TUN: u64 = 0;
pub(crate) const UPLINK: u64 = 1;
const RAW: u64 = 2;

/// Shown whether wanted or not.
const BROKEN: EpollFlags = EpollFlags::EPOLLERR.union(EpollFlags::EPOLLHUP);

/// What each side waits for, none for something to read.
#[derive(Debug)]
pub struct Interest {
    up: Option<Full>,
    down: Option<Full>,
}

impl Interest {
    /// Waits for something to read on both sides.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(epoll: &Epoll, forwarder: &Forwarder<'_>) -> nix::Result<Self> {
        epoll.add(forwarder.tun(), EpollEvent::new(EpollFlags::EPOLLIN, TUN))?;
        let packet = forwarder.uplink().packet_socket();
        epoll.add(packet, EpollEvent::new(EpollFlags::EPOLLIN, UPLINK))?;
        // Only heard while wanted.
        let never = EpollFlags::EPOLLONESHOT;
        epoll.add(forwarder.uplink().raw_socket(), EpollEvent::new(never, RAW))?;
        Ok(Self { up: None, down: None })
    }

    /// Whether one of these events is what `side` waits for.
    #[must_use]
    pub fn is_met(&self, side: Side, events: &[EpollEvent]) -> bool {
        let (own, full) = match side {
            Side::Tun => (TUN, self.up),
            Side::Uplink => (UPLINK, self.down),
        };
        let (source, wanted) = match full {
            None => (own, EpollFlags::EPOLLIN),
            Some(full) => (name(full), EpollFlags::EPOLLOUT),
        };
        events.iter().any(|event| {
            event.data() == source && event.events().intersects(wanted | BROKEN)
                || event.data() == own && event.events().intersects(BROKEN)
        })
    }

    /// Has `side` wait for something to read, or for room.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait(
        &mut self,
        epoll: &Epoll,
        forwarder: &Forwarder<'_>,
        side: Side,
        full: Option<Full>,
    ) -> nix::Result<()> {
        let before = match side {
            Side::Tun => std::mem::replace(&mut self.up, full),
            Side::Uplink => std::mem::replace(&mut self.down, full),
        };
        if before == full && full != Some(Full::Raw) {
            return Ok(());
        }
        let of = |wanted, flags| if wanted { flags } else { EpollFlags::empty() };
        let (readable, writable) = (EpollFlags::EPOLLIN, EpollFlags::EPOLLOUT);
        let tun = of(self.up.is_none(), readable) | of(self.down == Some(Full::Tun), writable);
        epoll.modify(forwarder.tun(), &mut EpollEvent::new(tun, TUN))?;
        let packet =
            of(self.down.is_none(), readable) | of(self.up == Some(Full::Packet), writable);
        let socket = forwarder.uplink().packet_socket();
        epoll.modify(socket, &mut EpollEvent::new(packet, UPLINK))?;
        let raw = of(self.up == Some(Full::Raw), writable) | EpollFlags::EPOLLONESHOT;
        epoll.modify(forwarder.uplink().raw_socket(), &mut EpollEvent::new(raw, RAW))
    }
}

fn name(full: Full) -> u64 {
    match full {
        Full::Tun => TUN,
        Full::Packet => UPLINK,
        Full::Raw => RAW,
    }
}
