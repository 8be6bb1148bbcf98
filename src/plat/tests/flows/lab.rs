// SPDX-License-Identifier: Apache-2.0

//! Flows through the engine, to sockets of this host: translation of packets, and the end of
//! mappings (RFC 6146 §4). The time is an argument.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clat_packet::checksum::Sum;
use clat_plat::flow::tcp::flag;
use clat_plat::flow::{errors, target, wire, Bounds, Context, Drops, Engine, Id, Offload, Sockets};
use clat_plat::frame::Mac;
use clat_plat::host_sockets::{HostDatagrams, HostSockets};
use clat_plat::settings::{DualStack, Settings};
use clat_tun::{GsoType, VirtioHeader};
use nix::sched::{unshare, CloneFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use proptest::collection::vec;
use proptest::prelude::*;
use socket2::{Domain, Protocol, Socket, Type};

use crate::invariants::Frames;

pub(crate) const GUEST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x464, 0, 0, 0, 0, 9);
pub(crate) const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
/// This host's address for the guest.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc000, 0x202);
const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
/// The guest's port.
pub(crate) const PORT: u16 = 5000;

pub(crate) struct Lab {
    pub(crate) engine: Engine<HostSockets>,
    epoll: Rc<Epoll>,
    settings: Settings,
    pub(crate) frames: Frames,
    start: Instant,
    /// Time since the start.
    now: Duration,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(Bounds::default())
    }

    pub(crate) fn with(bounds: Bounds) -> Self {
        let epoll = Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap());
        Self {
            engine: Engine::new(HostSockets::new(Rc::clone(&epoll)), Offload::default(), bounds),
            epoll,
            settings: Settings {
                map_host: vec![HOST.into()],
                dual_stack: Some(DualStack::default()),
                ..Settings::default()
            },
            frames: Frames::default(),
            start: Instant::now(),
            now: Duration::ZERO,
        }
    }

    /// Runs a step of the engine, and sends the results.
    pub(crate) fn step<R>(
        &mut self,
        step: impl FnOnce(&mut Engine<HostSockets>, Context<'_>) -> R,
    ) -> R {
        let cx = Context { settings: &self.settings, now: self.start + self.now };
        let result = step(&mut self.engine, cx);
        self.engine.poll_transmit(cx, &mut self.frames);
        result
    }

    /// Packets that arrive together.
    pub(crate) fn send(&mut self, packets: &[Vec<u8>]) {
        self.step(|engine, cx| {
            for packet in packets {
                engine.handle_input(cx, MAC, &VirtioHeader::default(), packet);
            }
        });
    }

    /// Frames sent to the guest.
    pub(crate) fn got(&mut self) -> Vec<Vec<u8>> {
        let got = self.frames.packets().map(<[u8]>::to_vec).collect();
        self.frames.0.clear();
        got
    }

    /// Lets the engine handle its ready sockets, waiting seconds for the first.
    pub(crate) fn events(&mut self) {
        self.see_to(5000);
    }

    /// Lets the engine handle sockets that are ready now.
    pub(crate) fn poll(&mut self) {
        self.see_to(0);
    }

    fn see_to(&mut self, millis: u16) {
        let mut events = [EpollEvent::empty(); 256];
        let count = self.epoll.wait(&mut events, EpollTimeout::from(millis)).unwrap();
        self.step(|engine, cx| {
            for event in &events[..count] {
                engine.handle_ready(cx, Id::from_token(event.data()), event.events().into());
            }
        });
    }

    /// Sets the time since the start; returns the number of flows left.
    fn wait_until(&mut self, now: Duration) -> usize {
        self.now = now;
        self.step(Engine::handle_timeout);
        self.engine.load().0
    }

    fn drops(&self) -> &Drops {
        &self.engine.stats().drops
    }
}

/// A packet of the guest, of the destination's family.
pub(crate) fn packet(to: IpAddr, protocol: u8, l4: &[u8]) -> Vec<u8> {
    packet_to((to, 0), protocol, l4)
}

fn packet_to((to, port): (IpAddr, u16), protocol: u8, l4: &[u8]) -> Vec<u8> {
    let (from, to) = match to {
        IpAddr::V4(to) => (DualStack::default().guest.to_ipv6_mapped(), to.to_ipv6_mapped()),
        IpAddr::V6(to) => (GUEST, to),
    };
    let mut packet = errors::rebuild((from, PORT), (to, port), protocol, l4);
    // With a usual hop limit.
    let hops_at = if from == GUEST { 7 } else { 8 };
    set_hops(&mut packet, hops_at, 64);
    packet
}

