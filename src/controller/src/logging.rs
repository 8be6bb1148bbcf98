// SPDX-License-Identifier: Apache-2.0

//! Sends the log to Android's log under the original's tag, to the journal if stderr is connected
//! to it, or else to stderr. Messages that scripts look for in the original's log have the
//! original's words.
//!
//! Logging never blocks: lines are dropped if stderr is not read, or if a part of the program logs
//! too many.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{Log, Metadata, Record};

/// The original's tag.
pub const TAG: &str = "ClatdController";

/// The number of lines that a log target may log at once.
const BURST: u32 = 50;

/// How often it may log another line after that.
const PACE: Duration = Duration::from_millis(200);

/// Sets the logger of this process up.
#[cfg(target_os = "android")]
pub fn init() {
    let level = log::LevelFilter::Info;
    let config = android_logger::Config::default().with_tag(TAG).with_max_level(level);
    set(android_logger::AndroidLogger::new(config), level);
}

/// Sets up the logger of this process. Signals for other threads must be blocked before, since this
/// starts a thread.
#[cfg(not(target_os = "android"))]
pub fn init() {
    let (logger, level) = aside::logger();
    set(logger, level);
}

/// Android's init does not ask for this.
#[cfg(target_os = "android")]
pub fn tell_ready() {}

/// Notifies systemd that calls are answered.
#[cfg(not(target_os = "android"))]
pub fn tell_ready() {
    if let Err(e) = sd_notify::notify(true, &[sd_notify::NotifyState::Ready]) {
        log::warn!("cannot tell systemd that it is ready: {e}");
    }
}

fn set(logger: impl Log + 'static, level: log::LevelFilter) {
    let limited = Limited { logger, buckets: Mutex::default() };
    if log::set_boxed_logger(Box::new(limited)).is_ok() {
        log::set_max_level(level);
    }
}

/// Limits the rate of lines for each log target.
struct Limited<L> {
    logger: L,
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl<L: Log> Log for Limited<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = Instant::now();
        let left_out = {
            let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            match buckets.get_mut(record.target()) {
                Some(bucket) => bucket.take(now),
                None => {
                    let bucket = buckets.entry(record.target().to_owned());
                    bucket.or_insert_with(|| Bucket::new(now)).take(now)
                }
            }
        };
        let Some(left_out) = left_out else { return };
        if left_out > 0 {
            let mut builder = Record::builder();
            builder.level(record.level()).target(record.target());
            let args = format_args!("{left_out} lines from here were left out");
            self.logger.log(&builder.args(args).build());
        }
        self.logger.log(record);
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

/// A token bucket.
struct Bucket {
    lines: u32,
    since: Instant,
    left_out: u64,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { lines: BURST, since: now, left_out: 0 }
    }

    /// Takes a token: the number of lines left out before this one, or `None` to leave it out.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let more = now.saturating_duration_since(self.since).as_millis() / PACE.as_millis();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.lines = self.lines.saturating_add(more).min(BURST);
            self.since = now;
        }
        match self.lines.checked_sub(1) {
            Some(left) => {
                self.lines = left;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out += 1;
                None
            }
        }
    }
}

/// Writes the log in a thread of its own, so that others never block on stderr.
#[cfg(not(target_os = "android"))]
mod aside {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use clat_sandbox::keep_capabilities;
    use log::{Level, LevelFilter, Log, Metadata, Record};

    use super::TAG;
    use crate::confinement::change_only;

    /// The default of RUST_LOG; of the binder library, warnings only.
    const FILTER: &str = "info,rsbinder=warn,rsproperties=warn";

    /// The number of lines that may wait to be written.
    const QUEUE: usize = 1000;

    /// How long `flush` waits.
    const LAST_WORDS: Duration = Duration::from_millis(500);

    enum Order {
        Write { level: Level, target: String, text: String },
        Tell(SyncSender<()>),
    }

    struct Aside {
        logger: Arc<env_logger::Logger>,
        queue: SyncSender<Order>,
        lost: Arc<AtomicU64>,
    }

    pub(super) fn logger() -> (Box<dyn Log>, LevelFilter) {
        let mut builder =
            env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(FILTER));
        if systemd_journal_logger::connected_to_journal() {
            if let Ok(journal) = systemd_journal_logger::JournalLog::new() {
                let journal = journal.with_syslog_identifier(TAG.to_owned());
                builder.format(move |_, record| journal.journal_send(record));
            }
        }
        let logger = Arc::new(builder.build());
        let level = logger.filter();
        let (queue, orders) = sync_channel(QUEUE);
        let lost = Arc::default();
        let writer = (Arc::clone(&logger), Arc::clone(&lost));
        let thread = thread::Builder::new().name("log".into());
        match thread.spawn(move || write(&writer.0, &writer.1, orders)) {
            Ok(_) => (Box::new(Aside { logger, queue, lost }), level),
            Err(_) => (Box::new(logger), level),
        }
    }

    fn write(logger: &env_logger::Logger, lost: &AtomicU64, orders: Receiver<Order>) {
        // This thread starts before the others drop privileges, so it drops its own.
        if let Err(e) = keep_capabilities(&[]).and_then(|()| change_only(&[])) {
            log::warn!("the log's thread: {e:#}");
        }
        let log = |level, target: &str, args: std::fmt::Arguments<'_>| {
            let mut builder = Record::builder();
            logger.log(&builder.level(level).target(target).args(args).build());
        };
        for order in orders {
            match order {
                Order::Write { level, target, text } => log(level, &target, format_args!("{text}")),
                Order::Tell(done) => drop(done),
            }
            let lost = lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let args = format_args!("{lost} lines were lost: nobody read them");
                log(Level::Warn, module_path!(), args);
            }
        }
    }

    impl Log for Aside {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            self.logger.enabled(metadata)
        }

        fn log(&self, record: &Record<'_>) {
            let order = Order::Write {
                level: record.level(),
                target: record.target().to_owned(),
                text: record.args().to_string(),
            };
            if self.queue.try_send(order).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }

        /// Waits a limited time until all is written.
        fn flush(&self) {
            let (done, written) = sync_channel(1);
            if self.queue.try_send(Order::Tell(done)).is_ok() {
                let _ = written.recv_timeout(LAST_WORDS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_left_out_and_counted() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(begin);
        for _ in 0..BURST {
            assert_eq!(bucket.take(begin), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(bucket.take(begin), None);
        }
        assert_eq!(bucket.take(begin + PACE), Some(1000));
        assert_eq!(bucket.take(begin + PACE), None);
        let later = begin + PACE * 2 * BURST;
        assert_eq!((0..10_000).filter(|_| bucket.take(later).is_some()).count(), BURST as usize);
    }
}
