//! The process: made ready with what rights it has, then without any, one loop for everything.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use clat_tun::{handover, Tun};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};
use pcap_file::pcap::{PcapHeader, PcapWriter};
use pcap_file::DataLink;

use crate::carrier::Carrier;
use crate::cli::{Net, Way};
use crate::flow::Bounds;
use crate::forward::Open;
use crate::link::{Datagrams, Link, Packets, Server, Stream, Tap};
use crate::network::Query;
use crate::settings::Settings;
use crate::status::Status;
use crate::{clat, inside, sandbox};

/// Tokens that are no flow's. A flow's has its slot in the lower half, of which there are fewer.
const SIGNALS: u64 = 0xffff_ff00;
const STATUS: u64 = 0xffff_ff01;
const LINK: u64 = 0xffff_ff02;
const CLAT: u64 = 0xffff_ff04;
const DNS4: u64 = 0xffff_ff05;
const DNS6: u64 = 0xffff_ff06;
const FORWARD: u64 = 0xffff_ff10;
/// Ports that may be forwarded.
const FORWARDS: usize = 200;

/// A link's descriptor is another when a guest comes or leaves: it is armed anew each time. Not so a device's, which is
/// watched once and for all: that would be a system call for each packet that comes alone.
const ARMED: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLONESHOT);

/// Descriptors that are not flows'.
const SPARE: u64 = 256;

/// Runs a network for a guest that comes by itself.
///
/// # Errors
/// What could not be made ready, or ended it.
pub fn serve(way: &Way, net: &Net) -> anyhow::Result<ExitCode> {
    let settings = net.settings()?;
    let socket: Option<(Box<dyn Link>, &Path)> = match way {
        Way { socket: Some(path), .. } => Some((Box::new(Stream::listen(path)?), path)),
        Way { frames: Some(path), .. } => Some((Box::new(Datagrams::bind(path)?), path)),
        Way { packets: Some(path), .. } => Some((Box::new(Packets::listen(path)?), path)),
        _ => None,
    };
    if let Some((link, path)) = socket {
        log::info!("waiting for a guest on {}", path.display());
        return run(net, settings, link, None, None);
    }
    let Some(netns) = &way.netns else {
        bail!(
            "no way in: give --socket, --frames, --packets or --netns, or `platd run -- COMMAND`; see --help"
        );
    };
    let mut devices = Devices::make(net, &settings, Some(netns), net.clat, &[])?;
    let status = devices.helper.wait()?;
    if !status.success() {
        bail!("the namespace could not be prepared");
    }
    log::info!("{} is up in {netns}", net.ifname);
    run(net, settings, Box::new(Tap::new(devices.tap)), devices.clat, None)
}

/// Runs a network and a command in it.
///
/// # Errors
/// What could not be made ready, or ended it.
pub fn run_command(net: &Net, command: &[String]) -> anyhow::Result<ExitCode> {
    let settings = net.settings()?;
    let devices = Devices::make(net, &settings, None, !net.no_clat, command)?;
    let inside = Inside { helper: devices.helper, _control: devices.control };
    run(net, settings, Box::new(Tap::new(devices.tap)), devices.clat, Some(inside))
}

/// The command that runs inside. When the socket is closed, it is ended.
struct Inside {
    helper: Child,
    _control: std::os::fd::OwnedFd,
}

struct Devices {
    tap: Tun,
    clat: Option<Tun>,
    helper: Child,
    control: std::os::fd::OwnedFd,
}

