// SPDX-License-Identifier: Apache-2.0

//! The carrier: passes frames of guests to the network or to the flows, sends theirs to the guest,
//! and records both (`--pcap`).

mod guest;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use clat_tun::{GsoType, VirtioHeader};
use nix::sys::epoll::Epoll;
use pcap_file::pcap::{PcapPacket, PcapWriter};

use self::guest::Guests;
use crate::clat;
use crate::flow::{wire, Bounds, Context, DropReason, Engine, Offload, Sink};
use crate::frame::{Mac, Out, ETHERNET};
use crate::host_sockets::HostSockets;
use crate::icmp_error::IcmpError;
use crate::link::{Event, Link};
use crate::network::{self, Handled, Moved, Network, Query};
use crate::resolvers::Told;
use crate::settings::Settings;

pub use self::guest::GRACE;

/// Time until another try to send on a full link that cannot report room.
const RETRY: Duration = Duration::from_millis(1);

/// The file of `--pcap`, if there is one.
#[derive(Default)]
struct Recorder(Option<PcapWriter<std::fs::File>>);

impl Recorder {
    fn record(&mut self, parts: &[&[u8]]) {
        let Some(pcap) = &mut self.0 else { return };
        let bytes = parts.concat();
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let packet = PcapPacket { timestamp: time, orig_len: len, data: bytes.into() };
        if let Err(e) = pcap.write_packet(&packet) {
            log::error!("no more is recorded: {e}");
            self.0 = None;
        }
    }
}

/// A CLAT's link, and the address whose packets it gets.
struct ClatPort {
    address: Ipv6Addr,
    link: Box<dyn Link>,
}

/// The links, as the sink of frames.
struct Ports {
    link: Box<dyn Link>,
    clat: Option<ClatPort>,
    recorder: Recorder,
    now: Instant,
    next_id: u32,
    /// Number of frames sent.
    frames: u64,
}

impl Ports {
    /// Sends the network's answers.
    fn hand_on(&mut self, out: &mut Out) {
        for (vnet, frame) in out.iter() {
            self.frame(vnet, &[frame]);
        }
        out.clear();
    }
}

impl Sink for Ports {
    fn frame(&mut self, vnet: &VirtioHeader, parts: &[&[u8]]) {
        self.recorder.record(parts);
        self.frames += 1;
        let to = || parts.first().and_then(|head| destination(head));
        match &mut self.clat {
            Some(clat) if to() == Some(clat.address) => clat.link.send(self.now, vnet, parts),
            _ => self.link.send(self.now, vnet, parts),
        }
    }

    fn next_id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    fn is_full(&self) -> bool {
        self.link.is_full()
    }
}

/// The destination of an IPv6 frame.
fn destination(frame: &[u8]) -> Option<Ipv6Addr> {
    address_at(frame, ETHERNET + 24)
}

fn source(frame: &[u8]) -> Option<Ipv6Addr> {
    address_at(frame, ETHERNET + 8)
}

fn address_at(frame: &[u8], at: usize) -> Option<Ipv6Addr> {
    let [0x86, 0xdd] = frame.get(12..14)? else { return None };
    let bytes: [u8; 16] = frame.get(at..at + 16)?.try_into().ok()?;
    Some(bytes.into())
}

/// The network, its flows, and the links to the guest.
pub struct Carrier {
    network: Network,
    engine: Engine<HostSockets>,
    ports: Ports,
    guests: Guests,
    /// The network's answers.
    out: Out,
}

/// Everything that handles a received frame: all but the links.
struct Inner<'a> {
    network: &'a mut Network,
    engine: &'a mut Engine<HostSockets>,
    guests: &'a mut Guests,
    out: &'a mut Out,
}

