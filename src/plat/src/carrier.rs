// SPDX-License-Identifier: Apache-2.0

//! The carrier: frames of a guest go to the network or to the flows, and theirs back to the guest, through the impairment of
//! `--loss` and `--delay`, past `--pcap`.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use clat_tun::{GsoType, Tun, VirtioHeader};
use nix::sys::epoll::Epoll;
use pcap_file::pcap::{PcapPacket, PcapWriter};

use crate::clat;
use crate::flow::{wire, Bounds, Context, Engine, Offload, Sink};
use crate::frame::{Mac, Out, ETHERNET};
use crate::host_sockets::HostSockets;
use crate::icmp_error::IcmpError;
use crate::link::{Event, Link};
use crate::network::{Handled, Network, Query};
use crate::settings::Settings;

/// Packets of the CLAT that are read before it is others' turn.
const BATCH: usize = 64;
/// Frames that may be under way in one direction at a time, and their bytes.
const UNDER_WAY: usize = 100_000;
const UNDER_WAY_BYTES: usize = 256 << 20;

/// How long flows are kept for a guest that has left: it may come back.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long a guest may be silent before it is asked whether it is there, if another one speaks; and how long it has to answer.
const SILENCE: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(3);

/// How soon a link is tried again that cannot tell when.
const RETRY: Duration = Duration::from_millis(1);

/// What happens to frames between the guest and the network.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// The share that is lost in each direction, 0 to 1.
    pub loss: f64,
    /// How long each is under way.
    pub delay: Duration,
}

/// Frames under way.
#[derive(Default)]
struct DelayQueue {
    frames: VecDeque<(Instant, VirtioHeader, Vec<u8>)>,
    bytes: usize,
}

impl DelayQueue {
    /// Whether there was room for one that arrives then.
    fn push(&mut self, at: Instant, vnet: VirtioHeader, frame: Vec<u8>) -> bool {
        let room = self.frames.len() < UNDER_WAY && self.bytes + frame.len() <= UNDER_WAY_BYTES;
        if room {
            self.bytes += frame.len();
            self.frames.push_back((at, vnet, frame));
        }
        room
    }

    /// The next that has arrived.
    fn pop(&mut self, now: Instant) -> Option<(VirtioHeader, Vec<u8>)> {
        self.next().filter(|at| *at <= now)?;
        let (_, vnet, frame) = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some((vnet, frame))
    }

    /// When the next arrives.
    fn next(&self) -> Option<Instant> {
        self.frames.front().map(|(at, ..)| *at)
    }
}

/// The way down, to the guest.
struct Down {
    direct: Option<Rc<Tun>>,
    /// Frames for a link that takes them in batches.
    out: Out,
    clat: Option<clat::Down>,
    impairment: Impairment,
    delayed: DelayQueue,
    pcap: Option<PcapWriter<std::fs::File>>,
    now: Instant,
    next_id: u32,
    frames: u64,
    lost: u64,
    /// The guest does not take what it got already.
    full: bool,
}

impl Down {
    fn record(&mut self, parts: [&[u8]; 3]) {
        let Some(pcap) = &mut self.pcap else { return };
        let bytes = parts.concat();
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let packet = PcapPacket { timestamp: time, orig_len: len, data: bytes.into() };
        if let Err(e) = pcap.write_packet(&packet) {
            log::error!("no more is recorded: {e}");
            self.pcap = None;
        }
    }

    fn send(&mut self, vnet: &VirtioHeader, parts: [&[u8]; 3]) {
        if self.impairment.loss > 0.0 && fastrand::f64() < self.impairment.loss {
            self.lost += 1;
            return;
        }
        if self.impairment.delay > Duration::ZERO {
            let at = self.now + self.impairment.delay;
            self.lost += u64::from(!self.delayed.push(at, *vnet, parts.concat()));
            return;
        }
        self.deliver(vnet, parts);
    }

    fn deliver(&mut self, vnet: &VirtioHeader, parts: [&[u8]; 3]) {
        self.record(parts);
        self.frames += 1;
        let sent = match &mut self.clat {
            Some(clat) if destination(parts[0]).is_some_and(|dst| clat.owns(dst)) => {
                clat.send(vnet, [&parts[0][ETHERNET..], parts[1], parts[2]], self.now)
            }
            _ => match &self.direct {
                Some(tun) => tun.send_pieces(vnet, &parts.map(IoSlice::new)).is_ok(),
                None => {
                    self.out.push_with(*vnet, |buf| {
                        parts.iter().for_each(|p| buf.extend_from_slice(p));
                    });
                    true
                }
            },
        };
        if !sent {
            self.lost += 1;
        }
    }
}

