// SPDX-License-Identifier: Apache-2.0

//! Makes CLATs follow the network: the kernel's notifications drive [`Controller::reconcile`].

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clat_netlink::{Subscription, Topic};
use clat_sys::wait_readable;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::controller::Controller;
use crate::host::Host;

/// How long to gather further changes after one: they come in bursts.
const GATHERING: Duration = Duration::from_millis(20);

const TOPICS: [Topic; 7] = [
    Topic::Links,
    Topic::Links6,
    Topic::Addresses4,
    Topic::Addresses6,
    Topic::Routes4,
    Topic::Routes6,
    Topic::TrafficControl,
];

/// A thread that waits for changes of the network. It ends when dropped.
#[derive(Debug)]
pub struct Follower {
    end: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows the network namespace of this thread.
    ///
    /// # Errors
    /// Those of netlink(7) and of starting a thread.
    pub fn start<H: Host>(controller: Arc<Controller<H>>) -> io::Result<Self> {
        let subscription = Subscription::new(&TOPICS)?;
        let end = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let woken = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        controller.wake(Arc::clone(&woken));
        let ending = Arc::clone(&end);
        let follow = move || {
            let fds = [ending.as_fd(), subscription.as_fd(), woken.as_fd()];
            loop {
                // Also finds what changed before the subscription.
                let due = controller.reconcile();
                let left = due.map(|due| due.saturating_duration_since(Instant::now()));
                match wait_readable(&fds, left) {
                    Some(0) => return,
                    Some(_) if wait_readable(&fds[..1], Some(GATHERING)).is_some() => return,
                    _ => {}
                }
                // Whichever event it was.
                let _ = woken.read();
                if let Err(e) = subscription.read() {
                    log::error!("CLATs no longer follow the network: {e}");
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("follow".to_owned()).spawn(follow)?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // The counter is at most one; this cannot fail.
        let _ = self.end.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
