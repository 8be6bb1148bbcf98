// SPDX-License-Identifier: Apache-2.0

//! What is measured and how, and the targets.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::{busy_seconds, switches, Pinned};
use crate::load;
use crate::subject::{Kind, Subject};

/// Names of figures on the command line.
pub(crate) const WORDS: [&str; 12] = [
    "tcp", "tcp1", "tcp4", "udp", "udp64", "udpmixed", "udp1200", "segment", "latency", "idle",
    "up", "down",
];

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    Tcp { streams: u8, up: bool },
    Udp { sizes: Sizes, up: bool },
    Segment { up: bool },
    RoundTrip { pinned: bool },
    Idle,
}

/// Payloads of datagrams, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// 64: a batch of them can be sent as one GSO packet.
    Small,
    /// 33 to 64, each longer than the one before, so that none can be coalesced.
    Mixed,
    /// 1200.
    Large,
}

use Figure::{Idle, RoundTrip, Segment, Tcp, Udp};
use Sizes::{Large, Mixed, Small};

/// All of them.
pub(crate) const FIGURES: [Figure; 15] = [
    Tcp { streams: 1, up: true },
    Tcp { streams: 1, up: false },
    Tcp { streams: 4, up: true },
    Tcp { streams: 4, up: false },
    Udp { sizes: Small, up: true },
    Udp { sizes: Small, up: false },
    Udp { sizes: Mixed, up: true },
    Udp { sizes: Mixed, up: false },
    Udp { sizes: Large, up: true },
    Udp { sizes: Large, up: false },
    Segment { up: true },
    Segment { up: false },
    RoundTrip { pinned: false },
    RoundTrip { pinned: true },
    Idle,
];

/// A bound on a figure's ratio to that of native IPv6; for [`Idle`], which has no native figure, on
/// the figure itself.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

use Target::{AtLeast, AtMost};

impl Target {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            AtLeast(bound) => value >= bound,
            AtMost(bound) => value <= bound,
        }
    }
}

/// A line of the report.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    offload: Option<Target>,
    daemon: Option<Target>,
}

impl Row {
    pub(crate) fn target(&self, kind: Kind) -> Option<Target> {
        match kind {
            Kind::Offload | Kind::Direct => self.offload,
            Kind::Daemon => self.daemon,
            _ => None,
        }
    }
}

const fn row(name: &'static str, offload: Option<Target>, daemon: Option<Target>) -> Row {
    Row { name, offload, daemon }
}

impl Figure {
    /// Whether `word` names this kind of figure.
    pub(crate) fn is_of(self, word: &str) -> bool {
        match self {
            Tcp { streams: 1, .. } => matches!(word, "tcp" | "tcp1"),
            Tcp { .. } => matches!(word, "tcp" | "tcp4"),
            Udp { sizes: Small, .. } => matches!(word, "udp" | "udp64"),
            Udp { sizes: Mixed, .. } => matches!(word, "udp" | "udpmixed"),
            Udp { sizes: Large, .. } => matches!(word, "udp" | "udp1200"),
            Segment { .. } => word == "segment",
            RoundTrip { .. } => word == "latency",
            Idle => word == "idle",
        }
    }

    /// Whether `word` names its direction; figures without one match both.
    pub(crate) fn goes(self, word: &str) -> bool {
        match self {
            Tcp { up, .. } | Udp { up, .. } | Segment { up } => {
                word == if up { "up" } else { "down" }
            }
            RoundTrip { .. } | Idle => matches!(word, "up" | "down"),
        }
    }