impl Down {
    /// Sends what the network answered.
    fn hand_on(&mut self, out: &mut Out) {
        for (vnet, frame) in out.iter() {
            self.send(vnet, [frame, &[], &[]]);
        }
        out.clear();
    }
}

impl Sink for Down {
    fn frame(&mut self, vnet: &VirtioHeader, parts: &[&[u8]]) {
        let part = |i| parts.get(i).copied().unwrap_or_default();
        self.send(vnet, [part(0), part(1), part(2)]);
    }

    fn next_id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    fn is_full(&self) -> bool {
        self.full
    }
}

/// Where an IPv6 frame goes.
fn destination(frame: &[u8]) -> Option<Ipv6Addr> {
    let [0x86, 0xdd] = frame.get(12..14)? else { return None };
    let bytes: [u8; 16] = frame.get(ETHERNET + 24..ETHERNET + 40)?.try_into().ok()?;
    Some(bytes.into())
}

fn source(frame: &[u8]) -> Option<Ipv6Addr> {
    let [0x86, 0xdd] = frame.get(12..14)? else { return None };
    let bytes: [u8; 16] = frame.get(ETHERNET + 8..ETHERNET + 24)?.try_into().ok()?;
    Some(bytes.into())
}

/// The way up, apart from the link.
struct Up<'a> {
    network: &'a mut Network,
    engine: &'a mut Engine<HostSockets>,
    down: &'a mut Down,
    out: &'a mut Out,
    guest: &'a mut Option<Guest>,
}

impl Up<'_> {
    /// A frame of the guest has arrived.
    fn frame(&mut self, now: Instant, vnet: &VirtioHeader, frame: &[u8]) {
        self.down.record([frame, &[], &[]]);
        let &[_, _, _, _, _, _, a, b, c, d, e, f, ..] = frame else { return };
        let mac = Mac([a, b, c, d, e, f]);
        if frame.len() < ETHERNET || mac.is_multicast() {
            return;
        }
        self.meet(frame, mac, now);
        match self.network.input(frame, vnet, now, self.out) {
            Handled::Yes => self.down.hand_on(self.out),
            Handled::NotForUs => {
                let packet = &frame[ETHERNET..];
                let mtu = self.network.settings().mtu;
                if vnet.gso_type == GsoType::None && wire::length(packet) > mtu.into() {
                    let ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
                    let error = IcmpError::too_big(ipv6, mtu.into());
                    self.network.report(error, mac, packet, now, self.out);
                    return self.down.hand_on(self.out);
                }
                let settings = self.network.settings();
                self.engine.handle_input(Context { settings, now }, mac, vnet, packet);
            }
            Handled::Dns => {
                let cx = Context { settings: self.network.settings(), now };
                self.engine.handle_dns_input(cx, mac, vnet, &frame[ETHERNET..]);
            }
        }
    }

    /// Remembers the guest for `--forward`: the same one as long as it is there, or anybody could have its ports.
    fn meet(&mut self, frame: &[u8], mac: Mac, now: Instant) {
        let prefix = self.network.settings().prefix.to_bits() >> 64;
        let served = |address: Ipv6Addr| address.to_bits() >> 64 == prefix;
        let Some(address) = source(frame).filter(|address| served(*address)) else { return };
        if let Some(guest) = self.guest {
            if (guest.address, guest.mac) == (address, mac) {
                (guest.heard, guest.asked) = (Some(now), None);
                return;
            }
            if let Some(heard) = guest.heard.filter(|_| served(guest.address)) {
                if now < heard + SILENCE {
                    return;
                }
                match guest.asked {
                    Some(asked) if now >= asked + ANSWER => {}
                    Some(_) => return,
                    None => {
                        guest.asked = Some(now);
                        self.network.solicit(guest.address, self.out);
                        return self.down.hand_on(self.out);
                    }
                }
            }
        }
        log::debug!("a guest: {address} at {mac}");
        *self.guest = Some(Guest { address, mac, heard: Some(now), asked: None });
    }
}

