// SPDX-License-Identifier: Apache-2.0

//! Probes in a thread whether IPv4 works: an answer may take seconds. While it works, the thread
//! waits for packets that nothing answers, and probes again.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clat_host::PROBE_PATIENCE;
use clat_sys::wait_readable;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::host::Taps;
use crate::model::Working;
use crate::supervisor::next_packet;

/// Time to the next probe while IPv4 does not work, or while it works although packets are not
/// answered: it doubles from the first value to the second.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(320));

/// The least time for an answer before it counts as missing: to a packet, and to a probe because of
/// that. Longer where the last probe's answer took more than a quarter of it.
const QUICK: Duration = Duration::from_millis(300);

/// Time between two looks at packets that are answered.
const PACE: Duration = Duration::from_millis(50);

/// The last probe of one CLAT.
#[derive(Debug)]
pub(crate) struct Probe<Q> {
    about: Option<Q>,
    answer: Arc<Mutex<Working>>,
    /// When to probe again if IPv4 does not work.
    next: Option<Instant>,
    interval: Duration,
    watch: Option<Watch>,
}

/// The thread that watches packets while IPv4 works. It ends when this is dropped.
#[derive(Debug)]
struct Watch(Arc<EventFd>);

impl Drop for Watch {
    fn drop(&mut self) {
        // The counter is at most one; this cannot fail.
        let _ = self.0.write(1);
    }
}

/// The questions of a [`Probe`].
pub(crate) struct Questions<A, T> {
    /// Whether IPv4 works, answered within this time.
    pub(crate) ask: A,
    /// Descriptors that tell of packets.
    pub(crate) taps: T,
}

impl<Q> Default for Probe<Q> {
    fn default() -> Self {
        let interval = INTERVAL.0;
        Self { about: None, answer: Arc::default(), next: None, interval, watch: None }
    }
}

impl<Q: PartialEq> Probe<Q> {
    /// Asks in a thread if `about` has changed or a probe is due, and calls `answered` after each
    /// answer.
    pub(crate) fn ask<A, T>(
        &mut self,
        about: Q,
        now: Instant,
        questions: Questions<A, T>,
        answered: impl Fn() + Send + 'static,
    ) where
        A: Fn(Duration) -> Working + Send + 'static,
        T: Fn() -> io::Result<Taps> + Send + 'static,
    {
        if self.about.as_ref() != Some(&about) {
            // A pending answer to the last question is discarded.
            *self = Self { about: Some(about), ..Self::default() };
        } else if self.due().map_or(true, |due| due > now) {
            return;
        }
        self.next = Some(now + self.interval);
        self.interval = (self.interval * 2).min(INTERVAL.1);
        let answer = Arc::clone(&self.answer);
        let say = move |working| {
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = working;
            answered();
        };
        let start = || {
            let end = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
            self.watch = Some(Watch(Arc::clone(&end)));
            let run = move || questions.run(end.as_fd(), say);
            thread::Builder::new().name("probe".into()).spawn(run).map(drop)
        };
        if let Err(e) = start() {
            log::warn!("cannot ask whether IPv4 works: {e}");
        }
    }

