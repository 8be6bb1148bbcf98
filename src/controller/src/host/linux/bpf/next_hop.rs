//! Keeps the map of next hops as the kernel's routes are.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clat_route::{next_hop, Target, Watch};
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use zerocopy::IntoBytes;

use super::abi::NextHopValue;
use super::from_libbpf;
use crate::errors::worded;
use crate::supervisor::wait;

/// After a change, how long the next ones are gathered: they come in bursts.
const GATHERING: Duration = Duration::from_millis(20);

/// Where packets go, if anywhere.
type Found = Option<clat_route::NextHop>;

/// Follows the routes of uplinks in a thread of its own.
#[derive(Debug)]
pub(super) struct NextHops {
    map: Arc<Map>,
    end: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Map {
    handle: MapHandle,
    /// What is followed, one for each uplink. Locked while the map is written.
    targets: Mutex<Vec<(Target, Option<Found>)>>,
}

/// The next hop of one uplink; gone from the map when dropped.
#[derive(Debug)]
pub struct NextHop {
    map: Arc<Map>,
    oif: u32,
}

impl NextHops {
    pub(super) fn new(handle: MapHandle) -> io::Result<Self> {
        let map = Arc::new(Map { handle, targets: Mutex::default() });
        let end = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let watch = Watch::new()?;
        let (followed, ending) = (Arc::clone(&map), Arc::clone(&end));
        let thread = thread::Builder::new().name("next hops".to_owned());
        let thread = thread.spawn(move || follow(&followed, &watch, &ending))?;
        Ok(Self { map, end, thread: Some(thread) })
    }

    /// The map itself.
    pub(super) fn map(&self) -> &MapHandle {
        &self.map.handle
    }

    /// Puts the next hop of `target` into the map, where it has one, now and whenever it changes.
    pub(super) fn follow(&self, target: Target) -> io::Result<NextHop> {
        let mut targets = self.map.targets();
        let found = self.map.set(&target, None)?;
        targets.push((target, Some(found)));
        Ok(NextHop { map: Arc::clone(&self.map), oif: target.oif })
    }
}

impl Drop for NextHops {
    fn drop(&mut self) {
        // A counter that is at most one takes this.
        let _ = self.end.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for NextHop {
    fn drop(&mut self) {
        let mut targets = self.map.targets();
        targets.retain(|(target, _)| target.oif != self.oif);
        if let Err(e) = self.map.remove(self.oif) {
            log::error!("cannot remove the next hop of interface {}: {e}", self.oif);
        }
    }
}

impl Map {
    fn targets(&self) -> MutexGuard<'_, Vec<(Target, Option<Found>)>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the map up to date, if it says something else than the routes do; it says `known`.
    fn set(&self, target: &Target, known: Option<Found>) -> io::Result<Found> {
        let found = next_hop(target)?;
        if known == Some(found) {
            return Ok(found);
        }
        let Target { oif, prefix, prefix_len, .. } = target;
        match found {
            Some(next_hop) => {
                let value = NextHopValue::from(next_hop);
                let updated = self.handle.update(oif.as_bytes(), value.as_bytes(), MapFlags::ANY);
                updated.map_err(from_libbpf)?;
            }
            None => {
                log::warn!(
                    "interface {oif} has no route to {prefix}/{prefix_len}: clatd will send"
                );
                self.remove(*oif)?;
            }
        }
        Ok(found)
    }

    fn remove(&self, oif: u32) -> io::Result<()> {
        match self.handle.delete(oif.as_bytes()) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            done => done.map_err(from_libbpf),
        }
    }
}

/// What the thread does until `end` is readable.
fn follow(map: &Map, watch: &Watch, end: &EventFd) {
    while wait(&[end.as_fd(), watch.as_fd()], None) == Some(1) {
        let news = watch.drain();
        for (target, known) in map.targets().iter_mut() {
            let set = match &news {
                Ok(_) => map.set(target, *known),
                Err(e) => Err(worded(Errno::EIO, format!("routes are no longer told: {e}"))),
            };
            *known = set
                .inspect_err(|e| {
                    log::error!("the next hop of interface {} is lost: {e}", target.oif);
                    // Rather none than a wrong one.
                    let _ = map.remove(target.oif);
                })
                .ok();
        }
        if news.is_err() {
            return;
        }
        thread::sleep(GATHERING);
    }
}
