// SPDX-License-Identifier: Apache-2.0

//! The daemon: opens devices and sockets, drops privileges, and runs the loop.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context};
use clat_datapath::forward::Forwarder;
use clat_datapath::next_hop::tun_mtu;
use clat_datapath::next_hop::NextHopCache;
use clat_datapath::path::ClatPath;
use clat_datapath::socket::{
    join_anycast, join_solicited_node, lock_filter, path_mtu, PacketSocket, RawSocket,
};
use clat_datapath::tally::Tally;
use clat_datapath::uplink::Uplink;
use clat_netlink::{addresses6, Address6};
use clat_sandbox::close_standard_input_and_output;
use clat_sys::adopt;
use clat_tun::{default_queues, Tun};
use clat_xlat::{Addresses, Config, Counters, Translator};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{if_nametoindex, InterfaceFlags};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::args::Args;
use crate::counters;
use crate::load::Load;
use crate::logging::say;
use crate::neighbour::{self, Neighbour};
use crate::queue::{Queue, EVENTS};
use crate::{link, privileges};

/// When to check, after the uplink has gone down, whether it still exists. The kernel reports a
/// removed interface only as down; one that comes up again needs nothing.
const RECHECK: Duration = Duration::from_secs(1);

/// If a thread was busy for this percentage of this time, each other queue that had packets gets
/// its own thread.
const BUSY: (u128, Duration) = (75, Duration::from_millis(50));
/// A thread goes to sleep, and its queue back to the first thread, if all of them together would be
/// busy for less than this percentage of this time.
const CALM: (u128, Duration) = (50, Duration::from_secs(1));

/// Epoll data of descriptors that belong to no queue (see `Interest::queue`).
const SIGNALS: u64 = u64::MAX;
const NEIGHBOUR: u64 = u64::MAX - 1;
const ENDED: u64 = u64::MAX - 2;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be opened, or no longer exists; [`crate::neighbour::Duplicate`] if another node
/// has the address.
pub fn run(args: &Args) -> anyhow::Result<()> {
    close_standard_input_and_output()?;
    let uplink = args.interface.as_str();
    let index =
        if_nametoindex(uplink).with_context(|| format!("there is no interface {uplink}"))?;
    let mut tun = open_tun(args)?;

    let asked = path_mtu(Some(uplink), args.mark, link::inside(&args.plat_prefix));
    let mtu6 = link::mtu6_or_least(asked);
    let mut more = Vec::new();
    let (packet, raw, neighbour) = match (args.read_sock, args.write_sock) {
        (Some(read), Some(write)) => {
            let named = |name, fd| adopt(fd).with_context(|| format!("{name} {fd} is not open"));
            let packet = PacketSocket::from_fd(named("--read-sock", read)?).with_context(|| {
                format!("--read-sock {read} is not a suitable raw packet socket")
            })?;
            let raw = RawSocket::from_fd(named("--write-sock", write)?)
                .with_context(|| format!("--write-sock {write} is not a raw IPv6 socket"))?;
            // Some networks learn an address only from its duplicate address detection, so AOSP's
            // clatd sends this solicitation, too. Answers cannot be received: the packet socket and
            // its filter are the caller's.
            let probe = neighbour::solicitation(args.ipv6_addr, neighbour::nonce());
            if let Err(errno) = raw.send_on(&probe, index) {
                log::info!("cannot send a neighbour solicitation on {uplink}: {errno}");
            }
            (packet, raw, None)
        }
        _ => {
            link::configure(tun.name(), args.ipv4_addr, tun_mtu(mtu6))?;
            // The kernel tells the layout of a device only once it is up (see Tun::from_fd).
            let name = tun.name().to_owned();
            tun = Tun::from_fd_as(tun.into(), &name, args.tun_layout.into())?;
            // As root, which may be needed to open /dev/net/tun.
            let queues = more_queues(args, &tun);
            privileges::become_user_for_sockets()?;
            let (packet, raw, neighbour) = open_sockets(args, index)?;
            more = with_sockets(args, index, queues, &packet);
            (packet, raw, neighbour)
        }
    };
    log::info!(
        "{} on {}, {} on {uplink}, prefix {}, IPv6 MTU {mtu6}, queues: {}",
        args.ipv4_addr,
        tun.name(),
        args.ipv6_addr,
        args.plat_prefix,
        1 + more.len()
    );

    let signals = signals().context("cannot take signals")?;
    let prefixes = vec![args.plat_prefix];
    let addresses = Addresses { local: Some(args.local()), prefixes, ..Default::default() };
    let config = Config {
        // IPv4 packets are delivered to this host; no link limits their length.
        mtu4: 65535,
        mtu6,
        router6: args.ipv6_addr,
        ..Default::default()
    };
    let uso = tun.take_offloads().unwrap_or_else(|errno| {
        log::warn!("checksums and segmentation of {} stay with the kernel: {errno}", tun.name());
        false
    });
    let ends: Vec<_> = std::iter::once((tun, packet, raw)).chain(more).collect();
    let packet_sockets = ends.iter().map(|(_, packet, _)| packet.as_fd());
    for socket in packet_sockets.chain(neighbour.as_ref().map(AsFd::as_fd)) {
        lock_filter(socket).context("cannot lock a filter")?;
    }
    let addressed = ends.iter().map(|(_, _, raw)| raw).filter(|raw| !raw.is_connected());
    let addressed: Vec<_> = addressed.map(|raw| raw.as_fd().as_raw_fd()).collect();
    let shares = u32::try_from(ends.len()).unwrap_or(u32::MAX);
    let translators = ends.iter().map(|_| Translator::new(config, addresses.clone(), random16()));
    let translators: Vec<_> = translators.collect::<Result<_, _>>()?;
    let queues = (0..).zip(ends.into_iter().zip(translators));
    let queues = queues.map(|(number, ((tun, packet, raw), translator))| {
        let mut path = ClatPath::new(translator, args.ipv4_addr, uso);
        path.share_limits(shares);
        let next_hop = NextHopCache::new(args.ipv6_addr, args.plat_prefix, mtu6);
        Queue::new(number, Forwarder::new(path, tun, Uplink::new(packet, raw, next_hop)))
    });
    let queues: Vec<_> = queues.collect::<Result<_, _>>().context("cannot make an epoll")?;
    let ended = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .context("cannot make an event")?;

    privileges::drop_all()?;
    let result = thread::scope(|scope| {
        let _end = End(&ended);
        let workers = Workers::new(scope, &queues, &ended, uplink)?;
        privileges::filter_all_threads(&addressed)?;
        serve(args, &signals, &ended, &queues, &workers, neighbour)?;
        drop(End(&ended));
        workers.join()
    });
    say(&counters(uplink, &queues));
    result
}