impl Inner<'_> {
    /// Handles a frame of the guest.
    fn frame(&mut self, now: Instant, vnet: &VirtioHeader, frame: &[u8]) {
        let &[_, _, _, _, _, _, a, b, c, d, e, f, ..] = frame else { return };
        let mac = Mac([a, b, c, d, e, f]);
        if frame.len() < ETHERNET || mac.is_multicast() {
            return;
        }
        let handled = self.network.input(frame, vnet, now, self.out);
        for Moved { address, from, to } in self.network.take_moved() {
            self.engine.handle_moved(address, from, to);
        }
        if handled == Handled::ForeignSource {
            return self.engine.count_drop(DropReason::ForeignSource);
        }
        self.meet(frame, mac, now);
        match handled {
            Handled::Yes | Handled::ForeignSource => {}
            Handled::Neighbour(to) => {
                if self.fits(vnet, mac, &frame[ETHERNET..], now) {
                    let router = self.network.settings().mac;
                    network::forward(router, to, vnet, frame, self.out);
                }
            }
            Handled::NotForUs => {
                let packet = &frame[ETHERNET..];
                if self.fits(vnet, mac, packet, now) {
                    let settings = self.network.settings();
                    self.engine.handle_input(Context { settings, now }, mac, vnet, packet);
                }
            }
            Handled::Dns => {
                let cx = Context { settings: self.network.settings(), now };
                self.engine.handle_dns_input(cx, mac, vnet, &frame[ETHERNET..]);
            }
        }
    }

    /// Whether a packet fits the link's MTU; if not, its station gets an ICMP error.
    fn fits(&mut self, vnet: &VirtioHeader, mac: Mac, packet: &[u8], now: Instant) -> bool {
        let mtu = self.network.settings().mtu;
        let fits = vnet.gso_type != GsoType::None || wire::length(packet) <= mtu.into();
        if !fits {
            let ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
            let error = IcmpError::too_big(ipv6, mtu.into());
            self.network.report(error, mac, packet, now, self.out);
        }
        fits
    }

    /// Notes the guest for `--forward`, also one that only listens.
    fn meet(&mut self, frame: &[u8], mac: Mac, now: Instant) {
        let prefix = self.network.settings().prefix.to_bits() >> 64;
        let served = |address: Ipv6Addr| address.to_bits() >> 64 == prefix;
        let Some(src) = source(frame) else { return };
        let claimed = if src.is_unspecified() { duplicate_sought(frame) } else { Some(src) };
        if let Some(address) = claimed.filter(|address| served(*address)) {
            if let Some(silent) = self.guests.hear(address, mac, served, now) {
                self.network.solicit(silent, self.out);
            }
        } else if src.is_unicast_link_local() {
            self.guests.notice(src, now);
        }
    }
}

/// The address that a guest probes for duplicates (RFC 4862 §5.4.2).
fn duplicate_sought(frame: &[u8]) -> Option<Ipv6Addr> {
    const NEXT_HEADER: usize = ETHERNET + 6;
    const MESSAGE: usize = ETHERNET + 40;
    let is_solicitation = frame.get(NEXT_HEADER) == Some(&58) && frame.get(MESSAGE) == Some(&135);
    let target: [u8; 16] = frame.get(MESSAGE + 8..MESSAGE + 24)?.try_into().ok()?;
    is_solicitation.then(|| target.into())
}

impl Carrier {
    /// A network for guests on `link`, and for a CLAT of its own: its address and its link.
    #[must_use]
    pub fn new(
        settings: Settings,
        link: Box<dyn Link>,
        clat: Option<(Ipv6Addr, Box<dyn Link>)>,
        bounds: Bounds,
        epoll: Rc<Epoll>,
        now: Instant,
    ) -> Self {
        let super_packets = link.takes_super_packets();
        let offload = Offload { tso: super_packets, uso: super_packets };
        let sockets = HostSockets::new(epoll).bound(settings.outbound.clone());
        let mut network = Network::new(settings, now);
        if let Some((address, _)) = &clat {
            network.reserve(*address, clat::MAC);
        }
        // Network and flows share each guest's rate limit of ICMP errors.
        let buckets = network.buckets().clone();
        Self {
            network,
            engine: Engine::new(sockets, offload, bounds).with_buckets(buckets),
            ports: Ports {
                link,
                clat: clat.map(|(address, link)| ClatPort { address, link }),
                recorder: Recorder::default(),
                now,
                next_id: fastrand::u32(..),
                frames: 0,
            },
            guests: Guests::new(),
            out: Out::default(),
        }
    }

