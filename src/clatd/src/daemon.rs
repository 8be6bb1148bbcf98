//! The daemon: what it opens, in which order it gives up its privileges, and its loop.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use clat_tun::Tun;
use clat_xlat::{Addresses, Config, Translator};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{if_nametoindex, InterfaceFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::args::Args;
use crate::forward::{Forwarder, Side, Turn};
use crate::interest::Interest;
use crate::neighbour::Probe;
use crate::socket::{adopt, join_anycast, path_mtu, PacketSocket, RawSocket};
use crate::uplink::Uplink;
use crate::way::Way;
use crate::{link, privileges};

/// An interface that is removed goes down first, and the kernel tells of that only. When it comes up again, so do its
/// packets.
const RECHECK: Duration = Duration::from_secs(1);

/// What the other descriptors are called in the loop.
const SIGNALS: u64 = 10;
const PROBE: u64 = 11;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be had or has gone; [`crate::neighbour::Duplicate`] when another node has the address.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let uplink = args.interface.as_str();
    let index =
        if_nametoindex(uplink).with_context(|| format!("there is no interface {uplink}"))?;
    let mut tun = open_tun(args)?;

    let asked = path_mtu(Some(uplink), args.mark, link::inside(&args.plat_prefix));
    let mtu6 = link::mtu6_or_least(asked);
    let (packet, raw, probe) = match (args.read_sock, args.write_sock) {
        (Some(read), Some(write)) => {
            let named = |name, fd| adopt(fd).with_context(|| format!("{name} {fd} is not open"));
            let packet = PacketSocket::from_fd(named("--read-sock", read)?).with_context(|| {
                format!("--read-sock {read} is not a raw packet socket that fits")
            })?;
            let raw = RawSocket::from_fd(named("--write-sock", write)?)
                .with_context(|| format!("--write-sock {write} is not a raw IPv6 socket"))?;
            (packet, raw, None)
        }
        _ => {
            let (packet, raw, probe) = open_sockets(args, index)?;
            link::configure(tun.name(), args.ipv4_addr, link::tun_mtu(mtu6))?;
            // What is up tells more (see Tun::from_fd).
            tun = Tun::from_fd(tun.into())?;
            (packet, raw, probe)
        }
    };
    log::info!(
        "{} on {}, {} on {uplink}, prefix {}, IPv6 MTU {mtu6}",
        args.ipv4_addr,
        tun.name(),
        args.ipv6_addr,
        args.plat_prefix
    );

    let signals = signals().context("cannot take signals")?;
    let prefixes = [args.plat_prefix];
    let addresses =
        Addresses { local: Some(args.local()), prefixes: &prefixes, ..Default::default() };
    let config = Config {
        // What is delivered on this host is bounded by nothing else.
        mtu4: 65535,
        mtu6,
        router6: args.ipv6_addr,
        ..Default::default()
    };
    let translator = Translator::new(config, addresses, random16());
    let trains = tun.take_offloads().unwrap_or_else(|errno| {
        log::warn!("{} keeps its checksums to itself: {errno}", tun.name());
        false
    });
    let uplink6 = Uplink::new(packet, raw, Way::new(args.ipv6_addr, args.plat_prefix, mtu6));
    let mut forwarder = Forwarder::new(translator, args.ipv4_addr, tun, uplink6, trains);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;

    privileges::drop_all()?;
    let ended = serve(args, &epoll, &signals, &mut forwarder, probe);
    say(&forwarder.counters(uplink));
    ended
}

/// The device that was handed over; who misses the descriptor gets a clear line.
fn open_tun(args: &Args) -> anyhow::Result<Tun> {
    let fd = adopt(args.tunfd).with_context(|| format!("--tunfd {} is not open", args.tunfd))?;
    Tun::from_fd(fd).with_context(|| format!("--tunfd {} is of no use", args.tunfd))
}