/// Opens the other queues of the TUN device; none if that fails.
fn more_queues(args: &Args, tun: &Tun) -> Vec<Tun> {
    let count = args.queues.map_or_else(default_queues, usize::from).saturating_sub(1);
    if count > 0 && !tun.takes_queues() {
        log::info!("{} takes one queue only: one thread", tun.name());
        return Vec::new();
    }
    (0..count).map(|_| tun.add_queue()).collect::<Result<_, _>>().unwrap_or_else(|error| {
        log::warn!("cannot open {} queues: {error}; using one", count + 1);
        Vec::new()
    })
}

/// Opens sockets for each queue; the packet sockets form a fanout group with `packet`. None if that
/// fails.
fn with_sockets(
    args: &Args,
    index: u32,
    queues: Vec<Tun>,
    packet: &PacketSocket,
) -> Vec<(Tun, PacketSocket, RawSocket)> {
    if queues.is_empty() {
        return Vec::new();
    }
    let count = queues.len();
    let open = || -> anyhow::Result<Vec<_>> {
        let packets = packet.share(index, args.ipv6_addr, count)?;
        let more = queues
            .into_iter()
            .zip(packets)
            .map(|(tun, packet)| Ok((tun, packet, open_raw_socket(args)?)));
        more.collect()
    };
    open().unwrap_or_else(|error| {
        log::warn!("cannot open sockets for {} queues: {error}; using one", count + 1);
        Vec::new()
    })
}

/// The TUN device passed by the caller; errors name the option.
fn open_tun(args: &Args) -> anyhow::Result<Tun> {
    let fd = adopt(args.tunfd).with_context(|| format!("--tunfd {} is not open", args.tunfd))?;
    let name = format!("v4-{}", args.interface);
    Tun::from_fd_as(fd, &name, args.tun_layout.into())
        .with_context(|| format!("--tunfd {} is not usable", args.tunfd))
}