/// Who has the ports of `--forward`.
struct Guest {
    /// An address of the network.
    address: Ipv6Addr,
    mac: Mac,
    /// When it was last heard of; `None` if whoever is there now may be another.
    heard: Option<Instant>,
    /// When it was asked whether it is there.
    asked: Option<Instant>,
}

/// The network, its flows, and the way to the guest.
pub struct Carrier {
    network: Network,
    engine: Engine<HostSockets>,
    link: Box<dyn Link>,
    down: Down,
    out: Out,
    /// Frames on their way up.
    delayed: DelayQueue,
    clat: Option<clat::Up>,
    guest: Option<Guest>,
    expiry: GuestExpiry,
}

/// What becomes of the flows of a guest that is not there.
enum GuestExpiry {
    /// It is there.
    None,
    /// They go then, unless it comes back.
    At(Instant),
    /// They are gone.
    Over,
}

impl Carrier {
    /// A network for who comes by `link`.
    #[must_use]
    pub fn new(
        settings: Settings,
        link: Box<dyn Link>,
        clat: Option<(clat::Up, clat::Down)>,
        impairment: Impairment,
        bounds: Bounds,
        epoll: Rc<Epoll>,
        now: Instant,
    ) -> Self {
        // What is lost should be packets, not trains of them.
        let super_packets = link.takes_super_packets() && impairment.loss == 0.0;
        let offload = Offload { tso: super_packets, uso: super_packets };
        let (clat_up, clat_down) = clat.unzip();
        Self {
            network: Network::new(settings, now),
            engine: Engine::new(HostSockets::new(epoll), offload, bounds),
            down: Down {
                direct: link.direct(),
                out: Out::default(),
                clat: clat_down,
                impairment,
                delayed: DelayQueue::default(),
                pcap: None,
                now,
                next_id: fastrand::u32(..),
                frames: 0,
                lost: 0,
                full: false,
            },
            link,
            out: Out::default(),
            delayed: DelayQueue::default(),
            clat: clat_up,
            guest: None,
            expiry: GuestExpiry::Over,
        }
    }

    /// Records all frames from now on.
    pub fn set_pcap(&mut self, pcap: PcapWriter<std::fs::File>) {
        self.down.pcap = Some(pcap);
    }

    /// The way in.
    pub fn link(&self) -> &dyn Link {
        self.link.as_ref()
    }

