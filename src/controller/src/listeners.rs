// SPDX-License-Identifier: Apache-2.0

//! Listeners of events. Each has its own queue and thread, so that a slow one delays neither a
//! start nor the others.

use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::binder_adapter::{
    calling_uid, can_call_back, link_to_death, service_specific, BinderResult, IClatdEventListener,
    Strong, STOP_FAILED, STOP_NETWORK_GONE, STOP_REQUESTED, STOP_SHUTDOWN, STOP_UPLINK_GONE,
};
use crate::model::{Event, StopReason};

/// Most listeners. Each costs a thread.
const MOST: usize = 64;

/// Most listeners of one user.
const MOST_OF_ONE: usize = 8;

/// Most events waiting for a listener.
const QUEUE: usize = 64;

/// How long the end waits for listeners to take the remaining events.
const LAST_WORDS: Duration = Duration::from_secs(1);

struct Entry {
    id: u64,
    uid: u32,
    listener: Strong<dyn IClatdEventListener>,
    /// The listener's thread ends when this is dropped.
    queue: SyncSender<Event>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    entries: Vec<Entry>,
}

/// All listeners.
#[derive(Default)]
pub struct Listeners(Mutex<State>);

impl Listeners {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a listener, until it dies, unregisters or falls behind.
    pub(crate) fn add(
        self: &Arc<Self>,
        listener: &Strong<dyn IClatdEventListener>,
    ) -> BinderResult<()> {
        if !can_call_back() {
            let message = "there is no connection to tell this listener by";
            return Err(service_specific(Errno::ENOTCONN, message));
        }
        let uid = calling_uid();
        let (queue, events) = sync_channel::<Event>(QUEUE);
        let id = {
            let mut state = self.state();
            if state.entries.iter().any(|entry| entry.listener == *listener) {
                return Ok(());
            }
            let theirs = state.entries.iter().filter(|entry| entry.uid == uid).count();
            if state.entries.len() >= MOST || theirs >= MOST_OF_ONE {
                let message = format!("{MOST} listeners are enough, and {MOST_OF_ONE} of a user");
                return Err(service_specific(Errno::EUSERS, &message));
            }
            state.last_id += 1;
            let id = state.last_id;
            state.entries.push(Entry { id, uid, listener: listener.clone(), queue, thread: None });
            id
        };
        let left = Arc::downgrade(self);
        let death = link_to_death(listener, move || {
            if let Some(listeners) = left.upgrade() {
                listeners.remove(id, "its process died");
            }
        });
        // The thread drops the death link, since it must not be dropped inside of its own callback.
        let (listener, listeners) = (listener.clone(), Arc::downgrade(self));
        let started = death.map_err(|e| (Errno::ESRCH, format!("{e:?}"))).and_then(|death| {
            let run = move || {
                let _death = death;
                for event in events {
                    if let Err(e) = tell(&listener, &event) {
                        log::warn!("cannot tell listener {id}: {e}");
                        if let Some(listeners) = listeners.upgrade() {
                            listeners.remove(id, "it cannot be told");
                        }
                        return;
                    }
                }
            };
            let thread = thread::Builder::new().name("listener".into());
            thread.spawn(run).map_err(|e| (Errno::EAGAIN, e.to_string()))
        });
        match started {
            Err((errno, why)) => {
                self.remove(id, &why);
                Err(service_specific(errno, &format!("cannot listen: {why}")))
            }
            Ok(thread) => {
                // Unless it died meanwhile.
                if let Some(entry) = self.state().entries.iter_mut().find(|entry| entry.id == id) {
                    entry.thread = Some(thread);
                }
                log::info!("listener {id} registered");
                Ok(())
            }
        }
    }

    fn remove(&self, id: u64, why: &str) {
        let mut state = self.state();
        let place = state.entries.iter().position(|entry| entry.id == id);
        let gone = place.map(|place| state.entries.swap_remove(place));
        drop(state);
        if gone.is_some() {
            log::info!("listener {id} dropped: {why}");
        }
    }

    /// Removes a listener that unregisters.
    pub(crate) fn leave(&self, listener: &Strong<dyn IClatdEventListener>) -> BinderResult<()> {
        let id =
            self.state().entries.iter().find(|entry| entry.listener == *listener).map(|e| e.id);
        let id =
            id.ok_or_else(|| service_specific(Errno::ENOENT, "this listener is not registered"))?;
        self.remove(id, "it left");
        Ok(())
    }

    /// Queues an event for all listeners, without waiting for them.
    pub fn tell(&self, event: &Event) {
        let mut behind = Vec::new();
        {
            let state = self.state();
            for entry in &state.entries {
                if entry.queue.try_send(event.clone()).is_err() {
                    behind.push(entry.id);
                }
            }
        }
        for id in behind {
            self.remove(id, "it leaves too many events unread");
        }
    }

    /// Detaches all listeners, after the remaining events.
    pub fn detach(&self) {
        let entries = std::mem::take(&mut self.state().entries);
        let threads: Vec<_> = entries.into_iter().filter_map(|entry| entry.thread).collect();
        let deadline = Instant::now() + LAST_WORDS;
        while Instant::now() < deadline && !threads.iter().all(JoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Number of listeners.
    pub(crate) fn count(&self) -> usize {
        self.state().entries.len()
    }
}

fn tell(listener: &Strong<dyn IClatdEventListener>, event: &Event) -> BinderResult<()> {
    match event {
        Event::Started(clat) => listener.onClatdStarted(
            clat.iface.as_str(),
            &clat.prefix.to_string(),
            &clat.v4.to_string(),
            &clat.v6.to_string(),
        ),
        Event::Probed { iface, working } => {
            listener.onClatdProbed(iface.as_str(), working.as_str())
        }
        Event::Died { iface, pid, cause } => listener.onClatdDied(iface.as_str(), *pid, cause),
        Event::Stopped { iface, reason } => listener.onClatdStopped(
            iface.as_str(),
            match reason {
                StopReason::Requested => STOP_REQUESTED,
                StopReason::Shutdown => STOP_SHUTDOWN,
                StopReason::NetworkGone => STOP_NETWORK_GONE,
                StopReason::UplinkGone => STOP_UPLINK_GONE,
                StopReason::Failed => STOP_FAILED,
            },
        ),
        Event::Restarted { iface, pid, restarts, cause } => {
            let restarts = i32::try_from(*restarts).unwrap_or(i32::MAX);
            listener.onClatdRestarted(iface.as_str(), *pid, restarts, cause)
        }
    }
}
