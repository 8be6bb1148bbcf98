// SPDX-License-Identifier: Apache-2.0

//! UDP: one socket of the host for each port and family of the guest (endpoint-independent mapping,
//! RFC 4787 REQ-1). Only peers to which the guest has sent may answer (address-dependent
//! filtering).

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use clat_tun::{GsoType, VirtioHeader};
use nix::errno::Errno;

use super::recent::Recent;
use super::{addresses, Context, Engine, Entry, Flow, Id, Key, Sink};
use crate::flow::errors;
use crate::flow::sockets::{Datagrams, Ends, Sockets};
use crate::flow::stats::{DropReason, Stats};
use crate::flow::target::{is_local, seen, target, visitor, visitor4, STAND_IN};
use crate::flow::wire::{self, Addresses, Packet};
use crate::frame::Mac;
use crate::read_budget::ReadBudget;

/// RFC 6146 §4, UDP_DEFAULT.
const IDLE: Duration = Duration::from_secs(300);
/// Most segments in a UDP_SEGMENT send (UDP_MAX_SEGMENTS was 64 before it was 128), and most bytes.
const GSO_SEGMENTS: usize = 64;
const GSO_BYTES: usize = 65_000;
/// Most segments in a GSO packet of a guest's kernel (UDP_MAX_SEGMENTS).
const UDP_MAX_SEGMENTS: usize = 128;
/// Most datagrams and bytes that wait for the end of their batch: a GSO packet, and some more.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 2 * GSO_BYTES;
/// Most datagrams read before other flows are served.
const READS: usize = 64;

/// A mapping of one port.
pub(super) struct Udp<D> {
    socket: D,
    /// Peers that may answer: those to which the guest has sent.
    peers: Recent<IpAddr, ()>,
    /// Whether any peer may send: a forwarded port.
    open: bool,
    /// Index of the place where its guest is tried; all but the first are IPv4.
    place: usize,
    /// Peers that have sent to a forwarded port, and to which of the host's addresses: answers come
    /// from that address.
    visitors: Recent<SocketAddr, IpAddr>,
    /// Those that the guest sees as `STAND_IN`, by port: the guest may answer exactly these.
    local_visitors: Recent<u16, SocketAddr>,
    hops: u8,
    class: u8,
    /// Whether the host may fragment what is sent.
    cut: bool,
    budget: ReadBudget,
    last: Instant,
}

impl<D: Datagrams> Udp<D> {
    fn new(socket: D, now: Instant) -> Self {
        Self {
            socket,
            peers: Recent::default(),
            open: false,
            place: 0,
            visitors: Recent::default(),
            local_visitors: Recent::default(),
            hops: 64,
            class: 0,
            cut: false,
            budget: ReadBudget::default(),
            last: now,
        }
    }

    fn forwarded(socket: D, now: Instant) -> Self {
        Self { open: true, ..Self::new(socket, now) }
    }

    pub(super) fn socket(&self) -> &D {
        &self.socket
    }

    /// When it expires; never for a forwarded port.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.open).then(|| self.last + IDLE)
    }

    /// Notes a peer that has sent to a forwarded port.
    fn welcome(&mut self, visitor: SocketAddr, local: IpAddr, now: Instant, memory: usize) {
        // The guest sees this visitor as `STAND_IN`.
        if is_local(visitor.ip()) || (self.place > 0 && visitor.is_ipv6()) {
            self.local_visitors.note(visitor.port(), visitor, now, memory / 2);
        }
        self.visitors.note(visitor, local, now, memory / 2);
    }

    /// The visitor seen as `STAND_IN` that a guest answers at this port: the one that has sent
    /// last.
    fn local_visitor(&self, port: u16, now: Instant) -> Option<SocketAddr> {
        self.local_visitors.get(port, now.checked_sub(IDLE))
    }

    /// Bytes of memory for its peers.
    fn held(&self) -> usize {
        self.peers.held() + self.visitors.held() + self.local_visitors.held()
    }
}

fn key(guest: (Ipv6Addr, u16), ipv6: bool) -> Key {
    let family = if ipv6 { 6 } else { 4 };
    Key { protocol: wire::UDP, guest, remote: (Ipv6Addr::UNSPECIFIED, family) }
}

