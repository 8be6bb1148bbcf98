// SPDX-License-Identifier: Apache-2.0

//! Watches over one clatd: a death is noticed at once, and a new one is started with the same
//! addresses, sooner at first and then ever later.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clat_sys::wait_readable;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::host::{Child, Ended};

/// Waiting time before the first restart.
const SHORTEST: Duration = Duration::from_millis(100);
/// Waiting time that it doubles up to.
const LONGEST: Duration = Duration::from_secs(10);
/// A clatd that lived this long has earned a fresh start.
const STEADY: Duration = Duration::from_secs(60);

/// How clatd exits when another node has its address (docs/contract.md): starting it again as it was
/// would not help.
const DUPLICATE: i32 = 3;

/// What others may know of a supervised clatd.
#[derive(Debug, Default)]
struct Shared {
    pid: AtomicI32,
    restarts: AtomicU32,
    is_taken: AtomicBool,
}

/// A clatd that is started again when it dies. Dropping it ends it for good.
#[derive(Debug)]
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Takes over `child`. `respawn` starts its successors, and `restarted` is told of each: its
    /// process id, how many there were, and how the one before ended. `name` is for the log.
    pub(crate) fn watch<C: Child>(
        name: String,
        child: C,
        respawn: impl FnMut() -> io::Result<C> + Send + 'static,
        restarted: impl FnMut(i32, u32, String) + Send + 'static,
        taken: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.pid.store(child.pid(), Ordering::Relaxed);
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let watch = Watch {
            name,
            respawn,
            restarted,
            shared: Arc::clone(&shared),
            stop: Arc::clone(&stop),
            delay: SHORTEST,
        };
        let thread = thread::Builder::new().name("clatd-watch".into()).spawn(move || {
            if watch.run(child) {
                taken();
            }
        })?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// The process id of the clatd that runs now; 0 while there is none.
    pub(crate) fn pid(&self) -> i32 {
        self.shared.pid.load(Ordering::Relaxed)
    }

    /// Whether it has ended because another node has its address.
    pub(crate) fn is_taken(&self) -> bool {
        self.shared.is_taken.load(Ordering::Relaxed)
    }

    /// How often it was started again.
    pub(crate) fn restarts(&self) -> u32 {
        self.shared.restarts.load(Ordering::Relaxed)
    }
}

impl Supervisor {
    /// Ends the clatd for good.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if let Err(e) = self.stop.write(1) {
            log::error!("cannot tell the thread that watches over clatd to stop: {e}");
            return;
        }
        if thread.join().is_err() {
            log::error!("the thread that watched over clatd panicked");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread's side.
struct Watch<F, T> {
    name: String,
    respawn: F,
    restarted: T,
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    delay: Duration,
}

impl<F, T: FnMut(i32, u32, String)> Watch<F, T> {
    /// Until it is told to stop; or, with true, until another node has the address.
    fn run<C: Child>(mut self, mut child: C) -> bool
    where
        F: FnMut() -> io::Result<C>,
    {
        loop {
            let started = Instant::now();
            if wait_readable(&[self.stop.as_fd(), child.as_fd()], None) == Some(0) {
                return false;
            }
            self.shared.pid.store(0, Ordering::Relaxed);
            let pid = child.pid();
            let Ended { how, status } = child.reap();
            log::warn!("clatd on {} (pid {pid}) {how}", self.name);
            drop(child);
            if status == Some(DUPLICATE) {
                self.shared.is_taken.store(true, Ordering::Relaxed);
                return true;
            }
            if started.elapsed() >= STEADY {
                self.delay = SHORTEST;
            }
            child = match self.restart() {
                Some(child) => child,
                None => return false,
            };
            (self.restarted)(child.pid(), self.shared.restarts.load(Ordering::Relaxed), how);
        }
    }

    /// Starts a successor, until it works; `None` when told to stop.
    fn restart<C: Child>(&mut self) -> Option<C>
    where
        F: FnMut() -> io::Result<C>,
    {
        loop {
            if wait_readable(&[self.stop.as_fd()], Some(self.delay)).is_some() {
                return None;
            }
            self.delay = (self.delay * 2).min(LONGEST);
            match (self.respawn)() {
                Ok(child) => {
                    self.shared.restarts.fetch_add(1, Ordering::Relaxed);
                    self.shared.pid.store(child.pid(), Ordering::Relaxed);
                    log::info!("clatd on {} started again with pid {}", self.name, child.pid());
                    return Some(child);
                }
                Err(e) => log::error!("cannot start clatd on {} again: {e}", self.name),
            }
        }
    }
}
