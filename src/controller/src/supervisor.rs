// SPDX-License-Identifier: Apache-2.0

//! Supervises one clatd: notices at once when it ends, and ends it when it hangs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clat_datapath::path::Direction;
use clat_sys::wait_readable;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::host::{Child, Ended, Progress};

/// Delay before another clatd is started, at first.
const SHORTEST: Duration = Duration::from_millis(100);
/// The delay doubles up to this.
const LONGEST: Duration = Duration::from_secs(10);
/// After a clatd has run this long, the delay starts over.
const STEADY: Duration = Duration::from_secs(60);

/// A clatd that takes no packets although some wait hangs, after this number of looks at this
/// interval.
const LOOKS: u32 = 5;
const INTERVAL: Duration = Duration::from_millis(200);

/// clatd's exit status if another node has its address (docs/contract.md): starting it again with
/// the same address would not help.
const DUPLICATE: i32 = 3;

/// How a clatd ended, once it has, and when it did its last work.
#[derive(Default)]
struct End(Mutex<Option<(Ended, Instant)>>, Condvar);

impl End {
    fn get(&self) -> MutexGuard<'_, Option<(Ended, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// The work of a clatd in each direction. Nothing is checked while there is none.
pub(crate) struct Work<A, P> {
    /// Readable when there is a packet for it.
    pub(crate) arrival: A,
    /// Its progress.
    pub(crate) progress: P,
}

impl<A, P> Work<A, P>
where
    A: Fn(Direction) -> io::Result<OwnedFd>,
    P: Fn(Direction) -> io::Result<Progress>,
{
    /// Waits until one of `fds` is readable and returns its index; or since when clatd hangs.
    fn wait(&self, fds: &[BorrowedFd<'_>]) -> Result<usize, Instant> {
        'work: loop {
            let before = DIRECTIONS.map(|way| (way, (self.progress)(way)));
            let way = match self.next_arrival(fds) {
                Ok(way) => way,
                Err(at) => return Ok(at),
            };
            let since = Instant::now();
            let is_stuck = || {
                let now = (self.progress)(way);
                let mut before = before.iter().filter(|(of, _)| *of == way);
                before.any(|(_, before)| match (before, &now) {
                    (Ok(before), Ok(now)) => now.packets_wait && now.done == before.done,
                    _ => false,
                })
            };
            for look in 1..=LOOKS {
                let left = time_to_look(look, since, Instant::now());
                if let Some(at) = wait_readable(fds, Some(left)) {
                    return Ok(at);
                }
                if !is_stuck() {
                    continue 'work;
                }
            }
            return Err(since);
        }
    }

    /// Waits for a packet and returns its direction, or the index of one of `fds` that is readable.
    /// Only the first packet is waited for; further ones cost nothing.
    fn next_arrival(&self, fds: &[BorrowedFd<'_>]) -> Result<Direction, usize> {
        let open = |way| Some((way, File::from((self.arrival)(way).ok()?)));
        let (ways, mut arrivals): (Vec<_>, Vec<_>) =
            DIRECTIONS.into_iter().filter_map(open).unzip();
        loop {
            let at = next_packet(fds, &mut arrivals, None)?;
            if let Some(way) = at.and_then(|at| ways.get(at)) {
                return Ok(*way);
            }
        }
    }
}

/// Waits, at most `timeout`, until one of the packet sockets `taps` has a packet, and returns its
/// index.
///
/// # Errors
/// The index of one of `fds` that is readable.
pub(crate) fn next_packet(
    fds: &[BorrowedFd<'_>],
    taps: &mut [File],
    timeout: Option<Duration>,
) -> Result<Option<usize>, usize> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let all: Vec<_> = fds.iter().copied().chain(taps.iter().map(AsFd::as_fd)).collect();
        let Some(at) = wait_readable(&all, left) else { return Ok(None) };
        let Some(tap) = at.checked_sub(fds.len()) else { return Err(at) };
        // An interface that is down is reported as an error, which reading clears.
        if taps.get_mut(tap).is_some_and(|it| it.read(&mut [0; 8]).is_ok()) {
            return Ok(Some(tap));
        }
    }
}

/// The time from `now` to the look of this number at packets that wait `since` then. A look that
/// comes late does not delay the next one by as much; but where this process was stopped for long,
/// so was clatd, which gets some time before each.
fn time_to_look(number: u32, since: Instant, now: Instant) -> Duration {
    (since + INTERVAL * number).saturating_duration_since(now).max(INTERVAL / 2)
}

/// A supervised clatd. Dropping it ends the process.
pub(crate) struct Supervisor<C: Child> {
    pid: i32,
    since: Instant,
    end: Arc<End>,
    stop: EventFd,
    /// Returns a clatd that still runs.
    thread: Option<JoinHandle<Option<C>>>,
}

impl<C: Child> Supervisor<C> {
    /// Supervises `child`, and calls `ended` when it ends by itself, or was killed because it hung.
    pub(crate) fn watch<A, P>(
        mut child: C,
        work: Work<A, P>,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self>
    where
        A: Fn(Direction) -> io::Result<OwnedFd> + Send + 'static,
        P: Fn(Direction) -> io::Result<Progress> + Send + 'static,
    {
        let pid = child.pid();
        let end = Arc::<End>::default();
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        let stopping = stop.as_fd().try_clone_to_owned()?;
        let noted = Arc::clone(&end);
        let thread = thread::Builder::new().name("clatd-watch".into()).spawn(move || {
            let at = work.wait(&[stopping.as_fd(), child.as_fd()]);
            if at == Ok(0) {
                return Some(child);
            }
            if at.is_err() {
                log::error!("clatd, pid {pid}, takes no packets; killing it");
                child.kill().unwrap_or_else(|e| log::error!("cannot kill pid {pid}: {e}"));
            }
            let mut end = child.reap();
            if at.is_err() {
                end.how = format!("hung: it took no packets for {:?}", INTERVAL * LOOKS);
            }
            // The delay before the next one has passed while it hung.
            *noted.get() = Some((end, at.err().unwrap_or_else(Instant::now)));
            drop(child);
            noted.1.notify_all();
            ended();
            None
        })?;
        Ok(Self { pid, since: Instant::now(), end, stop, thread: Some(thread) })
    }

    /// Its process id; 0 if it has ended.
    pub(crate) fn pid(&self) -> i32 {
        if self.end.get().is_some() {
            0
        } else {
            self.pid
        }
    }

    /// The process id that it has or had.
    pub(crate) fn started_as(&self) -> i32 {
        self.pid
    }

    /// Whether it has ended because another node has its address.
    pub(crate) fn is_taken(&self) -> bool {
        self.end.get().as_ref().is_some_and(|(ended, _)| ended.status == Some(DUPLICATE))
    }

    /// Waits for its end, at most `timeout`; returns how it ended, if it did.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<Ended> {
        let runs = |end: &mut Option<_>| end.is_none();
        let waited = self.end.1.wait_timeout_while(self.end.get(), timeout, runs);
        let (end, _) = waited.unwrap_or_else(PoisonError::into_inner);
        end.as_ref().map(|(ended, _)| ended.clone())
    }