/// A datagram of a guest that waits for the end of its batch, or several of equal length (the last
/// may be shorter) that came as one GSO packet.
struct Datagram {
    id: Id,
    ends: Ends,
    hops: u8,
    class: u8,
    /// Whether it may be fragmented.
    cut: bool,
    /// Bytes of each datagram.
    size: usize,
    /// Range in the batch's data.
    at: Range<usize>,
}

/// Datagrams of guests, in order of arrival.
#[derive(Default)]
pub(super) struct Batch {
    datagrams: Vec<Datagram>,
    data: Vec<u8>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.datagrams.len() >= BATCH || self.data.len() >= BATCH_BYTES
    }
}

/// Number of datagrams from the first on that can be sent in one UDP_SEGMENT call: of one flow and
/// as long as the first; the last may be shorter.
fn gso_run(datagrams: &[Datagram]) -> usize {
    let Some(first) = datagrams.first() else { return 0 };
    let mut len = first.at.len();
    let joins = |next: &&Datagram| {
        // Empty datagrams are sent alone; a shorter one is the last.
        let open = len > 0 && len % first.size == 0;
        len += next.at.len();
        open && (next.id, next.ends, next.hops) == (first.id, first.ends, first.hops)
            && (next.size == first.size || (next.size == next.at.len() && next.size < first.size))
            && next.size > 0
            && len <= GSO_BYTES
            && len.div_ceil(first.size) <= GSO_SEGMENTS
    };
    1 + datagrams[1..].iter().take_while(joins).count()
}

/// A datagram to send: destination and data.
type Leaving<'a> = (Ends, &'a [u8]);

/// Sends datagrams in one UDP_SEGMENT call. `false` if the kernel did not take it.
fn send_gso(socket: &impl Datagrams, data: &[u8], run: &[Datagram], stats: &mut Stats) -> bool {
    let (ends, size) = (run[0].ends, u16::try_from(run[0].size).unwrap_or(0));
    // Contiguous data is one piece.
    let pieces: Vec<_> = run
        .chunk_by(|a, b| a.at.end == b.at.start)
        .map(|run| IoSlice::new(&data[run[0].at.start..run[run.len() - 1].at.end]))
        .collect();
    let Ok(sent) = socket.send_gso(ends, &pieces, size) else { return false };
    stats.bytes_up += sent as u64;
    stats.gso_up += 1;
    true
}

/// Sends these datagrams, and empties the list.
fn send_each<'a>(
    socket: &impl Datagrams,
    datagrams: &mut Vec<Leaving<'a>>,
    stats: &mut Stats,
    unsent: &mut Vec<(Errno, Leaving<'a>)>,
) {
    let mut rest = &datagrams[..];
    while let Some(first) = rest.first() {
        let taken = match socket.send_some(&rest[..rest.len().min(BATCH)]) {
            Ok(count) => {
                let sent = &rest[..count];
                stats.bytes_up += sent.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
                stats.batches_up += u64::from(count > 1);
                count
            }
            Err(errno) => {
                unsent.push((errno, *first));
                1
            }
        };
        rest = &rest[taken..];
    }
    datagrams.clear();
}

impl<S: Sockets> Engine<S> {
    pub(super) fn udp_input(
        &mut self,
        cx: Context<'_>,
        mac: Mac,
        vnet: &VirtioHeader,
        packet: &Packet<'_>,
    ) {
        let is_gso = vnet.gso_type == GsoType::UdpL4 && vnet.gso_size > 0;
        let Some((from, to, data)) = wire::parse_udp(packet.payload, is_gso) else {
            return self.stats.drop(DropReason::Malformed);
        };
        let size = if is_gso { usize::from(vnet.gso_size) } else { data.len() };
        if is_gso && data.len() > size * UDP_MAX_SEGMENTS {
            return self.stats.drop(DropReason::Malformed);
        }
        let size = size.min(data.len());
        let Some((id, to)) = self.udp_flow(cx, mac, packet, (from, to)) else { return };
        self.table.touch(id);
        let Some(Entry { flow: Flow::Udp(udp), held, .. }) = self.table.get(id) else { return };
        udp.last = cx.now;
        if !udp.open && !udp.peers.is_latest(to.ip()) {
            let memory = self.memory.limits(mac, *held).memory;
            udp.peers.note(to.ip(), (), cx.now, memory);
            self.memory.change(mac, *held, udp.held());
            *held = udp.held();
        }
        let ends = Ends { remote: to, local: udp.visitors.get(to, None) };
        let start = self.batch.data.len();
        self.batch.data.extend_from_slice(data);
        let at = start..self.batch.data.len();
        let (hops, class, cut) = (packet.hop_limit - 1, packet.class, packet.may_cut);
        self.batch.datagrams.push(Datagram { id, ends, hops, class, cut, size, at });
        if self.batch.is_full() {
            self.send_datagrams(cx);
        }
    }

