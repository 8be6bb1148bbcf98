// SPDX-License-Identifier: Apache-2.0

//! Which guest has the ports of `--forward`, and until when.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use crate::frame::Mac;

/// How long flows are kept for a guest that has left and may return.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long a guest may be silent before it is solicited, if another one sends; and how long it has
/// to answer.
const SILENCE: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(3);

/// Shortest and longest interval at which a station that has sent something is solicited for its
/// global address, which it may not have yet.
const AGAIN: Duration = Duration::from_millis(250);
const SELDOM: Duration = Duration::from_secs(64);

/// The guest that has the forwarded ports.
struct Guest {
    /// Its address in the network's prefix.
    address: Ipv6Addr,
    mac: Mac,
    /// When it was last heard; `None` once the link has a new peer, which may be another guest.
    heard: Option<Instant>,
    /// When it was solicited.
    asked: Option<Instant>,
}

/// What to do with the flows of a guest.
enum GuestExpiry {
    /// Keep them: it is present.
    None,
    /// End them at this time, unless it returns.
    At(Instant),
    /// They have been ended.
    Over,
}

/// A station whose global address is not known.
struct Sought {
    link_local: Ipv6Addr,
    /// When it was solicited, and the interval until the next time.
    asked: Instant,
    wait: Duration,
}

/// The guest, once it has been heard.
pub(super) struct Guests {
    guest: Option<Guest>,
    /// The station that is solicited while no guest is known.
    sought: Option<Sought>,
    expiry: GuestExpiry,
}

impl Guests {
    pub(super) fn new() -> Self {
        Self { guest: None, sought: None, expiry: GuestExpiry::Over }
    }

    /// The guest's address and station.
    pub(super) fn known(&self) -> Option<(Ipv6Addr, Mac)> {
        self.guest.as_ref().map(|guest| (guest.address, guest.mac))
    }

    /// Handles a packet from a station's link-local address.
    pub(super) fn notice(&mut self, link_local: Ipv6Addr, now: Instant) {
        if self.guest.is_none() {
            let first = Sought { link_local, asked: now, wait: Duration::ZERO };
            let sought = self.sought.get_or_insert(first);
            *sought = Sought { link_local, wait: sought.wait.min(AGAIN), ..*sought };
        }
    }

    /// The link-local address of the station to solicit now for its global one.
    pub(super) fn next_sought(&mut self, now: Instant) -> Option<Ipv6Addr> {
        let sought = self.sought.as_mut().filter(|sought| sought.asked + sought.wait <= now)?;
        sought.asked = now;
        sought.wait = (2 * sought.wait).clamp(AGAIN, SELDOM);
        Some(sought.link_local)
    }

    /// Handles a new peer of the link, which may be another guest.
    pub(super) fn came(&mut self) {
        if let Some(guest) = &mut self.guest {
            guest.heard = None;
        }
    }

    /// Handles a change of nodes: the first of `present` becomes the guest if that is not there.
    pub(super) fn nodes(&mut self, present: &[(Ipv6Addr, Mac)], now: Instant) {
        let is_there = |guest: &Guest| present.iter().any(|(_, mac)| *mac == guest.mac);
        if !self.guest.as_ref().is_some_and(is_there) {
            let new = |&(address, mac)| Guest { address, mac, heard: Some(now), asked: None };
            self.guest = present.first().map(new);
        }
    }

    /// Handles a packet from an address of the network. The present guest keeps the ports as long
    /// as it answers; else any station could take them. Returns an address to solicit.
    pub(super) fn hear(
        &mut self,
        address: Ipv6Addr,
        mac: Mac,
        served: impl Fn(Ipv6Addr) -> bool,
        now: Instant,
    ) -> Option<Ipv6Addr> {
        if let Some(guest) = &mut self.guest {
            if (guest.address, guest.mac) == (address, mac) {
                (guest.heard, guest.asked) = (Some(now), None);
                return None;
            }
            if let Some(heard) = guest.heard.filter(|_| served(guest.address)) {
                if now < heard + SILENCE {
                    return None;
                }
                match guest.asked {
                    Some(asked) if now >= asked + ANSWER => {}
                    Some(_) => return None,
                    None => {
                        guest.asked = Some(now);
                        return Some(guest.address);
                    }
                }
            }
        }
        log::debug!("a guest: {address} at {mac}");
        self.guest = Some(Guest { address, mac, heard: Some(now), asked: None });
        self.sought = None;
        None
    }

    /// Forgets a guest that has not returned in time; `true` if its flows have to be ended now.
    pub(super) fn expire_guest(&mut self, is_there: bool, now: Instant) -> bool {
        if is_there {
            self.expiry = GuestExpiry::None;
            return false;
        }
        match self.expiry {
            GuestExpiry::None => self.expiry = GuestExpiry::At(now + GRACE),
            GuestExpiry::At(at) if at <= now => {
                (self.guest, self.sought) = (None, None);
                self.expiry = GuestExpiry::Over;
                return true;
            }
            GuestExpiry::At(_) | GuestExpiry::Over => {}
        }
        false
    }

    /// When [`Self::expire_guest`] or [`Self::next_sought`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let expiry = match self.expiry {
            GuestExpiry::At(at) => Some(at),
            GuestExpiry::None | GuestExpiry::Over => None,
        };
        let sought = self.sought.as_ref().map(|sought| sought.asked + sought.wait);
        expiry.into_iter().chain(sought).min()
    }
}
