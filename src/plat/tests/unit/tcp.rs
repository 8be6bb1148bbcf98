// SPDX-License-Identifier: Apache-2.0

//! The guest is smoltcp on a TUN device of `clat_tun::device`, the time is an argument, and the
//! path loses and reorders packets.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use clat_tun::device::{self, Devices, Flags};
use clat_tun::VirtioHeader;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State as GuestState};
use smoltcp::time::Instant as GuestInstant;
use smoltcp::wire::{HardwareAddress, IpCidr};

#[path = "../port/mod.rs"]
mod port;

use super::*;
use crate::flow::wire::{parse, parse_tcp, Addresses, Offload, TcpWire};
use crate::flow::Sink;
use crate::frame::{Mac, ETHERNET};
use port::Port;

const MAC: Mac = Mac([0; 6]);
const GUEST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const SERVER: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc000, 0x201);
/// No loss and no reordering in either direction.
const SOUND: [Faults; 2] = [Faults { loss: 0, late: 0 }; 2];
const LIMITS: Limits = Limits { buffer: 1 << 18, memory: 1 << 20, burst: 16_000 };

/// A small, fast, deterministic random generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Percentages of impaired packets.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    /// Lost.
    loss: u64,
    /// Overtaken by others.
    late: u64,
}

/// One direction: packets with their arrival times, in that order.
#[derive(Default)]
struct Direction {
    packets: Vec<(u64, Vec<u8>)>,
    faults: Faults,
    /// How many were lost, and how many late.
    lost: u64,
    late: u64,
}

impl Direction {
    fn put(&mut self, now: u64, packet: Vec<u8>, dice: &mut Dice) {
        if dice.roll(100) < self.faults.loss {
            self.lost += 1;
            return;
        }
        let late = dice.roll(100) < self.faults.late;
        self.late += u64::from(late);
        self.packets.push((now + if late { 30 } else { 10 }, packet));
    }

    fn take(&mut self, now: u64) -> Option<Vec<u8>> {
        let (i, _) = self
            .packets
            .iter()
            .enumerate()
            .filter(|(_, (at, _))| *at <= now)
            .min_by_key(|(i, (at, _))| (*at, *i))?;
        Some(self.packets.remove(i).1)
    }
}

/// The host's socket.
#[derive(Default)]
struct Host {
    gives: VecDeque<u8>,
    ends: bool,
    got: Vec<u8>,
    /// What it takes before it blocks.
    room: usize,
    shut: bool,
}