impl Devices {
    /// Has devices made in a namespace.
    fn make(
        net: &Net,
        settings: &Settings,
        netns: Option<&str>,
        with_clat: bool,
        command: &[String],
    ) -> anyhow::Result<Self> {
        let (control, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty())
                .context("cannot make a socket pair")?;
        close_on_exec(&control)?;
        let mut helper = Command::new(inside::own_program());
        helper.args(["__inside", "--control", &theirs.as_raw_fd().to_string()]);
        helper.args(["--ifname", &net.ifname, "--mtu", &settings.mtu.to_string()]);
        helper.args(["--dns", &settings.dns().to_string()]);
        if with_clat {
            helper.args(["--clat-mtu", &clat::mtu(settings).to_string()]);
        }
        if let Some(netns) = netns {
            helper.args(["--netns", netns]);
        }
        if net.loss > 0.0 {
            helper.arg("--plain");
        }
        if command.is_empty() {
            helper.stdin(Stdio::null());
        } else {
            helper.arg("--").args(command);
        }
        let helper = helper.spawn().context("cannot start a helper")?;
        drop(theirs);
        let mut byte = [0];
        let (n, fds) = handover::receive(&control, &mut byte)?;
        let mut fds = fds.into_iter();
        let (1, Some(tap)) = (n, fds.next()) else {
            // It has said why.
            bail!("no device in the namespace");
        };
        let tap = Tun::tap_from_fd(tap)?;
        let clat = fds.next().map(Tun::from_fd).transpose()?;
        Ok(Self { tap, clat, helper, control })
    }
}

fn close_on_exec(fd: &impl AsRawFd) -> anyhow::Result<()> {
    use nix::fcntl::{fcntl, FcntlArg, FdFlag};
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// As many flows as there may be descriptors.
fn bounds(net: &Net) -> Bounds {
    let mut flows = net.max_flows.max(16);
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = (flows as u64 + SPARE).min(hard);
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
        let possible = usize::try_from(wanted.saturating_sub(SPARE)).unwrap_or(flows).max(16);
        if possible < flows {
            log::debug!("{possible} flows at a time: no more descriptors are allowed (ulimit -n)");
            flows = possible;
        }
    }
    Bounds { flows, flows_each: flows, ..Bounds::default() }
}

fn run(
    net: &Net,
    settings: Settings,
    link: Box<dyn Link>,
    clat: Option<Tun>,
    inside: Option<Inside>,
) -> anyhow::Result<ExitCode> {
    let now = Instant::now();
    let epoll = Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
    let mask = inside::signals();
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    watch(&epoll, &signals, SIGNALS)?;
    let flags = if link.direct().is_some() { EpollFlags::EPOLLIN } else { ARMED };
    epoll.add(link.fd(), EpollEvent::new(flags, LINK))?;
    let clat = clat.map(|tun| clat::new(tun, &settings));
    if let Some((up, _)) = &clat {
        watch(&epoll, up.tun(), CLAT)?;
    }
    let status = match &net.status {
        Some(path) => {
            let server = Server::listen(path, SockType::Stream)?;
            watch(&epoll, server.fd(), STATUS)?;
            Some(server)
        }
        None => None,
    };
    if net.forward.len() > FORWARDS {
        bail!("more than {FORWARDS} ports cannot be forwarded");
    }
    let forwards = net.forward.iter().map(crate::forward::Forward::open);
    let forwards = forwards.collect::<anyhow::Result<Vec<Open>>>()?;
    for (token, open) in (FORWARD..).zip(&forwards) {
        if let Open::Tcp(listener, _) = open {
            watch(&epoll, listener, token)?;
        }
    }
    let resolvers = Resolvers::new(&epoll)?;
    let prefix = settings.prefix;
    let mut carrier =
        Carrier::new(settings, link, clat, net.weather(), bounds(net), Rc::clone(&epoll), now);
    if let Some(path) = &net.pcap {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let header =
            PcapHeader { snaplen: 1 << 17, datalink: DataLink::ETHERNET, ..PcapHeader::default() };
        carrier.set_pcap(PcapWriter::with_header(file, header)?);
    }
    sandbox::enter()?;
    let churn = net.prefix_churn.map(Duration::from_secs);
    let churn = churn.map(|every| Churn { every, next: now + every, prefix, round: 0 });
    let mut all = Loop { epoll, carrier, signals, status, forwards, resolvers, inside, churn };
    let end = all.run();
    // To remove a socket's name takes a right that was given up. Whoever starts next finds that nobody listens there.
    std::mem::forget(all);
    end
}

fn watch(epoll: &Epoll, fd: impl AsFd, token: u64) -> anyhow::Result<()> {
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token)).context("cannot watch a descriptor")
}

/// The sockets by which resolvers are asked.
struct Resolvers {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    asked: std::collections::HashMap<(SocketAddr, u16), (u64, [u8; 2])>,
}

