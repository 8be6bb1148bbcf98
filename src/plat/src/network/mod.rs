// SPDX-License-Identifier: Apache-2.0

//! The network: answers as router, DHCP server and DNS server. No I/O; time is an argument.
//!
//! `ipv4` and `ipv6` decide about packets of their family; here is what both need.

mod arp;
mod dhcpv4;
mod dhcpv6;
mod dns64;
mod icmp;
mod ipv4;
mod ipv6;
mod nd;
mod ra;
mod wire;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use clat_tun::VirtioHeader;
use smoltcp::wire::{EthernetProtocol, IpProtocol};

use self::arp::Arp;
use self::dns64::{Client, Dns64};
use self::nd::{Claim, Neighbours};
use self::ra::Advertiser;
use self::wire::{Link, Packet};
use crate::fairness::Buckets;
use crate::frame::{Mac, Out, ETHERNET};
use crate::icmp_error::IcmpError;
use crate::settings::{Label, Settings};

pub use self::dns64::{is_question, MAX_QUESTION};

/// The all-nodes group.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const DNS_PORT: u16 = 53;

/// Most packets that wait for the Ethernet address of another guest (RFC 4861 §7.2.2), and how
/// long.
const MAX_WAITING: usize = 64;
const RESOLUTION: Duration = Duration::from_secs(3);

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// Nothing: the network has answered or dropped it.
    Yes,
    /// Pass it to the flows. It is IPv6 (or IPv4, with `dual_stack`) from a guest's address to
    /// elsewhere and may be forwarded; its lengths are valid, but padding may follow.
    NotForUs,
    /// Pass it to the flows: TCP to the network's DNS server, which is here
    /// ([`Network::dns_question`]).
    Dns,
    /// Forward it to another guest, at this Ethernet address.
    Neighbour(Mac),
    /// Nothing: dropped, since its source address is another station's.
    ForeignSource,
}

/// An address that has moved to another station, as its flows have to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The address; IPv4 addresses are IPv4-mapped.
    pub address: Ipv6Addr,
    /// The station that had it.
    pub from: Mac,
    /// The station that has it.
    pub to: Mac,
}

/// A packet that waits for the Ethernet address of its destination.
#[derive(Debug)]
struct Waiting {
    dst: Ipv6Addr,
    until: Instant,
    vnet: VirtioHeader,
    frame: Vec<u8>,
}

/// A question for a resolver of the host. Its sender returns the token by [`Network::dns_answer`],
/// or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The resolver.
    pub resolver: SocketAddr,
    /// The token to return.
    pub token: u64,
    /// The guest that has asked.
    pub guest: Mac,
    /// The message.
    pub message: Vec<u8>,
    /// Whether to use TCP: an answer over UDP was truncated.
    pub tcp: bool,
}

/// The network's state.
#[derive(Debug)]
pub struct Network {
    settings: Settings,
    queries: Vec<Query>,
    advertiser: Advertiser,
    neighbours: Neighbours,
    dhcpv4: dhcpv4::Server,
    dns: Dns64,
    /// Answers by connection.
    dns_answers: Vec<(u32, Vec<u8>)>,
    errors: Buckets,
    moved: Vec<Moved>,
    waiting: VecDeque<Waiting>,
}

impl Network {
    /// A network that begins to advertise itself with the first [`Network::poll`].
    #[must_use]
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            queries: Vec::new(),
            advertiser: Advertiser::new(now),
            neighbours: Neighbours::default(),
            dhcpv4: dhcpv4::Server::default(),
            dns: Dns64::default(),
            dns_answers: Vec::new(),
            errors: Buckets::default(),
            moved: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Reserves an address for a station.
    pub fn reserve(&mut self, address: Ipv6Addr, station: Mac) {
        self.neighbours.reserve(address, station);
    }

    /// Takes the addresses that have moved to other stations.
    pub fn take_moved(&mut self) -> Vec<Moved> {
        std::mem::take(&mut self.moved)
    }

    /// The rate limits of its ICMP errors.
    pub(crate) fn buckets(&self) -> &Buckets {
        &self.errors
    }

