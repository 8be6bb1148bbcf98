// SPDX-License-Identifier: Apache-2.0

//! What is measured.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure, Context, Result};

use crate::host::busy_seconds;
use crate::load;
use crate::subject::{Subject, SERVER, TCP};

/// Number of idle flows whose memory is measured.
const IDLE: usize = 10_000;
/// Number of UDP flows that send in turn.
const FLOWS: usize = 8;
/// Threads that connect, and that accept.
const CONNECTORS: usize = 4;
/// The port of the server that keeps connections, and its greeting.
const KEEPER: u16 = 5003;
const KEEPING: &str = "keeping";
const PATIENCE: Duration = Duration::from_secs(5);

/// A figure; some give several values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Gbit/s; with several streams also CPU seconds per GB.
    Tcp { streams: u8, up: bool },
    /// Packets per second.
    Udp { up: bool },
    /// The same with 33 to 64 bytes, each longer than the one before, so that UDP_SEGMENT cannot be
    /// used.
    Mixed { up: bool },
    /// The same with [`FLOWS`] flows that send one datagram each in turn.
    Flows,
    /// Connections per second.
    Connect,
    /// The median and the 99th percentile.
    RoundTrip,
    /// Memory at [`IDLE`] flows.
    Memory,
}

pub(crate) const FIGURES: [Figure; 12] = [
    Figure::Tcp { streams: 1, up: true },
    Figure::Tcp { streams: 1, up: false },
    Figure::Tcp { streams: 8, up: true },
    Figure::Tcp { streams: 8, up: false },
    Figure::Udp { up: true },
    Figure::Udp { up: false },
    Figure::Mixed { up: true },
    Figure::Mixed { up: false },
    Figure::Flows,
    Figure::Connect,
    Figure::RoundTrip,
    Figure::Memory,
];

impl Figure {
    /// What its values are called, and whether more is better.
    pub(crate) fn rows(self) -> &'static [(&'static str, bool)] {
        match self {
            Self::Tcp { streams: 1, up: true } => &[("TCP up, 1 stream, Gbit/s", true)],
            Self::Tcp { streams: 1, up: false } => &[("TCP down, 1 stream, Gbit/s", true)],
            Self::Tcp { up: true, .. } => &[
                ("TCP up, 8 streams, Gbit/s", true),
                ("TCP up: own CPU seconds a GB", false),
                ("TCP up: all CPU seconds a GB", false),
            ],
            Self::Tcp { up: false, .. } => &[
                ("TCP down, 8 streams, Gbit/s", true),
                ("TCP down: own CPU seconds a GB", false),
                ("TCP down: all CPU seconds a GB", false),
            ],
            Self::Udp { up: true } => &[("UDP up, 64 B, k packets/s", true)],
            Self::Udp { up: false } => &[("UDP down, 64 B, k packets/s", true)],
            Self::Mixed { up: true } => &[("UDP up, 33–64 B mixed, k packets/s", true)],
            Self::Mixed { up: false } => &[("UDP down, 33–64 B mixed, k packets/s", true)],
            Self::Flows => &[("UDP up, 64 B, 8 flows in turn, k packets/s", true)],
            Self::Connect => &[("TCP connections/s", true)],
            Self::RoundTrip => &[("round trip p50, µs", false), ("round trip p99, µs", false)],
            Self::Memory => &[("memory at 10,000 idle flows, MB", false)],
        }
    }

    pub(crate) fn take(self, subject: &Subject<'_>, time: Duration) -> Result<Vec<f64>> {
        match self {
            Self::Tcp { streams, up } => tcp(subject, streams, up, time),
            Self::Udp { up } => datagrams(subject, up, &[64], time),
            Self::Mixed { up } => datagrams(subject, up, &(33..=64).collect::<Vec<_>>(), time),
            Self::Flows => {
                let (clients, server) = subject.sockets(FLOWS)?;
                let clients: Vec<_> = clients.iter().collect();
                Ok(vec![load::interleaved(&clients, &server, 64, time)? / 1e3])
            }
            Self::Connect => connect(subject, time),
            Self::RoundTrip => {
                let (client, server) = subject.pair()?;
                let (p50, p99) = load::round_trip((&client, &server), time, || Ok(()))?;
                Ok(vec![p50, p99])
            }
            Self::Memory => idle(subject),
        }
    }
}

/// Thousands of datagrams per second of these sizes, in turn.
fn datagrams(subject: &Subject<'_>, up: bool, sizes: &[usize], time: Duration) -> Result<Vec<f64>> {
    let (client, server) = subject.pair()?;
    let ends = if up { (&client, &server) } else { (&server, &client) };
    Ok(vec![load::datagrams(ends, sizes, time)? / 1e3])
}