    /// Records all frames from now on.
    pub fn set_pcap(&mut self, pcap: PcapWriter<std::fs::File>) {
        self.ports.recorder = Recorder(Some(pcap));
    }

    /// The link to the guest.
    pub fn link(&self) -> &dyn Link {
        self.ports.link.as_ref()
    }

    /// The CLAT's link.
    #[must_use]
    pub fn clat(&self) -> Option<&dyn Link> {
        self.ports.clat.as_ref().map(|clat| clat.link.as_ref())
    }

    /// The flows.
    #[must_use]
    pub fn engine(&self) -> &Engine<HostSockets> {
        &self.engine
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Numbers of frames sent to the guest, and lost on the way.
    #[must_use]
    pub fn frames_down(&self) -> (u64, u64) {
        let lost = self.link().dropped() + self.clat().map_or(0, Link::dropped);
        (self.ports.frames.saturating_sub(lost), lost)
    }

    /// The guest, if it has been heard with an address of the network.
    #[must_use]
    pub fn guest(&self) -> Option<(Ipv6Addr, Mac)> {
        self.guests.known()
    }

    /// The places where the guest may listen: the address by which it was heard, its own of
    /// `--dual-stack`, or behind the CLAT, whose namespace is the guest's.
    fn places(&self) -> Vec<(Ipv6Addr, Mac)> {
        let Some((own, mac)) = self.guests.known() else { return Vec::new() };
        let mut ipv4: Vec<_> = self.network.ipv4_of(mac).collect();
        // The first address, which a guest that has not sent IPv4 yet may have.
        let first = self.network.settings().dual_stack.map(|dual| dual.guest.to_ipv6_mapped());
        ipv4.extend(first.filter(|_| ipv4.is_empty()));
        let stations = std::iter::once(own).chain(ipv4).map(|address| (address, mac));
        let clat = self.ports.clat.as_ref().map(|clat| (clat.address, clat::MAC));
        stations.chain(clat).collect()
    }

    /// Runs `step` with the flows.
    pub fn with_engine<R>(
        &mut self,
        now: Instant,
        step: impl FnOnce(&mut Engine<HostSockets>, Context<'_>) -> R,
    ) -> R {
        step(&mut self.engine, Context { settings: self.network.settings(), now })
    }

    /// Runs `step` with the network, and sends its answers.
    fn with_network(&mut self, now: Instant, step: impl FnOnce(&mut Network, &mut Out)) {
        self.ports.now = now;
        step(&mut self.network, &mut self.out);
        self.ports.hand_on(&mut self.out);
    }

    /// Reads frames of the guest.
    ///
    /// # Errors
    /// If the link is closed for good.
    pub fn read(&mut self, now: Instant) -> io::Result<()> {
        self.ports.now = now;
        let inner = &mut Inner {
            network: &mut self.network,
            engine: &mut self.engine,
            guests: &mut self.guests,
            out: &mut self.out,
        };
        let recorder = &mut self.ports.recorder;
        let event = self.ports.link.receive(now, &mut |vnet, frame| {
            recorder.record(&[frame]);
            inner.frame(now, vnet, frame);
        })?;
        self.ports.hand_on(&mut self.out);
        match event {
            Event::Frames => {}
            Event::Came => {
                log::info!("a guest is connected");
                self.guests.came();
            }
            Event::Left(why) => log::info!("the guest has left: {why}"),
            Event::Nodes(nodes) => {
                let prefix = self.network.settings().prefix;
                let present = nodes.iter().map(|(_, mac)| (mac.address_in(prefix), *mac));
                self.guests.nodes(&present.collect::<Vec<_>>(), now);
                self.network.set_nodes(nodes);
            }
        }
        Ok(())
    }

    /// Reads packets of the CLAT, which are all for the flows.
    ///
    /// # Errors
    /// If the CLAT's device no longer exists.
    pub fn read_clat(&mut self, now: Instant) -> io::Result<()> {
        let Some(clat) = &mut self.ports.clat else { return Ok(()) };
        let (engine, recorder) = (&mut self.engine, &mut self.ports.recorder);
        let settings = self.network.settings();
        clat.link.receive(now, &mut |vnet, packet| {
            recorder.record(&[&settings.mac.0, &clat::MAC.0, &[0x86, 0xdd], packet]);
            engine.handle_input(Context { settings, now }, clat::MAC, vnet, packet);
        })?;
        Ok(())
    }

    /// Takes the questions for resolvers.
    pub fn take_queries(&mut self) -> Vec<Query> {
        self.network.take_queries()
    }

    /// Handles the result of a question to a resolver; returns whether its answer is still awaited.
    pub(crate) fn dns_told(&mut self, told: Told<'_>, now: Instant) -> bool {
        let (Told::Message(token, _) | Told::Failed(token)) = told;
        self.with_network(now, |network, out| match told {
            Told::Message(token, message) => network.dns_answer(token, message, now, out),
            Told::Failed(token) => network.dns_failed(token, now, out),
        });
        self.network.waits_for(token)
    }

    /// Takes the connections of guests to the DNS server.
    pub fn take_dns_connections(&mut self) -> Vec<(Mac, UnixStream)> {
        self.engine.take_dns_connections()
    }

    /// Handles a guest's question on such a connection, to which the owner has given this number.
    pub fn dns_question(&mut self, connection: u32, guest: Mac, message: &[u8], now: Instant) {
        self.network.dns_question(connection, guest, message, now);
    }

    /// Takes the answers to such questions.
    pub fn take_dns_answers(&mut self) -> Vec<(u32, Vec<u8>)> {
        self.network.take_dns_answers()
    }

    /// Has others asked for names from now on.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        self.network.set_resolvers(resolvers);
    }

    /// Changes the advertised prefix.
    pub fn renumber(&mut self, prefix: Ipv6Addr, now: Instant) {
        self.with_network(now, |network, out| network.renumber(prefix, now, out));
    }

    /// Sends the final router advertisement (RFC 4861 §6.2.5), before the network ends.
    pub fn farewell(&mut self, now: Instant) {
        self.with_network(now, |network, out| network.farewell(out));
        // Delayed frames are sent now, too. An error does not matter: the link may be closed.
        let end = self.ports.link.poll_timeout().map_or(now, |_| now + END);
        let _ = self.ports.link.flush(end);
    }

    /// Handles timers, and ends a batch.
    ///
    /// # Errors
    /// If a link is closed for good.
    pub fn finish(&mut self, now: Instant) -> io::Result<()> {
        self.ports.now = now;
        let due = |link: &dyn Link| link.poll_timeout().is_some_and(|at| at <= now);
        if due(self.ports.link.as_ref()) {
            self.read(now)?;
        }
        if self.clat().is_some_and(due) {
            self.read_clat(now)?;
        }
        if self.network.next_timer().is_some_and(|at| at <= now) {
            self.with_network(now, |network, out| network.poll(now, out));
        }
        if let Some(station) = self.guests.next_sought(now) {
            self.with_network(now, |network, out| network.seek(station, out));
        }
        if self.engine.has_refused() {
            let places = self.places();
            self.with_engine(now, |engine, cx| engine.try_elsewhere(cx, &places));
        }
        self.with_engine(now, Engine::handle_timeout);
        let cx = Context { settings: self.network.settings(), now };
        self.engine.poll_transmit(cx, &mut self.ports);
        self.ports.link.flush(now)?;
        if let Some(clat) = &mut self.ports.clat {
            clat.link.flush(now)?;
        }
        if self.guests.expire_guest(self.ports.link.has_guest(), now) {
            self.engine.clear();
        }
        Ok(())
    }

    /// When [`Self::finish`] is due again; `None`: never.
    #[must_use]
    pub fn next_timer(&self, now: Instant) -> Option<Instant> {
        let link = self.link();
        let full = link.is_full();
        let busy = (self.engine.is_busy() && !full).then_some(now);
        let waiting = (full && link.send_fd().is_none()).then_some(now + RETRY);
        [
            busy,
            waiting,
            link.poll_timeout(),
            self.clat().and_then(Link::poll_timeout),
            self.guests.poll_timeout(),
            self.network.next_timer(),
            self.engine.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// Longer than any delay of frames.
const END: Duration = Duration::from_secs(365 * 86400);

#[cfg(test)]
#[path = "../../tests/unit/carrier.rs"]
mod tests;
