// SPDX-License-Identifier: Apache-2.0

//! Keeps the map of next hops as the kernel's routes are.

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

/// After a change, how long the next ones are gathered: they come in bursts.
const GATHERING: Duration = Duration::from_millis(20);

/// Where packets go, if anywhere.
type Found = Option<clat_netlink::NextHop>;

/// Follows the routes of uplinks in a thread of its own, from the first CLAT on: until then it
/// could still give up rights, which a thread has for itself.
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
    /// What is followed, by slot. Locked while the map is written.
    targets: Mutex<Vec<Followed>>,
}

#[derive(Debug)]
struct Followed {
    slot: u32,
    target: Target,
    /// What the map says.
    known: Option<Found>,
}

/// The next hop of one CLAT; gone from the map when dropped.
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

    /// Removes from the map what is not followed.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let targets = self.map.targets();
        let is_followed = |slot: &u32| targets.iter().any(|followed| followed.slot == *slot);
        (0..SLOTS).filter(|slot| !is_followed(slot)).try_for_each(|slot| self.map.put(slot, None))
    }

    /// Puts the next hop of `target` into the map as `slot`, where it has one, now and whenever it
    /// changes.
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
        // A counter that is at most one takes this.
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

    /// Brings the map up to date, if it says something else than the routes do.
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

    /// Not at one blow, as it would be in a hash: a packet that leaves in the midst of it may ask
    /// for a neighbour that is half of each, and is lost.
    fn put(&self, slot: u32, found: Found) -> io::Result<()> {
        let value = found.map_or_else(NextHopValue::default, NextHopValue::from);
        let put = self.handle.update(slot.as_bytes(), value.as_bytes(), MapFlags::ANY);
        put.map_err(from_libbpf)
    }
}

/// What the thread does until `end` is readable.
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
                // Rather none than a wrong one.
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