impl Resolvers {
    fn new(epoll: &Epoll) -> anyhow::Result<Self> {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a DNS socket")?;
        v4.set_nonblocking(true)?;
        watch(epoll, &v4, DNS4)?;
        // A host without IPv6 has none.
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok();
        if let Some(v6) = &v6 {
            v6.set_nonblocking(true)?;
            watch(epoll, v6, DNS6)?;
        }
        Ok(Self { v4, v6, asked: std::collections::HashMap::new() })
    }

    fn ask(&mut self, query: &Query) {
        let socket = match (query.resolver.is_ipv4(), &self.v6) {
            (true, _) => &self.v4,
            (false, Some(v6)) => v6,
            (false, None) => return,
        };
        let &[a, b, ..] = query.message.as_slice() else { return };
        if self.asked.len() > 4096 {
            self.asked.clear();
        }
        let id = u16::from_be_bytes([a, b]);
        self.asked.insert((query.resolver, id), (query.token, [a, b]));
        if let Err(e) = socket.send_to(&query.message, query.resolver) {
            log::debug!("cannot ask {}: {e}", query.resolver);
        }
    }

    /// The next answer: its token, and the message.
    fn answer<'b>(&mut self, v6: bool, buf: &'b mut [u8]) -> Option<(u64, &'b [u8])> {
        let socket = if v6 { self.v6.as_ref()? } else { &self.v4 };
        loop {
            let (len, from) = match socket.recv_from(buf) {
                Ok(received) => received,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                // An error of something sent earlier.
                Err(_) => continue,
            };
            if len < 12 {
                continue;
            }
            let id = u16::from_be_bytes([buf[0], buf[1]]);
            if let Some((token, _)) = self.asked.remove(&(from, id)) {
                return Some((token, &buf[..len]));
            }
        }
    }
}

/// `--prefix-churn`.
struct Churn {
    every: Duration,
    next: Instant,
    prefix: Ipv6Addr,
    round: u16,
}

struct Loop {
    epoll: Rc<Epoll>,
    carrier: Carrier,
    signals: SignalFd,
    status: Option<Server>,
    forwards: Vec<Open>,
    resolvers: Resolvers,
    inside: Option<Inside>,
    churn: Option<Churn>,
}

