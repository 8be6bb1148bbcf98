// SPDX-License-Identifier: Apache-2.0

//! The traffic during a change, and the outage in it.

use std::error::Error;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use clat_tests::{Lab, Netns, SERVER6};

/// The server's.
pub(crate) const PORT: u16 = 7;
/// Interval of datagrams.
const PACE: Duration = Duration::from_millis(2);
/// A later answer counts as lost.
const LATE: Duration = Duration::from_millis(500);
/// Number of consecutive answers after which it works again.
const STEADY: usize = 200;
/// Timeout without answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing arrived, as long as it was waited for.
#[derive(Debug)]
pub(crate) struct Never;

impl fmt::Display for Never {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing arrives any more")
    }
}

impl Error for Never {}

/// Runs an echo server on the internet during `during`.
pub(crate) fn with_echo<T>(lab: &Lab, during: impl FnOnce() -> Result<T>) -> Result<T> {
    with_echo_at(&lab.internet, SERVER6, during)
}

/// Runs an echo server on this address during `during`.
pub(crate) fn with_echo_at<T>(
    ns: &Netns,
    address: impl Into<IpAddr>,
    during: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let server = Lab::udp(ns, (address.into(), PORT))?;
    server.set_read_timeout(Some(Duration::from_millis(50)))?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut datagram = [0; 64];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((len, from)) = server.recv_from(&mut datagram) {
                    // Without a route back it is lost, as on any network.
                    let _ = server.send_to(&datagram[..len], from);
                }
            }
        });
        let done = during();
        ended.store(true, Ordering::Relaxed);
        done
    })
}

/// One datagram, by its own socket, which gets the source address of the time of sending.
struct Sent {
    at: Instant,
    /// `None` if it could not be sent.
    socket: Option<UdpSocket>,
    is_answered: bool,
}

/// Sends datagrams to `to`, makes the change, and returns how long none was answered.
pub(crate) fn outage(
    lab: &Lab,
    to: impl Into<IpAddr>,
    change: impl FnOnce() -> Result<()> + Send,
) -> Result<Duration> {
    let to = SocketAddr::new(to.into(), PORT);
    let unspecified: IpAddr = match to {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    with_echo(lab, || {
        lab.phone.enter(|| {
            let send = || -> Result<UdpSocket> {
                let socket = UdpSocket::bind((unspecified, 0))?;
                socket.set_nonblocking(true)?;
                socket.connect(to)?;
                socket.send(&[0; 16])?;
                Ok(socket)
            };
            let mut sent: Vec<Sent> = Vec::new();
            let mut flow = |until: &dyn Fn(&[Sent]) -> bool| -> Result<()> {
                let begun = Instant::now();
                while !until(&sent) {
                    ensure!(begun.elapsed() < PATIENCE, Never);
                    let at = Instant::now();
                    sent.push(Sent { at, socket: send().ok(), is_answered: false });
                    thread::sleep(PACE);
                    let late = sent.partition_point(|it| it.at.elapsed() > LATE);
                    // Their sockets are no longer polled.
                    for it in sent[..late].iter_mut().rev().take_while(|it| it.socket.is_some()) {
                        it.socket = None;
                    }
                    for it in &mut sent[late..] {
                        let Some(socket) = &it.socket else { continue };
                        if socket.recv(&mut [0; 64]).is_ok() {
                            (it.is_answered, it.socket) = (true, None);
                        }
                    }
                }
                Ok(())
            };
            let is_steady = |sent: &[Sent]| {
                let answered =
                    |it: &Sent| it.is_answered || it.at.elapsed() < Duration::from_millis(50);
                sent.len() >= STEADY && sent.iter().rev().take(STEADY).all(answered)
            };
            flow(&is_steady).map_err(|e| anyhow!("before the change: {e}"))?;
            let changed = AtomicBool::new(false);
            let at = Instant::now();
            thread::scope(|scope| {
                let changing = scope.spawn(|| {
                    let done = change();
                    changed.store(true, Ordering::Relaxed);
                    done
                });
                // Changes that take a while, and later effects of them.
                let settled = |sent: &[Sent]| {
                    changed.load(Ordering::Relaxed)
                        && at.elapsed() > Duration::from_secs(2)
                        && is_steady(sent)
                };
                let flowed = flow(&settled);
                changing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                flowed
            })?;
            longest_gap(&sent)
        })
    })
}

/// The longest time between the last answered datagram before a gap and the first one after it,
/// less the interval of datagrams.
fn longest_gap(sent: &[Sent]) -> Result<Duration> {
    let answered: Vec<_> = sent.iter().filter(|it| it.is_answered).map(|it| it.at).collect();
    let gaps = answered.windows(2).map(|pair| pair[1] - pair[0]);
    let longest = gaps.max().context("no answer at all")?;
    // A datagram is not lost for longer than until the next is sent.
    let usual = sent.windows(2).map(|pair| pair[1].at - pair[0].at).min().unwrap_or_default();
    Ok(longest.saturating_sub(usual))
}

/// Uploads to `to`, makes the change, and returns how long no data arrived.
pub(crate) fn upload_stall(
    lab: &Lab,
    to: impl Into<IpAddr>,
    change: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    let listener = Lab::listen(&lab.internet, (SERVER6, 80))?;
    let mut client = Lab::connect(&lab.phone, (to.into(), 80))?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(PATIENCE))?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let block = [0xa5; 1 << 14];
            while !ended.load(Ordering::Relaxed) {
                // The server resets it at the end.
                if client.write_all(&block).is_err() {
                    break;
                }
            }
        });
        let mut block = [0; 1 << 16];
        let mut read = |bytes: usize| -> Result<Duration> {
            let (mut left, mut longest, mut last) = (bytes, Duration::ZERO, Instant::now());
            while left > 0 {
                let read = match server.read(&mut block) {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => bail!(Never),
                    read => read?,
                };
                ensure!(read > 0, "it ends");
                left = left.saturating_sub(read);
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Ok(longest)
        };
        let flowed = read(4 << 20).and_then(|_| change()).and_then(|()| read(32 << 20));
        ended.store(true, Ordering::Relaxed);
        drop(server);
        drop(sender.join());
        flowed
    })
}
