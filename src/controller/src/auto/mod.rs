// SPDX-License-Identifier: Apache-2.0

//! Starts and stops CLATs automatically: one runs on each uplink whose network has IPv6 and a
//! NAT64, and no native IPv4.
//!
//! [`clat_discover::Uplink`] decides. This module has the sockets, follows the kernel's network
//! state, and calls [`Controller`].

mod args;
pub mod config;
mod discover;
mod facts;
mod network;
mod resolvers;
mod secret;
mod settings;
mod sockets;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use clat_host::IfaceName;
use clat_xlat::Prefix;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::controller::Controller;
use crate::errors::{Error, Step};
use crate::host::Host;
use crate::model::{Event, StopReason};
use crate::status::{self, Uplinks};
use network::{Network, Watched};
use sockets::Routers;

pub use args::{read, AutoArgs};
pub use clat_discover::{Found, Verdict};
pub use discover::{discover, without_ipv4, Report};
pub use secret::Secret;
pub use settings::{Pattern, Settings};

/// A message from another thread.
#[derive(Debug)]
enum Notice {
    /// A CLAT has stopped.
    Stopped(IfaceName, StopReason),
    /// A job on the uplink with this interface index is done.
    Done(u32, Result<Option<Prefix>, Error>),
    /// New settings.
    Settings(Settings),
    /// The thread has to end.
    End,
}

/// A queue of notices. Senders never block.
#[derive(Debug)]
struct Inbox {
    notices: Mutex<Vec<Notice>>,
    wake: EventFd,
}