impl Loop {
    fn run(&mut self) -> anyhow::Result<ExitCode> {
        let mut events = [EpollEvent::empty(); 256];
        let mut link_ready = false;
        let mut clat_ready = false;
        loop {
            let now = Instant::now();
            self.carrier.finish(now).context("the way to the guest is gone")?;
            if std::mem::take(&mut link_ready) {
                self.arm()?;
            }
            for query in self.carrier.take_queries() {
                self.resolvers.ask(&query);
            }
            let timeout = if clat_ready { Some(now) } else { self.next_timer(now) };
            let n = match self.epoll.wait(&mut events, to_timeout(timeout, now)) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno).context("cannot wait for events"),
            };
            let now = Instant::now();
            for event in &events[..n] {
                match event.data() {
                    SIGNALS => {
                        if let Some(code) = self.signal()? {
                            return Ok(code);
                        }
                    }
                    STATUS => self.tell(),
                    LINK => link_ready = true,
                    CLAT => clat_ready = true,
                    token @ (DNS4 | DNS6) => self.answers(token == DNS6, now),
                    token if (FORWARD..FORWARD + FORWARDS as u64).contains(&token) => {
                        self.visitor(token - FORWARD, now);
                    }
                    token => {
                        let events = event.events();
                        self.carrier.with_engine(now, |engine, cx| engine.event(cx, token, events));
                    }
                }
            }
            if link_ready {
                self.carrier.read(now).context("the way from the guest is gone")?;
            }
            if clat_ready {
                clat_ready = self.carrier.read_clat(now).context("the CLAT's device is gone")?;
            }
            self.give_udp_ports(now);
            self.renumber(now);
        }
    }

    /// Has the link watched again, for reading, and for writing if it is full.
    fn arm(&self) -> anyhow::Result<()> {
        let link = self.carrier.link();
        if link.direct().is_some() {
            return Ok(());
        }
        let mut flags = ARMED;
        if link.is_full() && link.send_fd().is_some() {
            flags |= EpollFlags::EPOLLOUT;
        }
        let mut event = EpollEvent::new(flags, LINK);
        match self.epoll.modify(link.fd(), &mut event) {
            Err(Errno::ENOENT) => self.epoll.add(link.fd(), event),
            done => done,
        }
        .context("cannot watch the way to the guest")
    }

    fn next_timer(&self, now: Instant) -> Option<Instant> {
        let churn = self.churn.as_ref().map(|churn| churn.next);
        self.carrier.next_timer(now).into_iter().chain(churn).min()
    }

    /// The exit code, if that is the end.
    fn signal(&mut self) -> anyhow::Result<Option<ExitCode>> {
        while let Some(signal) = self.signals.read_signal()? {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            match (number, &mut self.inside) {
                (nix::libc::SIGCHLD, Some(inside)) => {
                    if let Some(status) = inside.helper.try_wait()? {
                        let code = status.code().and_then(|code| u8::try_from(code).ok());
                        return Ok(Some(ExitCode::from(code.unwrap_or(1))));
                    }
                }
                // From the terminal: the command gets it too, and decides.
                (nix::libc::SIGCHLD, None) | (nix::libc::SIGINT, Some(_)) => {}
                _ => {
                    log::info!("ending");
                    return Ok(Some(ExitCode::SUCCESS));
                }
            }
        }
        Ok(None)
    }

    fn tell(&mut self) {
        let Some(server) = &mut self.status else { return };
        while let Ok(true) = server.accept() {
            if let Some(stream) = server.guest() {
                Status::of(&self.carrier).tell(stream);
            }
            server.hang_up();
        }
    }

    fn answers(&mut self, v6: bool, now: Instant) {
        let mut buf = [0; 4096];
        for _ in 0..64 {
            let Some((token, message)) = self.resolvers.answer(v6, &mut buf) else { return };
            self.carrier.dns_answer(token, message, now);
        }
    }

    fn visitor(&mut self, which: u64, now: Instant) {
        let which = usize::try_from(which).unwrap_or(usize::MAX);
        let Some(Open::Tcp(listener, port)) = self.forwards.get(which) else { return };
        for _ in 0..64 {
            let Ok((stream, peer)) = listener.accept() else { return };
            let Some((address, mac)) = self.carrier.guest() else {
                log::debug!("{peer} comes before the guest");
                continue;
            };
            if stream.set_nonblocking(true).is_ok() {
                let _ = stream.set_nodelay(true);
                self.carrier.with_engine(now, |engine, cx| {
                    engine.tcp_forward(cx, mac, (address, *port), peer, stream);
                });
            }
        }
    }

    /// Forwarded UDP ports become flows once the guest is known.
    fn give_udp_ports(&mut self, now: Instant) {
        let Some((address, mac)) = self.carrier.guest() else { return };
        for open in &mut self.forwards {
            let Open::Udp(socket, port) = open else { continue };
            let Some(socket) = socket.take() else { continue };
            let guest = (address, *port);
            let given = self
                .carrier
                .with_engine(now, |engine, _| engine.udp_forward(now, mac, guest, socket));
            if let Err(errno) = given {
                log::error!("cannot forward UDP to port {port}: {errno}");
            }
        }
    }

    fn renumber(&mut self, now: Instant) {
        let Some(churn) = &mut self.churn else { return };
        if now < churn.next {
            return;
        }
        churn.next = now + churn.every;
        churn.round = churn.round.wrapping_add(1);
        // Another of the 65536 beside the first.
        let prefix = churn.prefix.to_bits() ^ u128::from(churn.round) << 64;
        self.carrier.renumber(prefix.into(), now);
    }
}

/// How long to wait. Rounded up, or the last millisecond would be spent in circles.
fn to_timeout(at: Option<Instant>, now: Instant) -> EpollTimeout {
    let Some(at) = at else { return EpollTimeout::NONE };
    let millis = at.saturating_duration_since(now).as_micros().div_ceil(1000);
    EpollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::NONE)
}
