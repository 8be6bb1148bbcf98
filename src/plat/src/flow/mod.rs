// SPDX-License-Identifier: Apache-2.0

//! Flows: what a guest says to the world, said by sockets of the host.
//!
//! [`Engine`] is the seam. A packet goes in by [`Engine::input`], a socket's readiness by [`Engine::event`], time by
//! [`Engine::on_time`]; [`Engine::flush_datagrams`] and [`Engine::flush`] are due after each batch of them. Packets for
//! the guest go to a [`Sink`].

mod echo;
pub(crate) mod errors;
pub(crate) mod fragments;
mod host;
mod memory;
mod ring;
mod stats;
mod table;
pub(crate) mod target;
pub mod tcp;
mod udp;
pub(crate) mod wire;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clat_tun::VirtioHeader;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollFlags};
use socket2::SockRef;

use crate::fairness::Buckets;
use crate::frame::Mac;
use crate::icmp_error::IcmpError;
use crate::settings::Settings;
use fragments::Fragments;
pub(crate) use host::{prepare_udp, tcp_connect};
use memory::Memory;
pub use stats::{DropReason, FlowStatus, Stats};
use table::{Entry, Id, Key, Table};
use target::{seen, Refused};
use tcp::{flag, Disposition, Incoming, Limits, Segment, Tcp};
pub use wire::Offload;
use wire::{Addresses, Packet, TcpWire};

/// Where frames for the guest go.
pub trait Sink {
    /// Takes a frame, in pieces: what to complete in it is in `vnet`.
    fn frame(&mut self, vnet: &VirtioHeader, parts: &[&[u8]]);
    /// An identification for fragments.
    fn next_id(&mut self) -> u32;
}

/// What a step may use.
pub struct Context<'a> {
    /// The network as it is now.
    pub settings: &'a Settings,
    /// The way to the guest.
    pub sink: &'a mut dyn Sink,
    /// The time.
    pub now: Instant,
}

/// How many flows, and how much memory for their data.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Flows in all.
    pub flows: usize,
    /// Flows of one guest.
    pub flows_each: usize,
    /// Bytes for the data of all flows.
    pub memory: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { flows: 100_000, flows_each: 100_000, memory: 256 << 20 }
    }
}

pub(crate) enum Flow {
    Tcp(Box<Tcp>, TcpStream),
    Udp(udp::Udp),
    Echo(echo::Echo),
}

impl Flow {
    /// Whether it is a port of the owner's, which no guest can drive away.
    fn is_forwarded(&self) -> bool {
        matches!(self, Self::Udp(udp) if udp.deadline().is_none())
    }
}

/// Where the other end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// Out there.
    World,
    /// In this process: the DNS server.
    Dns,
}

/// What is read of an error queue before it is others' turn.
const REPORTS: usize = 32;

/// A socket that waits for what comes next on it; the token of its event is the flow's.
pub(crate) const EDGE: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLET);

/// All flows.
pub struct Engine {
    epoll: Rc<Epoll>,
    offload: Offload,
    table: Table,
    memory: Memory,
    /// Flows that something came for.
    queue: Vec<Id>,
    /// The other ends of connections to the network's own DNS server.
    dns: Vec<(Mac, UnixStream)>,
    batch: udp::Batch,
    /// Whether the host cuts trains of datagrams, once that was asked.
    cuts_trains: Option<bool>,
    scratch: Vec<u8>,
    fragments: Fragments,
    buckets: Buckets,
    random: RandomState,
    told_of_ping: bool,
    stats: Stats,
}

impl Engine {
    /// An engine without flows; their sockets are watched by `epoll`.
    #[must_use]
    pub fn new(epoll: Rc<Epoll>, offload: Offload, bounds: Bounds) -> Self {
        Self {
            epoll,
            offload,
            table: Table::new(bounds.flows, bounds.flows_each),
            memory: Memory::new(bounds.memory),
            queue: Vec::new(),
            dns: Vec::new(),
            batch: udp::Batch::default(),
            cuts_trains: None,
            scratch: vec![0; 1 << 17],
            fragments: Fragments::default(),
            buckets: Buckets::new(errors::BURST),
            random: RandomState::new(),
            told_of_ping: false,
            stats: Stats::default(),
        }
    }

