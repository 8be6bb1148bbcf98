// SPDX-License-Identifier: Apache-2.0

//! The built-in CLAT as a station of the network with its own link.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use clat_tun::VirtioHeader;

use super::{Event, Link};
use crate::clat::{Down, Up};
use crate::frame::ETHERNET;

/// The link: IPv4 packets of a TUN device on one side, IPv6 on the other. Packets that it returns
/// have no Ethernet header, which is not used; it is sent frames.
pub struct Clat {
    up: Up,
    down: Down,
    dropped: u64,
}

impl Clat {
    /// A link of the two halves of a CLAT.
    #[must_use]
    pub fn new((up, down): (Up, Down)) -> Self {
        Self { up, down, dropped: 0 }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        self.down.address()
    }
}

impl Link for Clat {
    fn fd(&self) -> BorrowedFd<'_> {
        self.up.tun().as_fd()
    }

    fn fd_stays(&self) -> bool {
        true
    }

    fn receive(
        &mut self,
        now: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        self.up.recv(now, |vnet, packet| each(vnet, packet))?;
        Ok(Event::Frames)
    }

    fn send(&mut self, now: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        let part = |i| parts.get(i).copied().unwrap_or_default();
        let first = part(0).get(ETHERNET..).unwrap_or_default();
        if !self.down.send(vnet, [first, part(1), part(2)], now) {
            self.dropped += 1;
        }
    }

    fn takes_super_packets(&self) -> bool {
        true
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
