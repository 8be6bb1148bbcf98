// SPDX-License-Identifier: Apache-2.0

//! Datagrams by the batch, sent at a rate and counted where they arrive, and single ones there and
//! back.

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

/// Of packets sent, that may be lost for a rate to count.
const LOSS: f64 = 0.001;
/// Datagrams of one call, at most.
const BATCH: usize = 32;
/// Nothing more is under way when nothing has come for so long.
const SILENCE: Duration = Duration::from_millis(60);
/// How often the receiver looks. It does not wait in a call, since whoever delivers would pay for
/// waking it each time.
const LOOK: Duration = Duration::from_micros(400);
/// Payload of each datagram that a call with UDP_SEGMENT makes, and how many it makes.
const SEGMENT: u16 = 1200;
const SEGMENTS: usize = 50;

/// What both ends of a load saw.
struct Seen {
    sent: u64,
    received: u64,
    /// How long the sending took.
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

/// Datagrams a second of these sizes, in turn, at less than [`LOSS`]. Takes about three times
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

/// Datagrams a second of this size that several flows send in turn, at less than [`LOSS`]. Takes
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

/// Datagrams a second that UDP_SEGMENT makes, at less than [`LOSS`]. Takes about three times
/// `time`.
pub(crate) fn segments((from, to): (&UdpSocket, &UdpSocket), time: Duration) -> Result<f64> {
    setsockopt(from, sockopt::UdpGsoSegment, &i32::from(SEGMENT))?;
    let payload = vec![0; usize::from(SEGMENT) * SEGMENTS];
    let train = [[IoSlice::new(&payload)]];
    search(time, |rate, time| {
        load(to, |sent| paced(&[from], &train, SEGMENTS as u64, rate, time, sent))
    })
}

/// The highest rate of which `trial` loses less than [`LOSS`].
fn search(time: Duration, trial: impl Fn(f64, Duration) -> Result<Seen>) -> Result<f64> {
    // Once more where it failed: a machine that stood still for a moment loses packets, too.
    let trial = |rate| {
        let first = trial(rate, time.mul_f64(0.3))?;
        if first.passed() || rate.is_infinite() {
            return Ok(first);
        }
        trial(rate, time.mul_f64(0.3))
    };
    // As fast as it goes; what was lost then does not tell what would be lost at less.
    let most = trial(f64::INFINITY)?;
    // Where a full queue is told at once, far more was sent than could go anywhere; what arrived is
    // near what can.
    let arrived = most.received as f64 / most.time.as_secs_f64();
    if most.passed() || most.received == 0 {
        return Ok(arrived);
    }
    let (mut good, mut bad, mut passed) = (arrived / 32.0, most.rate(), 0.0);
    // Not for ever: a rate that passes now and then moves both ends.
    for turn in 0..12 {
        // Where nothing lies between, the failure above is looked at again: it may have been the
        // machine's.
        let between = bad / good > 1.04;
        let rate = match (turn, between) {
            (0, _) => arrived * 0.97,
            (_, true) => (good * bad).sqrt(),
            (_, false) => good * 1.2,
        };
        let seen = trial(rate)?;
        match (seen.passed(), between) {
            // The sender itself went no faster.
            (true, _) if seen.rate() < rate * 0.97 => return Ok(seen.rate()),
            (true, true) => (good, passed) = (rate, rate),
            (true, false) => (good, passed, bad) = (rate, rate, most.rate().max(rate * 1.2)),
            (false, true) => bad = rate,
            (false, false) => break,
        }
    }
    // None that was not tried.
    Ok(passed)
}

/// Sends by `send`, which counts, and receives until nothing comes any more.
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

/// Counts what arrives until all did, or nothing more does.
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

/// Sends `batch`, in which each message makes `each` datagrams, again and again for `time`, at
/// `rate` datagrams a second, by these sockets in turn.
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
            // Asleep rather than spinning: others need the CPU.
            if ahead > Duration::from_micros(50) {
                thread::sleep(ahead);
            }
            continue;
        }
        let none = MsgFlags::empty();
        let from = turns.next().context("no socket")?;
        match sendmmsg(from.as_raw_fd(), &mut headers, batch, &to, [], none) {
            Ok(results) => count += results.count() as u64 * each,
            // A full queue is a loss that the sender sees; both count.
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
        // With the echo's thread there.
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