fn set_hops(packet: &mut [u8], at: usize, hops: u8) {
    packet[at] = hops;
    if at == 8 {
        packet[10..12].fill(0);
        let check = Sum::of(&packet[..20]).field();
        packet[10..12].copy_from_slice(&check);
    }
}

fn datagram(to: impl Into<IpAddr>, port: u16, data: &[u8]) -> Vec<u8> {
    packet_to((to.into(), port), wire::UDP, data)
}

pub(crate) fn segment(port: u16, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let [p0, p1] = PORT.to_be_bytes();
    let [q0, q1] = port.to_be_bytes();
    let mut l4 = vec![p0, p1, q0, q1];
    l4.extend(seq.to_be_bytes());
    l4.extend(ack.to_be_bytes());
    l4.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet(HOST6.into(), wire::TCP, &l4)
}

/// A socket of the host that anybody may send to.
pub(crate) fn host_udp() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(5 * SECOND)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// It, as a forwarded port.
pub(crate) fn at_port(socket: UdpSocket) -> HostDatagrams {
    HostDatagrams::at_port(socket).unwrap()
}

/// The datagrams that arrive there, in order.
fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut buf = vec![0; 1 << 16];
    let next = |n| match socket.recv(&mut buf) {
        Ok(len) => buf[..len].to_vec(),
        Err(e) => panic!("{n} of {count} came: {e}"),
    };
    (0..count).map(next).collect()
}

/// RFC 6146 §4, UDP_DEFAULT; RFC 4787 REQ-5 and REQ-6: outbound packets refresh a mapping, and so
/// do inbound ones of addressed peers, but not of others, who could keep it for ever.
#[test]
fn udp_mappings_end_five_minutes_after_the_last_packet() {
    let (host, port) = host_udp();
    let (stranger, _) = host_udp();
    let mut lab = Lab::new();
    lab.send(&[datagram(HOST6, port, b"first")]);
    let mut buf = [0; 16];
    let (_, mapped) = host.recv_from(&mut buf).unwrap();
    assert_eq!(lab.wait_until(300 * SECOND - MILLISECOND), 1);
    // Outbound.
    lab.send(&[datagram(HOST6, port, b"again")]);
    assert_eq!(receive(&host, 1), [b"again"]);
    assert_eq!(lab.wait_until(599 * SECOND), 1);
    // Inbound.
    host.send_to(b"answer", mapped).unwrap();
    lab.events();
    assert_eq!(lab.got().len(), 1);
    assert_eq!(lab.wait_until(898 * SECOND), 1);
    // Filtered packets do not refresh it: this one is from an address to which the guest has not
    // sent.
    let other = UdpSocket::bind("127.0.0.2:0").unwrap();
    other.send_to(b"open up", mapped).unwrap();
    lab.events();
    assert_eq!((lab.got().len(), lab.drops().filtered), (0, 1));
    assert_eq!(lab.wait_until(899 * SECOND - MILLISECOND), 1);
    assert_eq!(lab.wait_until(899 * SECOND), 0);
    // The host's port is free again, and no packet enters by it.
    stranger.send_to(b"too late", mapped).unwrap();
    assert_eq!((lab.engine.load(), lab.got().len()), ((0, 0), 0));
}

/// A forwarded port belongs to the owner.
#[test]
fn a_forwarded_udp_port_never_ends() {
    let (socket, _) = host_udp();
    let mut lab = Lab::new();
    let now = lab.start;
    lab.engine.udp_forward(now, MAC, (GUEST, PORT), at_port(socket)).unwrap();
    assert_eq!(lab.wait_until(100_000 * SECOND), 1);
    // Nor can a guest evict it.
    let (_host, port) = host_udp();
    let mut lab = Lab::with(Bounds { flows: 5, flows_each: 5, ..Bounds::default() });
    let (socket, _) = host_udp();
    lab.engine.udp_forward(lab.start, MAC, (GUEST, PORT), at_port(socket)).unwrap();
    for n in 0..100_u8 {
        let mut packet = datagram(HOST6, port, b"more");
        packet[23] = n;
        let vnet = VirtioHeader { data_valid: true, ..VirtioHeader::default() };
        lab.step(|engine, cx| engine.handle_input(cx, MAC, &vnet, &packet));
    }
    assert_eq!(lab.engine.load().0, 5);
    let forwarded = format!("udp [{GUEST}]:{PORT} (IPv4)");
    assert!(lab.engine.flows(100).iter().any(|flow| flow.flow == forwarded));
    assert_eq!(lab.wait_until(100_000 * SECOND), 1);
}

