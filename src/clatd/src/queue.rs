//! One queue of the TUN device, its packet socket, and the forwarder between them.
//!
//! Which queue a packet comes by is the kernel's choice, and stays the same however many threads there are: what changes
//! with the load is who serves a queue. So no packet is lost or overtaken when a thread takes one over.

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use clat_xlat::Counters;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::counters::Tally;
use crate::forward::{Forwarder, Side, Turn};
use crate::interest::Interest;

/// How many events are told of at once.
pub const EVENTS: usize = 16;

/// A queue, and an epoll that says when there is something to do for it.
#[derive(Debug)]
pub struct Queue<'t> {
    epoll: Epoll,
    work: Mutex<Work<'t>>,
}

/// Whoever serves the queue has it for a turn; another thread asks for the counters at most.
#[derive(Debug)]
struct Work<'t> {
    forwarder: Forwarder<'t>,
    interest: Interest,
}

impl<'t> Queue<'t> {
    /// Puts both ends of the forwarder into an epoll.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(forwarder: Forwarder<'t>) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = Interest::new(&epoll, &forwarder)?;
        Ok(Self { epoll, work: Mutex::new(Work { forwarder, interest }) })
    }

    /// The epoll, to add other descriptors to.
    #[must_use]
    pub fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// The epoll as a descriptor, which can itself be waited for.
    #[must_use]
    pub fn as_event(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.epoll.0.as_fd()
    }

    /// Waits until there is something to do, `deadline` at most.
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
            // Rounded up, lest the last millisecond be spent in circles.
            time => (time.as_millis() + 1).try_into().unwrap_or(EpollTimeout::ZERO),
        });
        let count = match self.epoll.wait(events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other.context("cannot wait")?,
        };
        Ok(&events[..count])
    }

    /// One batch from each side that has something or has something left: neither starves the other. Says whether the
    /// uplink was found to be down.
    ///
    /// # Errors
    /// What can no longer be read.
    pub fn turn(&self, events: &[EpollEvent], uplink: &str) -> anyhow::Result<bool> {
        let mut work = self.lock();
        let Work { forwarder, interest } = &mut *work;
        let mut down = false;
        for side in [Side::Tun, Side::Uplink] {
            if !interest.is_met(side, events) {
                continue;
            }
            let full = match forwarder.turn(side) {
                Ok(Turn::Full(full)) => Some(full),
                Ok(Turn::Done) | Err(Errno::EAGAIN) => None,
                Err(Errno::ENETDOWN) => {
                    down = true;
                    None
                }
                // Also EBADFD, of a device that was removed.
                Err(errno) if side == Side::Tun => {
                    let name = forwarder.tun().name();
                    bail!("cannot read {name}: {errno}; was the device removed?");
                }
                Err(errno) => bail!("cannot receive on {uplink}: {errno}"),
            };
            interest.wait(&self.epoll, forwarder, side, full)?;
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

    fn lock(&self) -> MutexGuard<'_, Work<'t>> {
        // A panic ends the daemon, with the counters as its last words.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