    /// Its rows in the report.
    #[rustfmt::skip]
    pub(crate) fn rows(self) -> &'static [Row] {
        const fn least(ratio: f64) -> Option<Target> { Some(AtLeast(ratio)) }
        const fn most(ratio: f64) -> Option<Target> { Some(AtMost(ratio)) }
        match self {
            Tcp { streams: 1, up: true } => const { &[row("TCP up, 1 stream, \
                Gbit/s", least(1.3), least(1.0))] },
            Tcp { streams: 1, up: false } => const { &[row("TCP down, 1 stream, \
                Gbit/s", least(1.3), least(1.0))] },
            Tcp { up: true, .. } => const { &[
                row("TCP up, 4 streams, Gbit/s", least(0.9), least(0.65)),
                row("TCP up, 4 streams, CPU s/GB", None, None),
            ] },
            Tcp { up: false, .. } => const { &[
                row("TCP down, 4 streams, Gbit/s", least(0.9), least(0.65)),
                row("TCP down, 4 streams, CPU s/GB", None, None),
            ] },
            Udp { sizes: Small, up: true } => const { &[row("UDP up, 64 B, \
                k/s", least(0.9), least(1.0))] },
            Udp { sizes: Small, up: false } => const { &[row("UDP down, 64 B, \
                k/s", least(0.9), least(1.0))] },
            Udp { sizes: Mixed, up: true } => const { &[row("UDP up, 33–64 B mixed, \
                k/s", least(0.9), least(0.5))] },
            Udp { sizes: Mixed, up: false } => const { &[row("UDP down, 33–64 B mixed, \
                k/s", least(0.9), least(0.7))] },
            Udp { sizes: Large, up: true } => const { &[row("UDP up, 1200 B, \
                k/s", least(0.9), None)] },
            Udp { sizes: Large, up: false } => const { &[row("UDP down, 1200 B, \
                k/s", least(0.9), None)] },
            Segment { up: true } => const { &[row("UDP_SEGMENT up, 1200 B, \
                k/s", least(0.95), least(0.5))] },
            Segment { up: false } => const { &[row("UDP_SEGMENT down, 1200 B, \
                k/s", least(0.95), least(0.5))] },
            RoundTrip { pinned: false } => const { &[
                row("round trip p50, µs", None, most(1.35)),
                row("round trip p99, µs", None, None),
            ] },
            RoundTrip { pinned: true } => const { &[
                row("round trip p50, one CPU, µs", most(1.15), most(2.4)),
                row("round trip p99, one CPU, µs", None, None),
            ] },
            Idle => const { &[row("idle, wake-ups/s", most(0.0), most(0.0))] },
        }
    }

    /// Measures it: a value for each row, or none if it does not apply.
    pub(crate) fn take(self, subject: &Subject<'_>, time: Duration) -> Result<Vec<f64>> {
        match self {
            Tcp { streams, up } => tcp(subject, streams, up, time),
            Udp { sizes, up } => {
                let sizes = match sizes {
                    Small => 64..=64,
                    Mixed => 33..=64,
                    Large => 1200..=1200,
                };
                let (client, server) = subject.pair()?;
                let ends = if up { (&client, &server) } else { (&server, &client) };
                Ok(vec![load::datagrams(ends, &sizes.collect::<Vec<_>>(), time)? / 1e3])
            }
            Segment { up } => {
                let (client, server) = subject.pair()?;
                let ends = if up { (&client, &server) } else { (&server, &client) };
                Ok(vec![load::segments(ends, time)? / 1e3])
            }
            RoundTrip { pinned } => {
                let (client, server) = subject.pair()?;
                let mut guard = None;
                let (p50, p99) = load::round_trip((&client, &server), time, || {
                    if pinned {
                        let mut pids = subject.processes();
                        pids.push(i32::try_from(std::process::id())?);
                        guard = Some(Pinned::new(pids)?);
                    }
                    Ok(())
                })?;
                drop(guard);
                Ok(vec![p50, p99])
            }
            Idle if subject.kind == Kind::Native => Ok(Vec::new()),
            Idle => {
                let pids = subject.processes();
                let before = switches(&pids)?;
                let time = time.max(Duration::from_secs(2));
                thread::sleep(time);
                Ok(vec![f64::from(switches(&pids)? - before) / time.as_secs_f64()])
            }
        }
    }
}

/// Gbit/s that arrive, and with several streams CPU seconds of the whole machine for each GB.
fn tcp(subject: &Subject<'_>, streams: u8, up: bool, time: Duration) -> Result<Vec<f64>> {
    let line = format!(
        "iperf3 -J -C cubic -t {} -P {streams} -c {} {}",
        time.as_secs(),
        subject.server,
        if up { "" } else { "-R" }
    );
    let before = busy_seconds()?;
    let json: serde_json::Value = serde_json::from_str(&subject.lab.phone.run(&line)?)?;
    let busy = busy_seconds()? - before;
    let received = |what: &str| {
        let value = json["end"]["sum_received"][what].as_f64();
        value.with_context(|| format!("iperf3 said {json}"))
    };
    let mut values = vec![received("bits_per_second")? / 1e9];
    if streams > 1 {
        values.push(busy / (received("bytes")? / 1e9));
    }
    Ok(values)
}
