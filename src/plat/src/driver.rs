// SPDX-License-Identifier: Apache-2.0

//! A carrier with what it needs of the host: an epoll instance for all its descriptors, resolvers
//! and forwarded ports. `platd` drives one in its own process, a test or sandbox may drive one in a
//! thread.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::carrier::Carrier;
use crate::clat;
use crate::dns_server::DnsServer;
use crate::flow::{Bounds, Id, Ready};
use crate::forward::{Open, Port};
use crate::frame::Mac;
use crate::host_sockets::EDGE;
use crate::link::{Clat, Impairment, Link};
use crate::resolvers::{Resolvers, Told};
use crate::settings::Settings;

/// Tokens of descriptors other than flows'. A flow's token has its index in the lower half, which
/// is never this large.
const LINK: u64 = 0xffff_ff02;
const CLAT: u64 = 0xffff_ff04;
/// With a number in the upper half: of a resolver's question, of a guest's connection.
const RESOLVER: u64 = 0xffff_ff07;
const QUESTIONS: u64 = 0xffff_ff08;
const FORWARD: u64 = 0xffff_e000;
/// Mask of the lower half.
const SLOT: u64 = 0xffff_ffff;
/// Sockets of ports that are forwarded: 200 ports, of both families.
pub(crate) const FORWARDS: u64 = 400;
/// The first token of the owner's descriptors ([`Driver::watch`]).
const OWNER: u64 = 0xffff_fff0;

/// Most events at a time. The kernel reports ready sockets in one order for all guests, and a
/// guest's may come behind thousands of another's; noting one takes far less time than serving its
/// flow.
const EVENTS: usize = 1024;

/// Time until connections from outside that cannot be accepted are tried again: the guest is not
/// known yet, or there are no descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// A link's descriptor changes when a guest comes or leaves, so it is armed again each time. A
/// device's stays the same and is watched permanently, which saves a system call per single packet.
const ARMED: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLONESHOT);

/// Options of a network beside its settings; [`Extras::default`] has none of them.
#[derive(Default)]
pub struct Extras {
    /// A CLAT of its own.
    pub clat: Option<(clat::Up, clat::Down)>,
    /// Loss and delay of frames.
    pub impairment: Impairment,
    /// Limits on flows.
    pub bounds: Bounds,
    /// Ports of the host for the guest; at most 400.
    pub forwards: Vec<(Port, Open)>,
}

/// A network that runs while [`Driver::poll`] is called. It cannot be sent to another thread: make
/// it in the thread that drives it.
///
/// ```
/// use clat_plat::driver::{Driver, Extras};
/// use clat_plat::link::InProcess;
/// use clat_plat::settings::Settings;
/// use clat_tun::device::{Devices, Flags};
///
/// let devices = Devices::default();
/// let tap = Flags { tap: true, no_packet_info: true, ..Flags::default() };
/// let guest = devices.open();
/// guest.set_iff("tap0", tap)?;
/// let network_side = devices.interface("tap0").expect("it was just made");
/// let carrier = std::thread::spawn(move || {
///     let settings = Settings::default();
///     let link = InProcess::new(network_side, &settings);
///     let mut driver = Driver::new(settings, Box::new(link), Extras::default())?;
///     loop {
///         driver.poll(None, &mut |_| {})?;
///     }
/// });
/// // The guest reads and writes frames; it may wait by poll(2) of `guest.event()`.
/// while guest.read(&mut [0; 1514]).is_err() {
///     std::thread::yield_now();
/// }
/// // Without a device there is no network either.
/// drop(guest);
/// let end: Result<(), anyhow::Error> = carrier.join().expect("no panic");
/// assert!(end.is_err());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Driver {
    epoll: Rc<Epoll>,
    carrier: Carrier,
    /// Ports of the host for the guest by token, and their sockets; a UDP socket is here until the
    /// guest is known.
    forwards: BTreeMap<u64, (Port, Option<Open>)>,
    /// The guest that has the forwarded UDP ports.
    given_to: Option<(Ipv6Addr, Mac)>,
    /// Whether it has all of them.
    is_given: bool,
    /// When to try again connections from outside that could not be accepted.
    retry: Option<Instant>,
    resolvers: Resolvers,
    dns: DnsServer,
    link_ready: bool,
    clat_ready: bool,
    events: Box<[EpollEvent; EVENTS]>,
}

