// SPDX-License-Identifier: Apache-2.0

//! A hostile guest of platd's flows: arbitrary packets, segments of connections with false numbers,
//! datagrams and fragments. In between, time passes, sockets become ready, and the host acts. Runs
//! in a network namespace with only a loopback device, so that nothing leaves it. Needs root.
#![no_main]

#[path = "../../src/plat/tests/invariants/mod.rs"]
#[allow(dead_code)]
mod invariants;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use invariants::Frames;
use clat_plat::flow::{Bounds, Context, Engine, Id, Offload};
use clat_plat::frame::Mac;
use clat_plat::host_sockets::{HostDatagrams, HostSockets};
use clat_plat::settings::{DualStack, Settings};
use clat_tun::{GsoType, VirtioHeader};
use libfuzzer_sys::fuzz_target;
use nix::sched::{unshare, CloneFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

const GUEST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x464, 0, 0, 0, 0, 9);
const GUEST4: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 2);
/// This host's address for the guest, and another host's.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const PORTS: [u16; 4] = [80, 7, 81, 0];
const BOUNDS: Bounds = Bounds { flows: 12, flows_each: 8, memory: 1 << 18 };
const MTU: usize = 1500;

/// The host's sockets that the guest can reach.
struct Host {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Host {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; run as root");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "the loopback device comes up");
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("pings");
        let tcp = TcpListener::bind("127.0.0.1:80").expect("port 80");
        let udp = UdpSocket::bind("127.0.0.1:7").expect("port 7");
        tcp.set_nonblocking(true).expect("non-blocking");
        udp.set_nonblocking(true).expect("non-blocking");
        Self { tcp, udp }
    }
}

thread_local! { static HOST_SIDE: Host = Host::new(); }

/// The rest of the input.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// One's-complement sum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, hops: u8, field: u16, l4: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + l4.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(field.to_be_bytes());
    packet.extend([hops, protocol, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    let check = !sum(&packet);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet.extend(l4);
    packet
}

fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend([protocol, hops]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(payload);
    packet
}

struct Run<'h> {
    host: &'h Host,
    engine: Engine<HostSockets>,
    epoll: Rc<Epoll>,
    settings: Settings,
    frames: Frames,
    now: Instant,
    streams: Vec<TcpStream>,
    /// The guest's connections, by both ports: the next sequence number to send, and to
    /// acknowledge.
    connections: HashMap<(u16, u16), (u32, u32)>,
    peer: Option<SocketAddr>,
}

impl<'h> Run<'h> {
    fn new(host: &'h Host, offload: Offload) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        let epoll = Rc::new(epoll);
        Self {
            host,
            engine: Engine::new(HostSockets::new(Rc::clone(&epoll)), offload, BOUNDS),
            epoll,
            settings: Settings {
                map_host: vec![HOST.into()],
                dual_stack: Some(DualStack::default()),
                ..Settings::default()
            },
            frames: Frames::default(),
            now: Instant::now(),
            streams: Vec::new(),
            connections: HashMap::new(),
            peer: None,
        }
    }