    /// The CLAT's way up.
    #[must_use]
    pub fn clat(&self) -> Option<&clat::Up> {
        self.clat.as_ref()
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

    /// Frames that went to the guest, and that were lost on the way.
    #[must_use]
    pub fn frames_down(&self) -> (u64, u64) {
        (self.down.frames, self.down.lost + self.link.dropped())
    }

    /// The guest, if it has been heard of with an address of the network.
    #[must_use]
    pub fn guest(&self) -> Option<(Ipv6Addr, Mac)> {
        self.guest.as_ref().map(|guest| (guest.address, guest.mac))
    }

    /// Lets `step` do something with the flows.
    pub fn with_engine<R>(
        &mut self,
        now: Instant,
        step: impl FnOnce(&mut Engine<HostSockets>, Context<'_>) -> R,
    ) -> R {
        self.down.now = now;
        let settings = self.network.settings();
        step(&mut self.engine, Context { settings, now })
    }

    /// Reads frames of the guest.
    ///
    /// # Errors
    /// When the link is closed for good.
    pub fn read(&mut self, now: Instant) -> io::Result<()> {
        self.down.now = now;
        let up = &mut Up {
            network: &mut self.network,
            engine: &mut self.engine,
            down: &mut self.down,
            out: &mut self.out,
            guest: &mut self.guest,
        };
        let delayed = &mut self.delayed;
        let Impairment { loss, delay } = up.down.impairment;
        let event = self.link.receive(&mut |vnet, frame| {
            if loss > 0.0 && fastrand::f64() < loss {
                return;
            }
            if delay == Duration::ZERO {
                up.frame(now, vnet, frame);
            } else {
                delayed.push(now + delay, *vnet, frame.to_vec());
            }
        })?;
        match event {
            Event::Frames => {}
            Event::Came => {
                log::info!("a guest is connected");
                if let Some(guest) = &mut self.guest {
                    guest.heard = None;
                }
            }
            Event::Left(why) => log::info!("the guest has left: {why}"),
        }
        Ok(())
    }

    /// Reads packets of the CLAT. `true` when there may be more.
    ///
    /// # Errors
    /// When the CLAT's device is gone.
    pub fn read_clat(&mut self, now: Instant) -> io::Result<bool> {
        self.down.now = now;
        let Some(clat) = &mut self.clat else { return Ok(false) };
        let (engine, down, settings) = (&mut self.engine, &mut self.down, self.network.settings());
        let mac = settings.mac;
        clat.recv(BATCH, now, |vnet, packet| {
            let mut head = [0; ETHERNET];
            head[..6].copy_from_slice(&mac.0);
            head[6..12].copy_from_slice(&clat::MAC.0);
            head[12..].copy_from_slice(&[0x86, 0xdd]);
            down.record([&head, packet, &[]]);
            engine.handle_input(Context { settings, now }, clat::MAC, vnet, packet);
        })
    }

    /// Questions for resolvers.
    pub fn take_queries(&mut self) -> Vec<Query> {
        self.network.take_queries()
    }

    /// A resolver has answered.
    pub fn dns_answer(&mut self, token: u64, message: &[u8], now: Instant) {
        self.down.now = now;
        self.network.dns_answer(token, message, now, &mut self.out);
        self.down.hand_on(&mut self.out);
    }

    /// Connections of guests to the DNS server.
    pub fn take_dns_connections(&mut self) -> Vec<(Mac, UnixStream)> {
        self.engine.take_dns_connections()
    }

    /// A question of a guest has come by one of them, to which the owner has given this number.
    pub fn dns_question(&mut self, connection: u32, guest: Mac, message: &[u8], now: Instant) {
        self.network.dns_question(connection, guest, message, now);
    }

    /// Answers to such questions.
    pub fn take_dns_answers(&mut self) -> Vec<(u32, Vec<u8>)> {
        self.network.take_dns_answers()
    }

    /// Changes the advertised prefix.
    pub fn renumber(&mut self, prefix: Ipv6Addr, now: Instant) {
        self.down.now = now;
        self.network.renumber(prefix, now, &mut self.out);
        self.down.hand_on(&mut self.out);
    }

    /// Tells the guests that there is no router any more (RFC 4861 §6.2.5): the last thing before the network ends. Whatever
    /// `--delay` or `--loss` say, it goes out at once.
    pub fn farewell(&mut self) {
        self.network.farewell(&mut self.out);
        for (vnet, frame) in self.out.iter() {
            self.down.deliver(vnet, [frame, &[], &[]]);
        }
        self.out.clear();
        // A link that is gone has nobody to be told.
        let _ = self.link.send(&mut self.down.out);
    }

    /// Does what is due, and ends a batch.
    ///
    /// # Errors
    /// When the link is closed for good.
    pub fn finish(&mut self, now: Instant) -> io::Result<()> {
        self.down.now = now;
        while let Some((vnet, frame)) = self.delayed.pop(now) {
            let mut up = Up {
                network: &mut self.network,
                engine: &mut self.engine,
                down: &mut self.down,
                out: &mut self.out,
                guest: &mut self.guest,
            };
            up.frame(now, &vnet, &frame);
        }
        if self.network.next_timer().is_some_and(|at| at <= now) {
            self.network.poll(now, &mut self.out);
            self.down.hand_on(&mut self.out);
        }
        self.with_engine(now, Engine::handle_timeout);
        self.down.full = self.link.is_full();
        let cx = Context { settings: self.network.settings(), now };
        self.engine.poll_transmit(cx, &mut self.down);
        while let Some((vnet, frame)) = self.down.delayed.pop(now) {
            self.down.deliver(&vnet, [&frame, &[], &[]]);
        }
        if self.link.is_full() || !self.down.out.is_empty() {
            self.link.send(&mut self.down.out)?;
        }
        self.expire_guest(now);
        Ok(())
    }

    /// Ends the flows of a guest that has left and not come back, and forgets it.
    fn expire_guest(&mut self, now: Instant) {
        if self.link.has_guest() {
            self.expiry = GuestExpiry::None;
            return;
        }
        match self.expiry {
            GuestExpiry::None => self.expiry = GuestExpiry::At(now + GRACE),
            GuestExpiry::At(at) if at <= now => {
                self.engine.clear();
                self.guest = None;
                self.expiry = GuestExpiry::Over;
            }
            GuestExpiry::At(_) | GuestExpiry::Over => {}
        }
    }

    /// When [`Self::finish`] is due again: never, while `None`.
    #[must_use]
    pub fn next_timer(&self, now: Instant) -> Option<Instant> {
        let full = self.link.is_full();
        let busy = (self.engine.is_busy() && !full).then_some(now);
        let waiting = (full && self.link.send_fd().is_none()).then_some(now + RETRY);
        let delayed = [self.delayed.next(), self.down.delayed.next()].into_iter().flatten().min();
        let expiry = match self.expiry {
            GuestExpiry::At(at) => Some(at),
            GuestExpiry::None | GuestExpiry::Over => None,
        };
        [busy, waiting, delayed, expiry, self.network.next_timer(), self.engine.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }
}

#[cfg(test)]
mod tests {
    use clat_tun::device::{Devices, Flags};
    use nix::sys::epoll::EpollCreateFlags;

    use super::*;
    use crate::link::InProcess;

    const SECOND: Duration = Duration::from_secs(1);

    /// A packet for nobody, of a guest whose addresses end in this.
    fn frame(settings: &Settings, end: u8) -> Vec<u8> {
        let mut frame = [&settings.mac.0[..], &[2, 0, 0, 0, 0, end, 0x86, 0xdd]].concat();
        frame.extend([0x60, 0, 0, 0, 0, 0, 59, 64]);
        frame.extend(Ipv6Addr::from(settings.prefix.to_bits() | u128::from(end)).octets());
        frame.extend(settings.router.octets());
        frame
    }

    /// Trains of segments are long: it is not enough to count them.
    #[test]
    fn what_is_under_way_is_bounded() {
        const LEN: usize = 1 << 16;
        let mut queue = DelayQueue::default();
        let (now, vnet) = (Instant::now(), VirtioHeader::default());
        let pushed = |queue: &mut DelayQueue, len| queue.push(now + SECOND, vnet, vec![0; len]);
        assert_eq!((0..10_000).filter(|_| pushed(&mut queue, LEN)).count(), 4096);
        assert!(pushed(&mut queue, 0) && !pushed(&mut queue, LEN));
        assert!(queue.pop(now).is_none() && queue.pop(now + SECOND).is_some());
        assert!(pushed(&mut queue, LEN) && !pushed(&mut queue, LEN));
        while queue.pop(now + SECOND).is_some() {}
        assert_eq!((queue.bytes, queue.next()), (0, None));
    }

    /// It is the same guest as long as it is there, and another once it is gone or has another address.
    #[test]
    fn whoever_has_the_ports_keeps_them() {
        let devices = Devices::default();
        let device = devices.open();
        device.set_iff("", Flags { tun: false, tap: true, no_packet_info: true }).unwrap();
        let interface = devices.interface(device.name()).unwrap();
        let settings = Settings::default();
        let link = Box::new(InProcess::new(interface, &settings));
        let epoll = Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap());
        let start = Instant::now();
        let (impairment, bounds) = (Impairment::default(), Bounds::default());
        let mut carrier =
            Carrier::new(settings.clone(), link, None, impairment, bounds, epoll, start);
        let mut hear = |end, seconds| {
            let now = start + seconds * SECOND;
            device.write(&frame(carrier.network().settings(), end)).unwrap();
            carrier.read(now).unwrap();
            carrier.finish(now).unwrap();
            let mut asked = false;
            let mut frame = [0; 2000];
            while let Ok(len) = device.read(&mut frame) {
                // A neighbour solicitation.
                asked |= frame[..len].get(54) == Some(&135);
            }
            (carrier.guest().unwrap().0.octets()[15], asked)
        };
        assert_eq!(hear(1, 0), (1, false));
        // Another one does not get them by speaking more.
        assert_eq!(hear(2, 1), (1, false));
        assert_eq!(hear(2, 9), (1, false));
        // The guest is asked, and answers.
        assert_eq!(hear(2, 10), (1, true));
        assert_eq!(hear(2, 12), (1, false));
        assert_eq!(hear(1, 12), (1, false));
        assert_eq!(hear(2, 20), (1, false));
        // It is gone.
        assert_eq!(hear(2, 22), (1, true));
        assert_eq!(hear(2, 24), (1, false));
        assert_eq!(hear(2, 25), (2, false));
        // With another prefix nobody has the old address for long.
        carrier.renumber(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 0), start + 26 * SECOND);
        device.write(&frame(carrier.network().settings(), 3)).unwrap();
        carrier.read(start + 26 * SECOND).unwrap();
        let address = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 3);
        assert_eq!(carrier.guest().unwrap().0, address);
    }
}
