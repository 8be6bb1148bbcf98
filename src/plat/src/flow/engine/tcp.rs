// SPDX-License-Identifier: Apache-2.0

//! TCP flows: a connection with the guest on one side, a socket of the host on the other.

use std::hash::BuildHasher;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use nix::errno::Errno;

use super::{addresses, Context, Engine, Entry, Flow, Id, Key, Peer, Sink};
use crate::flow::errors;
use crate::flow::sockets::{Connection, Ready, Sockets};
use crate::flow::stats::{DropReason, Stats};
use crate::flow::target::{self, seen};
use crate::flow::tcp::{flag, Disposition, Incoming, Limits, PeerState, Segment, Stream, Tcp};
use crate::flow::wire::{self, Packet, TcpWire};
use crate::frame::Mac;
use crate::icmp_error::IcmpError;
use crate::settings::Settings;

/// A connection that counts its bytes.
pub(super) struct Counted<'a, C> {
    connection: &'a mut C,
    stats: &'a mut Stats,
}

impl<C: Connection> Stream for Counted<'_, C> {
    fn read(&mut self, room: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let n = self.connection.read(room)?;
        self.stats.bytes_down += n as u64;
        Ok(n)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.connection.write(data)?;
        self.stats.bytes_up += n as u64;
        Ok(n)
    }

    fn shutdown(&mut self) {
        self.connection.shutdown();
    }

    fn has_peer(&self) -> bool {
        self.connection.has_peer()
    }

    fn peer(&self) -> Option<PeerState> {
        self.connection.peer()
    }

    fn set_probing(&mut self, probing: bool) {
        self.connection.set_probing(probing);
    }
}

/// What a guest's SYN asks for.
#[derive(Clone)]
pub(super) struct Opening {
    /// `None`: the network's DNS server.
    remote: Option<SocketAddr>,
    hops: u8,
    class: u8,
    seq: u32,
    window: u16,
    options: Vec<u8>,
}

impl Opening {
    fn syn(&self) -> Incoming<'_> {
        syn(self.seq, self.window, &self.options)
    }
}

/// A guest's SYN.
fn syn(seq: u32, window: u16, options: &[u8]) -> Incoming<'_> {
    Incoming { seq, ack: 0, flags: flag::SYN, window, options, payload: &[] }
}

/// A connection from outside to a forwarded port.
#[derive(Clone, Copy)]
pub(super) struct Visit {
    peer: SocketAddr,
    /// Index of the place where the guest is tried.
    place: usize,
}

impl<S: Sockets> Engine<S> {
    pub(super) fn tcp_input(&mut self, cx: Context<'_>, mac: Mac, packet: &Packet<'_>, peer: Peer) {
        let Some((from, to, segment)) = wire::parse_tcp(packet.payload) else {
            return self.stats.drop(DropReason::Malformed);
        };
        let key = Key { protocol: wire::TCP, guest: (packet.src, from), remote: (packet.dst, to) };
        if let Some(id) = self.table.find(&key) {
            self.tcp_class(id, packet.class);
            self.with_tcp(cx, id, None, |tcp, stream, wire, limits, now| {
                tcp.handle_input(&segment, stream, wire, limits, now)
            });
            self.table.touch(id);
            self.make_ready(id);
        } else if segment.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN {
            self.tcp_open(cx, mac, packet, key, &segment, peer);
        } else if segment.flags & flag::RST == 0 {
            self.stats.drop(DropReason::NoFlow);
            self.reset(cx, mac, &key, &segment);
        }
    }

    /// Gives the host's packets the DSCP of the guest's (RFC 7915 §5.1).
    fn tcp_class(&mut self, id: Id, class: u8) {
        let Some(Entry { flow: Flow::Tcp(_, connection, _), .. }) = self.table.get(id) else {
            return;
        };
        let _ = connection.set_class(class);
    }

    /// Resets a segment without connection (RFC 9293 §3.10.7.1).
    fn reset(&mut self, cx: Context<'_>, mac: Mac, key: &Key, segment: &Incoming<'_>) {
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
        let ports = (key.remote.1, key.guest.1);
        wire::send_tcp(&mut self.queue, &addresses, ports, &reset, self.offload);
    }

