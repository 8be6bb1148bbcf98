// SPDX-License-Identifier: Apache-2.0

//! The engine: all flows of all guests.

mod admission;
mod echo;
mod guest_errors;
mod path_mtu;
mod recent;
mod tcp;
mod udp;

use std::collections::hash_map::RandomState;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use clat_tun::VirtioHeader;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::fragments::Fragments;
use super::key::{Id, Key};
use super::memory::Memory;
use super::sockets::{Datagrams, Ready, Sockets};
use super::stats::{DropReason, Stats};
use super::table::{self, Table};
use super::target::seen;
use super::tcp::Tcp;
use super::wire::{self, Addresses, Offload, Packet};
use super::{errors, Context, Sink};
use crate::fairness::{Buckets, Turns};
use crate::frame::{Mac, Out};
use crate::icmp_error::IcmpError;
use crate::settings::Settings;

pub use admission::Bounds;

/// Most reports read from an error queue before other flows are served.
const REPORTS: usize = 32;
/// Most flows whose timers are handled before other events.
const TIMEOUTS: usize = 1024;
/// Most flows that [`Engine::poll_transmit`] serves before other events are seen to, by [`Kind`]: a
/// few milliseconds' worth of each.
const SERVED: [usize; 3] = [4, 256, 64];
/// Most bytes of frames waiting for [`Engine::poll_transmit`]: acknowledgements, resets, errors,
/// and retransmissions.
const QUEUED: usize = 4 << 20;

enum Flow<S: Sockets> {
    /// A connection to be begun in its guest's turn.
    Opening(tcp::Opening),
    /// With a visit until the guest has accepted the connection.
    Tcp(Box<Tcp>, S::Connection, Option<tcp::Visit>),
    Udp(udp::Udp<S::Datagrams>),
    Echo(echo::Echo<S::Datagrams>),
}

/// What [`Engine::poll_transmit`] does for a flow, in this order.
#[derive(Clone, Copy)]
enum Kind {
    /// Begins a connection, which may take the kernel as long as dozens of packets.
    Opening,
    Datagrams,
    /// Waits while the sink is full.
    Stream,
}

impl<S: Sockets> Flow<S> {
    fn kind(&self) -> Kind {
        match self {
            Self::Opening(_) => Kind::Opening,
            Self::Udp(_) | Self::Echo(_) => Kind::Datagrams,
            Self::Tcp(..) => Kind::Stream,
        }
    }

    /// Whether it is a forwarded port, which guests cannot evict.
    fn is_forwarded(&self) -> bool {
        matches!(self, Self::Udp(udp) if udp.deadline().is_none())
    }
}

type Entry<S> = table::Entry<Flow<S>>;

/// Where the other end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// On the host's network.
    World,
    /// The DNS server in this process.
    Dns,
}

/// Frames produced outside of [`Engine::poll_transmit`], which sends them.
#[derive(Default)]
struct Queue(Out);

impl Queue {
    fn hand_on(&mut self, sink: &mut dyn Sink) {
        for (vnet, frame) in self.0.iter() {
            sink.frame(vnet, &[frame]);
        }
        self.0.clear();
    }
}

impl Sink for Queue {
    fn frame(&mut self, vnet: &VirtioHeader, parts: &[&[u8]]) {
        // Frames lost here are retransmitted, or do not matter.
        if self.0.bytes() < QUEUED {
            self.0.push_parts(vnet, parts);
        }
    }

    fn next_id(&mut self) -> u32 {
        fastrand::u32(..)
    }
}

/// All flows.
pub struct Engine<S: Sockets> {
    sockets: S,
    offload: Offload,
    table: Table<Flow<S>>,
    memory: Memory,
    /// Flows for [`Engine::poll_transmit`] to serve, by [`Kind`].
    ready: [Turns<Id>; 3],
    /// Forwarded ports, and connections to them, that the guest has refused.
    refused: Vec<Id>,
    /// Connections that guests are opening.
    connecting: admission::Connecting,
    /// Our ends of connections to the network's own DNS server.
    dns: Vec<(Mac, UnixStream)>,
    batch: udp::Batch,
    /// Whether the host supports UDP_SEGMENT; `None` until asked.
    supports_gso: Option<bool>,
    queue: Queue,
    scratch: Vec<u8>,
    fragments: Fragments,
    paths: path_mtu::PathMtus,
    buckets: Buckets,
    random: RandomState,
    told_of_ping: bool,
    stats: Stats,
}

impl<S: Sockets> Engine<S> {
    /// An engine without flows.
    #[must_use]
    pub fn new(sockets: S, offload: Offload, bounds: Bounds) -> Self {
        Self {
            sockets,
            offload,
            table: Table::new(bounds.flows, bounds.flows_each),
            memory: Memory::new(bounds.memory),
            ready: Default::default(),
            refused: Vec::new(),
            connecting: admission::Connecting::default(),
            dns: Vec::new(),
            batch: udp::Batch::default(),
            supports_gso: None,
            queue: Queue::default(),
            scratch: vec![0; 1 << 17],
            fragments: Fragments::default(),
            paths: path_mtu::PathMtus::default(),
            buckets: Buckets::default(),
            random: RandomState::new(),
            told_of_ping: false,
            stats: Stats::default(),
        }
    }