    fn with(&mut self, step: impl FnOnce(&mut Engine<HostSockets>, Context<'_>)) {
        let cx = Context { settings: &self.settings, now: self.now };
        step(&mut self.engine, cx);
        self.engine.poll_transmit(cx, &mut self.frames);
        self.check();
    }

    /// Checks what must hold after every step.
    fn check(&mut self) {
        for (vnet, frame) in std::mem::take(&mut self.frames.0) {
            invariants::frame(&vnet, &frame, MTU);
            let (protocol, l4) = match frame[12] {
                8 => (frame[23], &frame[34..]),
                _ => (frame[20], &frame[54..]),
            };
            if protocol == 6 {
                let word = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
                let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
                let data = l4.len() - usize::from(l4[12] >> 4) * 4;
                let flags = u32::from(l4[13] & 1) + u32::from(l4[13] >> 1 & 1);
                let next = long(4).wrapping_add(data as u32 + flags);
                self.connections.insert((word(2), word(0)), (long(8), next));
            }
        }
        let (flows, held) = self.engine.load();
        assert!(flows <= BOUNDS.flows && held <= BOUNDS.memory);
        let all = self.engine.flows(usize::MAX);
        assert_eq!(all.iter().map(|flow| flow.held).sum::<usize>(), held);
    }

    /// Sends a packet of the guest, by either IP version.
    fn send(&mut self, to: u8, protocol: u8, hops: u8, vnet: VirtioHeader, l4: &[u8]) {
        let mac = Mac([2, 0, 0, 0, 0, to >> 6]);
        let host = if to & 2 == 0 { HOST } else { ELSEWHERE };
        let packet = if to & 1 == 0 {
            let dst = self.settings.prefix64.embed(host);
            ipv6(GUEST, dst, if protocol == 1 { 58 } else { protocol }, hops, l4)
        } else {
            ipv4(GUEST4, host, protocol, hops, 0, l4)
        };
        self.with(|engine, cx| engine.handle_input(cx, mac, &vnet, &packet));
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let valid = VirtioHeader { data_valid: true, ..VirtioHeader::default() };
        match input.byte() % 11 {
            0 => {
                let len = input.byte();
                let bytes = input.bytes(len.into()).to_vec();
                self.with(|engine, cx| engine.handle_input(cx, Mac([2; 6]), &valid, &bytes));
            }
            1 | 2 => self.segment(input, valid),
            3 => {
                let (to, port, size) = (input.byte(), input.byte(), input.word() % 20_000);
                let gso_size = input.word();
                let hops = input.byte();
                let mut udp = u16::from(port >> 4).to_be_bytes().to_vec();
                udp.extend(PORTS[usize::from(port & 3)].to_be_bytes());
                udp.extend((8 + size).to_be_bytes());
                udp.extend([0, 1]);
                udp.resize(8 + usize::from(size), port);
                let gso = gso_size & 1 == 1;
                let gso_type = if gso { GsoType::UdpL4 } else { GsoType::None };
                let vnet = VirtioHeader { gso_type, gso_size: gso_size >> 4, ..valid };
                self.send(to, 17, hops, vnet, &udp);
            }
            4 => {
                let (to, id, len) = (input.byte(), input.byte(), input.byte());
                let kind = if to & 1 == 0 { 128 } else { 8 };
                let mut icmp = vec![kind, 0, 0, 0, 0, id & 3, 0, id];
                icmp.resize(8 + usize::from(len), id);
                self.send(to, 1, 64, valid, &icmp);
            }
            5 => {
                // From a millisecond to a few hours.
                self.now += Duration::from_millis(1 << (input.byte() % 24));
                self.with(Engine::handle_timeout);
                assert!(self.engine.poll_timeout().is_none_or(|at| at > self.now), "time stands");
            }
            6 | 7 => {
                let mut events = [EpollEvent::empty(); 32];
                let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
                self.with(|engine, cx| {
                    for event in &events[..count] {
                        let id = Id::from_token(event.data());
                        engine.handle_ready(cx, id, event.events().into());
                    }
                });
            }
            8 => self.host(input),
            9 => {
                let (what, offset, len) = (input.byte(), input.byte(), input.byte());
                let bytes = input.bytes(len.into());
                let offset = u16::from(offset);
                let more = u16::from(what & 1);
                let packet = if what & 2 == 0 {
                    let mut payload = vec![if what & 4 == 0 { 17 } else { 6 }, 0];
                    payload.extend((offset << 3 | more).to_be_bytes());
                    payload.extend([0, 0, 0, what >> 6]);
                    payload.extend(bytes);
                    ipv6(GUEST, self.settings.prefix64.embed(HOST), 44, 64, &payload)
                } else {
                    ipv4(GUEST4, HOST, 17, 64, more << 13 | offset, bytes)
                };
                self.with(|engine, cx| engine.handle_input(cx, Mac([2; 6]), &valid, &packet));
            }
            _ => self.rare(input, valid),
        }
    }

    /// Sends a nearly valid segment of one of a few connections.
    fn segment(&mut self, input: &mut Input<'_>, valid: VirtioHeader) {
        let (to, ports, flags) = (input.byte(), input.byte(), input.byte());
        let (seq_off, ack_off) = (i32::from(input.word() as i16), i32::from(input.word() as i16));
        let (window, words) = (input.word(), usize::from(input.byte() % 11));
        let size = usize::from(input.word() % 9000);
        let options = input.bytes(words * 4);
        let (from, port) = (u16::from(ports >> 5), PORTS[usize::from(ports & 3)]);
        let (seq, ack) = self.connections.get(&(from, port)).copied().unwrap_or((1000, 0));
        // Mostly valid.
        let near =
            |number: u32, off: i32| number.wrapping_add_signed(if off & 3 == 0 { 0 } else { off });
        let mut tcp = from.to_be_bytes().to_vec();
        tcp.extend(port.to_be_bytes());
        tcp.extend(near(seq, seq_off).to_be_bytes());
        tcp.extend(near(ack, ack_off).to_be_bytes());
        tcp.extend([((5 + options.len() / 4) as u8) << 4, flags & 0x1f]);
        tcp.extend(window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&options[..options.len() / 4 * 4]);
        tcp.resize(tcp.len() + size, ports);
        self.send(to, 6, 64, valid, &tcp);
    }

    fn host(&mut self, input: &mut Input<'_>) {
        while let Ok((stream, _)) = self.host.tcp.accept() {
            let _ = stream.set_nonblocking(true);
            self.streams.push(stream);
        }
        let mut buf = [0; 1 << 14];
        if let Ok((_, peer)) = self.host.udp.recv_from(&mut buf) {
            self.peer = Some(peer);
        }
        let (what, size) = (input.byte(), usize::from(input.word()) % buf.len());
        if what & 0x80 != 0 {
            if let Some(peer) = self.peer {
                let _ = self.host.udp.send_to(&buf[..size], peer);
            }
            return;
        }
        let which = usize::from(what >> 4) % self.streams.len().max(1);
        let Some(mut stream) = self.streams.get(which) else { return };
        match what & 7 {
            0..=2 => drop(stream.write(&buf[..size])),
            3 | 4 => drop(stream.read(&mut buf)),
            5 => drop(stream.shutdown(std::net::Shutdown::Write)),
            _ => drop(self.streams.swap_remove(which)),
        }
    }

    fn rare(&mut self, input: &mut Input<'_>, valid: VirtioHeader) {
        match input.byte() % 4 {
            0 => {
                self.engine.clear();
                self.check();
            }
            1 => {
                let packet = ipv6(GUEST, self.settings.dns(), 6, 64, input.bytes(24));
                self.with(|engine, cx| engine.handle_dns_input(cx, Mac([2; 6]), &valid, &packet));
                drop(self.engine.take_dns_connections());
            }
            2 => {
                let Ok(socket) = TcpStream::connect("127.0.0.1:80") else { return };
                let _ = socket.set_nonblocking(true);
                let peer = SocketAddr::new(IpAddr::from(HOST), 9);
                let guest = (GUEST, u16::from(input.byte() & 3));
                self.with(|engine, cx| {
                    engine.tcp_forward(cx, Mac([2; 6]), guest, peer, socket.into())
                });
            }
            _ => {
                let Ok(socket) = UdpSocket::bind("127.0.0.1:0") else { return };
                self.peer = socket.local_addr().ok();
                let socket = HostDatagrams::at_port(socket).expect("a port");
                let guest = (GUEST, u16::from(input.byte() & 3));
                if self.engine.load().0 < BOUNDS.flows {
                    let given = self.engine.udp_forward(self.now, Mac([2; 6]), guest, socket);
                    assert!(given.is_ok());
                }
            }
        }
    }
}

fuzz_target!(|data: &[u8]| HOST_SIDE.with(|host| {
    let mut input = Input(data);
    let offloads = input.byte();
    let mut run = Run::new(host, Offload { tso: offloads & 1 != 0, uso: offloads & 3 == 3 });
    while !input.0.is_empty() {
        run.step(&mut input);
    }
    run.with(|_, _| ());
    // All flows end by themselves, except forwarded ports.
    for _ in 0..20 {
        run.now += Duration::from_secs(8000);
        run.with(Engine::handle_timeout);
    }
    let left = run.engine.flows(usize::MAX);
    assert!(left.iter().all(|flow| flow.flow.starts_with("udp")), "{left:?}");
    // The next run starts with empty sockets.
    drop(run);
    while host.tcp.accept().is_ok() {}
    while host.udp.recv_from(&mut [0; 1]).is_ok() {}
}));