/// Our own sockets, the address on the uplink, and the question whether somebody has it.
fn open_sockets(
    args: &Args,
    index: u32,
) -> anyhow::Result<(PacketSocket, RawSocket, Option<Probe>)> {
    let (uplink, v6) = (args.interface.as_str(), args.ipv6_addr);
    let packet = PacketSocket::open(index, v6)
        .with_context(|| format!("cannot open a packet socket on {uplink}"))?;
    let raw = RawSocket::open(uplink, args.mark)
        .with_context(|| format!("cannot open a raw socket on {uplink}"))?;
    join_anycast(raw.as_fd(), index, v6).with_context(|| {
        format!("cannot make {v6} an anycast address of {uplink}; it must be inside a prefix of {uplink}, and nobody else's")
    })?;
    // The anycast membership has joined the solicited-node group, where others' probes arrive.
    let probe = if packet.is_ethernet() && resolves_addresses(uplink) {
        let probe = Probe::start(index, v6)
            .with_context(|| format!("cannot look for duplicates of {v6} on {uplink}"))?;
        Some(probe)
    } else {
        None
    };
    Ok((packet, raw, probe))
}

/// Whether neighbours are looked up on the interface (not IFF_NOARP), as the kernel asks before its own detection.
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

fn serve(
    args: &Args,
    epoll: &Epoll,
    signals: &SignalFd,
    forwarder: &mut Forwarder<'_>,
    mut probe: Option<Probe>,
) -> anyhow::Result<()> {
    let readable = |name| EpollEvent::new(EpollFlags::EPOLLIN, name);
    let mut interest = Interest::new(epoll, forwarder)?;
    epoll.add(signals, readable(SIGNALS))?;
    if let Some(probe) = &probe {
        epoll.add(probe.as_fd(), readable(PROBE))?;
    }
    let mut events = [EpollEvent::empty(); 5];
    // When to see whether an uplink that has gone down is there at all.
    let mut recheck: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if probe.as_ref().is_some_and(|probe| probe.deadline() <= now) {
            // Dropping it takes it out of the epoll, too.
            probe.take().map_or(Ok(()), |probe| probe.check())?;
        }
        if recheck.is_some_and(|at| at <= now) {
            recheck = None;
            if !forwarder.uplink().packet_socket().has_interface() {
                bail!("{} is gone", args.interface);
            }
        }
        // Without any of these, nothing wakes us but packets and signals.
        let deadline = probe.as_ref().map(Probe::deadline).into_iter().chain(recheck).min();
        let timeout = deadline.map_or(EpollTimeout::NONE, |at| {
            // Rounded up, lest the last millisecond be spent in circles.
            (at.saturating_duration_since(now).as_millis() + 1)
                .try_into()
                .unwrap_or(EpollTimeout::ZERO)
        });
        let count = match epoll.wait(&mut events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other.context("cannot wait")?,
        };
        for event in &events[..count] {
            match event.data() {
                PROBE => probe.as_ref().map_or(Ok(()), Probe::check)?,
                SIGNALS => {
                    while let Some(signal) = signals.read_signal()? {
                        if signal.ssi_signo != Signal::SIGUSR1 as u32 {
                            return Ok(());
                        }
                        say(&forwarder.counters(&args.interface));
                    }
                }
                // What the interest is in.
                _ => {}
            }
        }
        // One batch from each side that has something or has something left: neither starves the other.
        for side in [Side::Tun, Side::Uplink] {
            if !interest.is_met(side, &events[..count]) {
                continue;
            }
            let full = match forwarder.turn(side) {
                Ok(Turn::Full(full)) => Some(full),
                Ok(Turn::Done) | Err(Errno::EAGAIN) => None,
                Err(Errno::ENETDOWN) => {
                    if recheck.is_none() {
                        log::warn!("{} is down", args.interface);
                        recheck = Some(Instant::now() + RECHECK);
                    }
                    None
                }
                // Also EBADFD, of a device that was removed.
                Err(errno) if side == Side::Tun => {
                    let name = forwarder.tun().name();
                    bail!("cannot read {name}: {errno}; was the device removed?");
                }
                Err(errno) => bail!("cannot receive on {}: {errno}", args.interface),
            };
            interest.wait(epoll, forwarder, side, full)?;
        }
    }
}

/// Prints a line to stderr; if nobody can read it, that is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn random16() -> u16 {
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u16::from_ne_bytes([a, b])
}
