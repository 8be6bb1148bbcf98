// SPDX-License-Identifier: Apache-2.0

//! Guests that take all they can, and others beside them. The time is an argument.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv6Addr, TcpListener, TcpStream};

use clat_plat::flow::tcp::flag;
use clat_plat::flow::{errors, wire, Bounds};
use clat_plat::frame::Mac;
use clat_tun::VirtioHeader;

use crate::lab::{own_network, segment, Lab, GUEST, HOST6};

const GREEDY: Mac = Mac([2, 0, 0, 0, 0, 1]);
const MODEST: Mac = Mac([2, 0, 0, 0, 0, 2]);
/// The windows of greedy guests: 2 MiB, and closed.
const WIDE: u16 = 1 << 14;
const CLOSED: u16 = 0;

/// A guest's connection, and the host's end.
struct Connection {
    mac: Mac,
    from: (Ipv6Addr, u16),
    to: u16,
    /// The next sequence number of either end, as the guest knows it.
    seq: u32,
    ack: u32,
    host: TcpStream,
}

impl Connection {
    fn segment(&self, flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
        let mut l4 = [self.from.1.to_be_bytes(), self.to.to_be_bytes()].concat();
        l4.extend(self.seq.to_be_bytes());
        l4.extend(self.ack.to_be_bytes());
        l4.extend([u8::try_from(5 + options.len() / 4).unwrap() << 4, flags]);
        l4.extend(window.to_be_bytes());
        l4.extend([0; 4]);
        l4.extend(options);
        let mut packet = errors::rebuild((self.from.0, 0), (HOST6, 0), wire::TCP, &l4);
        packet[7] = 64;
        packet
    }

    fn send(&self, lab: &mut Lab, packet: &[u8]) {
        lab.step(|engine, cx| {
            engine.handle_input(cx, self.mac, &VirtioHeader::default(), packet);
        });
    }

    /// Acknowledges all received data.
    fn acknowledge(&self, lab: &mut Lab, window: u16) {
        self.send(lab, &self.segment(flag::ACK, window, &[]));
    }
}

/// A guest's address.
fn address(mac: Mac) -> Ipv6Addr {
    Ipv6Addr::from(GUEST.to_bits() & !0xff | u128::from(mac.0[5]))
}

struct World {
    lab: Lab,
    listener: TcpListener,
    /// By the guest's port.
    connections: HashMap<u16, Connection>,
}

impl World {
    fn new(memory: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let lab = Lab::with(Bounds { memory, ..Bounds::default() });
        Self { lab, listener, connections: HashMap::new() }
    }

    /// SYNs that arrive together, each of a guest from a port to a port of the host.
    fn ask(&mut self, syns: impl Iterator<Item = (Mac, u16, u16)>) {
        self.lab.step(|engine, cx| {
            for (mac, from, to) in syns {
                let mut packet = segment(to, 1000, 0, flag::SYN);
                packet[8..24].copy_from_slice(&address(mac).octets());
                packet[40..42].copy_from_slice(&from.to_be_bytes());
                let vnet = VirtioHeader { data_valid: true, ..VirtioHeader::default() };
                engine.handle_input(cx, mac, &vnet, &packet);
            }
        });
    }

    /// A guest opens a connection, with a window of up to 2 MiB.
    fn open(&mut self, mac: Mac, port: u16) {
        let to = self.listener.local_addr().unwrap().port();
        // The host's end exists once it is accepted; until then any will do.
        let host = TcpStream::connect(("127.0.0.1", to)).unwrap();
        self.listener.accept().unwrap();
        let from = (address(mac), port);
        let mut connection = Connection { mac, from, to, seq: 1000, ack: 0, host };
        let syn = connection.segment(flag::SYN, WIDE, &[2, 4, 5, 160, 3, 3, 7, 0]);
        connection.send(&mut self.lab, &syn);
        connection.host = self.listener.accept().unwrap().0;
        connection.host.set_nonblocking(true).unwrap();
        connection.seq += 1;
        self.connections.insert(port, connection);
        while self.connections[&port].ack == 0 {
            self.lab.events();
            self.look();
        }
        self.connections[&port].acknowledge(&mut self.lab, WIDE);
    }

    /// The guests take in-order data; returns how many bytes, by port.
    fn look(&mut self) -> HashMap<u16, usize> {
        let mut got = HashMap::new();
        for (_, frame) in std::mem::take(&mut self.lab.frames.0) {
            let packet = wire::parse(&frame[14..]).unwrap();
            let (_, port, segment) = wire::parse_tcp(packet.payload).unwrap();
            let connection = self.connections.get_mut(&port).unwrap();
            assert_eq!(frame[..6], connection.mac.0);
            if segment.flags & flag::SYN != 0 {
                connection.ack = segment.seq.wrapping_add(1);
            } else if segment.seq == connection.ack {
                let len = segment.payload.len();
                connection.ack = segment.seq.wrapping_add(u32::try_from(len).unwrap());
                *got.entry(port).or_insert(0) += len;
            }
        }
        got
    }

    /// The host's end writes all that the kernel takes.
    fn give(&self, port: u16) {
        let mut host = &self.connections[&port].host;
        while host.write(&[7; 1 << 16]).is_ok() {}
    }

    /// Guests open connections and take no data, until no more arrives.
    fn hoard(&mut self, mac: Mac, ports: std::ops::Range<u16>) {
        for port in ports.clone() {
            self.open(mac, port);
            self.give(port);
        }
        let mut held = usize::MAX;
        while held != self.lab.engine.load().1 {
            held = self.lab.engine.load().1;
            ports.clone().for_each(|port| self.give(port));
            self.lab.poll();
        }
        // Nothing is acknowledged, and the windows are closed from now on.
        self.lab.frames.0.clear();
        for port in ports {
            let connection = &self.connections[&port];
            connection.send(&mut self.lab, &connection.segment(flag::ACK, CLOSED, &[]));
        }
    }