impl Stream for Host {
    fn read(&mut self, room: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if self.gives.is_empty() {
            return if self.ends { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        io::Read::read(&mut self.gives, &mut room[0])
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = data.len().min(self.room);
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.room -= n;
        self.got.extend_from_slice(&data[..n]);
        Ok(n)
    }

    fn shutdown(&mut self) {
        self.shut = true;
    }
}

#[derive(Default)]
struct Frames(Vec<Vec<u8>>);

impl Sink for Frames {
    fn frame(&mut self, _: &VirtioHeader, parts: &[&[u8]]) {
        self.0.push(parts.concat()[ETHERNET..].to_vec());
    }

    fn next_id(&mut self) -> u32 {
        0
    }
}

struct World {
    start: Instant,
    /// Milliseconds.
    now: u64,
    dice: Dice,
    up: Direction,
    down: Direction,
    port: Port,
    /// The network's side of the device.
    link: device::Interface,
    interface: Interface,
    sockets: SocketSet<'static>,
    guest: SocketHandle,
    tcp: Option<Tcp>,
    host: Host,
    disposition: Disposition,
}

impl World {
    fn new(seed: u64, [up, down]: [Faults; 2], guest_buffer: usize) -> Self {
        let devices = Devices::default();
        let device = devices.open();
        device.set_iff("", Flags { tun: true, tap: false, no_packet_info: true }).unwrap();
        let link = devices.interface(device.name()).unwrap();
        let mut port = Port(device);
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut port, GuestInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 64)).unwrap();
        });
        interface
            .routes_mut()
            .add_default_ipv6_route(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))
            .unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || SocketBuffer::new(vec![0; guest_buffer]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.connect(interface.context(), (SERVER, 80), 40_000).unwrap();
        let guest = sockets.add(socket);
        Self {
            start: Instant::now(),
            now: 0,
            dice: Dice(seed * 2 + 1),
            up: Direction { faults: up, ..Direction::default() },
            down: Direction { faults: down, ..Direction::default() },
            port,
            link,
            interface,
            sockets,
            guest,
            tcp: None,
            host: Host { room: usize::MAX, ..Host::default() },
            disposition: Disposition::Open,
        }
    }

    fn guest(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.guest)
    }

    /// A millisecond passes.
    fn step(&mut self) {
        self.now += 1;
        let now = self.start + Duration::from_millis(self.now);
        while let Some(packet) = self.down.take(self.now) {
            assert_eq!(self.link.send(&packet), Ok(true));
        }
        let millis = i64::try_from(self.now).unwrap();
        self.interface.poll(GuestInstant::from_millis(millis), &mut self.port, &mut self.sockets);
        while let Some(written) = self.link.recv().unwrap() {
            self.up.put(self.now, written.frame, &mut self.dice);
        }
        let mut frames = Frames::default();
        let addresses = Addresses { guest_mac: MAC, mac: MAC, src: SERVER, dst: GUEST, class: 0 };
        let mut wire = TcpWire {
            sink: &mut frames,
            addresses,
            ports: (80, 40_000),
            offload: Offload::default(),
        };
        while let Some(packet) = self.up.take(self.now) {
            let packet = parse(&packet).unwrap();
            assert!(crate::flow::wire::verifies(&packet));
            let (_, _, segment) = parse_tcp(packet.payload).unwrap();
            match &mut self.tcp {
                Some(tcp) if self.disposition == Disposition::Open => {
                    self.disposition =
                        tcp.handle_input(&segment, &mut self.host, &mut wire, LIMITS, now);
                }
                Some(_) => {}
                None => {
                    // Sequence numbers that wrap around, except with SACK, where smoltcp 0.12
                    // overflows.
                    let sound =
                        [self.up.faults, self.down.faults].iter().all(|t| t.loss + t.late == 0);
                    let isn = if sound { 0xffff_f000 } else { 1000 };
                    let mut tcp = Tcp::accept(&segment, isn, 1440, now);
                    tcp.connected(&mut wire, LIMITS, now);
                    self.tcp = Some(tcp);
                }
            }
        }
        if let (Some(tcp), Disposition::Open) = (&mut self.tcp, self.disposition) {
            tcp.set_readable();
            if self.host.room > 0 {
                tcp.set_writable();
            }
            if tcp.poll_timeout() <= now {
                self.disposition = tcp.handle_timeout(&mut wire, LIMITS, now);
            }
            if self.disposition == Disposition::Open {
                (self.disposition, _) = tcp.poll_transmit(&mut self.host, &mut wire, LIMITS, now);
            }
            assert!(tcp.held() < 4 * LIMITS.buffer, "{} bytes held", tcp.held());
        }
        for packet in frames.0 {
            assert!(packet.len() <= 1500);
            assert!(crate::flow::wire::verifies(&parse(&packet).unwrap()));
            self.down.put(self.now, packet, &mut self.dice);
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0u8..251).cycle().take(len).collect()
}

