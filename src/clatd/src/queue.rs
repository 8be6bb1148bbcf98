// SPDX-License-Identifier: Apache-2.0

//! One queue of the TUN device, its packet socket, and the forwarder between them.
//!
//! Which queue a packet comes by is the kernel's choice, and stays the same however many threads
//! there are: what changes with the load is who serves a queue. So no packet is lost or overtaken
//! when a thread takes one over.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use clat_datapath::forward::{Forwarder, Progress};
use clat_datapath::path::Direction;
use clat_datapath::tally::Tally;
use clat_xlat::Counters;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::interest::Interest;

/// How many events one wait returns at most.
pub const EVENTS: usize = 16;

/// A queue, and the epoll of a thread that serves it alone.
#[derive(Debug)]
pub struct Queue {
    number: u32,
    epoll: Epoll,
    work: Mutex<Work>,
}

/// Locked by the thread that serves the queue while it does so; others lock it only to read the
/// counters.
#[derive(Debug)]
struct Work {
    forwarder: Forwarder,
    interest: Interest,
}

impl Queue {
    /// Makes the queue of this number, which no epoll tells of yet.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(number: u32, forwarder: Forwarder) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = Interest::new(number);
        Ok(Self { number, epoll, work: Mutex::new(Work { forwarder, interest }) })
    }

    /// The queue's own epoll.
    #[must_use]
    pub fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Has `epoll` tell of the queue.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn enter(&self, epoll: &Epoll) -> nix::Result<()> {
        let work = self.lock();
        work.interest.enter(epoll, &work.forwarder)
    }

    /// Has `epoll` tell of it no longer.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn leave(&self, epoll: &Epoll) -> nix::Result<()> {
        Interest::leave(epoll, &self.lock().forwarder)
    }

    /// Whether one of these events is of this queue.
    #[must_use]
    pub fn is_named(&self, events: &[EpollEvent]) -> bool {
        events.iter().any(|event| Interest::queue(event) == u64::from(self.number))
    }

    /// Waits until the queue's own epoll tells of something, `deadline` at most.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait<'e>(
        &self,
        events: &'e mut [EpollEvent; EVENTS],
        now: Instant,
        deadline: Option<Instant>,
    ) -> anyhow::Result<&'e [EpollEvent]> {
        let timeout = deadline.map_or(EpollTimeout::NONE, |at| match at.duration_since(now) {
            Duration::ZERO => EpollTimeout::ZERO,
            // Rounded up: rounded down, the last millisecond would be a busy loop.
            time => (time.as_millis() + 1).try_into().unwrap_or(EpollTimeout::ZERO),
        });
        let count = match self.epoll.wait(events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other.context("cannot wait")?,
        };
        Ok(&events[..count])
    }

    /// Forwards one batch of each direction that has something to read, or something left: neither
    /// starves the other. Says whether the uplink was found to be down. `epoll` is the one that
    /// tells of the queue.
    ///
    /// # Errors
    /// What can no longer be read.
    pub fn poll(
        &self,
        epoll: &Epoll,
        events: &[EpollEvent],
        uplink: &str,
        now: Instant,
    ) -> anyhow::Result<bool> {
        let mut work = self.lock();
        let Work { forwarder, interest } = &mut *work;
        let mut down = false;
        for direction in [Direction::Egress, Direction::Ingress] {
            if !interest.is_met(direction, events) {
                continue;
            }
            let full = match forwarder.poll(direction, now) {
                Ok(Progress::Full(full)) => Some(full),
                Ok(Progress::Done) | Err(Errno::EAGAIN) => None,
                Err(Errno::ENETDOWN) => {
                    down = true;
                    None
                }
                // Also EBADFD, of a device that was removed.
                Err(errno) if direction == Direction::Egress => {
                    let name = forwarder.tun().name();
                    bail!("cannot read {name}: {errno}; was the device removed?");
                }
                Err(errno) => bail!("cannot receive on {uplink}: {errno}"),
            };
            interest.wait(epoll, forwarder, direction, full)?;
        }
        Ok(down)
    }

    /// Whether the uplink is still there (it may be down).
    #[must_use]
    pub fn has_interface(&self) -> bool {
        self.lock().forwarder.uplink().packet_socket().has_interface()
    }

    /// What happened to packets so far.
    #[must_use]
    pub fn counters(&self) -> (Counters, Tally) {
        self.lock().forwarder.counters()
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        // After a panic the daemon ends, and still reads the counters for its last line.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
