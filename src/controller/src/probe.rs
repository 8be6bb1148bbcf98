// SPDX-License-Identifier: Apache-2.0

//! Asks whether IPv4 works, beside all else: an answer may take seconds.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::model::Working;

/// The last question about one CLAT.
#[derive(Debug)]
pub(crate) struct Probe<Q> {
    about: Option<Q>,
    answer: Arc<Mutex<Working>>,
}

impl<Q> Default for Probe<Q> {
    fn default() -> Self {
        Self { about: None, answer: Arc::default() }
    }
}

impl<Q: PartialEq> Probe<Q> {
    /// Has `ask` called unless it was for the same question, and then `answered`.
    pub(crate) fn ask(
        &mut self,
        about: Q,
        ask: impl FnOnce() -> Working + Send + 'static,
        answered: impl FnOnce() + Send + 'static,
    ) {
        if self.about.as_ref() == Some(&about) {
            return;
        }
        self.about = Some(about);
        // An answer to the question before has nobody to listen.
        self.answer = Arc::default();
        let answer = Arc::clone(&self.answer);
        let run = move || {
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = ask();
            answered();
        };
        if let Err(e) = thread::Builder::new().name("probe".into()).spawn(run) {
            log::warn!("cannot ask whether IPv4 works: {e}");
        }
    }

    /// What is known by now.
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
        probe.ask(1, late, done());
        probe.ask(1, || panic!("it is asked already"), || ());
        probe.ask(2, || Working::No, done());
        ended.recv().expect("answered");
        assert_eq!(probe.answer(), Working::No);
        told.send(()).expect("it waits");
        ended.recv().expect("answered");
        assert_eq!(probe.answer(), Working::No);
    }
}