impl Driver {
    /// A network for guests on `link`. Everything but the sockets of flows is opened here.
    ///
    /// # Errors
    /// If no descriptors or sockets can be had.
    pub fn new(settings: Settings, link: Box<dyn Link>, extras: Extras) -> anyhow::Result<Self> {
        let Extras { clat, impairment, bounds, forwards } = extras;
        let epoll = Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let link = impairment.around(link);
        let clat =
            clat.map(Clat::new).map(|clat| (clat.address(), impairment.around(Box::new(clat))));
        let flags = if link.fd_stays() { EpollFlags::EPOLLIN } else { ARMED };
        epoll.add(link.fd(), EpollEvent::new(flags, LINK))?;
        if let Some((_, clat)) = &clat {
            watch(&epoll, clat.fd(), CLAT)?;
        }
        let now = Instant::now();
        let carrier = Carrier::new(settings, link, clat, bounds, Rc::clone(&epoll), now);
        let mut driver = Self {
            epoll,
            carrier,
            forwards: BTreeMap::new(),
            given_to: None,
            is_given: true,
            retry: None,
            resolvers: Resolvers::default(),
            dns: DnsServer::default(),
            link_ready: false,
            clat_ready: false,
            events: Box::new([EpollEvent::empty(); EVENTS]),
        };
        for (port, open) in forwards {
            driver.add_forward(port, open)?;
        }
        Ok(driver)
    }

    /// Gives a port of the host to the guest.
    ///
    /// # Errors
    /// If there are too many, or its socket cannot be watched.
    pub fn add_forward(&mut self, port: Port, open: Open) -> anyhow::Result<()> {
        let free = (FORWARD..FORWARD + FORWARDS).find(|token| !self.forwards.contains_key(token));
        let Some(token) = free else {
            bail!("more than {FORWARDS} sockets of forwarded ports cannot be had");
        };
        if let Open::Tcp(listener) = &open {
            // Edge-triggered: connections that cannot be accepted yet are not reported again.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            let event = EpollEvent::new(flags, token);
            self.epoll.add(listener, event).context("cannot watch a descriptor")?;
        }
        self.forwards.insert(token, (port, Some(open)));
        self.is_given = false;
        Ok(())
    }

    /// Takes a port back: new connections and datagrams are refused, existing connections stay.
    /// `false` if it is not the guest's.
    pub fn remove_forward(&mut self, port: Port) -> bool {
        let found = self.forwards.iter().find(|(_, (given, _))| *given == port);
        let Some(token) = found.map(|(token, _)| *token) else { return false };
        self.forwards.remove(&token);
        if port.udp {
            let ipv6 = port.host.is_ipv6();
            self.carrier
                .with_engine(Instant::now(), |engine, _| engine.udp_take_back(port.guest, ipv6));
        }
        true
    }

