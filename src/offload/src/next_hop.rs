// SPDX-License-Identifier: Apache-2.0

//! Keeps the map of next hops in step with the kernel's routes.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clat_netlink::{next_hop, Subscription, Target, Topic};
use clat_sys::wait_readable;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use zerocopy::IntoBytes;

use crate::abi::{NextHopValue, SLOTS};
use crate::pins::from_libbpf;
use clat_sys::HostError;

/// How long to gather changes of routes, which come in bursts.
const GATHERING: Duration = Duration::from_millis(20);

/// The next hop, if there is a route.
type Found = Option<clat_netlink::NextHop>;

/// Follows the routes of uplinks in a thread. The thread starts with the first CLAT, so that it
/// inherits the privileges that the program has dropped to by then.
#[derive(Debug)]
pub(crate) struct NextHops {
    map: Arc<Map>,
    subscription: Arc<Subscription>,
    end: Arc<EventFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Map {
    handle: MapHandle,
    /// The followed routes, by slot. Locked while the map is written.
    targets: Mutex<Vec<Followed>>,
}

#[derive(Debug)]
struct Followed {
    slot: u32,
    target: Target,
    /// The value in the map; `None` if unknown.
    known: Option<Found>,
}

/// The next hop of one CLAT, removed from the map when dropped.
#[derive(Debug)]
pub struct NextHop {
    map: Arc<Map>,
    slot: u32,
    oif: u32,
}

impl NextHops {
    pub(crate) fn new(handle: MapHandle) -> io::Result<Self> {
        let map = Arc::new(Map { handle, targets: Mutex::default() });
        let end = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let subscription = Arc::new(Subscription::new(&[Topic::Links, Topic::Routes6])?);
        Ok(Self { map, subscription, end, thread: Mutex::default() })
    }

    fn need_thread(&self) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (map, subscription) = (Arc::clone(&self.map), Arc::clone(&self.subscription));
            let end = Arc::clone(&self.end);
            let new = thread::Builder::new().name("next hops".to_owned());
            *thread = Some(new.spawn(move || follow(&map, &subscription, &end))?);
        }
        Ok(())
    }

    /// Clears the slots that are not followed.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let targets = self.map.targets();
        let is_followed = |slot: &u32| targets.iter().any(|followed| followed.slot == *slot);
        (0..SLOTS).filter(|slot| !is_followed(slot)).try_for_each(|slot| self.map.put(slot, None))
    }

    /// Writes the next hop of `target`, if any, to the map's `slot`, now and after each change.
    pub(crate) fn follow(&self, slot: u32, target: Target) -> io::Result<NextHop> {
        self.need_thread()?;
        let mut targets = self.map.targets();
        let oif = target.oif;
        let mut followed = Followed { slot, target, known: None };
        self.map.set(&mut followed)?;
        targets.push(followed);
        Ok(NextHop { map: Arc::clone(&self.map), slot, oif })
    }
}

impl Drop for NextHops {
    fn drop(&mut self) {
        // An eventfd's counter of at most 1 accepts this.
        let _ = self.end.write(1);
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for NextHop {
    fn drop(&mut self) {
        let mut targets = self.map.targets();
        targets.retain(|followed| followed.slot != self.slot);
        if let Err(e) = self.map.put(self.slot, None) {
            log::error!("cannot remove the next hop of interface {}: {e}", self.oif);
        }
    }
}

impl Map {
    fn targets(&self) -> MutexGuard<'_, Vec<Followed>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the map if the next hop has changed.
    fn set(&self, followed: &mut Followed) -> io::Result<()> {
        let found = next_hop(&followed.target)?;
        if followed.known == Some(found) {
            return Ok(());
        }
        if found.is_none() {
            let Target { oif, prefix, prefix_len, .. } = followed.target;
            log::warn!("interface {oif} has no route to {prefix}/{prefix_len}: clatd will send");
        }
        self.put(followed.slot, found)?;
        followed.known = Some(found);
        Ok(())
    }

    /// An update of an array map is not atomic, unlike a hash map's: a packet sent meanwhile may
    /// use a mixture of both neighbours, and be lost.
    fn put(&self, slot: u32, found: Found) -> io::Result<()> {
        let value = found.map_or_else(NextHopValue::default, NextHopValue::from);
        let put = self.handle.update(slot.as_bytes(), value.as_bytes(), MapFlags::ANY);
        put.map_err(from_libbpf)
    }
}

/// The thread's loop, until `end` is readable.
fn follow(map: &Map, subscription: &Subscription, end: &EventFd) {
    while wait_readable(&[end.as_fd(), subscription.as_fd()], None) == Some(1) {
        let news = subscription.read();
        for followed in map.targets().iter_mut() {
            let set = match &news {
                Ok(_) => map.set(followed),
                Err(e) => {
                    Err(HostError::because(Errno::EIO, format!("routes are no longer told: {e}")))
                }
            };
            if let Err(e) = set {
                log::error!("the next hop of interface {} is lost: {e}", followed.target.oif);
                // No next hop is better than a wrong one.
                let _ = map.put(followed.slot, None);
                followed.known = None;
            }
        }
        if news.is_err() {
            return;
        }
        thread::sleep(GATHERING);
    }
}