    /// What has happened so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How many flows there are, and how many bytes their data takes.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.table.len(), self.memory.held())
    }

    /// The flows, at most `most` of them.
    #[must_use]
    pub fn flows(&self, most: usize) -> Vec<FlowStatus> {
        self.table.iter().take(most).map(FlowStatus::of).collect()
    }

    /// Takes an IP packet of the guest with `mac`.
    pub fn input(&mut self, cx: &mut Context<'_>, mac: Mac, vnet: &VirtioHeader, bytes: &[u8]) {
        let Some(packet) = wire::parse(bytes) else {
            return self.stats.drop(DropReason::Malformed);
        };
        if packet.src.is_multicast() || packet.src.is_unspecified() || packet.src.is_loopback() {
            return self.stats.drop(DropReason::Malformed);
        }
        self.stats.packets_up += 1;
        if packet.hop_limit <= 1 {
            return self.refuse(cx, DropReason::HopLimit, IcmpError::HopLimit, packet.whole, mac);
        }
        if packet.fragment.is_some() {
            self.stats.fragments += 1;
            let whole = self.fragments.offer(mac, packet.whole, cx.now);
            let Some((protocol, l4)) = whole else { return };
            let packet = Packet { fragment: None, protocol, payload: &l4, ..packet };
            if !wire::verifies(&packet) {
                return self.stats.drop(DropReason::Checksum);
            }
            return self.dispatch(cx, mac, &VirtioHeader::default(), &packet);
        }
        let known = matches!(packet.protocol, wire::TCP | wire::UDP | wire::ICMP4 | wire::ICMP6);
        if known && !vnet.needs_csum && !vnet.data_valid && !wire::verifies(&packet) {
            return self.stats.drop(DropReason::Checksum);
        }
        self.dispatch(cx, mac, vnet, &packet);
    }

    fn dispatch(
        &mut self,
        cx: &mut Context<'_>,
        mac: Mac,
        vnet: &VirtioHeader,
        packet: &Packet<'_>,
    ) {
        match packet.protocol {
            wire::TCP => self.tcp_input(cx, mac, packet, Peer::World),
            wire::UDP => self.udp_input(cx, mac, vnet, packet),
            wire::ICMP6 if packet.src.to_ipv4_mapped().is_none() => {
                self.echo_input(cx, mac, packet);
            }
            wire::ICMP4 if packet.src.to_ipv4_mapped().is_some() => {
                self.echo_input(cx, mac, packet);
            }
            _ => self.refuse(cx, DropReason::Protocol, IcmpError::PROTOCOL, packet.whole, mac),
        }
    }

    /// Takes a TCP packet for the network's own DNS server; the other end is in [`Engine::take_dns_connections`].
    pub fn dns_input(&mut self, cx: &mut Context<'_>, mac: Mac, vnet: &VirtioHeader, bytes: &[u8]) {
        let Some(packet) = wire::parse(bytes) else {
            return self.stats.drop(DropReason::Malformed);
        };
        self.stats.packets_up += 1;
        if !vnet.needs_csum && !vnet.data_valid && !wire::verifies(&packet) {
            return self.stats.drop(DropReason::Checksum);
        }
        self.tcp_input(cx, mac, &packet, Peer::Dns);
    }

    /// Takes the other ends of guests' new connections to the DNS server: non-blocking streams.
    pub fn take_dns_connections(&mut self) -> Vec<(Mac, UnixStream)> {
        std::mem::take(&mut self.dns)
    }

    /// Drops a packet and says why.
    fn refuse(
        &mut self,
        cx: &mut Context<'_>,
        why: DropReason,
        error: IcmpError,
        packet: &[u8],
        mac: Mac,
    ) {
        self.stats.drop(why);
        errors::send(cx, &mut self.buckets, error, packet, mac, None);
    }

    /// What is wrong with a packet to `to` that the host did not take.
    fn what_failed(
        &mut self,
        cx: &mut Context<'_>,
        id: Id,
        errno: Errno,
        to: IpAddr,
    ) -> Option<IcmpError> {
        match errno {
            Errno::EMSGSIZE => self.reports(cx, id, Some(to)),
            errno => IcmpError::from_errno(errno),
        }
    }

    /// Hands on what the error queue of a flow's socket has, and says what the host itself found wrong with what was for
    /// `about`.
    fn reports(
        &mut self,
        cx: &mut Context<'_>,
        id: Id,
        about: Option<IpAddr>,
    ) -> Option<IcmpError> {
        let mut own = None;
        for _ in 0..REPORTS {
            let Some(entry) = self.table.get(id) else { break };
            let (key, mac) = (entry.key, entry.mac);
            let socket = match &entry.flow {
                Flow::Udp(udp) => udp.socket(),
                Flow::Echo(echo) => echo.socket(),
                Flow::Tcp(..) => break,
            };
            let Ok(report) = host::report(&socket, &mut self.scratch) else {
                let _ = SockRef::from(&socket).take_error();
                break;
            };
            let Some(report) = report else { continue };
            let Some(to) = report.remote else { continue };
            if report.too_long {
                if about == Some(to.ip()) {
                    own = Some(report.error);
                }
                continue;
            }
            let remote = (seen(cx.settings, to.ip(), key.guest.0), to.port());
            let router = report.router.map(|ip| seen(cx.settings, ip, key.guest.0));
            let data = &mut self.scratch[..report.len];
            if key.protocol == wire::ICMP6 {
                echo::as_request(data, &key);
            }
            let packet = errors::rebuild(key.guest, remote, key.protocol, data);
            errors::send(cx, &mut self.buckets, report.error, &packet, mac, router);
        }
        own
    }

    /// A socket is ready.
    pub fn event(&mut self, cx: &mut Context<'_>, token: u64, events: EpollFlags) {
        let id = from_token(token);
        let Some(entry) = self.table.get(id) else { return };
        match &mut entry.flow {
            Flow::Tcp(tcp, socket) if tcp.is_connecting() => {
                if !events
                    .intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP)
                {
                    return;
                }
                match socket.take_error() {
                    Ok(None) if !events.contains(EpollFlags::EPOLLHUP) => {
                        self.with_tcp(cx, id, |tcp, _, wire, limits, now| {
                            tcp.connected(wire, limits, now);
                            Disposition::Open
                        });
                    }
                    Ok(Some(e)) | Err(e) => self.connect_failed(cx, id, &e),
                    // Not connected yet: the event was for the unconnected socket.
                    Ok(None) => {}
                }
            }
            Flow::Tcp(tcp, _) => {
                if events.contains(EpollFlags::EPOLLOUT) {
                    tcp.set_writable();
                }
                if events.intersects(!EpollFlags::EPOLLOUT) {
                    tcp.set_readable();
                }
                self.enqueue(id);
            }
            Flow::Udp(_) => self.udp_event(cx, id, events),
            Flow::Echo(_) => self.echo_event(cx, id, events),
        }
    }

    /// Does what is due.
    pub fn on_time(&mut self, cx: &mut Context<'_>) {
        // So many at a time: the rest is due next time.
        for _ in 0..1024 {
            let Some(id) = self.table.due(cx.now) else { return };
            let Some(entry) = self.table.get(id) else { continue };
            let deadline = match &entry.flow {
                Flow::Tcp(..) => {
                    self.with_tcp(cx, id, |tcp, _, wire, limits, now| {
                        tcp.handle_timeout(wire, limits, now)
                    });
                    continue;
                }
                Flow::Udp(udp) => udp.deadline(),
                Flow::Echo(echo) => echo.deadline(),
            };
            self.expire(cx, id, deadline);
        }
    }

    fn expire(&mut self, cx: &Context<'_>, id: Id, deadline: Option<Instant>) {
        match deadline {
            Some(deadline) if deadline <= cx.now => {
                self.end(id, "idle");
            }
            Some(deadline) => self.table.wake(id, deadline),
            None => {}
        }
    }

    /// When [`Self::on_time`] is due; and whether [`Self::flush`] has left work.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        self.table.next_alarm()
    }

    /// Whether there is work that was left for the sake of others.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Ends a batch: streams are moved, what came is acknowledged.
    pub fn flush(&mut self, cx: &mut Context<'_>) {
        for id in std::mem::take(&mut self.queue) {
            if let Some(entry) = self.table.get(id) {
                entry.queued = false;
            }
            let mut again = false;
            self.with_tcp(cx, id, |tcp, stream, wire, limits, now| {
                let (disposition, more) = tcp.poll_transmit(stream, wire, limits, now);
                again = more;
                disposition
            });
            if again {
                self.enqueue(id);
            }
        }
        for id in self.memory.served() {
            if let Some(entry) = self.table.get(id) {
                entry.waits = None;
            }
            self.enqueue(id);
        }
    }

    fn enqueue(&mut self, id: Id) {
        if let Some(entry) = self.table.get(id) {
            if !std::mem::replace(&mut entry.queued, true) {
                self.queue.push(id);
            }
        }
    }

    /// Resets all flows: the guest is gone for good. Forwarded ports stay, for the next one.
    pub fn clear(&mut self) {
        for id in self.table.ids() {
            if !self.table.get(id).is_some_and(|entry| entry.flow.is_forwarded()) {
                self.end(id, "the guest is gone");
            }
        }
    }

    /// Makes room for a flow of a guest; `false` when there is none.
    fn make_room(&mut self, mac: Mac) -> bool {
        let mut spared = 0;
        while let Some(id) = self.table.to_evict(mac) {
            if self.table.get(id).is_some_and(|entry| entry.flow.is_forwarded()) {
                spared += 1;
                if spared > self.table.len() {
                    return false;
                }
                self.table.touch(id);
                continue;
            }
            self.stats.evicted += 1;
            self.end(id, "others need its place");
        }
        true
    }

    fn remove(&mut self, id: Id, why: &str) -> Option<Flow> {
        let entry = self.table.remove(id)?;
        self.memory.change(entry.mac, entry.held, 0);
        if let Some(place) = entry.waits {
            self.memory.forget(place);
        }
        log::debug!("{} ends: {why}", Described(&entry.key));
        Some(entry.flow)
    }

    /// Ends a flow before its time: a connection is reset.
    fn end(&mut self, id: Id, why: &str) {
        if let Some(Flow::Tcp(_, socket)) = self.remove(id, why) {
            // Whatever is left of it is reset when it is closed.
            let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
        }
    }

    fn tcp_input(&mut self, cx: &mut Context<'_>, mac: Mac, packet: &Packet<'_>, peer: Peer) {
        let Some((from, to, segment)) = wire::parse_tcp(packet.payload) else {
            return self.stats.drop(DropReason::Malformed);
        };
        let key = Key { protocol: wire::TCP, guest: (packet.src, from), remote: (packet.dst, to) };
        if let Some(id) = self.table.find(&key) {
            self.with_tcp(cx, id, |tcp, stream, wire, limits, now| {
                tcp.handle_input(&segment, stream, wire, limits, now)
            });
            self.table.touch(id);
            self.enqueue(id);
        } else if segment.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN {
            self.tcp_open(cx, mac, packet, key, &segment, peer);
        } else if segment.flags & flag::RST == 0 {
            self.stats.drop(DropReason::NoFlow);
            self.reset(cx, mac, &key, &segment);
        }
    }

    /// Answers a segment of no connection (RFC 9293 §3.10.7.1).
    fn reset(&mut self, cx: &mut Context<'_>, mac: Mac, key: &Key, segment: &Incoming<'_>) {
        let len = u32::try_from(segment.payload.len()).unwrap_or(0)
            + u32::from(segment.flags & flag::SYN != 0)
            + u32::from(segment.flags & flag::FIN != 0);
        let (seq, ack, flags) = if segment.flags & flag::ACK != 0 {
            (segment.ack, 0, flag::RST)
        } else {
            (0, segment.seq.wrapping_add(len), flag::RST | flag::ACK)
        };
        let reset =
            Segment { seq, ack, flags, window: 0, options: &[], payload: [&[]; 2], mss: 536 };
        let addresses = addresses(cx.settings, mac, key);
        wire::send_tcp(cx.sink, &addresses, (key.remote.1, key.guest.1), &reset, self.offload);
    }

    fn tcp_open(
        &mut self,
        cx: &mut Context<'_>,
        mac: Mac,
        packet: &Packet<'_>,
        key: Key,
        syn: &Incoming<'_>,
        peer: Peer,
    ) {
        let address = match peer {
            Peer::World => target::target(cx.settings, packet.dst).map(Some),
            Peer::Dns => Ok(None),
        };
        let address = match address {
            Ok(address) => address,
            Err(refused) => {
                return self.refuse(cx, DropReason::Forbidden, refused.into(), packet.whole, mac)
            }
        };
        if !self.make_room(mac) {
            return self.stats.drop(DropReason::Limit);
        }
        let opened = match address {
            Some(address) => {
                let remote = SocketAddr::new(address, key.remote.1);
                host::tcp_connect(remote, packet.hop_limit - 1)
            }
            None => host::pair().map(|(ours, theirs)| {
                self.dns.push((mac, theirs));
                ours
            }),
        };
        let socket = match opened {
            Ok(socket) => socket,
            Err(e) => {
                self.stats.drop(DropReason::HostError);
                let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
                match IcmpError::from_errno(errno) {
                    None | Some(IcmpError::PortUnreachable) => self.reset(cx, mac, &key, syn),
                    Some(error) => {
                        errors::send(cx, &mut self.buckets, error, packet.whole, mac, None);
                    }
                }
                return;
            }
        };
        let tcp = Tcp::accept(syn, self.isn(&key, cx.now), own_mss(cx.settings, &key), cx.now);
        log::debug!("{} begins", Described(&key));
        self.stats.tcp += 1;
        self.tcp_insert(key, mac, tcp, socket);
    }

    fn tcp_insert(&mut self, key: Key, mac: Mac, tcp: Tcp, socket: TcpStream) -> Option<Id> {
        let deadline = tcp.poll_timeout();
        let id = self.table.insert(key, mac, Flow::Tcp(Box::new(tcp), socket));
        let Some(Entry { flow: Flow::Tcp(_, socket), .. }) = self.table.get(id) else {
            return None;
        };
        if let Err(errno) = self.epoll.add(&*socket, event(id, EDGE)) {
            log::warn!("cannot watch a socket: {errno}");
            self.end(id, "it cannot be watched");
            return None;
        }
        self.table.wake(id, deadline);
        Some(id)
    }

    /// Opens a connection to a guest for one that the host has accepted (`--forward`).
    pub fn tcp_forward(
        &mut self,
        cx: &mut Context<'_>,
        mac: Mac,
        guest: (Ipv6Addr, u16),
        peer: SocketAddr,
        socket: TcpStream,
    ) {
        let remote = (target::visitor(cx.settings, peer.ip(), guest.0), peer.port());
        let key = Key { protocol: wire::TCP, guest, remote };
        if self.table.find(&key).is_some() || !self.make_room(mac) {
            return self.stats.drop(DropReason::Limit);
        }
        let tcp = Tcp::connect(self.isn(&key, cx.now), own_mss(cx.settings, &key), cx.now);
        log::debug!("{} begins, from outside", Described(&key));
        self.stats.tcp += 1;
        if let Some(id) = self.tcp_insert(key, mac, tcp, socket) {
            self.with_tcp(cx, id, |tcp, _, wire, limits, now| {
                tcp.connected(wire, limits, now);
                Disposition::Open
            });
        }
    }

    /// Datagrams to the host's `socket` go to a guest's port from now on (`--forward`).
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn udp_forward(
        &mut self,
        now: Instant,
        mac: Mac,
        guest: (Ipv6Addr, u16),
        socket: std::net::UdpSocket,
    ) -> Result<(), Errno> {
        let ipv6 = socket.local_addr().is_ok_and(|a| a.is_ipv6());
        let key = udp::key(guest, ipv6);
        if let Some(id) = self.table.find(&key) {
            self.end(id, "its port is forwarded now");
        }
        let id = self.table.insert(key, mac, Flow::Udp(udp::Udp::forwarded(socket, now)));
        let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) else { return Ok(()) };
        self.epoll.add(udp.socket(), event(id, EpollFlags::EPOLLIN))
    }

    /// What [`Self::udp_forward`] gave to a guest's ports is another guest's from now on, or the same one's at another
    /// address.
    ///
    /// # Errors
    /// When a socket cannot be watched; that port is closed.
    pub fn udp_follow(&mut self, now: Instant, mac: Mac, address: Ipv6Addr) -> Result<(), Errno> {
        let mut followed = Ok(());
        for id in self.table.ids() {
            let port = match self.table.get(id) {
                Some(entry) if entry.flow.is_forwarded() => entry.key.guest.1,
                _ => continue,
            };
            if let Some(Flow::Udp(udp)) = self.remove(id, "it is another guest's") {
                let socket = udp.into_socket();
                // Its events were those of the old flow.
                let given = self
                    .epoll
                    .delete(&socket)
                    .and_then(|()| self.udp_forward(now, mac, (address, port), socket));
                followed = followed.and(given);
            }
        }
        followed
    }

    fn connect_failed(&mut self, cx: &mut Context<'_>, id: Id, error: &std::io::Error) {
        let Some(entry) = self.table.get(id) else { return };
        let (key, mac) = (entry.key, entry.mac);
        let Flow::Tcp(tcp, _) = &entry.flow else { return };
        let seq = tcp.syn_seq();
        self.stats.drop(DropReason::HostError);
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        match IcmpError::from_errno(errno) {
            None | Some(IcmpError::PortUnreachable) => {
                self.with_tcp(cx, id, |tcp, _, wire, _, _| tcp.break_off(wire));
            }
            Some(error) => {
                let mut l4 = Vec::new();
                l4.extend(key.guest.1.to_be_bytes());
                l4.extend(key.remote.1.to_be_bytes());
                l4.extend(seq.to_be_bytes());
                l4.extend([0, 0, 0, 0, 0x50, flag::SYN, 0, 0, 0, 0, 0, 0]);
                let packet = errors::rebuild(key.guest, key.remote, wire::TCP, &l4);
                errors::send(cx, &mut self.buckets, error, &packet, mac, None);
            }
        }
        self.end(id, errno.desc());
    }

    /// Lets a connection take a step, and does what becomes of it.
    fn with_tcp(
        &mut self,
        cx: &mut Context<'_>,
        id: Id,
        step: impl FnOnce(
            &mut Tcp,
            &mut host::TcpIo<'_>,
            &mut TcpWire<'_>,
            Limits,
            Instant,
        ) -> Disposition,
    ) {
        let Some(entry) = self.table.get(id) else { return };
        let limits = self.memory.limits(entry.mac, entry.held);
        let Flow::Tcp(tcp, socket) = &mut entry.flow else { return };
        let mut wire = TcpWire {
            addresses: addresses(cx.settings, entry.mac, &entry.key),
            ports: (entry.key.remote.1, entry.key.guest.1),
            offload: self.offload,
            sink: cx.sink,
        };
        let mut io = host::TcpIo { socket, stats: &mut self.stats };
        let disposition = step(tcp, &mut io, &mut wire, limits, cx.now);
        let held = tcp.held();
        self.memory.change(entry.mac, entry.held, held);
        entry.held = held;
        match (tcp.is_starved(), entry.waits) {
            (true, None) => entry.waits = Some(self.memory.wait(entry.mac, id)),
            (false, Some(place)) => {
                self.memory.forget(place);
                entry.waits = None;
            }
            _ => {}
        }
        let deadline = tcp.poll_timeout();
        match disposition {
            Disposition::Open => self.table.wake(id, deadline),
            // Nothing is left to be reset.
            Disposition::Closed => drop(self.remove(id, "closed")),
            Disposition::GuestReset => self.end(id, "reset by the guest"),
            Disposition::HostReset => self.end(id, "reset"),
        }
    }

    /// An initial sequence number that others cannot guess (RFC 6528).
    fn isn(&self, key: &Key, now: Instant) -> u32 {
        let [.., a, b, c, d] = self.random.hash_one((key, now)).to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }
}