/// Opens the daemon's own sockets, and begins to answer and defend its address on the uplink.
fn open_sockets(
    args: &Args,
    index: u32,
) -> anyhow::Result<(PacketSocket, RawSocket, Option<Neighbour>)> {
    let (uplink, v6) = (args.interface.as_str(), args.ipv6_addr);
    let packet = PacketSocket::open(index, v6)
        .with_context(|| format!("cannot open a packet socket on {uplink}"))?;
    let raw =
        open_raw_socket(args).with_context(|| format!("cannot open a raw socket on {uplink}"))?;
    let own = addresses6(index).with_context(|| format!("cannot ask for {uplink}'s addresses"))?;
    let is_beside =
        |own: &Address6| own.address != v6 && own.address.segments()[..4] == v6.segments()[..4];
    if !own.iter().any(is_beside) {
        bail!("{v6} cannot be on {uplink}: it must be inside a /64 of {uplink}, not its address");
    }
    if clat_sys::HAS_NETD {
        // On Android, the drop rule covers only packets from the prefix. For others to `v6`, a host
        // that forwards (tethering) would solicit `v6` on the link; the anycast address makes the
        // kernel take them.
        join_anycast(raw.as_fd(), index, v6)
            .with_context(|| format!("cannot make {v6} an anycast address of {uplink}"))?;
    }
    let neighbour = if packet.is_ethernet() && resolves_addresses(uplink) {
        join_solicited_node(raw.as_fd(), index, v6)
            .with_context(|| format!("cannot join the solicited-node group of {v6} on {uplink}"))?;
        let neighbour = Neighbour::start(index, v6).with_context(|| {
            format!("cannot start duplicate address detection for {v6} on {uplink}")
        })?;
        Some(neighbour)
    } else {
        None
    };
    Ok((packet, raw, neighbour))
}

/// A raw socket connected towards the prefix on the uplink.
fn open_raw_socket(args: &Args) -> io::Result<RawSocket> {
    let mut raw = RawSocket::open(&args.interface, args.mark)?;
    raw.connect(link::inside(&args.plat_prefix));
    Ok(raw)
}

/// Whether the interface resolves link-layer addresses (not IFF_NOARP), which is also the kernel's
/// condition for duplicate address detection.
fn resolves_addresses(interface: &str) -> bool {
    getifaddrs().is_ok_and(|mut all| {
        !all.any(|a| a.interface_name == interface && a.flags.contains(InterfaceFlags::IFF_NOARP))
    })
}

fn signals() -> nix::Result<SignalFd> {
    let wanted = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1]);
    wanted.thread_block()?;
    SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Ends all threads when dropped, for whatever reason one of them ends.
struct End<'e>(&'e EventFd);

impl Drop for End<'_> {
    fn drop(&mut self) {
        // Fails only if the counter is full, so it is readable already.
        let _ = self.0.write(1);
    }
}

/// The threads that serve the other queues under load. Asleep otherwise.
struct Workers<'s> {
    wake: Vec<mpsc::Sender<()>>,
    threads: Vec<ScopedJoinHandle<'s, anyhow::Result<()>>>,
}

impl<'s> Workers<'s> {
    /// Starts the threads, and returns when all run: the system call filter allows no new ones.
    fn new(
        scope: &'s Scope<'s, '_>,
        queues: &'s [Queue],
        ended: &'s EventFd,
        uplink: &'s str,
    ) -> anyhow::Result<Self> {
        let mut workers = Self { wake: Vec::new(), threads: Vec::new() };
        let Some((first, others)) = queues.split_first() else { return Ok(workers) };
        let calm = CALM.0 / queues.len() as u128;
        let (started, starts) = mpsc::channel();
        for queue in others {
            queue.epoll().add(ended, readable(ENDED))?;
            let (wake, woken) = mpsc::channel();
            let started = started.clone();
            let work = move || {
                let _end = End(ended);
                let _ = started.send(());
                while let Ok(()) = woken.recv() {
                    queue.enter(queue.epoll())?;
                    if !serve_while_busy(queue, calm, uplink)? {
                        break;
                    }
                    queue.leave(queue.epoll())?;
                    queue.enter(first.epoll())?;
                }
                Ok(())
            };
            let thread = thread::Builder::new().spawn_scoped(scope, work);
            workers.threads.push(thread.context("cannot start a thread")?);
            workers.wake.push(wake);
        }
        for _ in others {
            starts.recv()?;
        }
        Ok(workers)
    }

    /// Waits for all threads, which were told to end.
    fn join(self) -> anyhow::Result<()> {
        drop(self.wake);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    }
}