    /// Its present settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Handles a frame of a guest, and appends answers to `out`. `vnet` says whether its checksum
    /// is still open.
    ///
    /// The MTU is not checked: a frame may be a GSO packet. See [`IcmpError::TooBig`].
    pub fn input(
        &mut self,
        frame: &[u8],
        vnet: &VirtioHeader,
        now: Instant,
        out: &mut Out,
    ) -> Handled {
        let router = self.settings.mac;
        let Some((link, protocol, payload)) = wire::ethernet(frame, router) else {
            return Handled::Yes;
        };
        match (protocol, self.settings.dual_stack) {
            (EthernetProtocol::Ipv6, _) => match Packet::ipv6(link, payload) {
                Some(packet) => self.ipv6(&packet.with(vnet), (vnet, frame), now, out),
                None => Handled::Yes,
            },
            (EthernetProtocol::Ipv4, Some(net)) => match Packet::ipv4(link, payload) {
                Some(packet) => self.ipv4(&packet.with(vnet), net, now, out),
                None => Handled::Yes,
            },
            (EthernetProtocol::Arp, Some(net)) => {
                let Some(message) = Arp::read(payload) else { return Handled::Yes };
                let sender = message.sender;
                if dhcpv4::is_guest(sender, net) && !self.owns(sender.into(), link, now, out) {
                    return Handled::ForeignSource;
                }
                if let Some(answer) = message.answer(net.router, router) {
                    wire::send_raw(out, link, EthernetProtocol::Arp, &answer);
                }
                Handled::Yes
            }
            _ => Handled::Yes,
        }
    }

    /// Handles timers: advertisements, and questions that have timed out.
    pub fn poll(&mut self, now: Instant, out: &mut Out) {
        if self.advertiser.poll(now) {
            self.advertise(self.everybody(), ALL_NODES, out);
        }
        for (client, answer) in self.dns.poll(&self.settings, now, &mut self.queries) {
            self.send_dns(client, answer, out);
        }
        while self.waiting.front().is_some_and(|waiting| waiting.until <= now) {
            let Some(unresolved) = self.waiting.pop_front() else { break };
            self.unreachable(&unresolved.frame, now, out);
        }
    }