/// Datagrams to it reach the guest's present address, and answers come from the port.
#[test]
fn a_forwarded_udp_port_follows_the_guest() {
    let (socket, _) = host_udp();
    let port = socket.local_addr().unwrap();
    let visitor = UdpSocket::bind("127.0.0.1:0").unwrap();
    visitor.set_read_timeout(Some(5 * SECOND)).unwrap();
    let mut lab = Lab::new();
    let now = lab.start;
    let before = Ipv6Addr::from(GUEST.to_bits() + 1);
    let theirs = Mac([2, 0, 0, 0, 0, 7]);
    lab.engine.udp_forward(now, theirs, (before, PORT), at_port(socket)).unwrap();
    let mut seen = HOST6;
    for (guest, mac) in [(before, theirs), (GUEST, MAC)] {
        if guest == GUEST {
            lab.engine.udp_follow(now, mac, guest).unwrap();
        }
        visitor.send_to(b"hello", port).unwrap();
        lab.events();
        assert_eq!(lab.frames.0[0].1[..6], mac.0);
        let got = lab.got().remove(0);
        let packet = wire::parse(&got).unwrap();
        assert_eq!((packet.dst, &packet.payload[2..4]), (guest, &PORT.to_be_bytes()[..]));
        assert_eq!(packet.payload[8..], *b"hello");
        seen = packet.src;
    }
    assert_eq!(lab.engine.load().0, 1);
    lab.send(&[datagram(seen, visitor.local_addr().unwrap().port(), b"welcome")]);
    let mut buf = [0; 16];
    let (len, from) = visitor.recv_from(&mut buf).unwrap();
    assert_eq!((&buf[..len], from), (&b"welcome"[..], port));
}

/// A visitor on the host itself is answered at its address and port; nothing else on the host's
/// loopback is reachable by that, and not for ever.
#[test]
fn only_the_visitor_itself_is_answered() {
    let (bound, _) = host_udp();
    let port = bound.local_addr().unwrap();
    let (service, service_port) = host_udp();
    let (visitor, visitor_port) = host_udp();
    // One from another of the host's own addresses.
    let neighbour = UdpSocket::bind("127.0.0.2:0").unwrap();
    neighbour.set_read_timeout(Some(5 * SECOND)).unwrap();
    let mut lab = Lab::new();
    lab.engine.udp_forward(lab.start, MAC, (GUEST, PORT), at_port(bound)).unwrap();
    let mut seen = Vec::new();
    for socket in [&visitor, &neighbour] {
        socket.send_to(b"hello", port).unwrap();
        lab.events();
        seen.push(wire::parse(&lab.got().remove(0)).unwrap().src);
    }
    let stand_in = lab.settings.prefix64.embed(target::STAND_IN);
    assert_eq!(seen, [stand_in, stand_in]);
    let answer = |lab: &mut Lab, to, port| lab.send(&[datagram(to, port, b"answer")]);
    answer(&mut lab, stand_in, service_port);
    service.set_nonblocking(true).unwrap();
    assert!(service.recv(&mut [0; 16]).is_err(), "the guest reached a service of the host");
    let neighbour_port = neighbour.local_addr().unwrap().port();
    answer(&mut lab, stand_in, visitor_port);
    answer(&mut lab, stand_in, neighbour_port);
    assert_eq!(receive(&visitor, 1), [b"answer"]);
    assert_eq!(receive(&neighbour, 1), [b"answer"]);
    // Another program may have that port by then.
    lab.wait_until(300 * SECOND);
    answer(&mut lab, stand_in, visitor_port);
    visitor.set_nonblocking(true).unwrap();
    assert!(visitor.recv(&mut [0; 16]).is_err());
}