/// Serves a queue until the load is low; returns false when the daemon ends.
fn serve_while_busy(queue: &Queue, calm: u128, uplink: &str) -> anyhow::Result<bool> {
    let mut load = Load::new(Instant::now());
    let mut buf = [EpollEvent::empty(); EVENTS];
    loop {
        let before = Instant::now();
        let events = queue.wait(&mut buf, before, Some(before + CALM.1))?;
        let now = Instant::now();
        if events.iter().any(|event| event.data() == ENDED) {
            return Ok(false);
        }
        // Ignore whether the link is down: the first queue's socket reports it as well.
        queue.poll(queue.epoll(), events, uplink, now)?;
        load.waited(now - before);
        if load.busy(now, CALM.1).is_some_and(|busy| busy < calm) {
            return Ok(true);
        }
    }
}

/// Serves the first queue, and those that are not served by their own thread.
fn serve(
    args: &Args,
    signals: &SignalFd,
    ended: &EventFd,
    queues: &[Queue],
    workers: &Workers<'_>,
    mut neighbour: Option<Neighbour>,
) -> anyhow::Result<()> {
    let Some((own, others)) = queues.split_first() else { return Ok(()) };
    let uplink = args.interface.as_str();
    let epoll = own.epoll();
    epoll.add(signals, readable(SIGNALS))?;
    epoll.add(ended, readable(ENDED))?;
    if let Some(neighbour) = &neighbour {
        epoll.add(neighbour.as_fd(), readable(NEIGHBOUR))?;
    }
    for queue in queues {
        queue.enter(epoll)?;
    }
    let mut buf = [EpollEvent::empty(); EVENTS];
    // When to check whether an uplink that has gone down still exists.
    let mut recheck: Option<Instant> = None;
    let mut load = Load::new(Instant::now());
    // Which queues had packets since the load was last checked.
    let mut served = vec![false; queues.len()];
    loop {
        let now = Instant::now();
        let probing = neighbour.as_ref().and_then(Neighbour::deadline);
        if probing.is_some_and(|until| until <= now) {
            neighbour.as_mut().map_or(Ok(()), |neighbour| neighbour.poll(now))?;
        }
        if recheck.is_some_and(|at| at <= now) {
            recheck = None;
            if !own.has_interface() {
                bail!("{uplink} is gone");
            }
        }
        // Without a deadline, only packets and signals wake the thread.
        let probing = neighbour.as_ref().and_then(Neighbour::deadline);
        let deadline = probing.into_iter().chain(recheck).min();
        let events = own.wait(&mut buf, now, deadline)?;
        if !others.is_empty() {
            load.waited(now.elapsed());
        }
        for event in events {
            match event.data() {
                NEIGHBOUR => {
                    neighbour.as_mut().map_or(Ok(()), |neighbour| neighbour.poll(now))?;
                }
                SIGNALS => {
                    while let Some(signal) = signals.read_signal()? {
                        if signal.ssi_signo != Signal::SIGUSR1 as u32 {
                            return Ok(());
                        }
                        say(&counters(uplink, queues));
                    }
                }
                ENDED => return Ok(()),
                _ => {}
            }
        }
        for (queue, served) in queues.iter().zip(&mut served) {
            if !queue.is_named(events) {
                continue;
            }
            *served = true;
            if queue.poll(epoll, events, uplink, now)? && recheck.is_none() {
                log::warn!("{uplink} is down");
                recheck = Some(Instant::now() + RECHECK);
            }
        }
        if others.is_empty() {
            continue;
        }
        if let Some(busy) = load.busy(Instant::now(), BUSY.1) {
            let alone = served.iter().filter(|served| **served).count() < 2;
            for (at, queue) in others.iter().enumerate() {
                if served[1 + at] && busy >= BUSY.0 && !alone {
                    queue.leave(epoll)?;
                    workers.wake[at].send(())?;
                }
            }
            served.fill(false);
        }
    }
}

fn readable(name: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, name)
}

/// The line of counters.
fn counters(uplink: &str, queues: &[Queue]) -> String {
    let (mut counters, mut tally) = (Counters::default(), Tally::default());
    for queue in queues {
        let (more, beside) = queue.counters();
        counters += more;
        tally += beside;
    }
    counters::line(uplink, &counters, &tally)
}

fn random16() -> u16 {
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u16::from_ne_bytes([a, b])
}