    /// When the next probe of the same CLAT is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.answer() == Working::No)
    }

    /// The last result.
    pub(crate) fn answer(&self) -> Working {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A, T> Questions<A, T>
where
    A: Fn(Duration) -> Working,
    T: Fn() -> io::Result<Taps>,
{
    /// Asks, and again whenever packets are not answered, as long as IPv4 works.
    fn run(&self, end: BorrowedFd<'_>, say: impl Fn(Working)) {
        let (mut patience, mut pause) = (PROBE_PATIENCE, None);
        loop {
            let begun = Instant::now();
            let working = (self.ask)(patience);
            say(working);
            if working != Working::Yes || pause.is_some_and(|pause| ends_in(end, pause)) {
                return;
            }
            patience = (begun.elapsed() * 4).clamp(QUICK, PROBE_PATIENCE);
            let Some(was_answered) = self.until_unanswered(end, patience) else { return };
            // Some programs only send.
            let next = pause.filter(|_| !was_answered).map_or(INTERVAL.0, |pause| pause * 2);
            pause = Some(next.min(INTERVAL.1));
        }
    }

    /// Waits until a packet leaves and none arrives within `patience`; returns whether any arrived
    /// before, or `None` if it is to end. Without packets this costs nothing.
    fn until_unanswered(&self, end: BorrowedFd<'_>, patience: Duration) -> Option<bool> {
        let mut was_answered = false;
        loop {
            let taps = (self.taps)().inspect_err(|e| log::debug!("cannot watch packets: {e}"));
            let Taps { leaving, arriving } = taps.ok()?;
            let mut leaving = leaving.map(File::from);
            next_packet(&[end], &mut leaving, None).ok()?;
            if next_packet(&[end], &mut [arriving.into()], Some(patience)).ok()?.is_none() {
                return Some(was_answered);
            }
            was_answered = true;
            if ends_in(end, PACE) {
                return None;
            }
        }
    }
}

/// Whether it ends within this time.
fn ends_in(end: BorrowedFd<'_>, time: Duration) -> bool {
    wait_readable(&[end], Some(time)).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use nix::errno::Errno;

    use super::*;

    /// This question, on an interface without packets.
    fn without_packets<A>(ask: A) -> Questions<A, fn() -> io::Result<Taps>> {
        Questions { ask, taps: || Err(Errno::ENODEV.into()) }
    }

    #[test]
    fn a_late_answer_is_not_the_next_ones() {
        let (mut probe, (told, wait)) = (Probe::default(), mpsc::channel::<()>());
        let (done, ended) = mpsc::channel::<()>();
        let done = || {
            let done = done.clone();
            move || done.send(()).expect("somebody listens")
        };
        let late = move |_| wait.recv().map_or(Working::Unknown, |()| Working::Yes);
        let now = Instant::now();
        probe.ask(1, now, without_packets(late), done());
        probe.ask(1, now + INTERVAL.1, without_packets(|_| panic!("it is asked already")), || ());
        probe.ask(2, now, without_packets(|_| Working::No), done());
        ended.recv().expect("answered");
        assert_eq!(probe.answer(), Working::No);
        told.send(()).expect("it waits");
        ended.recv().expect("answered");
        assert_eq!(probe.answer(), Working::No);
    }

    #[test]
    fn what_does_not_work_is_asked_again() {
        let (mut probe, mut now, (done, ended)) =
            (Probe::default(), Instant::now(), mpsc::channel::<()>());
        let done = || {
            let done = done.clone();
            move || done.send(()).expect("somebody listens")
        };
        for seconds in [5, 10, 20, 40, 80, 160, 320, 320] {
            probe.ask((), now, without_packets(|_| Working::No), done());
            ended.recv().expect("answered");
            assert_eq!(probe.due(), Some(now + Duration::from_secs(seconds)));
            probe.ask((), now, without_packets(|_| panic!("too early")), || ());
            now += Duration::from_secs(seconds);
        }
        probe.ask((), now, without_packets(|_| Working::Yes), done());
        ended.recv().expect("answered");
        assert_eq!((probe.answer(), probe.due()), (Working::Yes, None));
    }

    #[test]
    fn packets_that_are_not_answered_raise_the_question_again() {
        let packets = |number| {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            Ok::<_, io::Error>(EventFd::from_value_and_flags(number, flags)?.into())
        };
        let looks = AtomicU32::new(0);
        let taps = move || {
            let is_first = looks.fetch_add(1, Ordering::SeqCst) == 0;
            let leaving = [packets(0)?, packets(1)?];
            Ok(Taps { leaving, arriving: packets(u32::from(is_first))? })
        };
        let (asked, questions) = mpsc::channel();
        let ask = move |patience| {
            asked.send(patience).expect("somebody listens");
            if patience == PROBE_PATIENCE {
                Working::Yes
            } else {
                Working::No
            }
        };
        let (mut probe, now) = (Probe::default(), Instant::now());
        probe.ask((), now, Questions { ask, taps }, || ());
        let patience: Vec<_> = questions.iter().collect();
        assert_eq!(patience, [PROBE_PATIENCE, QUICK]);
        assert_eq!(probe.answer(), Working::No);
        assert!(now.elapsed() >= PACE + QUICK, "{:?}", now.elapsed());
    }
}