    /// Takes tokens for its ICMP errors from `buckets`.
    #[must_use]
    pub(crate) fn with_buckets(self, buckets: Buckets) -> Self {
        Self { buckets, ..self }
    }

    /// Sets whether the host supports UDP_SEGMENT.
    #[doc(hidden)] // for tests
    pub fn assume_gso(&mut self, supports_gso: bool) {
        self.supports_gso = Some(supports_gso);
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Number of flows, and bytes of memory for their data.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.table.len(), self.memory.held())
    }

    /// At most `most` flows.
    #[must_use]
    pub fn flows(&self, most: usize) -> Vec<FlowStatus> {
        self.table.iter().take(most).map(FlowStatus::of).collect()
    }

    /// Whether [`Self::try_elsewhere`] has work.
    #[must_use]
    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Tries what the guest of forwarded ports has refused at the next of `places`, addresses and
    /// their stations where it may listen. The first one is the guest's own address.
    pub fn try_elsewhere(&mut self, cx: Context<'_>, places: &[(Ipv6Addr, Mac)]) {
        for id in std::mem::take(&mut self.refused) {
            match self.table.get(id).map(|entry| &entry.flow) {
                Some(Flow::Tcp(..)) => self.tcp_elsewhere(cx, id, places),
                Some(Flow::Udp(_)) => self.udp_elsewhere(cx.now, id, places),
                Some(Flow::Opening(_) | Flow::Echo(_)) | None => {}
            }
        }
    }

    /// Counts a packet that was dropped before it reached the engine.
    pub fn count_drop(&mut self, why: DropReason) {
        self.stats.drop(why);
    }

    /// Handles an IP packet from the guest with `mac`.
    pub fn handle_input(&mut self, cx: Context<'_>, mac: Mac, vnet: &VirtioHeader, bytes: &[u8]) {
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

    fn dispatch(&mut self, cx: Context<'_>, mac: Mac, vnet: &VirtioHeader, packet: &Packet<'_>) {
        let is_icmp = matches!(packet.protocol, wire::ICMP4 | wire::ICMP6);
        if is_icmp && self.guest_error(cx, mac, packet) {
            return;
        }
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

    /// Handles a TCP packet to the network's own DNS server. [`Engine::take_dns_connections`]
    /// returns the server's end.
    pub fn handle_dns_input(
        &mut self,
        cx: Context<'_>,
        mac: Mac,
        vnet: &VirtioHeader,
        bytes: &[u8],
    ) {
        let Some(packet) = wire::parse(bytes) else {
            return self.stats.drop(DropReason::Malformed);
        };
        self.stats.packets_up += 1;
        if !vnet.needs_csum && !vnet.data_valid && !wire::verifies(&packet) {
            return self.stats.drop(DropReason::Checksum);
        }
        self.tcp_input(cx, mac, &packet, Peer::Dns);
    }

    /// Takes the server's ends of new connections to the DNS server: non-blocking streams.
    pub fn take_dns_connections(&mut self) -> Vec<(Mac, UnixStream)> {
        std::mem::take(&mut self.dns)
    }

    /// Handles the readiness of a flow's socket.
    pub fn handle_ready(&mut self, cx: Context<'_>, id: Id, ready: Ready) {
        let Some(entry) = self.table.get(id) else { return };
        match &mut entry.flow {
            Flow::Opening(_) => {}
            Flow::Tcp(..) => self.tcp_ready(cx, id, ready),
            Flow::Udp(_) | Flow::Echo(_) => {
                if ready.failed {
                    self.reports(cx, id, None);
                }
                if ready.readable {
                    self.make_ready(id);
                }
            }
        }
    }

    /// Handles timers that are due.
    pub fn handle_timeout(&mut self, cx: Context<'_>) {
        for _ in 0..TIMEOUTS {
            let Some(id) = self.table.due(cx.now) else { return };
            let Some(entry) = self.table.get(id) else { continue };
            let deadline = match &entry.flow {
                Flow::Opening(_) => continue,
                Flow::Tcp(..) => {
                    self.tcp_timeout(cx, id);
                    continue;
                }
                Flow::Udp(udp) => udp.deadline(),
                Flow::Echo(echo) => echo.deadline(),
            };
            match deadline {
                Some(deadline) if deadline <= cx.now => self.end(id, "idle"),
                Some(deadline) => self.table.wake(id, deadline),
                None => {}
            }
        }
    }

    /// When [`Self::handle_timeout`] is due; `None` if no timer runs.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table.next_alarm()
    }

    /// Ends a batch of events: sends the resulting datagrams to the host and frames to the guest.
    pub fn poll_transmit(&mut self, cx: Context<'_>, sink: &mut dyn Sink) {
        self.send_datagrams(cx);
        self.queue.hand_on(sink);
        for kind in [Kind::Opening, Kind::Datagrams, Kind::Stream] {
            self.serve(cx, kind, sink);
        }
        for id in self.memory.served() {
            if let Some(entry) = self.table.get(id) {
                entry.waits = None;
            }
            self.make_ready(id);
        }
        self.queue.hand_on(sink);
    }

    /// Serves ready flows, guest by guest in turn.
    fn serve(&mut self, cx: Context<'_>, kind: Kind, sink: &mut dyn Sink) {
        // What is ready again has its turn in the next round.
        for _ in 0..self.ready[kind as usize].len().min(SERVED[kind as usize]) {
            if matches!(kind, Kind::Stream) && sink.is_full() {
                return;
            }
            let Some(id) = self.ready[kind as usize].pop() else { return };
            let Some(entry) = self.table.get(id) else { continue };
            entry.queued = false;
            match entry.flow {
                Flow::Opening(_) => {
                    if !self.tcp_begin(cx, id) {
                        return;
                    }
                }
                Flow::Tcp(..) => self.tcp_transmit(cx, id, sink),
                Flow::Udp(_) => self.udp_receive(cx, id, sink),
                Flow::Echo(_) => self.echo_receive(cx, id, sink),
            }
        }
    }

    /// Whether [`Self::poll_transmit`] has more work, which it left so that other events are
    /// served. Connections wait while the sink is full.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.ready.iter().all(Turns::is_empty)
    }

    /// Lets [`Self::poll_transmit`] serve a flow.
    fn make_ready(&mut self, id: Id) {
        if let Some(entry) = self.table.get(id) {
            if !std::mem::replace(&mut entry.queued, true) {
                self.ready[entry.flow.kind() as usize].push(entry.mac, id);
            }
        }
    }

    /// Drops a packet and reports why.
    fn refuse(
        &mut self,
        cx: Context<'_>,
        why: DropReason,
        error: IcmpError,
        packet: &[u8],
        mac: Mac,
    ) {
        self.stats.drop(why);
        self.report(cx, error, packet, mac);
    }

    /// Sends a guest an ICMP error about its packet.
    fn report(&mut self, cx: Context<'_>, error: IcmpError, packet: &[u8], mac: Mac) {
        errors::send(cx, &mut self.queue, &self.buckets, error, packet, mac, None);
    }

    /// The ICMP error for a packet to `to` that the host did not take.
    fn what_failed(
        &mut self,
        cx: Context<'_>,
        id: Id,
        errno: Errno,
        to: IpAddr,
    ) -> Option<IcmpError> {
        match errno {
            Errno::EMSGSIZE => self.reports(cx, id, Some(to)),
            errno => IcmpError::from_errno(errno),
        }
    }

    /// Passes on the reports of a socket's error queue; returns the host's own error about a packet
    /// to `about`.
    fn reports(&mut self, cx: Context<'_>, id: Id, about: Option<IpAddr>) -> Option<IcmpError> {
        let mut own = None;
        for _ in 0..REPORTS {
            let Some(entry) = self.table.get(id) else { break };
            let (key, mac) = (entry.key, entry.mac);
            let socket = match &entry.flow {
                Flow::Udp(udp) => udp.socket(),
                Flow::Echo(echo) => echo.socket(),
                Flow::Opening(_) | Flow::Tcp(..) => break,
            };
            let Ok(report) = socket.report(&mut self.scratch) else {
                socket.clear_error();
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
            let (queue, buckets) = (&mut self.queue, &self.buckets);
            errors::send(cx, queue, buckets, report.error, &packet, mac, router);
        }
        own
    }
}

/// Source and destination of a flow's packets to its guest.
fn addresses(settings: &Settings, guest_mac: Mac, key: &Key) -> Addresses {
    let (src, dst) = (key.remote.0, key.guest.0);
    Addresses { guest_mac, mac: settings.mac, src, dst, class: 0 }
}

/// A flow as shown by `platd status`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct FlowStatus {
    /// Protocol and both ends.
    pub flow: String,
    /// The Ethernet address of its guest.
    pub guest: String,
    /// Its state.
    pub state: String,
    /// Bytes of memory for its data.
    pub held: usize,
}

impl FlowStatus {
    fn of<S: Sockets>(entry: &Entry<S>) -> Self {
        let state = match &entry.flow {
            Flow::Opening(_) => "connecting".to_owned(),
            Flow::Tcp(tcp, ..) => tcp.state_name().to_owned(),
            Flow::Udp(_) | Flow::Echo(_) => "open".to_owned(),
        };
        let (flow, guest) = (entry.key.to_string(), entry.mac.to_string());
        Self { flow, guest, state, held: entry.held }
    }
}