    fn tcp_open(
        &mut self,
        cx: Context<'_>,
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
                let error = refused.into();
                return self.refuse(cx, DropReason::Forbidden, error, packet.whole, mac);
            }
        };
        if !self.make_room_to_connect(mac, cx.now) {
            return self.stats.drop(DropReason::Limit);
        }
        log::debug!("{key} begins");
        self.stats.tcp += 1;
        let opening = Opening {
            remote: address.map(|address| SocketAddr::new(address, key.remote.1)),
            hops: packet.hop_limit - 1,
            class: packet.class,
            seq: syn.seq,
            window: syn.window,
            options: syn.options.to_vec(),
        };
        let id = self.table.insert(key, mac, Flow::Opening(opening));
        self.connecting(id, cx.now);
        self.make_ready(id);
    }

    /// Begins a connection of the host's for a guest's SYN; `false` if the kernel has searched all
    /// its ports in vain, which takes milliseconds: other events come first.
    pub(super) fn tcp_begin(&mut self, cx: Context<'_>, id: Id) -> bool {
        let Some(Entry { key, mac, flow: Flow::Opening(opening), .. }) = self.table.get(id) else {
            return true;
        };
        let (key, mac, opening) = (*key, *mac, opening.clone());
        let opened = match opening.remote {
            Some(remote) => self.sockets.connect(remote, opening.hops, opening.class),
            None => self.sockets.pair().map(|(ours, theirs)| {
                self.dns.push((mac, theirs));
                ours
            }),
        };
        let connection = match opened {
            Ok(connection) => connection,
            Err(e) => {
                self.connect_failed(cx, id, &e);
                return errno(&e) != Errno::EADDRNOTAVAIL;
            }
        };
        let (isn, own_mss) = (self.isn(&key, cx.now), own_mss(cx.settings, &key));
        let mut tcp = Tcp::accept(&opening.syn(), isn, own_mss, cx.now);
        let path = self.paths.get(key.guest.0, cx.settings.mtu, cx.now);
        tcp.limit_mss(path - headers(&key));
        if let Some(entry) = self.table.get(id) {
            entry.flow = Flow::Tcp(Box::new(tcp), connection, None);
        }
        self.tcp_watch(id);
        true
    }

    /// Watches a flow's connection; `false` if that cannot be had.
    fn tcp_watch(&mut self, id: Id) -> bool {
        let Some(Entry { flow: Flow::Tcp(tcp, socket, _), .. }) = self.table.get(id) else {
            return false;
        };
        let deadline = tcp.poll_timeout();
        if let Err(e) = self.sockets.watch_connection(socket, id) {
            log::warn!("cannot watch a socket: {e}");
            self.end(id, "it cannot be watched");
            return false;
        }
        self.table.wake(id, deadline);
        true
    }

    /// Opens a connection to a guest for one that the host has accepted (`--forward`). If the guest
    /// refuses it, [`Engine::try_elsewhere`] tries the next place.
    pub fn tcp_forward(
        &mut self,
        cx: Context<'_>,
        mac: Mac,
        guest: (Ipv6Addr, u16),
        peer: SocketAddr,
        connection: S::Connection,
    ) {
        let remote = (target::visitor(cx.settings, peer.ip(), guest.0), peer.port());
        self.tcp_visit(cx, mac, (guest, remote), Visit { peer, place: 0 }, connection);
    }

    fn tcp_visit(
        &mut self,
        cx: Context<'_>,
        mac: Mac,
        (guest, remote): ((Ipv6Addr, u16), (Ipv6Addr, u16)),
        visit: Visit,
        connection: S::Connection,
    ) {
        let key = Key { protocol: wire::TCP, guest, remote };
        if self.table.find(&key).is_some() || !self.make_room(mac) {
            return self.stats.drop(DropReason::Limit);
        }
        let tcp = Tcp::connect(self.isn(&key, cx.now), own_mss(cx.settings, &key), cx.now);
        log::debug!("{key} begins, from outside");
        self.stats.tcp += 1;
        let flow = Flow::Tcp(Box::new(tcp), connection, Some(visit));
        let id = self.table.insert(key, mac, flow);
        if self.tcp_watch(id) {
            self.tcp_connected(cx, id);
        }
    }

    /// Tries a refused visit at the next place, if there is one.
    pub(super) fn tcp_elsewhere(&mut self, cx: Context<'_>, id: Id, places: &[(Ipv6Addr, Mac)]) {
        let Some(Entry { key, flow: Flow::Tcp(_, _, Some(visit)), .. }) = self.table.get(id) else {
            return;
        };
        let (Visit { peer, place }, port) = (*visit, key.guest.1);
        let Some(&(address, mac)) = places.get(place + 1) else {
            return self.end(id, "refused");
        };
        let Some(Flow::Tcp(_, connection, _)) = self.remove(id, "refused") else { return };
        // The old flow has consumed the readiness event.
        if self.sockets.forget_connection(&connection).is_err() {
            return;
        }
        let remote = (target::visitor4(cx.settings, peer.ip(), address), peer.port());
        let visit = Visit { peer, place: place + 1 };
        self.tcp_visit(cx, mac, ((address, port), remote), visit, connection);
    }

    /// Handles the readiness of a flow's connection.
    pub(super) fn tcp_ready(&mut self, cx: Context<'_>, id: Id, ready: Ready) {
        let Some(Entry { flow: Flow::Tcp(tcp, connection, _), .. }) = self.table.get(id) else {
            return;
        };
        if tcp.is_connecting() {
            if !(ready.writable || ready.failed || ready.hung_up) {
                return;
            }
            match connection.take_error() {
                // Hang-up without error is reported for a socket that is not connecting yet.
                Ok(()) if ready.hung_up => {}
                Ok(()) => self.tcp_connected(cx, id),
                Err(e) => self.connect_failed(cx, id, &e),
            }
            return;
        }
        if ready.writable {
            tcp.set_writable();
        }
        if ready.readable || ready.failed || ready.hung_up {
            tcp.set_readable();
        }
        self.make_ready(id);
    }

    fn tcp_connected(&mut self, cx: Context<'_>, id: Id) {
        self.with_tcp(cx, id, None, |tcp, _, wire, limits, now| {
            tcp.connected(wire, limits, now);
            Disposition::Open
        });
    }

    fn connect_failed(&mut self, cx: Context<'_>, id: Id, error: &io::Error) {
        let Some(Entry { key, mac, flow, .. }) = self.table.get(id) else { return };
        let (key, mac) = (*key, *mac);
        let (seq, report) = match flow {
            Flow::Opening(opening) => (opening.seq, None),
            Flow::Tcp(tcp, connection, _) => (tcp.syn_seq(), connection.report(&mut self.scratch)),
            Flow::Udp(_) | Flow::Echo(_) => return,
        };
        self.stats.drop(DropReason::HostError);
        let errno = errno(error);
        match report.map(|report| report.error).or_else(|| IcmpError::from_errno(errno)) {
            None | Some(IcmpError::PortUnreachable) => {
                self.reset(cx, mac, &key, &syn(seq, 0, &[]));
            }
            Some(error) => {
                let mut l4 = Vec::new();
                l4.extend(key.guest.1.to_be_bytes());
                l4.extend(key.remote.1.to_be_bytes());
                l4.extend(seq.to_be_bytes());
                l4.extend([0, 0, 0, 0, 0x50, flag::SYN, 0, 0, 0, 0, 0, 0]);
                let packet = errors::rebuild(key.guest, key.remote, wire::TCP, &l4);
                let router = report.and_then(|report| report.router);
                let router = router.map(|ip| seen(cx.settings, ip, key.guest.0));
                let (queue, buckets) = (&mut self.queue, &self.buckets);
                errors::send(cx, queue, buckets, error, &packet, mac, router);
            }
        }
        self.end(id, errno.desc());
    }

    /// Handles a connection's timers.
    pub(super) fn tcp_timeout(&mut self, cx: Context<'_>, id: Id) {
        let mut tells = false;
        self.with_tcp(cx, id, None, |tcp, stream, wire, limits, now| {
            tells = tcp.handle_peer_timeout(stream, now);
            tcp.handle_timeout(wire, limits, now)
        });
        if tells {
            self.make_ready(id);
        }
    }

    /// Moves data in both directions.
    pub(super) fn tcp_transmit(&mut self, cx: Context<'_>, id: Id, sink: &mut dyn Sink) {
        let mut again = false;
        self.with_tcp(cx, id, Some(sink), |tcp, stream, wire, limits, now| {
            let (disposition, more) = tcp.poll_transmit(stream, wire, limits, now);
            again = more;
            disposition
        });
        if again {
            self.make_ready(id);
        }
    }

    /// Runs a step of a connection, and removes or resets it if that ends it. Segments go to
    /// `sink`, or else to the queue.
    fn with_tcp(
        &mut self,
        cx: Context<'_>,
        id: Id,
        sink: Option<&mut dyn Sink>,
        step: impl FnOnce(
            &mut Tcp,
            &mut Counted<'_, S::Connection>,
            &mut TcpWire<'_>,
            Limits,
            Instant,
        ) -> Disposition,
    ) {
        let Some(entry) = self.table.get(id) else { return };
        let limits = self.memory.limits(entry.mac, entry.held);
        let Flow::Tcp(tcp, connection, visit) = &mut entry.flow else { return };
        let mut wire = TcpWire {
            addresses: addresses(cx.settings, entry.mac, &entry.key),
            ports: (entry.key.remote.1, entry.key.guest.1),
            offload: self.offload,
            sink: match sink {
                Some(sink) => sink,
                None => &mut self.queue,
            },
        };
        let mut stream = Counted { connection, stats: &mut self.stats };
        let disposition = step(tcp, &mut stream, &mut wire, limits, cx.now);
        if tcp.is_established() {
            *visit = None;
            if let Some(place) = entry.connects.take() {
                self.connecting.remove(place);
            }
        }
        let refused = visit.is_some();
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
            // There is nothing to reset.
            Disposition::Closed => drop(self.remove(id, "closed")),
            Disposition::GuestReset if refused => self.refused.push(id),
            Disposition::GuestReset => self.end(id, "reset by the guest"),
            Disposition::HostReset => self.end(id, "reset"),
        }
    }

    /// An unpredictable initial sequence number (RFC 6528).
    fn isn(&self, key: &Key, now: Instant) -> u32 {
        let [.., a, b, c, d] = self.random.hash_one((key, now)).to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// The MSS that we announce to a guest.
fn own_mss(settings: &Settings, key: &Key) -> u16 {
    settings.mtu - headers(key)
}

/// Bytes of IP and TCP headers without options.
fn headers(key: &Key) -> u16 {
    if key.guest.0.to_ipv4_mapped().is_some() {
        40
    } else {
        60
    }
}
