//! Datagrams by the batch, sent at a rate and counted where they arrive, and single ones there and back.

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
/// Payload of each datagram that a call with UDP_SEGMENT makes, and how many it makes.
const SEGMENT: u16 = 1200;
const SEGMENTS: usize = 50;

/// What both ends of a load saw.
struct Seen {
    sent: u64,
    received: u64,
    /// From the first that was sent.
    until_last_sent: Duration,
    until_last_received: Duration,
}

impl Seen {
    fn sent_rate(&self) -> f64 {
        self.sent as f64 / self.until_last_sent.as_secs_f64()
    }

    fn passed(&self) -> bool {
        self.received as f64 >= self.sent as f64 * (1.0 - LOSS)
    }
}

/// Datagrams a second of these sizes, in turn, at less than [`LOSS`]. Takes about three times `time`.
pub(crate) fn datagrams(
    (from, to): (&UdpSocket, &UdpSocket),
    sizes: &[usize],
    time: Duration,
) -> Result<f64> {
    let trial = |rate: f64| -> Result<Seen> {
        let time = time.mul_f64(0.3);
        let payloads: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
        load(to, |sent| paced(from, &payloads, rate, time, sent))
    };
    // As fast as it goes; what was lost then does not tell what would be lost at less.
    let most = trial(f64::INFINITY)?;
    if most.passed() {
        return Ok(most.sent_rate());
    }
    let (mut good, mut bad) = (most.sent_rate() / 32.0, most.sent_rate());
    while bad / good > 1.04 {
        let rate = (good * bad).sqrt();
        // Once more where it failed: a machine that stood still for a moment loses packets, too.
        let mut seen = trial(rate)?;
        if !seen.passed() {
            seen = trial(rate)?;
        }
        if !seen.passed() {
            bad = rate;
        } else if seen.sent_rate() < rate * 0.97 {
            // The sender itself went no faster.
            return Ok(seen.sent_rate());
        } else {
            good = rate;
        }
    }
    Ok(good)
}

/// Datagrams a second that arrive of what UDP_SEGMENT sends as fast as it can.
pub(crate) fn segments((from, to): (&UdpSocket, &UdpSocket), time: Duration) -> Result<f64> {
    setsockopt(from, sockopt::UdpGsoSegment, &i32::from(SEGMENT))?;
    let payload = vec![0; usize::from(SEGMENT) * SEGMENTS];
    let seen = load(to, |sent| {
        let begin = Instant::now();
        while begin.elapsed() < time {
            // What is refused is lost.
            let _ = from.send(&payload);
            sent.fetch_add(SEGMENTS as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    setsockopt(from, sockopt::UdpGsoSegment, &0)?;
    let seen = seen?;
    Ok(seen.received as f64 / seen.until_last_received.as_secs_f64())
}

/// Sends by `send`, which counts, and receives until nothing comes any more.
fn load(to: &UdpSocket, send: impl FnOnce(&AtomicU64) -> Result<()>) -> Result<Seen> {
    to.set_read_timeout(Some(SILENCE))?;
    let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let begin = Instant::now();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(to, begin, &sent, &done));
        let result = send(&sent);
        let until_last_sent = begin.elapsed();
        done.store(true, Ordering::Release);
        let received = receiver.join().map_err(|_| anyhow!("the receiver's thread"))?;
        result?;
        let (received, until_last_received) = received?;
        let sent = sent.load(Ordering::Relaxed);
        Ok(Seen { sent, received, until_last_sent, until_last_received })
    })
}

/// Counts what arrives until all did, or nothing more does.
fn receive(
    to: &UdpSocket,
    begin: Instant,
    sent: &AtomicU64,
    done: &AtomicBool,
) -> Result<(u64, Duration)> {
    let mut bufs = vec![[0; 2048]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let (mut received, mut last) = (0, begin);
    loop {
        let mut slices: Vec<_> = bufs.iter_mut().map(|buf| [IoSliceMut::new(buf)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        match recvmmsg(to.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
            Ok(results) => {
                received += results.count() as u64;
                last = Instant::now();
            }
            Err(Errno::EINTR) => {}
            // Silence.
            Err(Errno::EAGAIN) if done.load(Ordering::Acquire) => break,
            Err(Errno::EAGAIN) => {}
            Err(e) => return Err(e).context("recvmmsg"),
        }
        if done.load(Ordering::Acquire) && received >= sent.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok((received, last - begin))
}

/// Sends `payloads` in turn at `rate` for `time`.
fn paced(
    from: &UdpSocket,
    payloads: &[Vec<u8>],
    rate: f64,
    time: Duration,
    sent: &AtomicU64,
) -> Result<()> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let slices: Vec<_> =
        payloads.iter().cycle().take(BATCH).map(|payload| [IoSlice::new(payload)]).collect();
    let begin = Instant::now();
    let mut count = 0_u64;
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
        let batch = slices.iter();
        let none = [None; BATCH];
        match sendmmsg(from.as_raw_fd(), &mut headers, batch, none, [], MsgFlags::empty()) {
            Ok(results) => count += results.count() as u64,
            // A full queue is a loss that the sender sees; both count.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED) => count += 1,
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