/// RFC 6146 §4, ICMP_DEFAULT; RFC 5508 REQ-2.
#[test]
fn echo_mappings_end_a_minute_after_the_last_request() {
    if !ping_is_allowed() {
        return;
    }
    let mut lab = Lab::new();
    let request = || packet(HOST6.into(), wire::ICMP6, &[128, 0, 0, 0, 0, 7, 0, 1, b'?']);
    lab.send(&[request()]);
    lab.events();
    let replies = lab.got();
    let reply = wire::parse(&replies[0]).unwrap();
    assert_eq!((reply.src, reply.dst, reply.payload[0]), (HOST6, GUEST, 129));
    assert_eq!(reply.payload[4..], [0, 7, 0, 1, b'?']);
    assert_eq!(lab.wait_until(60 * SECOND - MILLISECOND), 1);
    lab.send(&[request()]);
    assert_eq!(lab.wait_until(120 * SECOND - 2 * MILLISECOND), 1);
    assert_eq!(lab.wait_until(120 * SECOND - MILLISECOND), 0);
    // Type 8 is IPv4's.
    lab.send(&[packet(HOST6.into(), wire::ICMP6, &[8, 0, 0, 0, 0, 7, 0, 1])]);
    assert_eq!((lab.engine.load().0, lab.drops().protocol), (0, 1));
}

/// Gives this thread a network of its own, with loopback; `false` if it may not.
pub(crate) fn own_network() -> bool {
    unshare(CloneFlags::CLONE_NEWNET).is_ok()
        && std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .is_ok_and(|s| s.success())
}

/// Moves this thread to a network namespace where ping sockets are allowed, if they are not on the
/// host.
fn ping_is_allowed() -> bool {
    if HostSockets::new(Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap()))
        .echo(false)
        .is_ok()
    {
        return true;
    }
    let allowed = own_network()
        && std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").is_ok();
    if !allowed {
        eprintln!("SKIPPED: needs root, or net.ipv4.ping_group_range, for ping sockets");
    }
    allowed
}

/// Packet Too Big about this packet.
fn too_big(mtu: u32, about: &[u8]) -> Vec<u8> {
    let mut message = vec![2, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&about[..about.len().min(1232)]);
    packet(HOST6.into(), wire::ICMP6, &message)
}

/// RFC 8201: a hop behind the guest has a smaller MTU. Datagrams are fragmented for ten minutes.
#[test]
fn datagrams_fit_the_path_behind_the_guest() {
    let (host, port) = host_udp();
    let mut lab = Lab::new();
    lab.send(&[datagram(HOST6, port, b"hello")]);
    let (_, mapped) = host.recv_from(&mut [0; 16]).unwrap();
    let answer = |lab: &mut Lab| {
        host.send_to(&[7; 1400], mapped).unwrap();
        lab.events();
        lab.got()
    };
    let whole = answer(&mut lab).remove(0);
    assert_eq!(whole.len(), 48 + 1400);
    // An error about no flow is ignored.
    let mut other = whole.clone();
    other[42] ^= 1;
    lab.send(&[too_big(1300, &other)]);
    assert_eq!(answer(&mut lab).len(), 1);
    lab.send(&[too_big(1300, &whole)]);
    assert!(lab.got().is_empty(), "an error is not answered");
    let pieces = answer(&mut lab);
    assert_eq!(pieces.len(), 2);
    assert!(pieces.iter().all(|piece| piece.len() <= 1300));
    // No IPv6 hop has less than 1280.
    lab.send(&[too_big(1000, &whole)]);
    assert!(answer(&mut lab).iter().any(|piece| piece.len() > 1200));
    lab.send(&[datagram(HOST6, port, b"still there")]);
    lab.wait_until(299 * SECOND);
    lab.send(&[datagram(HOST6, port, b"still there")]);
    lab.wait_until(598 * SECOND);
    lab.send(&[datagram(HOST6, port, b"still there")]);
    lab.wait_until(601 * SECOND);
    assert_eq!(answer(&mut lab).len(), 1);
}

