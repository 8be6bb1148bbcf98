// SPDX-License-Identifier: Apache-2.0

//! Impairment: a link around another one that loses and delays frames.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use clat_tun::VirtioHeader;

use super::{Event, Link};

/// Most frames in flight in one direction, and their bytes.
const UNDER_WAY: usize = 100_000;
const UNDER_WAY_BYTES: usize = 256 << 20;

/// Loss and delay of frames between guest and network.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// The share of frames lost in each direction, 0 to 1.
    pub loss: f64,
    /// The delay of each frame.
    pub delay: Duration,
}

impl Impairment {
    /// The link, impaired.
    #[must_use]
    pub fn around(self, link: Box<dyn Link>) -> Box<dyn Link> {
        if self == Self::default() {
            return link;
        }
        let (up, down) = (DelayQueue::default(), DelayQueue::default());
        Box::new(Impaired { link, impairment: self, up, down, lost: 0 })
    }

    fn loses(self) -> bool {
        fastrand::f64() < self.loss
    }
}

/// An impaired link.
struct Impaired {
    link: Box<dyn Link>,
    impairment: Impairment,
    up: DelayQueue,
    down: DelayQueue,
    /// Frames to the guest that were lost, or had no room in the queue.
    lost: u64,
}

impl Link for Impaired {
    fn receive(
        &mut self,
        now: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        let Self { link, impairment, up, .. } = self;
        let at = now + impairment.delay;
        let event = link.receive(now, &mut |vnet, frame| {
            if !impairment.loses() {
                up.push(at, *vnet, frame.to_vec());
            }
        })?;
        while let Some((vnet, frame)) = up.pop(now) {
            each(&vnet, &frame);
        }
        Ok(event)
    }

    fn send(&mut self, now: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        let at = now + self.impairment.delay;
        let lost = self.impairment.loses() || !self.down.push(at, *vnet, parts.concat());
        self.lost += u64::from(lost);
    }

    fn flush(&mut self, now: Instant) -> io::Result<()> {
        while let Some((vnet, frame)) = self.down.pop(now) {
            self.link.send(now, &vnet, &[&frame]);
        }
        self.link.flush(now)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let all = [self.up.next(), self.down.next(), self.link.poll_timeout()];
        all.into_iter().flatten().min()
    }

    fn dropped(&self) -> u64 {
        self.lost + self.link.dropped()
    }

    /// Packets are lost one by one, not per GSO packet.
    fn takes_super_packets(&self) -> bool {
        self.impairment.loss == 0.0 && self.link.takes_super_packets()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.link.fd()
    }

    fn fd_stays(&self) -> bool {
        self.link.fd_stays()
    }

    fn send_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.send_fd()
    }

    fn has_guest(&self) -> bool {
        self.link.has_guest()
    }

    fn is_full(&self) -> bool {
        self.link.is_full()
    }
}

/// Frames in flight.
#[derive(Default)]
struct DelayQueue {
    frames: VecDeque<(Instant, VirtioHeader, Vec<u8>)>,
    bytes: usize,
}

impl DelayQueue {
    /// Adds a frame; returns whether there was room.
    fn push(&mut self, at: Instant, vnet: VirtioHeader, frame: Vec<u8>) -> bool {
        let room = self.frames.len() < UNDER_WAY && self.bytes + frame.len() <= UNDER_WAY_BYTES;
        if room {
            self.bytes += frame.len();
            self.frames.push_back((at, vnet, frame));
        }
        room
    }

    /// The next frame that has arrived.
    fn pop(&mut self, now: Instant) -> Option<(VirtioHeader, Vec<u8>)> {
        self.next().filter(|at| *at <= now)?;
        let (_, vnet, frame) = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some((vnet, frame))
    }

    /// When the next frame arrives.
    fn next(&self) -> Option<Instant> {
        self.frames.front().map(|(at, ..)| *at)
    }
}

#[cfg(test)]
#[path = "../../tests/unit/impairment.rs"]
mod tests;