    /// The mapping of a packet, and its destination.
    fn udp_flow(
        &mut self,
        cx: Context<'_>,
        mac: Mac,
        packet: &Packet<'_>,
        (from, to): (u16, u16),
    ) -> Option<(Id, SocketAddr)> {
        let guest = (packet.src, from);
        // A visitor on the host itself is answered at the address and port it came from; nothing
        // else on the host is reachable.
        let v4 = cx.settings.prefix64.extract(packet.dst).or_else(|| packet.dst.to_ipv4_mapped());
        if v4 == Some(STAND_IN) {
            for ipv6 in [false, true] {
                let Some(id) = self.table.find(&key(guest, ipv6)) else { continue };
                let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) else { continue };
                if let Some(visitor) = udp.local_visitor(to, cx.now) {
                    return Some((id, visitor));
                }
            }
        }
        let address = match target(cx.settings, packet.dst) {
            Ok(address) => address,
            Err(refused) => {
                self.refuse(cx, DropReason::Forbidden, refused.into(), packet.whole, mac);
                return None;
            }
        };
        let remote = SocketAddr::new(address, to);
        let key = key(guest, address.is_ipv6());
        if let Some(id) = self.table.find(&key) {
            return Some((id, remote));
        }
        if !self.make_room(mac) {
            self.stats.drop(DropReason::Limit);
            return None;
        }
        let socket = match self.sockets.udp(address.is_ipv6()) {
            Ok(socket) => socket,
            Err(e) => {
                log::debug!("no socket for {key}: {e}");
                self.stats.drop(DropReason::HostError);
                return None;
            }
        };
        log::debug!("{key} begins");
        self.stats.udp += 1;
        let id = self.table.insert(key, mac, Flow::Udp(Udp::new(socket, cx.now)));
        let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) else { return None };
        if self.sockets.watch_datagrams(&udp.socket, id).is_err() {
            self.end(id, "it cannot be watched");
            return None;
        }
        self.table.wake(id, cx.now + IDLE);
        Some((id, remote))
    }

    /// From now on, datagrams to the host's `socket` go to a guest's port (`--forward`).
    ///
    /// # Errors
    /// If the socket cannot be watched.
    pub fn udp_forward(
        &mut self,
        now: Instant,
        mac: Mac,
        guest: (Ipv6Addr, u16),
        socket: S::Datagrams,
    ) -> io::Result<()> {
        self.udp_insert(mac, guest, Udp::forwarded(socket, now))
    }

    fn udp_insert(
        &mut self,
        mac: Mac,
        guest: (Ipv6Addr, u16),
        udp: Udp<S::Datagrams>,
    ) -> io::Result<()> {
        let key = key(guest, udp.socket.is_ipv6());
        if let Some(id) = self.table.find(&key) {
            self.end(id, "its port is forwarded now");
        }
        let id = self.table.insert(key, mac, Flow::Udp(udp));
        let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) else { return Ok(()) };
        self.sockets.watch_datagrams(&udp.socket, id)
    }

    /// Ends what [`Self::udp_forward`] began for this port.
    pub fn udp_take_back(&mut self, port: u16, ipv6: bool) {
        for id in self.table.ids() {
            let is_it = self.table.get(id).is_some_and(|entry| {
                let is_port = entry.flow.is_forwarded() && entry.key.guest.1 == port;
                is_port && entry.key.remote.1 == if ipv6 { 6 } else { 4 }
            });
            if is_it {
                self.end(id, "its port is taken back");
            }
        }
    }

    /// No program listens on the guest's port: the next datagram to a forwarded port goes to the
    /// next place. The first place follows the last, since a program may listen there by then.
    pub(super) fn udp_elsewhere(&mut self, now: Instant, id: Id, places: &[(Ipv6Addr, Mac)]) {
        let Some(Entry { key, flow: Flow::Udp(udp), .. }) = self.table.get(id) else { return };
        let (port, next) = (key.guest.1, udp.place + 1);
        let next = if next < places.len() { next } else { 0 };
        let moves = udp.open && next != udp.place;
        let Some(&(address, mac)) = places.get(next).filter(|_| moves) else { return };
        let Some(Flow::Udp(mut udp)) = self.remove(id, "refused") else { return };
        udp.place = next;
        if let Err(e) = self.udp_move(now, mac, (address, port), udp) {
            log::warn!("cannot forward UDP to {address}: {e}");
        }
    }

    /// Moves a forwarded port to a guest's address.
    fn udp_move(
        &mut self,
        now: Instant,
        mac: Mac,
        guest: (Ipv6Addr, u16),
        udp: Udp<S::Datagrams>,
    ) -> io::Result<()> {
        // The old flow has consumed the readiness event.
        self.sockets.forget(&udp.socket)?;
        self.udp_insert(mac, guest, Udp { place: udp.place, ..Udp::forwarded(udp.socket, now) })
    }

    /// Moves the forwarded ports to another guest, or to another address of the same one.
    ///
    /// # Errors
    /// If a socket cannot be watched; its port is closed.
    pub fn udp_follow(&mut self, now: Instant, mac: Mac, address: Ipv6Addr) -> io::Result<()> {
        let mut followed = Ok(());
        for id in self.table.ids() {
            let port = match self.table.get(id) {
                Some(entry) if entry.flow.is_forwarded() => entry.key.guest.1,
                _ => continue,
            };
            if let Some(Flow::Udp(mut udp)) = self.remove(id, "it is another guest's") {
                udp.place = 0;
                followed = followed.and(self.udp_move(now, mac, (address, port), udp));
            }
        }
        followed
    }

    /// Sends the datagrams of a batch, each flow's together and in order.
    pub(super) fn send_datagrams(&mut self, cx: Context<'_>) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.datagrams.sort_by_key(|datagram| (datagram.id, datagram.ends));
        let alike = |a: &Datagram, b: &Datagram| {
            (a.id, a.class, a.cut) == (b.id, b.class, b.cut)
                && !S::Datagrams::hops_differ(a.hops, b.hops)
        };
        for run in batch.datagrams.chunk_by(alike) {
            self.udp_send(cx, &batch.data, run);
        }
        batch.datagrams.clear();
        batch.data.clear();
        self.batch = batch;
    }

    /// Sends datagrams of one socket with equal options: those that can be sent in one UDP_SEGMENT
    /// call that way, those between by one sendmmsg call.
    fn udp_send(&mut self, cx: Context<'_>, data: &[u8], run: &[Datagram]) {
        let Some(&Datagram { id, hops, class, cut, .. }) = run.first() else { return };
        let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) else {
            // The flow was ended meanwhile to make room.
            return run.iter().for_each(|_| self.stats.drop(DropReason::Limit));
        };
        if S::Datagrams::hops_differ(udp.hops, hops) {
            udp.hops = hops;
            if udp.socket.set_hops(hops).is_err() {
                self.stats.drop(DropReason::HostError);
            }
        }
        if udp.cut != cut && udp.socket.let_cut(cut).is_ok() {
            udp.cut = cut;
        }
        if udp.class != class && udp.socket.set_class(class).is_ok() {
            udp.class = class;
        }
        let (mut single, mut unsent) = (Vec::new(), Vec::new());
        let mut rest = run;
        while !rest.is_empty() {
            let (together, others) = rest.split_at(gso_run(rest));
            rest = others;
            let many = together.len() > 1 || together[0].at.len() > together[0].size;
            if many && *self.supports_gso.get_or_insert_with(|| udp.socket.supports_gso()) {
                send_each(&udp.socket, &mut single, &mut self.stats, &mut unsent);
                if send_gso(&udp.socket, data, together, &mut self.stats) {
                    continue;
                }
            }
            single.extend(together.iter().flat_map(|datagram| {
                let data = &data[datagram.at.clone()];
                let cut = data.chunks(datagram.size.max(1)).chain(data.is_empty().then_some(data));
                cut.map(|data| (datagram.ends, data))
            }));
        }
        send_each(&udp.socket, &mut single, &mut self.stats, &mut unsent);
        for (errno, (ends, datagram)) in unsent {
            self.udp_unsent(cx, id, ends, errno, datagram);
        }
    }

    fn udp_unsent(&mut self, cx: Context<'_>, id: Id, ends: Ends, errno: Errno, data: &[u8]) {
        let to = ends.remote;
        let error = self.what_failed(cx, id, errno, to.ip());
        let Some(Entry { key, mac, flow: Flow::Udp(udp), .. }) = self.table.get(id) else { return };
        let (key, mac) = (*key, *mac);
        if errno == Errno::EMSGSIZE
            && errors::is_cut_anyway(key.guest.0, wire::IPV6 + 8 + data.len())
            && !udp.cut
            && udp.socket.let_cut(true).is_ok()
        {
            udp.cut = true;
            if udp.socket.send_some(&[(ends, data)]).is_ok() {
                self.stats.bytes_up += data.len() as u64;
                return;
            }
        }
        self.stats.drop(DropReason::HostError);
        if let Some(error) = error {
            let remote = (seen(cx.settings, to.ip(), key.guest.0), to.port());
            let packet = errors::rebuild(key.guest, remote, wire::UDP, data);
            self.report(cx, error, &packet, mac);
        }
    }

    /// Reads datagrams. Consecutive ones of one sender and one length become a GSO packet.
    pub(super) fn udp_receive(&mut self, cx: Context<'_>, id: Id, sink: &mut dyn Sink) {
        let Some(entry) = self.table.get(id) else { return };
        let (key, mac) = (entry.key, entry.mac);
        let Flow::Udp(udp) = &mut entry.flow else { return };
        let mut read = false;
        let mut visitors = Vec::new();
        // The GSO packet: its sender, the length and the class of each datagram, its end in the
        // buffer.
        let mut gathered: Option<((SocketAddr, usize, u8), usize)> = None;
        let mtu = self.paths.get(key.guest.0, cx.settings.mtu, cx.now);
        let mut send =
            |stats: &mut Stats, (from, size, class): (SocketAddr, usize, u8), data: &[u8]| {
                stats.bytes_down += data.len() as u64;
                let src = if udp.place > 0 {
                    visitor4(cx.settings, from.ip(), key.guest.0)
                } else if udp.open {
                    visitor(cx.settings, from.ip(), key.guest.0)
                } else {
                    seen(cx.settings, from.ip(), key.guest.0)
                };
                let addresses = Addresses { src, class, ..addresses(cx.settings, mac, &key) };
                let ports = (from.port(), key.guest.1);
                let mtu = usize::from(mtu);
                wire::send_udp(sink, &addresses, ports, data, size, mtu, self.offload);
            };
        let mut count = 0;
        for _ in 0..udp.budget.most(READS) {
            let start = gathered.map_or(0, |(_, end)| end);
            let received = match udp.socket.recv(&mut self.scratch[start..]) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => break,
                // An error about something sent earlier; the error queue has it.
                Err(_) => continue,
            };
            count += 1;
            let Some(from) = received.from else { continue };
            let (len, size) = (received.len, received.size);
            let kind = (from, size, received.class);
            if udp.open {
                visitors.extend(received.local.map(|local| (from, local)));
            } else if udp.peers.get(from.ip(), None).is_none() {
                self.stats.drop(DropReason::Filtered);
                continue;
            }
            read = true;
            self.stats.gro_down += u64::from(len > size);
            let end = start + len;
            match gathered {
                Some((first, old))
                    if first == kind
                        && len == size
                        && old + len <= GSO_BYTES
                        && (old + len) / size.max(1) <= GSO_SEGMENTS
                        && len > 0 =>
                {
                    gathered = Some((kind, end));
                }
                Some((first, old)) => {
                    send(&mut self.stats, first, &self.scratch[..old]);
                    self.scratch.copy_within(start..end, 0);
                    gathered = Some((kind, len));
                }
                None => gathered = Some((kind, len)),
            }
            if len == 0 || len > size {
                // Passed on as received.
                if let Some((first, end)) = gathered.take() {
                    send(&mut self.stats, first, &self.scratch[..end]);
                }
            }
        }
        if let Some((first, end)) = gathered {
            send(&mut self.stats, first, &self.scratch[..end]);
        }
        udp.budget.found(count);
        if !visitors.is_empty() {
            let memory = self.memory.limits(mac, entry.held).memory;
            for (visitor, local) in visitors {
                udp.welcome(visitor, local, cx.now, memory);
            }
            self.memory.change(mac, entry.held, udp.held());
            entry.held = udp.held();
        }
        if read {
            udp.last = cx.now;
            self.table.touch(id);
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/udp_gso.rs"]
mod tests;