/// The same for a connection: lost data is retransmitted at once, in packets that fit.
#[test]
fn segments_fit_the_path_behind_the_guest() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut lab = Lab::new();
    let [p0, p1] = PORT.to_be_bytes();
    let [q0, q1] = port.to_be_bytes();
    let mut syn = vec![p0, p1, q0, q1, 0, 0, 3, 232, 0, 0, 0, 0, 0x60, flag::SYN, 255, 255];
    // MSS 1440.
    syn.extend([0, 0, 0, 0, 2, 4, 5, 160]);
    lab.send(&[packet(HOST6.into(), wire::TCP, &syn)]);
    lab.events();
    let syn_ack = lab.got().remove(0);
    let isn = u32::from_be_bytes(syn_ack[44..48].try_into().unwrap());
    lab.send(&[segment(port, 1001, isn.wrapping_add(1), flag::ACK)]);
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&[9; 3000]).unwrap();
    let mut first = Vec::new();
    while first.iter().map(|packet: &Vec<u8>| packet.len() - 60).sum::<usize>() < 3000 {
        lab.events();
        // Those with data.
        first.extend(lab.got().into_iter().filter(|packet| packet.len() > 60));
    }
    assert_eq!(first[0].len(), 1500);
    // An error about data that is not in flight is a guess.
    let mut guess = first[0].clone();
    guess[44] ^= 0x40;
    lab.send(&[too_big(1300, &guess)]);
    assert!(lab.got().is_empty());
    lab.send(&[too_big(1300, &first[0])]);
    let again = lab.got();
    assert!(again.iter().all(|packet| packet.len() <= 1300));
    assert_eq!(again.iter().map(|packet| packet.len() - 60).sum::<usize>(), 3000);
    assert_eq!(again[0][44..48], first[0][44..48]);
}

/// RFC 6146 §4, TCP_TRANS and TCP_EST; RFC 5382 REQ-5.
#[test]
fn tcp_mappings_end_after_their_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut lab = Lab::new();
    lab.send(&[segment(port, 1000, 0, flag::SYN)]);
    // A connection that the host has not accepted waits for four minutes. (It has, but nobody has
    // looked.)
    assert_eq!(lab.wait_until(240 * SECOND - MILLISECOND), 1);
    assert!(lab.got().is_empty());
    lab.events();
    let syn_ack = lab.got().remove(0);
    let isn = u32::from_be_bytes(syn_ack[44..48].try_into().unwrap());
    lab.send(&[segment(port, 1001, isn.wrapping_add(1), flag::ACK)]);
    // A connection may be idle for two hours and four minutes.
    let end = lab.now + 7440 * SECOND;
    assert_eq!(lab.wait_until(end - MILLISECOND), 1);
    // Also once one end has closed it.
    lab.send(&[segment(port, 1001, isn.wrapping_add(1), flag::ACK | flag::FIN)]);
    let end = lab.now + 7440 * SECOND;
    assert_eq!(lab.wait_until(end - MILLISECOND), 1);
    lab.got();
    assert_eq!(lab.wait_until(end), 0);
    // The guest gets a reset.
    let reset = lab.got().remove(0);
    assert_eq!(reset[40 + 13], flag::RST | flag::ACK);
    // And so does the peer.
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(5 * SECOND)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it had closed its end");
    let begin = Instant::now();
    while !matches!(stream.write(&[0]), Err(e) if e.kind() == ErrorKind::BrokenPipe) {
        assert!(begin.elapsed() < 5 * SECOND, "not reset");
        std::thread::sleep(MILLISECOND);
    }
}

/// A peer that never answers: its flow ends.
#[test]
fn a_connection_that_nobody_takes_ends_after_four_minutes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut lab = Lab::new();
    lab.send(&[segment(port, 1000, 0, flag::SYN)]);
    assert_eq!(lab.wait_until(240 * SECOND - MILLISECOND), 1);
    assert_eq!(lab.wait_until(240 * SECOND), 0);
    assert_eq!(lab.got()[0][40 + 13], flag::RST | flag::ACK);
}

/// A guest that does not complete the handshake is given up after the usual number of SYN-ACKs, a
/// minute in all.
#[test]
fn a_half_open_connection_ends_within_its_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut lab = Lab::new();
    lab.send(&[segment(port, 1000, 0, flag::SYN)]);
    lab.events();
    let mut second = 0;
    while lab.wait_until(second * SECOND) > 0 {
        second += 1;
        assert!(second <= 240, "still there");
    }
    assert!(second >= 60, "after {second} s already");
    let flags: Vec<u8> = lab.got().iter().map(|packet| packet[40 + 13]).collect();
    let syn_ack = flag::SYN | flag::ACK;
    assert_eq!(
        flags,
        [syn_ack, syn_ack, syn_ack, syn_ack, syn_ack, syn_ack, flag::RST | flag::ACK]
    );
}