/// The token of a flow's events.
fn event(id: Id, flags: EpollFlags) -> nix::sys::epoll::EpollEvent {
    let token = u64::from(id.generation) << 32 | u64::from(id.slot);
    nix::sys::epoll::EpollEvent::new(flags, token)
}

fn from_token(token: u64) -> Id {
    let half = |n: u64| u32::try_from(n & 0xffff_ffff).unwrap_or(0);
    Id { slot: half(token), generation: half(token >> 32) }
}

fn addresses(settings: &Settings, guest_mac: Mac, key: &Key) -> Addresses {
    Addresses { guest_mac, mac: settings.mac, src: key.remote.0, dst: key.guest.0 }
}

fn own_mss(settings: &Settings, key: &Key) -> u16 {
    let headers = if key.guest.0.to_ipv4_mapped().is_some() { 40 } else { 60 };
    settings.mtu - headers
}

/// A flow for the log.
struct Described<'a>(&'a Key);

impl std::fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Key { protocol, guest, remote } = self.0;
        let name = match *protocol {
            wire::TCP => "tcp",
            wire::UDP => "udp",
            _ => "echo",
        };
        let end = |ip: Ipv6Addr, port| SocketAddr::new(IpAddr::V6(ip).to_canonical(), port);
        if remote.0.is_unspecified() {
            write!(f, "{name} {} (IPv{})", end(guest.0, guest.1), remote.1)
        } else {
            write!(f, "{name} {} -> {}", end(guest.0, guest.1), end(remote.0, remote.1))
        }
    }
}

#[cfg(test)]
mod fairness;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
