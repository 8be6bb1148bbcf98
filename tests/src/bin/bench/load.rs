// SPDX-License-Identifier: Apache-2.0

//! Loads of datagrams: batches sent at a rate and counted on arrival, and round trips of single
//! ones.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, Context, Result};
use clat_tests::wire::uninterrupted;
use nix::errno::Errno;
use nix::sys::socket::{
    recvmmsg, sendmmsg, setsockopt, sockopt, MsgFlags, MultiHeaders, SockaddrStorage,
};

/// The most loss at which a rate counts.
const LOSS: f64 = 0.001;
/// Most datagrams of one call.
const BATCH: usize = 32;
/// All packets have arrived or are lost after this time without one.
const SILENCE: Duration = Duration::from_millis(60);
/// How often the receiver polls. A blocked receiver would make the sender pay for waking it each
/// time.
const LOOK: Duration = Duration::from_micros(400);
/// Payload of each datagram that a call with UDP_SEGMENT makes, and how many it makes.
const SEGMENT: u16 = 1200;
const SEGMENTS: usize = 50;

/// What both ends counted.
struct Seen {
    sent: u64,
    received: u64,
    /// Duration of sending.
    time: Duration,
}

impl Seen {
    /// Datagrams a second.
    fn rate(&self) -> f64 {
        self.sent as f64 / self.time.as_secs_f64()
    }

    fn passed(&self) -> bool {
        self.received as f64 >= self.sent as f64 * (1.0 - LOSS)
    }
}

/// Datagrams per second of these sizes, in turn, at less than [`LOSS`]. Takes about three times
/// `time`.
pub(crate) fn datagrams(
    (from, to): (&UdpSocket, &UdpSocket),
    sizes: &[usize],
    time: Duration,
) -> Result<f64> {
    let payloads: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
    let batch: Vec<_> =
        payloads.iter().cycle().take(BATCH).map(|payload| [IoSlice::new(payload)]).collect();
    search(time, |rate, time| load(to, |sent| paced(&[from], &batch, 1, rate, time, sent)))
}

/// Datagrams per second of this size that several flows send in turn, at less than [`LOSS`]. Takes
/// about three times `time`.
pub(crate) fn interleaved(
    from: &[&UdpSocket],
    to: &UdpSocket,
    size: usize,
    time: Duration,
) -> Result<f64> {
    let payload = vec![0; size];
    let one = [[IoSlice::new(&payload)]];
    search(time, |rate, time| load(to, |sent| paced(from, &one, 1, rate, time, sent)))
}

/// Datagrams per second sent with UDP_SEGMENT, at less than [`LOSS`]. Takes about three times
/// `time`.
pub(crate) fn segments((from, to): (&UdpSocket, &UdpSocket), time: Duration) -> Result<f64> {
    setsockopt(from, sockopt::UdpGsoSegment, &i32::from(SEGMENT))?;
    let payload = vec![0; usize::from(SEGMENT) * SEGMENTS];
    let gso = [[IoSlice::new(&payload)]];
    search(time, |rate, time| {
        load(to, |sent| paced(&[from], &gso, SEGMENTS as u64, rate, time, sent))
    })
}

/// The highest rate at which `trial` loses less than [`LOSS`].
fn search(time: Duration, trial: impl Fn(f64, Duration) -> Result<Seen>) -> Result<f64> {
    // Try twice: a machine that stalls for a moment loses packets, too.
    let trial = |rate| {
        let first = trial(rate, time.mul_f64(0.3))?;
        if first.passed() || rate.is_infinite() {
            return Ok(first);
        }
        trial(rate, time.mul_f64(0.3))
    };
    // As fast as possible; the loss then does not tell the loss at a lower rate.
    let most = trial(f64::INFINITY)?;
    // If a full queue fails at once, far more was sent than could arrive; the rate of arrival is
    // near the possible one.
    let arrived = most.received as f64 / most.time.as_secs_f64();
    if most.passed() || most.received == 0 {
        return Ok(arrived);
    }
    let (mut good, mut bad, mut passed) = (arrived / 32.0, most.rate(), 0.0);
    // Bounded: a rate that passes now and then moves both ends.
    for turn in 0..12 {
        // If nothing is left between, repeat the failed rate, which may have been the machine's
        // fault.
        let between = bad / good > 1.04;
        let rate = match (turn, between) {
            (0, _) => arrived * 0.97,
            (_, true) => (good * bad).sqrt(),
            (_, false) => good * 1.2,
        };
        let seen = trial(rate)?;
        match (seen.passed(), between) {
            // The sender could not go faster.
            (true, _) if seen.rate() < rate * 0.97 => return Ok(seen.rate()),
            (true, true) => (good, passed) = (rate, rate),
            (true, false) => (good, passed, bad) = (rate, rate, most.rate().max(rate * 1.2)),
            (false, true) => bad = rate,
            (false, false) => break,
        }
    }
    // A rate that was tried.
    Ok(passed)
}