/// Gbit/s that arrive.
fn tcp(subject: &Subject<'_>, streams: u8, up: bool, time: Duration) -> Result<Vec<f64>> {
    let line = format!(
        "iperf3 -J -C cubic -t {} -P {streams} -c {} {}",
        time.as_secs(),
        subject.server(),
        if up { "" } else { "-R" }
    );
    let (all, own) = (busy_seconds()?, subject.cpu_seconds()?);
    let json: serde_json::Value = serde_json::from_str(&subject.guest.run(&line)?)?;
    let (all, own) = (busy_seconds()? - all, subject.cpu_seconds()? - own);
    let received = |what: &str| {
        let value = json["end"]["sum_received"][what].as_f64();
        value.with_context(|| format!("iperf3 said {json}"))
    };
    let mut values = vec![received("bits_per_second")? / 1e9];
    if streams > 1 {
        let gb = received("bytes")? / 1e9;
        values.extend([own / gb, all / gb]);
    }
    Ok(values)
}

/// How often per second several threads can connect, send a byte, get one back, and close.
fn connect(subject: &Subject<'_>, time: Duration) -> Result<Vec<f64>> {
    let listener = subject.hosts.server.enter(|| Ok(TcpListener::bind((SERVER, TCP))?))?;
    listener.set_nonblocking(true)?;
    let (done, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let to = SocketAddr::new(subject.server(), TCP);
    let begin = Instant::now();
    let elapsed = thread::scope(|scope| -> Result<Duration> {
        for _ in 0..CONNECTORS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => drop(echo(stream)),
                        Err(_) => thread::sleep(Duration::from_micros(50)),
                    }
                }
            });
        }
        let result = subject.guest.enter(|| {
            // Threads have their parent's namespace.
            thread::scope(|scope| {
                let threads: Vec<_> = (0..CONNECTORS)
                    .map(|_| {
                        scope.spawn(|| -> Result<()> {
                            while begin.elapsed() < time {
                                exchange(to)?;
                                count.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(())
                        })
                    })
                    .collect();
                threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow!("a thread"))?)
            })?;
            Ok(begin.elapsed())
        });
        done.store(true, Ordering::Relaxed);
        result
    })?;
    Ok(vec![count.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64()])
}

fn exchange(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[1])?;
    let mut byte = [0];
    stream.read_exact(&mut byte).context("the byte back")?;
    stream.shutdown(Shutdown::Write)?;
    // Read to the end, so that the flow ends.
    ensure!(stream.read(&mut byte)? == 0, "more than a byte back");
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

/// Memory with many idle connections. None if they cannot be opened.
fn idle(subject: &Subject<'_>) -> Result<Vec<f64>> {
    // In another process: one process may not have so many descriptors.
    let keeper = std::env::current_exe()?;
    let log = std::env::temp_dir().join(format!("clatlab-{}-keeper.log", std::process::id()));
    let mut keeper = subject.hosts.server.spawn(&[keeper.as_os_str(), "--keep".as_ref()], &log)?;
    keeper.wait_for(KEEPING)?;
    let to = SocketAddr::new(subject.server(), KEEPER);
    let streams = subject.guest.enter(|| {
        let mut streams = Vec::with_capacity(IDLE);
        for _ in 0..IDLE {
            // Some carriers have no room for so many.
            let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else { break };
            stream.set_read_timeout(Some(PATIENCE))?;
            if stream.read_exact(&mut [0]).is_err() {
                break;
            }
            streams.push(stream);
        }
        Ok(streams)
    })?;
    let memory = subject.memory();
    let _ = std::fs::remove_file(log);
    if streams.len() < IDLE {
        eprintln!("{}: no more than {} flows", subject.kind.name(), streams.len());
    }
    if streams.len() < IDLE / 10 * 9 {
        return Ok(Vec::new());
    }
    // (A limit of descriptors may end it a little early.)
    Ok(vec![memory * IDLE as f64 / streams.len() as f64])
}

/// Greets each client, and keeps all connections open until the process ends.
pub(crate) fn keep() -> Result<()> {
    let listener = TcpListener::bind((SERVER, KEEPER))?;
    writeln!(std::io::stdout(), "{KEEPING}")?;
    let mut streams = Vec::new();
    loop {
        let (mut stream, _) = listener.accept()?;
        if stream.write_all(&[1]).is_ok() {
            streams.push(stream);
        }
    }
}