/// Datagrams that arrive together leave together where possible, each unchanged.
#[test]
fn gso_packets_have_no_other_datagrams() {
    let (host, port) = host_udp();
    let mut lab = Lab::new();
    let data: [&[u8]; 7] = [&[1; 100], &[2; 100], &[], &[3; 100], &[4; 50], &[5; 100], &[]];
    lab.send(&data.map(|data| datagram(HOST6, port, data)));
    assert_eq!(receive(&host, 7), data);
    // GSO packets of the guest's kernel, of other lengths.
    let packets = [(100, [6; 500]), (50, [7; 500]), (400, [8; 500]), (100, [9; 500])];
    lab.step(|engine, cx| {
        for (gso_size, data) in packets {
            let vnet = VirtioHeader {
                data_valid: true,
                gso_type: GsoType::UdpL4,
                gso_size,
                ..VirtioHeader::default()
            };
            engine.handle_input(cx, MAC, &vnet, &datagram(HOST6, port, &data));
        }
    });
    let cut = packets.iter().flat_map(|(size, data)| data.chunks((*size).into()));
    let cut: Vec<Vec<u8>> = cut.map(<[u8]>::to_vec).collect();
    assert_eq!(receive(&host, cut.len()), cut);
    // A GSO packet that no kernel makes: each of its bytes would be a system call.
    lab.step(|engine, cx| {
        let vnet = VirtioHeader {
            data_valid: true,
            gso_type: GsoType::UdpL4,
            gso_size: 1,
            ..VirtioHeader::default()
        };
        engine.handle_input(cx, MAC, &vnet, &datagram(HOST6, port, &[0; 60_000]));
    });
    assert_eq!(lab.drops().malformed, 1);
}

/// Datagrams without GSO leave by one call for each mapping, though others came between, in
/// order.
#[test]
fn unequal_datagrams_leave_by_one_call() {
    let ((host, port), (other, other_port)) = (host_udp(), host_udp());
    let mut lab = Lab::new();
    let data: Vec<Vec<u8>> = (33..=64).map(|len: u8| vec![len; len.into()]).collect();
    let mut packets = Vec::new();
    for data in &data {
        packets.push(datagram(HOST6, port, data));
        packets.push(datagram(HOST6, other_port, data));
        // Another mapping: IPv4.
        packets.push(datagram(HOST, port, data));
    }
    lab.send(&packets);
    assert_eq!(receive(&other, data.len()), data);
    // Mappings are sent one after the other.
    assert_eq!(receive(&host, 2 * data.len()), [&data[..], &data[..]].concat());
    let stats = lab.engine.stats();
    let bytes: usize = data.iter().map(Vec::len).sum();
    assert_eq!((stats.batches_up, stats.gso_up, stats.bytes_up), (2, 0, 3 * bytes as u64));
}

/// A host without UDP_SEGMENT gets them by one call, too.
#[test]
fn without_gso_all_leave_by_one_call() {
    let (host, port) = host_udp();
    let mut lab = Lab::new();
    lab.engine.assume_gso(false);
    let data: Vec<Vec<u8>> = (0..40).map(|n| vec![n; 100]).collect();
    lab.step(|engine, cx| {
        for data in &data {
            engine.handle_input(cx, MAC, &VirtioHeader::default(), &datagram(HOST6, port, data));
        }
        // A GSO packet of the guest's.
        let vnet = VirtioHeader {
            data_valid: true,
            gso_type: GsoType::UdpL4,
            gso_size: 100,
            ..VirtioHeader::default()
        };
        engine.handle_input(cx, MAC, &vnet, &datagram(HOST6, port, &data.concat()));
    });
    assert_eq!(receive(&host, 80), [&data[..], &data[..]].concat());
    assert_eq!((lab.engine.stats().batches_up, lab.engine.stats().gso_up), (1, 0));
}