    /// Bytes received by a connection whose guest takes all, as long as data arrives.
    fn download(&mut self, port: u16, most: usize) -> usize {
        let mut got = 0;
        for _ in 0..100_000 {
            self.give(port);
            self.lab.poll();
            let new = self.look().get(&port).copied().unwrap_or(0);
            self.connections[&port].acknowledge(&mut self.lab, WIDE);
            got += new;
            if got >= most {
                break;
            }
        }
        got
    }

    fn held(&self, mac: Mac) -> usize {
        let flows = self.lab.engine.flows(usize::MAX);
        let own = flows.iter().filter(|flow| flow.guest == mac.to_string());
        own.map(|flow| flow.held).sum()
    }
}

/// Memory is bounded and fair: what one guest holds does not reduce another's share.
#[test]
fn a_hoarder_leaves_others_their_part() {
    const MEMORY: usize = 16 << 20;
    let mut world = World::new(MEMORY);
    world.hoard(GREEDY, 1..60);
    let hoarded = world.held(GREEDY);
    assert!(hoarded > MEMORY / 2, "{hoarded} bytes were hoarded");
    world.open(MODEST, 5000);
    assert!(world.download(5000, 8 << 20) >= 8 << 20);
    // With a buffer of useful size.
    assert!(world.held(MODEST) >= 64 << 10, "{}", world.held(MODEST));
    assert!(world.lab.engine.load().1 <= MEMORY);
}

/// A flow that waits for memory is served once there is some, without a further event of its
/// socket, which has reported already, or of its guest.
#[test]
fn whoever_waits_for_memory_gets_it_when_there_is_some() {
    let mut world = World::new(1 << 20);
    world.hoard(GREEDY, 1..40);
    let waiting = 100..105;
    for port in waiting.clone() {
        world.open(GREEDY, port);
        let mut host = &world.connections[&port].host;
        assert_eq!(host.write(&[7; 100]).unwrap(), 100);
    }
    for _ in 0..10 {
        world.lab.poll();
        assert!(world.look().is_empty());
        assert!(!world.lab.engine.is_busy(), "it turns in circles");
    }
    // One of the hoarding connections takes its data.
    let connection = &world.connections[&1];
    connection.host.shutdown(std::net::Shutdown::Both).unwrap();
    let reset = connection.segment(flag::RST, CLOSED, &[]);
    connection.send(&mut world.lab, &reset);
    let mut got = world.look();
    while world.lab.engine.is_busy() {
        world.lab.step(|_, _| ());
        got.extend(world.look());
    }
    got.retain(|_, len| *len > 0);
    assert_eq!(got, waiting.map(|port| (port, 100)).collect());
}

/// A guest with one ready flow has its turn after one flow of each other guest, however many of
/// theirs were ready before.
#[test]
fn ready_flows_are_served_by_guest_in_turn() {
    let mut world = World::new(16 << 20);
    for port in 1..200 {
        world.open(GREEDY, port);
    }
    world.open(MODEST, 5000);
    world.lab.frames.0.clear();
    // In this order they are ready.
    for port in (1..200).chain([5000]) {
        assert_eq!((&world.connections[&port].host).write(b"x").unwrap(), 1);
    }
    world.lab.poll();
    let served: Vec<_> = world.lab.frames.0.iter().map(|(_, frame)| frame[..6].to_vec()).collect();
    assert!(served[..2].contains(&MODEST.0.to_vec()), "{:?}", &served[..2]);
    assert!(served.len() < 100 && world.lab.engine.is_busy(), "{} in a round", served.len());
    while world.lab.engine.is_busy() {
        world.lab.step(|_, _| ());
    }
    assert_eq!(world.look().len(), 200);
}

/// A connection is begun in its guest's turn, too, and not after all that others have asked for.
#[test]
fn connections_are_begun_by_guest_in_turn() {
    let mut world = World::new(16 << 20);
    let modest = TcpListener::bind("127.0.0.1:0").unwrap();
    let [greedy, to] = [&world.listener, &modest].map(|l| l.local_addr().unwrap().port());
    for listener in [&world.listener, &modest] {
        listener.set_nonblocking(true).unwrap();
    }
    world.ask((1..=100).map(|port| (GREEDY, port, greedy)).chain([(MODEST, 5000, to)]));
    let accepted = |world: &World| std::iter::from_fn(|| world.listener.accept().ok()).count();
    assert!(modest.accept().is_ok());
    let mut begun = accepted(&world);
    assert!(begun < 10, "{begun} in a round");
    while world.lab.engine.is_busy() {
        world.lab.step(|_, _| ());
        begun += accepted(&world);
    }
    assert_eq!(begun, 100);
}

/// Where all of the host's ports to a destination are in use, the kernel searches for one in vain,
/// once before other events are seen to.
#[test]
fn one_search_for_a_port_in_vain_at_a_time() {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    if !own_network() || std::fs::write(RANGE, "40000 40015").is_err() {
        eprintln!("SKIPPED: needs root, for a network with few ports");
        return;
    }
    let mut world = World::new(16 << 20);
    let vain = |world: &World| world.lab.engine.stats().drops.host_error;
    let to = world.listener.local_addr().unwrap().port();
    world.ask((1..=30).map(|port| (GREEDY, port, to)));
    while world.lab.engine.is_busy() {
        let before = vain(&world);
        world.lab.step(|_, _| ());
        assert!(vain(&world) <= before + 1);
    }
    // One of the 16 is the listener's.
    assert_eq!(vain(&world), 30 - 15);
}
