// SPDX-License-Identifier: Apache-2.0

//! Probes in a thread whether IPv4 works: an answer may take seconds.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::model::Working;

/// Time to the next probe while IPv4 does not work: it doubles from the first value to the second.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(320));

/// The last probe of one CLAT.
#[derive(Debug)]
pub(crate) struct Probe<Q> {
    about: Option<Q>,
    answer: Arc<Mutex<Working>>,
    /// When to probe again if IPv4 does not work.
    next: Option<Instant>,
    interval: Duration,
}

impl<Q> Default for Probe<Q> {
    fn default() -> Self {
        Self { about: None, answer: Arc::default(), next: None, interval: INTERVAL.0 }
    }
}

impl<Q: PartialEq> Probe<Q> {
    /// Calls `ask` and then `answered` in a thread, if `about` has changed or a probe is due.
    pub(crate) fn ask(
        &mut self,
        about: Q,
        now: Instant,
        ask: impl FnOnce() -> Working + Send + 'static,
        answered: impl FnOnce() + Send + 'static,
    ) {
        if self.about.as_ref() != Some(&about) {
            // A pending answer to the last question is discarded.
            *self = Self { about: Some(about), ..Self::default() };
        } else if self.due().map_or(true, |due| due > now) {
            return;
        }
        self.next = Some(now + self.interval);
        self.interval = (self.interval * 2).min(INTERVAL.1);
        let answer = Arc::clone(&self.answer);
        let run = move || {
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = ask();
            answered();
        };
        if let Err(e) = thread::Builder::new().name("probe".into()).spawn(run) {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_late_answer_is_not_the_next_ones() {
        let (mut probe, (told, wait)) = (Probe::default(), mpsc::channel::<()>());
        let (done, ended) = mpsc::channel::<()>();
        let done = || {
            let done = done.clone();
            move || done.send(()).expect("somebody listens")
        };
        let late = move || wait.recv().map_or(Working::Unknown, |()| Working::Yes);
        let now = Instant::now();
        probe.ask(1, now, late, done());
        probe.ask(1, now + INTERVAL.1, || panic!("it is asked already"), || ());
        probe.ask(2, now, || Working::No, done());
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
            probe.ask((), now, || Working::No, done());
            ended.recv().expect("answered");
            assert_eq!(probe.due(), Some(now + Duration::from_secs(seconds)));
            probe.ask((), now, || panic!("too early"), || ());
            now += Duration::from_secs(seconds);
        }
        probe.ask((), now, || Working::Yes, done());
        ended.recv().expect("answered");
        assert_eq!((probe.answer(), probe.due()), (Working::Yes, None));
    }
}