/// A datagram that cannot be sent is counted, and does not block others.
#[test]
fn a_datagram_too_long_stands_in_no_ones_way() {
    let (host, port) = host_udp();
    let mut lab = Lab::new();
    // Too long for IPv4.
    let data = [vec![1; 100], vec![2; 101], vec![3; 65_520], vec![4; 102], vec![5; 103]];
    lab.send(&data.each_ref().map(|data| datagram(HOST6, port, data)));
    assert_eq!(receive(&host, 4), [&data[..2], &data[3..]].concat());
    assert_eq!((lab.engine.stats().batches_up, lab.drops().host_error), (2, 1));
}

/// A destination that refuses does not affect others, though the socket's next call reports it.
#[test]
fn a_refusal_amid_a_batch_is_its_own_only() {
    let mut hosts = [host_udp(), host_udp(), host_udp()];
    hosts.sort_by_key(|(_, port)| *port);
    let [(before, low), (closed, middle), (behind, high)] = hosts;
    drop(closed);
    let mut lab = Lab::new();
    let data: Vec<Vec<u8>> = (1..=5).map(|len: u8| vec![len; len.into()]).collect();
    let ports = [low, middle, high].into_iter();
    let packets: Vec<_> =
        ports.flat_map(|port| data.iter().map(move |data| datagram(HOST6, port, data))).collect();
    lab.send(&packets);
    assert_eq!(receive(&before, 5), data);
    assert_eq!(receive(&behind, 5), data);
    assert_eq!(lab.drops().host_error, 0);
    lab.events();
    for error in lab.got() {
        let error = wire::parse(&error).unwrap();
        // Port unreachable; the destination is quoted.
        assert_eq!((error.protocol, &error.payload[..2]), (wire::ICMP6, &[1, 4][..]));
        assert_eq!(error.payload[8 + 42..][..2], middle.to_be_bytes());
    }
    // Not one more to any.
    for host in [before, behind] {
        host.set_nonblocking(true).unwrap();
        assert!(host.recv(&mut [0; 16]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Datagrams that arrive together leave once and in order per destination, with UDP_SEGMENT or
    /// without.
    #[test]
    fn batches_are_what_came(
        sent in vec((0..3_usize, prop_oneof![Just(5_u8), Just(40), Just(64)], 0..5_usize), 0..60),
        supports_gso in any::<bool>(),
    ) {
        let hosts = [host_udp(), host_udp(), host_udp()];
        let mut lab = Lab::new();
        lab.engine.assume_gso(supports_gso);
        let mut wanted = [const { Vec::new() }; 3];
        let mut packets = Vec::new();
        for (n, (to, hops, len)) in (0..).zip(sent) {
            let data = vec![n; len];
            let mut packet = datagram(HOST6, hosts[to].1, &data);
            set_hops(&mut packet, 7, hops);
            packets.push(packet);
            wanted[to].push(data);
        }
        lab.send(&packets);
        for ((host, _), wanted) in hosts.iter().zip(&wanted) {
            prop_assert_eq!(&receive(host, wanted.len()), wanted);
            host.set_nonblocking(true).unwrap();
            prop_assert!(host.recv(&mut [0; 16]).is_err());
        }
    }
}

/// Each datagram has its own hop limit.
#[test]
fn each_datagram_has_its_own_hop_limit() {
    // It gets copies with their headers.
    let Ok(copies) = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)) else {
        return eprintln!("SKIPPED: needs root for raw sockets");
    };
    copies.set_read_timeout(Some(5 * SECOND)).unwrap();
    let (_host, port) = host_udp();
    let mut lab = Lab::new();
    // Each is longer than the one before: GSO would be one packet to a raw socket.
    let hops = [5, 5, 6, 64, 64, 7];
    let packets = hops.iter().zip(1..).map(|(hops, len)| {
        let mut packet = datagram(HOST6, port, &vec![0; len]);
        set_hops(&mut packet, 7, *hops);
        packet
    });
    lab.send(&packets.collect::<Vec<_>>());
    assert_eq!(lab.engine.stats().batches_up, 2);
    let mut got = Vec::new();
    while got.len() < hops.len() {
        let mut buf = [0; 1500];
        let len = (&copies).read(&mut buf).unwrap();
        let copy = wire::parse(&buf[..len]).unwrap();
        if copy.payload[2..4] == port.to_be_bytes() {
            got.push(copy.hop_limit + 1);
        }
    }
    assert_eq!(got, hops);
}

/// UDP over IPv4 may go without a checksum (RFC 768), over IPv6 it may not (RFC 8200 §8.1).
#[test]
fn a_checksum_of_zero_is_none() {
    let (host, port) = host_udp();
    let mut lab = Lab::new();
    for (to, udp) in [(IpAddr::from(HOST6), 40), (HOST.into(), 20)] {
        let mut packet = datagram(to, port, b"unchecked");
        packet[udp + 6..udp + 8].fill(0);
        lab.send(&[packet]);
    }
    assert_eq!(receive(&host, 1), [b"unchecked"]);
    assert_eq!((lab.engine.load().0, lab.drops().checksum), (1, 1));
}

/// IPv4-mapped addresses are invalid on a link: they do not bypass rules for IPv4.
#[test]
fn mapped_addresses_are_not_taken() {
    let (_, port) = host_udp();
    let mut lab = Lab::new();
    let v4 = HOST.to_ipv6_mapped();
    for (src, dst) in [(GUEST, v4), (v4, HOST6), (v4, v4)] {
        let mut packet = datagram(HOST6, port, b"who");
        packet[8..24].copy_from_slice(&src.octets());
        packet[24..40].copy_from_slice(&dst.octets());
        let vnet = VirtioHeader { data_valid: true, ..VirtioHeader::default() };
        lab.step(|engine, cx| engine.handle_input(cx, MAC, &vnet, &packet));
    }
    assert_eq!((lab.engine.load().0, lab.drops().malformed), (0, 3));
}

/// A guest with more flows than others loses its own, and the total is bounded.
#[test]
fn floods_are_bounded() {
    let (_host, port) = host_udp();
    let mut lab = Lab::with(Bounds { flows: 20, flows_each: 15, memory: 1 << 20 });
    let modest = Mac([2, 0, 0, 0, 0, 1]);
    lab.step(|engine, cx| {
        engine.handle_input(
            cx,
            modest,
            &VirtioHeader::default(),
            &datagram(HOST6, port, b"modest"),
        );
        for n in 0..200_u8 {
            let mut packet = datagram(HOST6, port, b"greedy");
            // Another source each time.
            packet[22..24].copy_from_slice(&[1, n]);
            let vnet = VirtioHeader { data_valid: true, ..VirtioHeader::default() };
            engine.handle_input(cx, MAC, &vnet, &packet);
        }
    });
    assert_eq!(lab.engine.load().0, 16);
    assert!(lab.engine.flows(100).iter().any(|flow| flow.guest == modest.to_string()));
    assert_eq!(lab.engine.stats().evicted, 200 - 15);
}

/// A guest opens a bounded number of connections to a host that does not answer, and as many that
/// it does not acknowledge itself, each with a port of the host; its neighbour can still connect.
/// The oldest are evicted after a second.
#[test]
fn connections_that_do_not_open_are_bounded() {
    const MOST: usize = 1024;
    const NEIGHBOUR: Mac = Mac([2, 0, 0, 0, 0, 7]);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(10_000), hard).unwrap();
    let listening = |backlog| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.listen(backlog).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        (socket, port)
    };
    let open = |lab: &mut Lab, mac: Mac, from: u16, to: u16| {
        let mut packet = segment(to, 1000, 0, flag::SYN);
        packet[40..42].copy_from_slice(&from.to_be_bytes());
        let vnet = VirtioHeader { data_valid: true, ..VirtioHeader::default() };
        lab.step(|engine, cx| engine.handle_input(cx, mac, &vnet, &packet));
    };
    // Once its backlog is full, it drops SYNs.
    for backlog in [0, 4096] {
        let (_socket, port) = listening(backlog);
        let mut lab = Lab::new();
        for from in 1..=3000 {
            open(&mut lab, MAC, from, port);
            lab.poll();
        }
        let (flows, limit) = (lab.engine.load().0, lab.drops().limit);
        assert!((MOST..MOST + 8).contains(&flows), "{flows} flows");
        assert!(limit >= 3000 - MOST as u64 - 8, "{limit} dropped");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        open(&mut lab, NEIGHBOUR, 5000, listener.local_addr().unwrap().port());
        listener.accept().unwrap();
        lab.now = 2 * SECOND;
        open(&mut lab, MAC, 4000, port);
        assert_eq!((lab.drops().limit, lab.engine.stats().evicted), (limit, 1));
    }
}