    /// Stops supervising; returns the process if it still runs.
    fn stop(&mut self) -> Option<C> {
        let thread = self.thread.take()?;
        if let Err(e) = self.stop.write(1) {
            log::error!("cannot tell the thread that watches over clatd to stop: {e}");
            return None;
        }
        thread.join().unwrap_or_else(|_| {
            log::error!("the thread that watched over clatd panicked");
            None
        })
    }

    /// Lets clatd run on without supervision.
    pub(crate) fn detach(mut self) {
        if let Some(child) = self.stop() {
            child.detach();
        }
    }
}

impl<C: Child> Drop for Supervisor<C> {
    fn drop(&mut self) {
        drop(self.stop());
    }
}

/// When another clatd is started after one has ended: soon at first, then with growing delay.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    delay: Option<Duration>,
    /// How the last one ended, and when the next is due.
    pending: Option<(Ended, Instant)>,
    count: u32,
}

impl Restarts {
    /// Notes a clatd that has ended since the last call, and returns how.
    pub(crate) fn see<C: Child>(&mut self, clatd: &Supervisor<C>) -> Option<Ended> {
        if self.pending.is_some() {
            return None;
        }
        let (ended, at) = clatd.end.get().clone()?;
        if at.duration_since(clatd.since) >= STEADY {
            self.delay = None;
        }
        self.pending = Some((ended.clone(), at));
        self.put_off(at);
        Some(ended)
    }

    /// When another one is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|(_, due)| *due)
    }

    /// Notes that another one could not be started.
    pub(crate) fn failed(&mut self, cause: &str, now: Instant) {
        let ended = || (Ended { how: format!("could not be started: {cause}"), status: None }, now);
        self.pending.get_or_insert_with(ended);
        self.put_off(now);
    }

    /// Sets the next, longer delay from `now`.
    fn put_off(&mut self, now: Instant) {
        let delay = self.delay.map_or(SHORTEST, |delay| (delay * 2).min(LONGEST));
        self.delay = Some(delay);
        if let Some((_, due)) = &mut self.pending {
            *due = now + delay;
        }
    }

    /// Notes that another one was started; returns the number of restarts and how the previous one
    /// ended, or `None` if none had.
    pub(crate) fn started(&mut self) -> Option<(u32, Ended)> {
        let (ended, _) = self.pending.take()?;
        self.count += 1;
        Some((self.count, ended))
    }

    /// Number of restarts.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_looks_do_not_add_up() {
        let (since, late) = (Instant::now(), INTERVAL / 4);
        let look = |now: Instant, number| now + time_to_look(number, since, now) + late;
        assert_eq!((1..=LOOKS).fold(since, look), since + INTERVAL * LOOKS + late);
        // This process was stopped for a minute.
        let stopped = since + Duration::from_secs(60);
        assert_eq!((2..=LOOKS).fold(stopped, look), stopped + (INTERVAL / 2 + late) * (LOOKS - 1));
    }

    #[test]
    fn they_come_ever_later() {
        let (now, mut restarts) = (Instant::now(), Restarts::default());
        let ended = Ended { how: "ended".to_owned(), status: None };
        restarts.pending = Some((ended, now));
        let delays: Vec<_> = (0..9)
            .map(|_| {
                restarts.put_off(now);
                restarts.due().expect("pending").duration_since(now).as_millis()
            })
            .collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(restarts.started().map(|(count, _)| count), Some(1));
        assert_eq!((restarts.started(), restarts.due(), restarts.count()), (None, None, 1));
    }
}
