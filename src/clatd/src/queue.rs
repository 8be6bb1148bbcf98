// SPDX-License-Identifier: Apache-2.0

//! One queue of the TUN device, its packet socket, and the forwarder between them.
//!
//! The kernel chooses the queue of a packet, independently of the number of threads; only the
//! thread that serves a queue changes with the load. So no packet is lost or reordered when a
//! thread takes over a queue.

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

/// Most events returned by one wait.
pub const EVENTS: usize = 16;

/// A queue, and the epoll of the thread that serves it alone.
#[derive(Debug)]
pub struct Queue {
    number: u32,
    epoll: Epoll,
    work: Mutex<Work>,
}

/// Locked by the thread that serves the queue; others lock it only to read the counters.
#[derive(Debug)]
struct Work {
    forwarder: Forwarder,
    interest: Interest,
}

impl Queue {
    /// Makes the queue of this number, which is not in any epoll yet.
    ///
    /// # Errors
    /// The kernel's error.
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

    /// Adds the queue to `epoll`.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn enter(&self, epoll: &Epoll) -> nix::Result<()> {
        let work = self.lock();
        work.interest.enter(epoll, &work.forwarder)
    }

    /// Removes the queue from `epoll`.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn leave(&self, epoll: &Epoll) -> nix::Result<()> {
        Interest::leave(epoll, &self.lock().forwarder)
    }

    /// Whether one of these events belongs to this queue.
    #[must_use]
    pub fn is_named(&self, events: &[EpollEvent]) -> bool {
        events.iter().any(|event| Interest::queue(event) == u64::from(self.number))
    }

    /// Waits for events of the queue's own epoll, at most until `deadline`.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn wait<'e>(
        &self,
        events: &'e mut [EpollEvent; EVENTS],
        now: Instant,
        deadline: Option<Instant>,
    ) -> anyhow::Result<&'e [EpollEvent]> {
        let timeout = deadline.map_or(EpollTimeout::NONE, |at| match at.duration_since(now) {
            Duration::ZERO => EpollTimeout::ZERO,
            // Rounded up; else the last millisecond would be a busy loop.
            time => (time.as_millis() + 1).try_into().unwrap_or(EpollTimeout::ZERO),
        });
        let count = match self.epoll.wait(events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other.context("cannot wait")?,
        };
        Ok(&events[..count])
    }

    /// Forwards one batch in each direction that has packets to read or to send, so that neither
    /// starves the other. Returns whether the uplink was found to be down. `epoll` is the one that
    /// has the queue.
    ///
    /// # Errors
    /// If the TUN device or the uplink can no longer be read.
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
                // Also EBADFD, for a device that was removed.
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

    /// Whether the uplink still exists (it may be down).
    #[must_use]
    pub fn has_interface(&self) -> bool {
        self.lock().forwarder.uplink().packet_socket().has_interface()
    }

    /// The counters of the queue.
    #[must_use]
    pub fn counters(&self) -> (Counters, Tally) {
        self.lock().forwarder.counters()
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        // After a panic the daemon ends, and still reads the counters for its last line.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