    /// When [`Network::poll`] is due; `None`: never.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        let waiting = self.waiting.front().map(|waiting| waiting.until);
        let timers = [Some(self.advertiser.next()), self.dns.next_timer(), waiting];
        timers.into_iter().flatten().min()
    }

    /// Takes the questions to send.
    pub fn take_queries(&mut self) -> Vec<Query> {
        std::mem::take(&mut self.queries)
    }

    /// Handles a resolver's answer to the question with `token`.
    pub fn dns_answer(&mut self, token: u64, message: &[u8], now: Instant, out: &mut Out) {
        let answered = self.dns.answer(token, message, &self.settings, now, &mut self.queries);
        if let Some((client, answer)) = answered {
            self.send_dns(client, answer, out);
        }
    }

    /// Handles the failure to reach the resolver of the question with `token`.
    pub fn dns_failed(&mut self, token: u64, now: Instant, out: &mut Out) {
        let answered = self.dns.failed(token, &self.settings, now, &mut self.queries);
        if let Some((client, answer)) = answered {
            self.send_dns(client, answer, out);
        }
    }

    /// Whether the question with `token` is still open.
    #[must_use]
    pub fn waits_for(&self, token: u64) -> bool {
        self.dns.waits_for(token)
    }

    /// Handles a guest's question over TCP, by the connection with this number.
    pub fn dns_question(&mut self, connection: u32, guest: Mac, message: &[u8], now: Instant) {
        let (settings, queries) = (&self.settings, &mut self.queries);
        let client = Client::Tcp { connection, guest };
        if let Some(answer) = self.dns.ask(client, message, settings, now, queries) {
            self.dns_answers.push((connection, answer));
        }
    }

    /// Takes the answers for connections.
    pub fn take_dns_answers(&mut self) -> Vec<(u32, Vec<u8>)> {
        std::mem::take(&mut self.dns_answers)
    }

    fn send_dns(&mut self, client: Client, answer: Vec<u8>, out: &mut Out) {
        match client {
            Client::Udp { link, from, at } => {
                let payload = wire::udp_with(at.port(), from.port(), &answer);
                let addrs = (at.ip(), from.ip());
                wire::send(out, link, addrs, wire::HOP_LIMIT, IpProtocol::Udp, payload);
            }
            Client::Tcp { connection, .. } => self.dns_answers.push((connection, answer)),
        }
    }

    /// Changes the advertised prefix to another /64: the old one is deprecated at once, with
    /// lifetimes of zero, and is served as long as guests use it.
    pub fn renumber(&mut self, prefix: Ipv6Addr, now: Instant, out: &mut Out) {
        self.advertiser.renumber(self.settings.prefix, prefix, now);
        self.settings.prefix = prefix;
        self.poll(now, out);
    }

    /// Has others asked from now on, beginning with the first of them.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        self.settings.resolvers = resolvers;
        self.dns.forget_preferred();
    }

    /// Answers for these nodes' names from now on.
    pub fn set_nodes(&mut self, nodes: Vec<(Label, Mac)>) {
        self.settings.nodes = nodes;
    }

    /// Says that the router is going (RFC 4861 §6.2.5).
    pub fn farewell(&self, out: &mut Out) {
        let message = Advertiser::farewell(&self.settings);
        self.send_nd(self.everybody(), self.settings.router, ALL_NODES, message, out);
    }

    /// Answers a packet (from its IP header on) of the guest at `guest` with an ICMP or ICMPv6
    /// error, within the rate limit and if such an answer is allowed.
    pub fn report(
        &mut self,
        error: IcmpError,
        guest: Mac,
        packet: &[u8],
        now: Instant,
        out: &mut Out,
    ) {
        let link = Link { router: self.settings.mac, guest };
        let packet = match packet.first().map(|byte| byte >> 4) {
            Some(6) => Packet::ipv6(link, packet),
            _ => Packet::ipv4(link, packet),
        };
        if let Some(packet) = packet {
            self.error(error, &packet, now, out);
        }
    }

    /// Whether a station may use a source address. If another one has it, that one is solicited.
    fn owns(&mut self, address: IpAddr, link: Link, now: Instant, out: &mut Out) -> bool {
        let address6 = mapped(address);
        match self.neighbours.claim(address6, link.guest, now) {
            Claim::Owned => true,
            Claim::MovedFrom(from) => {
                log::info!("{address} has moved from {from} to {}", link.guest);
                self.moved.push(Moved { address: address6, from, to: link.guest });
                true
            }
            Claim::Foreign { owner, ask } => {
                if ask {
                    self.ask(address, link.to(owner), out);
                }
                false
            }
        }
    }

    /// Solicits an address from a station, or from a group.
    fn ask(&self, address: IpAddr, link: Link, out: &mut Out) {
        match (address, self.settings.dual_stack) {
            (IpAddr::V6(address), _) => {
                let to = clat_packet::nd::solicited_node(address);
                let message = nd::solicitation(address, self.settings.mac);
                self.send_nd(link, self.settings.router, to, message, out);
            }
            (IpAddr::V4(address), Some(net)) => {
                let message = arp::request(net.router, self.settings.mac, address);
                wire::send_raw(out, link, EthernetProtocol::Arp, &message);
            }
            (IpAddr::V4(_), None) => {}
        }
    }

    /// Queues a packet for another guest whose Ethernet address is not known yet.
    fn wait_for(
        &mut self,
        dst: Ipv6Addr,
        (vnet, frame): (&VirtioHeader, &[u8]),
        now: Instant,
        out: &mut Out,
    ) {
        self.solicit(dst, out);
        if self.waiting.len() < MAX_WAITING {
            let (until, vnet, frame) = (now + RESOLUTION, *vnet, frame.to_vec());
            self.waiting.push_back(Waiting { dst, until, vnet, frame });
        } else {
            self.unreachable(frame, now, out);
        }
    }

    /// Sends the packets that have waited for a guest's Ethernet address.
    fn resolved(&mut self, address: Ipv6Addr, mac: Mac, out: &mut Out) {
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.dst == address {
                forward(self.settings.mac, mac, &waiting.vnet, &waiting.frame, out);
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    fn unreachable(&mut self, frame: &[u8], now: Instant, out: &mut Out) {
        if let Some((link, _, packet)) = wire::ethernet(frame, self.settings.mac) {
            self.report(IcmpError::AddressUnreachable, link.guest, packet, now, out);
        }
    }

    /// The Ethernet address of a neighbour, if known.
    #[must_use]
    pub fn neighbour(&self, addr: Ipv6Addr) -> Option<Mac> {
        self.neighbours.get(addr)
    }

    /// The IPv4 addresses of a station, IPv4-mapped.
    pub fn ipv4_of(&self, station: Mac) -> impl Iterator<Item = Ipv6Addr> + '_ {
        self.neighbours.of(station).filter(|address| address.to_ipv4_mapped().is_some())
    }

    /// Solicits the likely global addresses of the station with this link-local address, which will
    /// answer from the right one.
    pub fn seek(&self, station: Ipv6Addr, out: &mut Out) {
        // Most guests have the same interface identifier in both addresses.
        let identifier = station.to_bits() & u128::from(u64::MAX);
        self.solicit((self.settings.prefix.to_bits() | identifier).into(), out);
        let (from, echo) = (self.settings.router_global(), vec![128, 0, 0, 0, 0, 0, 0, 0]);
        let addrs = (from.into(), ALL_NODES.into());
        wire::send(out, self.everybody(), addrs, wire::HOP_LIMIT, IpProtocol::Icmpv6, echo);
    }

    /// Solicits the Ethernet address of a neighbour.
    pub fn solicit(&self, addr: Ipv6Addr, out: &mut Out) {
        let group = wire::group(clat_packet::nd::solicited_node(addr));
        self.ask(addr.into(), self.everybody().to(group), out);
    }

    /// Handles all but ICMP for the router's addresses of either family. `named_at` is the offset
    /// of the field with the protocol number.
    fn upper(
        &mut self,
        packet: &Packet<'_>,
        protocol: u8,
        payload: &[u8],
        named_at: usize,
        now: Instant,
        out: &mut Out,
    ) {
        let Packet { link, src, dst, .. } = *packet;
        let to_group = dst.is_multicast() || dst == IpAddr::V4(Ipv4Addr::BROADCAST);
        match IpProtocol::from(protocol) {
            IpProtocol::Udp => {
                let Some((from, to, message)) = wire::udp(packet, payload) else { return };
                match (to, src) {
                    (dhcpv6::SERVER_PORT, IpAddr::V6(_))
                        if (!to_group || dst == IpAddr::V6(dhcpv6::SERVERS))
                            && !src.is_unspecified() =>
                    {
                        if let Some(answer) = dhcpv6::answer(message, &self.settings) {
                            let answer =
                                wire::udp_with(dhcpv6::SERVER_PORT, dhcpv6::CLIENT_PORT, &answer);
                            let addrs = packet.reply_addrs(self.settings.router.into());
                            wire::send(out, link, addrs, wire::HOP_LIMIT, IpProtocol::Udp, answer);
                        }
                    }
                    (DNS_PORT, _) if !to_group && !src.is_unspecified() => {
                        let client = Client::Udp {
                            link,
                            from: SocketAddr::new(src, from),
                            at: SocketAddr::new(dst, to),
                        };
                        let (settings, queries) = (&self.settings, &mut self.queries);
                        if let Some(answer) = self.dns.ask(client, message, settings, now, queries)
                        {
                            self.send_dns(client, answer, out);
                        }
                    }
                    _ if to_group => {}
                    _ => self.error(IcmpError::PortUnreachable, packet, now, out),
                }
            }
            _ if to_group || src.is_unspecified() => {}
            IpProtocol::Tcp => {
                if let Some(reset) = icmp::reset(packet, payload) {
                    wire::send(out, link, (dst, src), wire::HOP_LIMIT, IpProtocol::Tcp, reset);
                }
            }
            IpProtocol::Ipv6NoNxt => {}
            _ => {
                let pointer = u32::try_from(named_at).unwrap_or(0);
                self.error(IcmpError::Parameter { code: 1, pointer }, packet, now, out);
            }
        }
    }

    fn error(&mut self, error: IcmpError, packet: &Packet<'_>, now: Instant, out: &mut Out) {
        let from = match (packet.src, self.settings.dual_stack) {
            (IpAddr::V6(src), _) if src.is_unicast_link_local() => self.settings.router.into(),
            (IpAddr::V6(_), _) => self.settings.router_global().into(),
            (IpAddr::V4(_), Some(net)) => net.router.into(),
            (IpAddr::V4(_), None) => return,
        };
        let Some((protocol, message)) = icmp::error(error, packet) else { return };
        if self.errors.take(packet.link.guest, now) {
            let addrs = (from, packet.src);
            wire::send(out, packet.link, addrs, wire::HOP_LIMIT, protocol, message);
        }
    }

    fn advertise(&self, link: Link, to: Ipv6Addr, out: &mut Out) {
        let message = self.advertiser.message(&self.settings);
        self.send_nd(link, self.settings.router, to, message, out);
    }

    /// Sends a neighbour discovery message, with hop limit 255 (RFC 4861 §7.1).
    fn send_nd(&self, link: Link, from: Ipv6Addr, to: Ipv6Addr, message: Vec<u8>, out: &mut Out) {
        wire::send(out, link, (from.into(), to.into()), 255, IpProtocol::Icmpv6, message);
    }

    fn everybody(&self) -> Link {
        Link { router: self.settings.mac, guest: wire::group(ALL_NODES) }
    }
}

/// An address as an IPv6 address.
fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Forwards an IPv6 packet of a guest to another one at `to`, with the hop limit decremented.
pub fn forward(router: Mac, to: Mac, vnet: &VirtioHeader, frame: &[u8], out: &mut Out) {
    const HOP_LIMIT: usize = ETHERNET + 7;
    out.push_with(*vnet, |buf| {
        let start = buf.len();
        buf.extend_from_slice(&[&to.0[..], &router.0].concat());
        buf.extend_from_slice(frame.get(12..).unwrap_or_default());
        if let Some(hops) = buf.get_mut(start + HOP_LIMIT) {
            *hops = hops.saturating_sub(1);
        }
    });
}

/// Whether this is TCP to the DNS server from a guest that can be answered.
fn is_dns(packet: &Packet<'_>, payload: &[u8]) -> bool {
    let port = payload.get(2..4).and_then(|port| port.first_chunk());
    let to_group = match packet.dst {
        IpAddr::V6(dst) => dst.is_multicast(),
        IpAddr::V4(dst) => dst.is_broadcast(),
    };
    port.is_some_and(|port| u16::from_be_bytes(*port) == DNS_PORT)
        && !to_group
        && !packet.src.is_unspecified()
}