impl Inbox {
    fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self { notices: Mutex::default(), wake: EventFd::from_flags(flags)? })
    }

    /// Queues a notice if a CLAT has stopped.
    fn tell(&self, event: &Event) {
        if let Event::Stopped { iface, reason } = event {
            self.put(Notice::Stopped(iface.clone(), *reason));
        }
    }

    fn put(&self, notice: Notice) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
        // Fails only if the eventfd's counter is full, and so readable.
        let _ = self.wake.write(1);
    }

    fn take(&self) -> Vec<Notice> {
        let _ = self.wake.read();
        std::mem::take(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The privileged resources, before the thread starts.
#[derive(Debug)]
pub struct Auto {
    inbox: Arc<Inbox>,
    /// `None` if automatic CLATs are off.
    network: Option<Network>,
    uplinks: Arc<Uplinks>,
}

impl Auto {
    /// Opens the sockets for these options, in the network namespace of this thread.
    ///
    /// # Errors
    /// Those of socket(2): EPERM without CAP_NET_RAW.
    pub fn open(args: &AutoArgs) -> io::Result<Self> {
        let open = |settings| Network::new(settings, Some(Routers::open()?));
        let network = args.settings().map(open).transpose()?;
        Ok(Self { inbox: Arc::new(Inbox::new()?), network, uplinks: Arc::default() })
    }

    /// An observer of CLATs' events. It never blocks.
    pub fn observer(&self) -> impl Fn(&Event) + Send + Sync {
        // Without the thread nothing is ever taken out of the inbox.
        let inbox = self.network.is_some().then(|| Arc::clone(&self.inbox));
        move |event| {
            if let Some(inbox) = &inbox {
                inbox.tell(event);
            }
        }
    }

    /// The uplinks, for the status.
    #[must_use]
    pub fn uplinks(&self) -> Arc<Uplinks> {
        Arc::clone(&self.uplinks)
    }

    /// Starts the thread. CLATs that run already are treated as started by it.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start<H: Host>(self, controller: Arc<Controller<H>>) -> io::Result<Running> {
        let Self { inbox, network, uplinks } = self;
        let start = |network| {
            let (clats, inbox) = (BTreeMap::new(), Arc::clone(&inbox));
            let work = Work { inbox, network, uplinks, controller, clats };
            thread::Builder::new().name("auto".to_owned()).spawn(move || work.run())
        };
        let thread = network.map(start).transpose()?;
        Ok(Running { inbox, thread })
    }
}

/// The thread, if automatic CLATs are on. It ends when this is dropped; CLATs keep running.
#[derive(Debug)]
pub struct Running {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Applies these options.
    pub fn reload(&self, args: &AutoArgs) {
        match (args.settings(), &self.thread) {
            (Some(settings), Some(_)) => self.inbox.put(Notice::Settings(settings)),
            (Some(_), None) => log::warn!("a restart is needed to turn auto on"),
            (None, Some(_)) => log::warn!("a restart is needed to turn auto off"),
            (None, None) => {}
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inbox.put(Notice::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The state of an uplink's CLAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No CLAT.
    Idle,
    /// One runs, with this prefix.
    Runs(Prefix),
    /// A job stops it, or starts one with this prefix.
    Busy(Option<Prefix>),
    /// A caller has started one, or stopped ours. The caller keeps control until something else
    /// than a CLAT with this prefix is wanted.
    Theirs(Option<Prefix>),
}

struct Work<H: Host> {
    inbox: Arc<Inbox>,
    network: Network,
    uplinks: Arc<Uplinks>,
    controller: Arc<Controller<H>>,
    /// By the uplink's interface index; with the last verdict logged.
    clats: BTreeMap<u32, (State, Option<Verdict>)>,
}

impl<H: Host> Work<H> {
    fn run(mut self) {
        loop {
            let woken = self.network.wait(self.inbox.wake.as_fd(), None);
            let now = Instant::now();
            if woken {
                for notice in self.inbox.take() {
                    if matches!(notice, Notice::End) {
                        return;
                    }
                    self.handle(notice, now);
                }
            }
            for (index, name, is_there) in self.network.step(now) {
                log::info!("{name}: no longer an uplink");
                let clat = self.clats.remove(&index);
                // A removed interface has stopped its CLAT.
                if is_there && matches!(clat, Some((State::Runs(_) | State::Busy(_), _))) {
                    self.job(index, name, None, true);
                }
            }
            self.act(now);
            self.show(now);
        }
    }

    /// Updates the status.
    fn show(&self, now: Instant) {
        let show = |watched: &Watched| {
            let found = watched.uplink.found(None, now);
            status::Uplink {
                iface: watched.name.to_string(),
                nat64_prefix: found.map(|found| found.prefix.to_string()),
                source: found.map(|found| found.source.to_string()),
                verdict: watched.uplink.verdict(now).to_string(),
            }
        };
        self.uplinks.set(self.network.uplinks.values().map(show).collect());
    }

    fn handle(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Stopped(name, reason) => {
                let mut all = self.network.uplinks.iter_mut();
                let Some((index, watched)) = all.find(|(_, watched)| watched.name == name) else {
                    return;
                };
                let Some((state, _)) = self.clats.get_mut(index) else { return };
                match (*state, reason) {
                    (State::Runs(prefix), StopReason::Requested) => {
                        *state = State::Theirs(Some(prefix));
                    }
                    (State::Theirs(_), _) => *state = State::Idle,
                    (State::Runs(_), _) => {
                        *state = State::Idle;
                        watched.uplink.handle_failed(now);
                    }
                    (State::Idle | State::Busy(_), _) => {}
                }
            }
            Notice::Done(index, outcome) => {
                let Some((state, _)) = self.clats.get_mut(&index) else { return };
                let Some(watched) = self.network.uplinks.get_mut(&index) else { return };
                *state = match (outcome, *state) {
                    (Ok(Some(prefix)), _) => {
                        watched.uplink.handle_started();
                        State::Runs(prefix)
                    }
                    (Ok(None), _) => State::Idle,
                    (Err(e), State::Busy(wanted)) if e.errno == Errno::EBUSY => {
                        State::Theirs(wanted)
                    }
                    (Err(e), _) => {
                        log::error!("{e}; trying again");
                        watched.uplink.handle_failed(now);
                        State::Idle
                    }
                };
            }
            Notice::Settings(settings) => self.network.set(settings, now),
            Notice::End => {}
        }
    }

    /// Starts and stops CLATs as wanted.
    fn act(&mut self, now: Instant) {
        let mut jobs = Vec::new();
        for (index, watched) in &mut self.network.uplinks {
            let (state, said) = self.clats.entry(*index).or_insert_with(|| {
                let running = self.controller.running();
                let running = running.iter().find(|running| running.clat.index == *index);
                let prefix = running.map(|running| running.clat.prefix);
                prefix.inspect(|prefix| watched.uplink.remember(*prefix, now));
                (prefix.map_or(State::Idle, State::Runs), None)
            });
            let verdict = watched.uplink.verdict(now);
            if said.replace(verdict) != Some(verdict) {
                log::info!("{}: {verdict}", watched.name);
            }
            let wanted = match verdict {
                Verdict::Run(found) => Some(found.prefix),
                _ => None,
            };
            let runs = match *state {
                State::Runs(prefix) => Some(prefix),
                State::Idle => None,
                State::Theirs(unwanted) if wanted != unwanted => {
                    *state = State::Idle;
                    None
                }
                State::Theirs(_) | State::Busy(_) => continue,
            };
            if runs != wanted {
                *state = State::Busy(wanted);
                jobs.push((*index, watched.name.clone(), wanted, runs.is_some()));
            }
        }
        for (index, name, wanted, runs) in jobs {
            self.job(index, name, wanted, runs);
        }
    }

    /// Stops the CLAT of an uplink if one `runs`, and starts the one that is `wanted`, in another
    /// thread.
    fn job(&self, index: u32, name: IfaceName, wanted: Option<Prefix>, runs: bool) {
        let (controller, inbox) = (Arc::clone(&self.controller), Arc::clone(&self.inbox));
        let failing = name.clone();
        let work = move || {
            if runs {
                // A caller may have stopped it.
                let _ = controller.stop(name.as_str());
            }
            let start = |prefix: Prefix| {
                controller.start(name.as_str(), &prefix.to_string()).map(|_| prefix)
            };
            inbox.put(Notice::Done(index, wanted.map(start).transpose()));
        };
        if let Err(e) = thread::Builder::new().name("auto-job".to_owned()).spawn(work) {
            let failed = Error::io(&e, &failing, Step::Start);
            self.inbox.put(Notice::Done(index, Err(failed)));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A controller runs for years, and starts and stops.
    #[test]
    fn events_that_no_one_takes_are_not_kept() {
        let args = crate::args::Args::parse_from(["clat_controller"]);
        let auto = Auto::open(&args.auto).expect("no socket is needed");
        let iface = IfaceName::parse("up0").expect("a name");
        let stopped = Event::Stopped { iface, reason: StopReason::Requested };
        auto.observer()(&stopped);
        assert_eq!(auto.inbox.take().len(), 0);
    }
}