/// Both send, both close; all data arrives with any impairment.
fn transfer(seed: u64, faults: [Faults; 2], len: usize) -> World {
    let mut world = World::new(seed, faults, 64 * 1024);
    let data = pattern(len);
    world.host.gives = data.iter().copied().collect();
    let (mut sent, mut got) = (0, Vec::new());
    while world.disposition == Disposition::Open {
        world.step();
        // Not before the guest: if a FIN reaches smoltcp 0.12 while its own data is lost, it never
        // retransmits that (CLOSING and CLOSE-WAIT disable its timer).
        world.host.ends = world.host.shut;
        let guest = world.guest();
        if guest.can_send() && sent < data.len() {
            sent += guest.send_slice(&data[sent..]).unwrap();
        }
        if sent == data.len() && guest.may_send() {
            guest.close();
        }
        while guest.can_recv() {
            guest.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        assert!(
            world.now < 600_000,
            "stuck: {:?}, {} of {len} down, {} up",
            world.tcp,
            got.len(),
            world.host.got.len()
        );
    }
    let tcp = world.tcp.as_ref().unwrap();
    assert_eq!(world.disposition, Disposition::Closed, "seed {seed} at {} ms: {tcp:?}", world.now);
    // Packets still in flight.
    for _ in 0..100 {
        world.step();
        let guest = world.guest();
        while guest.can_recv() {
            guest.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
    }
    assert!(got == data && world.host.got == data, "seed {seed}");
    assert!(world.host.shut);
    world
}

#[test]
fn all_arrives() {
    transfer(1, SOUND, 2_000_000);
}

/// Impairment up, down, and in both directions.
fn ways(faults: Faults) -> [[Faults; 2]; 3] {
    let none = Faults::default();
    [[faults, none], [none, faults], [faults, faults]]
}

/// Several transfers, in which all impairments occurred.
fn transfers(seeds: std::ops::Range<u64>, faults: [Faults; 2], len: usize) {
    let mut seen = [Faults::default(); 2];
    for seed in seeds {
        let world = transfer(seed, faults, len);
        for (seen, lane) in seen.iter_mut().zip([world.up, world.down]) {
            seen.loss += lane.lost;
            seen.late += lane.late;
        }
    }
    for (seen, faults) in seen.iter().zip(faults) {
        assert_eq!((seen.loss > 0, seen.late > 0), (faults.loss > 0, faults.late > 0));
    }
}

#[test]
fn all_arrives_whatever_is_lost() {
    for faults in ways(Faults { loss: 5, late: 0 }) {
        transfers(1..6, faults, 150_000);
    }
    for faults in ways(Faults { loss: 20, late: 0 }) {
        transfers(7..9, faults, 30_000);
    }
}

#[test]
fn all_arrives_in_whatever_order() {
    for late in [1, 10, 50] {
        for faults in ways(Faults { loss: 0, late }) {
            transfers(1..6, faults, 150_000);
        }
    }
}

#[test]
fn all_arrives_whatever_is_lost_and_in_whatever_order() {
    for faults in ways(Faults { loss: 5, late: 10 }) {
        transfers(1..6, faults, 150_000);
    }
    for faults in ways(Faults { loss: 20, late: 10 }) {
        transfers(7..10, faults, 30_000);
    }
    // One direction loses, the other reorders.
    let (loss, late) = (Faults { loss: 5, late: 0 }, Faults { loss: 0, late: 10 });
    for faults in [[loss, late], [late, loss]] {
        transfers(1..6, faults, 150_000);
    }
}

/// The guest has closed its direction, and still receives (half-close).
#[test]
fn half_closed_goes_on() {
    let mut world = World::new(3, SOUND, 64 * 1024);
    while !world.guest().may_send() {
        world.step();
    }
    world.guest().send_slice(b"all I have").unwrap();
    world.guest().close();
    while !world.host.shut {
        world.step();
    }
    assert_eq!(world.host.got, b"all I have");
    for _ in 0..100_000 {
        world.step();
    }
    world.host.gives.extend(b"late");
    let mut got = Vec::new();
    for _ in 0..100 {
        world.step();
        let guest = world.guest();
        while guest.can_recv() {
            guest.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
    }
    assert_eq!(got, b"late");
    world.host.ends = true;
    while world.disposition == Disposition::Open {
        world.step();
    }
    assert_eq!(world.disposition, Disposition::Closed);
}

/// A guest that does not read for minutes, and a host that does not: nothing grows, nothing is
/// lost.
#[test]
fn closed_windows_hold_everybody_back() {
    let mut world = World::new(4, [Faults { loss: 2, late: 10 }; 2], 8192);
    let data = pattern(3_000_000);
    world.host.gives = data.iter().copied().collect();
    world.host.room = 0;
    let mut sent = 0;
    for _ in 0..300_000 {
        world.step();
        let guest = world.guest();
        if guest.can_send() && sent < data.len() {
            sent += guest.send_slice(&data[sent..]).unwrap();
        }
    }
    assert_eq!(world.disposition, Disposition::Open);
    assert!(world.host.got.is_empty());
    assert!(world.host.gives.len() > data.len() - LIMITS.buffer - 100_000);
    assert!(sent < LIMITS.buffer + 3 * 8192, "{sent} were taken");
    world.host.room = usize::MAX;
    let mut got = Vec::new();
    while got.len() < 50_000 || world.host.got.len() < sent {
        world.step();
        let guest = world.guest();
        while guest.can_recv() {
            guest.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        assert!(world.now < 900_000, "stuck at {} and {}", got.len(), world.host.got.len());
    }
    assert!(data.starts_with(&got) && data.starts_with(&world.host.got));
}

/// A reader that pauses gets waiting data as soon as it reads again, however long it paused.
#[test]
fn a_reader_that_paused_goes_on_at_once() {
    for seconds in [1, 8, 33, 200] {
        let mut world = World::new(7, SOUND, 16 * 1024);
        world.host.gives = pattern(1_000_000).into();
        for _ in 0..seconds * 1000 {
            world.step();
        }
        let (begin, mut got) = (world.now, Vec::new());
        while got.len() < 100_000 {
            world.step();
            let guest = world.guest();
            while guest.can_recv() {
                guest.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            }
            assert!(world.now < begin + 400, "{} bytes after {seconds} s", got.len());
        }
        assert!(pattern(1_000_000).starts_with(&got));
    }
}

/// The same for a sender whose reader at the host paused: nothing inside its window has to be
/// retransmitted.
#[test]
fn a_sender_whose_reader_paused_goes_on_at_once() {
    /// Milliseconds to send more than all buffers hold, and to send everything, after a pause of so
    /// many seconds.
    fn time_after(pause: u64) -> [u64; 2] {
        let mut world = World::new(9, SOUND, 1 << 20);
        world.host.room = if pause > 0 { 10_007 } else { usize::MAX };
        let data = pattern(2_000_000);
        let mut sent = 0;
        let mut feed = |world: &mut World| {
            world.step();
            let guest = world.guest();
            if guest.can_send() && sent < data.len() {
                sent += guest.send_slice(&data[sent..]).unwrap();
            }
        };
        for _ in 0..pause * 1000 {
            feed(&mut world);
        }
        assert_eq!(world.disposition, Disposition::Open);
        world.host.room = usize::MAX;
        let (begin, had) = (world.now, world.host.got.len());
        let mut first = None;
        while world.host.got.len() < data.len() {
            feed(&mut world);
            if first.is_none() && world.host.got.len() > had + LIMITS.buffer {
                first = Some(world.now - begin);
            }
            assert!(world.now < begin + 60_000, "{} bytes", world.host.got.len());
        }
        assert!(world.host.got == data);
        [first.unwrap(), world.now - begin]
    }
    let without = time_after(0);
    for pause in [1, 8, 33, 200] {
        let with = time_after(pause);
        let late = with.iter().zip(without).any(|(with, without)| *with > without * 6 / 5);
        assert!(!late, "{with:?} ms after {pause} s, {without:?} ms without");
    }
}

/// The data sent: sequence numbers and bytes.
#[derive(Default)]
struct Sent(Vec<(u32, usize)>);

impl Wire for Sent {
    fn send(&mut self, segment: &Segment<'_>) {
        let bytes = segment.payload.concat().len();
        if bytes > 0 {
            self.0.push((segment.seq, bytes));
        }
    }
}

/// A guest takes back a window with data in flight, and then opens a smaller one. Senders have to
/// be robust against that (RFC 9293 §3.8.6).
#[test]
fn what_a_window_taken_back_refused_is_sent_again() {
    let now = Instant::now();
    let syn = Incoming { seq: 100, ack: 0, flags: SYN, window: 9000, options: &[], payload: &[] };
    let mut host = Host { gives: pattern(100_000).into(), ..Host::default() };
    let mut tcp = Tcp::accept(&syn, 1, 1440, now);
    let mut wire = Sent::default();
    tcp.connected(&mut wire, LIMITS, now);
    for (window, sent) in [(9000, 9000), (0, 0), (4000, 4000)] {
        let ack = Incoming { seq: 101, ack: 2, flags: ACK, window, ..syn };
        tcp.handle_input(&ack, &mut host, &mut wire, LIMITS, now);
        tcp.poll_transmit(&mut host, &mut wire, LIMITS, now);
        let sent_now = std::mem::take(&mut wire.0);
        assert_eq!(sent_now.iter().map(|(_, bytes)| bytes).sum::<usize>(), sent, "{sent_now:?}");
        assert!(sent == 0 || sent_now[0].0 == 2, "{sent_now:?}");
    }
    assert!(tcp.poll_timeout() < now + Duration::from_secs(2));
}

/// A reset is relayed; one with a guessed sequence number is not (RFC 5961).
#[test]
fn resets() {
    let mut world = World::new(5, SOUND, 8192);
    while !world.guest().may_send() {
        world.step();
    }
    let now = world.start + Duration::from_millis(world.now);
    let mut frames = Frames::default();
    let addresses = Addresses { guest_mac: MAC, mac: MAC, src: SERVER, dst: GUEST, class: 0 };
    let mut wire =
        TcpWire { sink: &mut frames, addresses, ports: (80, 40_000), offload: Offload::default() };
    let tcp = world.tcp.as_mut().unwrap();
    let guess = Incoming {
        seq: tcp.receiver.nxt.wrapping_add(1000),
        ack: 0,
        flags: RST,
        window: 0,
        options: &[],
        payload: &[],
    };
    assert_eq!(
        tcp.handle_input(&guess, &mut world.host, &mut wire, LIMITS, now),
        Disposition::Open
    );
    tcp.poll_transmit(&mut world.host, &mut wire, LIMITS, now);
    // Challenged (RFC 5961).
    assert_eq!(frames.0.len(), 1);
    world.guest().abort();
    while world.disposition == Disposition::Open {
        world.step();
    }
    assert_eq!(world.disposition, Disposition::GuestReset);
}

/// A guest that no longer answers is given up.
#[test]
fn silence_ends_it() {
    let mut world = World::new(6, SOUND, 8192);
    while !world.guest().may_send() {
        world.step();
    }
    world.host.gives.extend(b"anyone there?");
    for lane in [&mut world.up, &mut world.down] {
        lane.faults.loss = 100;
    }
    while world.disposition == Disposition::Open {
        world.step();
        assert!(world.now < 1_000_000);
    }
    assert_eq!(world.disposition, Disposition::HostReset);
    assert!(world.now > 60_000, "after {} ms already", world.now);
    assert_ne!(world.guest().state(), GuestState::Closed);
}

/// RFC 6146 §4, RFC 5382 REQ-5: an open connection may be silent for two hours and four minutes, no
/// other for more than four minutes.
#[test]
fn silence_is_borne_as_long_as_it_must_be() {
    let mut world = World::new(8, SOUND, 8192);
    while !world.guest().may_send() {
        world.step();
    }
    // Nothing is under way, nothing is due.
    for _ in 0..2000 {
        world.step();
    }
    let mut frames = Frames::default();
    let addresses = Addresses { guest_mac: MAC, mac: MAC, src: SERVER, dst: GUEST, class: 0 };
    let mut wire =
        TcpWire { sink: &mut frames, addresses, ports: (80, 40_000), offload: Offload::default() };
    let tcp = world.tcp.as_mut().unwrap();
    let end = tcp.last + Duration::from_secs(7440);
    assert_eq!(tcp.poll_timeout(), end);
    assert_eq!(
        tcp.handle_timeout(&mut wire, LIMITS, end - Duration::from_millis(1)),
        Disposition::Open
    );
    assert_eq!(tcp.held(), 0, "an idle flow holds nothing");
    (tcp.receiver.fin, tcp.sender.ended) = (Some(tcp.receiver.nxt), true);
    let end = tcp.last + Duration::from_secs(240);
    assert_eq!(tcp.poll_timeout(), end);
    assert_eq!(tcp.handle_timeout(&mut wire, LIMITS, end), Disposition::HostReset);
}

/// Anything may come in.
#[test]
fn nonsense_is_survived() {
    let mut dice = Dice(99);
    for round in 0..2000u64 {
        let now = Instant::now();
        let mut frames = Frames::default();
        let addresses = Addresses { guest_mac: MAC, mac: MAC, src: SERVER, dst: GUEST, class: 0 };
        let mut wire =
            TcpWire { sink: &mut frames, addresses, ports: (80, 1), offload: Offload::default() };
        let mut host = Host { room: 5000, gives: pattern(10_000).into(), ..Host::default() };
        let bytes: Vec<u8> = (0..2000).map(|_| u8::try_from(dice.roll(256)).unwrap()).collect();
        let seq = u32::try_from(dice.roll(1 << 32)).unwrap();
        let syn =
            Incoming { seq, ack: 0, flags: SYN, window: 9, options: &bytes[..40], payload: &[] };
        let mut tcp = Tcp::accept(&syn, 0, 1440, now);
        tcp.connected(&mut wire, LIMITS, now);
        for step in 0..50u64 {
            let near = u32::try_from(dice.roll(4000)).unwrap();
            let segment = Incoming {
                seq: tcp.receiver.nxt.wrapping_add(near).wrapping_sub(2000),
                ack: tcp.sender.nxt.wrapping_sub(u32::try_from(dice.roll(3)).unwrap() * near),
                flags: u8::try_from(dice.roll(64)).unwrap() & !RST | ACK,
                window: u16::try_from(dice.roll(1 << 16)).unwrap(),
                options: &bytes[..usize::try_from(dice.roll(11)).unwrap() * 4],
                payload: &bytes[..usize::try_from(dice.roll(1500)).unwrap()],
            };
            let now = now + Duration::from_millis(step * dice.roll(1000));
            tcp.set_readable();
            if tcp.handle_input(&segment, &mut host, &mut wire, LIMITS, now) != Disposition::Open
                || tcp.poll_transmit(&mut host, &mut wire, LIMITS, now).0 != Disposition::Open
                || tcp.handle_timeout(&mut wire, LIMITS, now) != Disposition::Open
            {
                break;
            }
            assert!(tcp.held() < 4 * LIMITS.buffer, "round {round}");
        }
    }
}

/// A stream that reports the state of its peer.
struct Watched {
    written: usize,
    peer: PeerState,
    probed: usize,
}

impl Stream for Watched {
    fn read(&mut self, _: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.written += data.len();
        Ok(data.len())
    }

    fn shutdown(&mut self) {}

    fn has_peer(&self) -> bool {
        true
    }

    fn peer(&self) -> Option<PeerState> {
        Some(self.peer)
    }

    fn set_probing(&mut self, probing: bool) {
        self.probed += usize::from(probing);
    }
}

/// The acknowledgement numbers sent.
#[derive(Default)]
struct Acknowledged(Vec<u32>);

impl Wire for Acknowledged {
    fn send(&mut self, segment: &Segment<'_>) {
        if segment.flags & ACK != 0 {
            self.0.push(segment.ack);
        }
    }
}

/// An open connection whose guest's next sequence number is 101, and whose peer acknowledges all
/// data and was heard just now.
fn watched(now: Instant) -> (Tcp, Watched, Acknowledged) {
    let syn = Incoming { seq: 100, ack: 0, flags: SYN, window: 1000, options: &[], payload: &[] };
    let mut tcp = Tcp::accept(&syn, 1, 1440, now);
    let peer = PeerState { unheard: Duration::ZERO, rtt: Duration::from_millis(10), has_all: true };
    let (mut stream, mut wire) = (Watched { written: 0, peer, probed: 0 }, Acknowledged::default());
    tcp.connected(&mut wire, LIMITS, now);
    let ack = Incoming { seq: 101, ack: 2, flags: ACK, ..syn };
    tcp.handle_input(&ack, &mut stream, &mut wire, LIMITS, now);
    tcp.poll_transmit(&mut stream, &mut wire, LIMITS, now);
    wire.0.clear();
    (tcp, stream, wire)
}

/// Data that the host takes is acknowledged, except for its last byte, which waits for the peer's
/// acknowledgement.
#[test]
fn the_last_byte_is_acknowledged_by_the_other_end() {
    let mut now = Instant::now();
    let (mut tcp, mut stream, mut wire) = watched(now);
    stream.peer.has_all = false;
    let data =
        Incoming { seq: 101, ack: 2, flags: ACK, window: 1000, options: &[], payload: b"hello" };
    tcp.handle_input(&data, &mut stream, &mut wire, LIMITS, now);
    tcp.poll_transmit(&mut stream, &mut wire, LIMITS, now);
    assert_eq!((stream.written, &wire.0[..]), (5, &[105][..]));
    // The peer is checked about once a round trip, and later seldom.
    let mut checks = 0;
    while now < tcp.last + Duration::from_secs(10) {
        now = tcp.poll_timeout();
        assert!(!tcp.handle_peer_timeout(&mut stream, now));
        checks += 1;
    }
    assert!((10..40).contains(&checks), "{checks} times");
    // A retransmission gets the same acknowledgement.
    tcp.handle_input(&data, &mut stream, &mut wire, LIMITS, now);
    tcp.poll_transmit(&mut stream, &mut wire, LIMITS, now);
    assert_eq!(wire.0, [105, 105]);
    stream.peer.has_all = true;
    now = tcp.poll_timeout();
    assert!(tcp.handle_peer_timeout(&mut stream, now));
    tcp.poll_transmit(&mut stream, &mut wire, LIMITS, now);
    assert_eq!((wire.0.last(), stream.written), (Some(&106), 5));
}

/// A keepalive is answered when the peer answers one, or at once if the peer was heard just now.
#[test]
fn a_keepalive_is_answered_by_the_other_end() {
    let mut now = Instant::now();
    let (mut tcp, mut stream, mut wire) = watched(now);
    let probe = Incoming { seq: 100, ack: 2, flags: ACK, window: 1000, options: &[], payload: &[] };
    tcp.handle_input(&probe, &mut stream, &mut wire, LIMITS, now);
    tcp.poll_transmit(&mut stream, &mut wire, LIMITS, now);
    assert_eq!((&wire.0[..], stream.probed), (&[101][..], 0));
    stream.peer.unheard = Duration::from_secs(60);
    for _ in 0..3 {
        tcp.handle_input(&probe, &mut stream, &mut wire, LIMITS, now);
        tcp.poll_transmit(&mut stream, &mut wire, LIMITS, now);
        now += Duration::from_secs(1);
        assert!(!tcp.handle_peer_timeout(&mut stream, now));
    }
    assert_eq!((wire.0.len(), stream.probed), (1, 3), "nobody answers");
    stream.peer.unheard = Duration::ZERO;
    now = tcp.poll_timeout();
    assert!(tcp.handle_peer_timeout(&mut stream, now));
    tcp.poll_transmit(&mut stream, &mut wire, LIMITS, now);
    assert_eq!(wire.0, [101, 101]);
}