    /// The ports of the host that the guest has.
    pub fn forwards(&self) -> impl Iterator<Item = Port> + '_ {
        self.forwards.values().map(|(port, _)| *port)
    }

    /// The carrier.
    #[must_use]
    pub fn carrier(&self) -> &Carrier {
        &self.carrier
    }

    /// The carrier.
    pub fn carrier_mut(&mut self) -> &mut Carrier {
        &mut self.carrier
    }

    /// Changes the advertised prefix; see [`Carrier::renumber`].
    pub fn renumber(&mut self, prefix: Ipv6Addr) {
        self.carrier.renumber(prefix, Instant::now());
    }

    /// Has others asked for names from now on.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        self.carrier.set_resolvers(resolvers);
    }

    /// Tells the guests that the network ends; see [`Carrier::farewell`].
    pub fn farewell(&mut self) {
        self.carrier.farewell(Instant::now());
    }

    /// Watches a descriptor of the owner's: [`Driver::poll`] reports this number, up to 15, when it
    /// is readable.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn watch(&self, fd: impl AsFd, number: u8) -> anyhow::Result<()> {
        watch(&self.epoll, fd, OWNER + u64::from(number & 15))
    }

    /// Handles timers, waits for events until `until` (`None`: without limit), and handles these.
    /// Readable descriptors of [`Driver::watch`] are reported to `own`.
    ///
    /// # Errors
    /// If the link to the guest is closed for good.
    pub fn poll(&mut self, until: Option<Instant>, own: &mut dyn FnMut(u8)) -> anyhow::Result<()> {
        let now = Instant::now();
        self.carrier.finish(now).context("the link to the guest is gone")?;
        if std::mem::take(&mut self.link_ready) {
            self.arm()?;
        }
        self.dns(now);
        let timeout = self.next_timer(now).into_iter().chain(until).min();
        let n = match self.epoll.wait(&mut self.events[..], to_timeout(timeout, now)) {
            Ok(n) => n,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno).context("cannot wait for events"),
        };
        let now = Instant::now();
        for i in 0..n {
            let event = self.events[i];
            match event.data() {
                LINK => self.link_ready = true,
                CLAT => self.clat_ready = true,
                token if token & SLOT == RESOLVER => {
                    let carrier = &mut self.carrier;
                    self.resolvers.event(number(token), &mut |told| carrier.dns_told(told, now));
                }
                token if token & SLOT == QUESTIONS => {
                    let (connection, carrier) = (number(token), &mut self.carrier);
                    self.dns.event(connection, now, &mut |guest, question| {
                        carrier.dns_question(connection, guest, &question, now);
                    });
                }
                token if (FORWARD..FORWARD + FORWARDS).contains(&token) => {
                    self.visitors(token, now);
                }
                token if (OWNER..OWNER + 16).contains(&token) => {
                    own(u8::try_from(token - OWNER).unwrap_or(0));
                }
                token => {
                    let (id, ready) = (Id::from_token(token), Ready::from(event.events()));
                    self.carrier.with_engine(now, |engine, cx| engine.handle_ready(cx, id, ready));
                }
            }
        }
        if self.link_ready {
            self.carrier.read(now).context("the link from the guest is gone")?;
        }
        if self.clat_ready {
            self.clat_ready = false;
            self.carrier.read_clat(now).context("the CLAT's device is gone")?;
        }
        if self.retry.take_if(|at| *at <= now).is_some() {
            let tokens: Vec<u64> = self.forwards.keys().copied().collect();
            tokens.into_iter().for_each(|token| self.visitors(token, now));
        }
        self.give_udp_ports(now);
        Ok(())
    }

    /// When [`Driver::poll`] is due even without a readable descriptor; `None`: never.
    #[must_use]
    pub fn next_timer(&self, now: Instant) -> Option<Instant> {
        let timers = [
            self.carrier.next_timer(now),
            self.dns.next_timer(),
            self.resolvers.next_timer(),
            self.retry,
        ];
        timers.into_iter().flatten().min()
    }

    /// Watches the link again: for reading, and for writing if it is full.
    fn arm(&self) -> anyhow::Result<()> {
        let link = self.carrier.link();
        if link.fd_stays() {
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
        .context("cannot watch the link to the guest")
    }

    /// Passes on questions and answers.
    fn dns(&mut self, now: Instant) {
        self.dns.poll(now);
        self.resolvers.poll(now);
        let flags = |token, number| EpollEvent::new(EDGE, token | u64::from(number) << 32);
        for (guest, stream) in self.carrier.take_dns_connections() {
            let (number, socket) = self.dns.accept(guest, stream, now);
            // A connection that cannot be watched stays idle until it is closed.
            let _ = self.epoll.add(socket, flags(QUESTIONS, number));
        }
        loop {
            let (answers, queries) = (self.carrier.take_dns_answers(), self.carrier.take_queries());
            if answers.is_empty() && queries.is_empty() {
                break;
            }
            for (connection, answer) in answers {
                let carrier = &mut self.carrier;
                self.dns.answer(connection, &answer, now, &mut |guest, question| {
                    carrier.dns_question(connection, guest, &question, now);
                });
            }
            for query in queries {
                let waits_for = |token| self.carrier.network().waits_for(token);
                let outbound = &self.carrier.network().settings().outbound;
                match self.resolvers.ask(&query, outbound, waits_for, now) {
                    Ok((number, socket)) => {
                        let _ = self.epoll.add(socket, flags(RESOLVER, number));
                    }
                    Err(e) => {
                        log::debug!("cannot ask {}: {e}", query.resolver);
                        self.carrier.dns_told(Told::Failed(query.token), now);
                    }
                }
            }
        }
    }

    /// Accepts connections from outside once the guest is known; without a guest they are refused.
    fn visitors(&mut self, token: u64, now: Instant) {
        let Some((port, Some(Open::Tcp(listener)))) = self.forwards.get(&token) else { return };
        let guest = self.carrier.guest();
        if guest.is_none() && self.carrier.link().has_guest() {
            self.retry = Some(now + RETRY);
            return;
        }
        for _ in 0..64 {
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => {
                    log::debug!("a visitor to {port} waits: {e}");
                    self.retry = Some(now + RETRY);
                    return;
                }
            };
            let Some((address, mac)) = guest else { continue };
            if stream.set_nonblocking(true).is_ok() {
                let _ = stream.set_nodelay(true);
                self.carrier.with_engine(now, |engine, cx| {
                    engine.tcp_forward(cx, mac, (address, port.guest), peer, stream.into());
                });
            }
        }
        // There may be more; serve others first.
        self.retry = Some(now);
    }

    /// Makes flows of forwarded UDP ports once the guest is known, and moves them with it.
    fn give_udp_ports(&mut self, now: Instant) {
        let Some((address, mac)) = self.carrier.guest() else { return };
        let before = self.given_to.replace((address, mac));
        let is_another = before != self.given_to;
        if !is_another && self.is_given {
            return;
        }
        if is_another {
            let followed =
                self.carrier.with_engine(now, |engine, _| engine.udp_follow(now, mac, address));
            if let Err(e) = followed {
                log::error!("cannot forward UDP to {address}: {e}");
            }
        }
        self.is_given = true;
        for (port, open) in self.forwards.values_mut() {
            let Some(Open::Udp(socket)) = open.take_if(|open| matches!(open, Open::Udp(_))) else {
                continue;
            };
            let guest = (address, port.guest);
            let given = self
                .carrier
                .with_engine(now, |engine, _| engine.udp_forward(now, mac, guest, socket));
            if let Err(e) = given {
                log::error!("cannot forward UDP to port {}: {e}", port.guest);
            }
        }
    }
}

impl AsFd for Driver {
    /// Readable when [`Driver::poll`] has something to do, for callers that wait for other events
    /// as well, at most until [`Driver::next_timer`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// The number in the upper half of a token.
fn number(token: u64) -> u32 {
    u32::try_from(token >> 32).unwrap_or(0)
}

fn watch(epoll: &Epoll, fd: impl AsFd, token: u64) -> anyhow::Result<()> {
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token)).context("cannot watch a descriptor")
}

/// The time to wait, rounded up: with 0 ms, the last fraction would be a busy loop.
fn to_timeout(at: Option<Instant>, now: Instant) -> EpollTimeout {
    let Some(at) = at else { return EpollTimeout::NONE };
    let millis = at.saturating_duration_since(now).as_micros().div_ceil(1000);
    EpollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::NONE)
}