/// Sends with `send`, which counts, and receives until nothing more arrives.
fn load(to: &UdpSocket, send: impl FnOnce(&AtomicU64) -> Result<()>) -> Result<Seen> {
    let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(to, &sent, &done));
        let begin = Instant::now();
        let result = send(&sent);
        let time = begin.elapsed();
        done.store(true, Ordering::Release);
        let received = receiver.join().map_err(|_| anyhow!("the receiver's thread"))?;
        result?;
        Ok(Seen { sent: sent.load(Ordering::Relaxed), received: received?, time })
    })
}

/// Counts arrivals until all have arrived, or nothing more does.
fn receive(to: &UdpSocket, sent: &AtomicU64, done: &AtomicBool) -> Result<u64> {
    let mut bufs = vec![[0; 2048]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let (mut received, mut last) = (0, Instant::now());
    loop {
        let mut slices: Vec<_> = bufs.iter_mut().map(|buf| [IoSliceMut::new(buf)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(to.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
            Ok(results) => {
                received += results.count() as u64;
                last = Instant::now();
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let ended = done.load(Ordering::Acquire);
                if ended && (received >= sent.load(Ordering::Relaxed) || last.elapsed() > SILENCE) {
                    return Ok(received);
                }
                thread::sleep(LOOK);
            }
            Err(e) => return Err(e).context("recvmmsg"),
        }
    }
}

/// Sends `batch`, whose messages make `each` datagrams, repeatedly for `time`, at `rate` datagrams
/// per second, by these sockets in turn.
fn paced(
    from: &[&UdpSocket],
    batch: &[[IoSlice<'_>; 1]],
    each: u64,
    rate: f64,
    time: Duration,
    sent: &AtomicU64,
) -> Result<()> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(batch.len(), None);
    let to = vec![None; batch.len()];
    let begin = Instant::now();
    let mut count = 0;
    let mut turns = from.iter().cycle();
    loop {
        let elapsed = begin.elapsed();
        if elapsed >= time {
            return Ok(());
        }
        let due = Duration::from_secs_f64(count as f64 / rate);
        if let Some(ahead) = due.checked_sub(elapsed) {
            // Sleep, do not spin: others need the CPU.
            if ahead > Duration::from_micros(50) {
                thread::sleep(ahead);
            }
            continue;
        }
        let none = MsgFlags::empty();
        let from = turns.next().context("no socket")?;
        match sendmmsg(from.as_raw_fd(), &mut headers, batch, &to, [], none) {
            Ok(results) => count += results.count() as u64 * each,
            // A full queue is a loss seen by the sender; both count.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED) => count += each,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("sendmmsg"),
        }
        sent.store(count, Ordering::Relaxed);
    }
}

/// Median and 99th percentile of a round trip of 64 bytes, µs.
pub(crate) fn round_trip(
    (client, server): (&UdpSocket, &UdpSocket),
    time: Duration,
    ready: impl FnOnce() -> Result<()>,
) -> Result<(f64, f64)> {
    for socket in [client, server] {
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    }
    let mut times = Vec::new();
    thread::scope(|scope| -> Result<()> {
        // An empty datagram ends it.
        let echo = scope.spawn(|| -> std::io::Result<()> {
            let mut buf = [0; 64];
            loop {
                let n = uninterrupted(|| server.recv(&mut buf))?;
                server.send(&buf[..n])?;
                if n == 0 {
                    return Ok(());
                }
            }
        });
        // Now that the echo thread runs.
        ready()?;
        let begin = Instant::now();
        while begin.elapsed() < time {
            let sent = Instant::now();
            client.send(&[0; 64])?;
            uninterrupted(|| client.recv(&mut [0; 64]))?;
            times.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        client.send(&[])?;
        uninterrupted(|| client.recv(&mut [0; 64]))?;
        Ok(echo.join().map_err(|_| anyhow!("the echo's thread"))??)
    })?;
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}
