//! UDP: one socket of the host for each port of the guest and family (endpoint-independent mapping, RFC 4787 REQ-1), answered
//! only by those whom the guest has spoken to (address-dependent filtering).

use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use clat_tun::{GsoType, VirtioHeader};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{
    recvmsg, sendmsg, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage,
};

use super::table::{Entry, Id, Key};
use super::target::{seen, target, visitor, STAND_IN};
use super::wire::{self, Packet};
use super::{errors, event, host, way, Cx, Described, Drop, Engine, Flow};
use crate::frame::Mac;
use crate::pace::Pace;

/// RFC 6146 §4, UDP_DEFAULT.
const IDLE: Duration = Duration::from_secs(300);
/// Correspondents whose answers are let in.
const PEERS: usize = 64;
/// Segments that the kernel takes at once (UDP_MAX_SEGMENTS was 64 before it was 128), and their bytes.
const TRAIN: usize = 64;
const TRAIN_BYTES: usize = 65_000;
/// Segments that any guest's kernel puts into one (UDP_MAX_SEGMENTS).
const LONGEST_TRAIN: usize = 128;
/// What is read before it is others' turn.
const READS: usize = 64;

/// A mapping.
pub(crate) struct Udp {
    socket: UdpSocket,
    peers: Vec<IpAddr>,
    /// Whether anyone may send: a forwarded port.
    open: bool,
    hops: u8,
    pace: Pace,
    last: Instant,
}

impl Udp {
    pub(super) fn forwarded(socket: UdpSocket, now: Instant) -> Self {
        Self { socket, peers: Vec::new(), open: true, hops: 64, pace: Pace::default(), last: now }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// When it ends; a forwarded port never does.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.open).then(|| self.last + IDLE)
    }

    fn remember(&mut self, peer: IpAddr) {
        match self.peers.iter().rposition(|p| *p == peer) {
            Some(i) if i + 1 == self.peers.len() => {}
            Some(i) => self.peers[i..].rotate_left(1),
            None => {
                if self.peers.len() >= PEERS {
                    self.peers.remove(0);
                }
                self.peers.push(peer);
            }
        }
    }
}

pub(super) fn key(guest: (Ipv6Addr, u16), ipv6: bool) -> Key {
    let family = if ipv6 { 6 } else { 4 };
    Key { protocol: wire::UDP, guest, remote: (Ipv6Addr::UNSPECIFIED, family) }
}

/// Datagrams of one flow to one destination that wait to be sent together: all as long as the first, but the last.
#[derive(Default)]
pub(crate) struct Train {
    id: Option<Id>,
    to: Option<SocketAddr>,
    size: usize,
    data: Vec<u8>,
    /// A shorter one was the last.
    closed: bool,
}

impl Train {
    fn takes(&self, id: Id, to: SocketAddr, size: usize, len: usize) -> bool {
        self.id == Some(id)
            && self.to == Some(to)
            && self.size == size
            && !self.closed
            && self.data.len() + len <= TRAIN_BYTES
            && (self.data.len() + len).div_ceil(size.max(1)) <= TRAIN
    }
}

impl Engine {
    pub(super) fn udp_input(
        &mut self,
        cx: &mut Cx<'_>,
        mac: Mac,
        vnet: &VirtioHeader,
        packet: &Packet<'_>,
    ) {
        let train = vnet.gso_type == GsoType::UdpL4 && vnet.gso_size > 0;
        let Some((from, to, data)) = wire::parse_udp(packet.payload, train) else {
            return self.stats.drop(Drop::Malformed);
        };
        let size = if train { usize::from(vnet.gso_size) } else { data.len() };
        if train && data.len() > size * LONGEST_TRAIN {
            return self.stats.drop(Drop::Malformed);
        }
        let Some((id, remote)) = self.udp_flow(cx, mac, packet, (from, to)) else { return };
        self.table.touch(id);
        let hops = packet.hop_limit - 1;
        let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) else { return };
        udp.last = cx.now;
        udp.remember(remote.ip());
        if host::hops_differ(udp.hops, hops) {
            // What waits still has the old one.
            self.flush_train(cx);
            let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) else { return };
            let set = host::reset_hops(&udp.socket, remote.is_ipv6(), hops);
            udp.hops = hops;
            if set.is_err() {
                self.stats.drop(Drop::HostError);
            }
        }
        // A datagram shorter than the rest may end a train. (One without data would not be seen there.)
        let (fits, single) = (self.train.size, data.len() <= size);
        if single
            && (1..fits).contains(&data.len())
            && self.train.takes(id, remote, fits, data.len())
        {
            self.train.data.extend_from_slice(data);
            self.train.closed = true;
            return;
        }
        if !self.train.takes(id, remote, size, data.len()) {
            self.flush_train(cx);
            self.train.id = Some(id);
            self.train.to = Some(remote);
            self.train.size = size;
        }
        self.train.data.extend_from_slice(data);
        // An empty datagram has no place in a train.
        self.train.closed = size == 0 || data.len() % size != 0;
        if size == 0 {
            self.flush_train(cx);
        }
    }

    /// The mapping of a packet, and where it goes.
    fn udp_flow(
        &mut self,
        cx: &mut Cx<'_>,
        mac: Mac,
        packet: &Packet<'_>,
        (from, to): (u16, u16),
    ) -> Option<(Id, SocketAddr)> {
        let guest = (packet.src, from);
        // A visitor from the host itself is answered only by the port that is forwarded.
        if cx.settings.prefix64.extract(packet.dst) == Some(STAND_IN) {
            for (ipv6, home) in
                [(false, IpAddr::from([127, 0, 0, 1])), (true, Ipv6Addr::LOCALHOST.into())]
            {
                if let Some(id) = self.table.find(&key(guest, ipv6)) {
                    let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) else {
                        continue;
                    };
                    if udp.open && udp.peers.contains(&home) {
                        return Some((id, SocketAddr::new(home, to)));
                    }
                }
            }
        }
        let address = match target(cx.settings, packet.dst) {
            Ok(address) => address,
            Err(refused) => {
                self.refuse(cx, Drop::Forbidden, refused.into(), packet.whole, mac);
                return None;
            }
        };
        let remote = SocketAddr::new(address, to);
        let key = key(guest, address.is_ipv6());
        if let Some(id) = self.table.find(&key) {
            return Some((id, remote));
        }
        if !self.make_room(mac) {
            self.stats.drop(Drop::Limit);
            return None;
        }
        let socket = match host::udp(address.is_ipv6()) {
            Ok(socket) => socket,
            Err(e) => {
                log::debug!("no socket for {}: {e}", Described(&key));
                self.stats.drop(Drop::HostError);
                return None;
            }
        };
        let udp = Udp {
            socket,
            peers: Vec::new(),
            open: false,
            hops: 64,
            pace: Pace::default(),
            last: cx.now,
        };
        log::debug!("{} begins", Described(&key));
        self.stats.udp += 1;
        let id = self.table.insert(key, mac, Flow::Udp(udp));
        let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) else { return None };
        if self.epoll.add(&udp.socket, event(id, EpollFlags::EPOLLIN)).is_err() {
            self.remove(id, "it cannot be watched");
            return None;
        }
        self.table.wake(id, cx.now + IDLE);
        Some((id, remote))
    }

    /// Sends the train.
    pub(super) fn flush_train(&mut self, cx: &mut Cx<'_>) {
        let (Some(id), Some(to)) = (self.train.id.take(), self.train.to) else { return };
        let (size, data) = (self.train.size, std::mem::take(&mut self.train.data));
        if let Some(Entry { flow: Flow::Udp(udp), .. }) = self.table.get(id) {
            let fd = udp.socket.as_raw_fd();
            let address = SockaddrStorage::from(to);
            let send = |data: &[u8], cmsgs: &[ControlMessage<'_>]| {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let once = || sendmsg(fd, &[IoSlice::new(data)], cmsgs, flags, Some(&address));
                match once() {
                    // An error of an earlier datagram, which the error queue tells more about.
                    Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => once(),
                    result => result,
                }
            };
            let train = data.len() > size && size > 0;
            let gso_size = u16::try_from(size).unwrap_or(0);
            let together =
                train && send(&data, &[ControlMessage::UdpGsoSegments(&gso_size)]).is_ok();
            let mut sent = if together { data.len() } else { 0 };
            let mut failed = None;
            if !together {
                for datagram in data.chunks(size.max(1)).chain((size == 0).then_some(&[][..])) {
                    match send(datagram, &[]) {
                        Ok(n) => sent += n,
                        Err(errno) => failed = Some((errno, datagram)),
                    }
                }
            }
            self.stats.bytes_up += sent as u64;
            if let Some((errno, datagram)) = failed {
                self.udp_unsent(cx, id, to, errno, datagram);
            }
        }
        self.train.data = data;
        self.train.data.clear();
    }

    fn udp_unsent(&mut self, cx: &mut Cx<'_>, id: Id, to: SocketAddr, errno: Errno, data: &[u8]) {
        self.stats.drop(Drop::HostError);
        let Some(entry) = self.table.get(id) else { return };
        let (key, mac) = (entry.key, entry.mac);
        if let Some(trouble) = errors::Trouble::from_errno(errno) {
            let remote = (seen(cx.settings, to.ip(), key.guest.0), to.port());
            let packet = errors::rebuild(key.guest, remote, wire::UDP, data);
            errors::send(cx, &mut self.bucket, trouble, &packet, mac, None);
        }
    }

    pub(super) fn udp_event(&mut self, cx: &mut Cx<'_>, id: Id, events: EpollFlags) {
        if events.contains(EpollFlags::EPOLLERR) {
            self.udp_reports(cx, id);
        }
        if events.contains(EpollFlags::EPOLLIN) {
            self.udp_read(cx, id);
        }
    }

    fn udp_reports(&mut self, cx: &mut Cx<'_>, id: Id) {
        for _ in 0..READS {
            let Some(entry) = self.table.get(id) else { return };
            let (key, mac) = (entry.key, entry.mac);
            let Flow::Udp(udp) = &entry.flow else { return };
            match host::report(&udp.socket, &mut self.scratch) {
                Ok(Some(report)) => {
                    let Some(to) = report.remote else { continue };
                    let remote = (seen(cx.settings, to.ip(), key.guest.0), to.port());
                    let router = report.router.map(|ip| seen(cx.settings, ip, key.guest.0));
                    let data = &self.scratch[..report.len.min(self.scratch.len())];
                    let packet = errors::rebuild(key.guest, remote, wire::UDP, data);
                    errors::send(cx, &mut self.bucket, report.trouble, &packet, mac, router);
                }
                Ok(None) => {}
                Err(_) => {
                    let _ = udp.socket.take_error();
                    return;
                }
            }
        }
    }

    /// Reads datagrams; those of one sender that are equally long go on together.
    fn udp_read(&mut self, cx: &mut Cx<'_>, id: Id) {
        let Some(entry) = self.table.get(id) else { return };
        let (key, mac) = (entry.key, entry.mac);
        let Flow::Udp(udp) = &mut entry.flow else { return };
        let mut read = false;
        let mut peers = Vec::new();
        // A train: its sender, the length of each, where it ends in the buffer.
        let mut train: Option<(SocketAddr, usize, usize)> = None;
        let mut send = |stats: &mut super::Stats, from: SocketAddr, size: usize, data: &[u8]| {
            stats.bytes_down += data.len() as u64;
            let src = if udp.open {
                visitor(cx.settings, from.ip(), key.guest.0)
            } else {
                seen(cx.settings, from.ip(), key.guest.0)
            };
            let way = super::Way { src, ..way(cx.settings, mac, &key) };
            let ports = (from.port(), key.guest.1);
            let mtu = usize::from(cx.settings.mtu);
            wire::send_udp(cx.sink, &way, ports, data, size, mtu, self.offload);
        };
        let mut count = 0;
        for _ in 0..udp.pace.budget(READS) {
            let start = train.map_or(0, |(_, _, end)| end);
            let mut control = cmsg_space!(i32);
            let mut iov = [std::io::IoSliceMut::new(&mut self.scratch[start..])];
            let result = recvmsg::<SockaddrStorage>(
                udp.socket.as_raw_fd(),
                &mut iov,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            );
            let message = match result {
                Ok(message) => message,
                Err(Errno::EAGAIN) => break,
                // An error of something sent earlier: told by the error queue.
                Err(_) => continue,
            };
            count += 1;
            let Some(from) = message.address.as_ref().and_then(host::to_std) else { continue };
            let len = message.bytes;
            let mut size = len;
            for cmsg in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::UdpGroSegments(n) = cmsg {
                    size = usize::try_from(n).unwrap_or(len).clamp(1, len.max(1));
                }
            }
            if udp.open {
                peers.push(from.ip());
            } else if !udp.peers.contains(&from.ip()) {
                self.stats.drop(Drop::Filtered);
                continue;
            }
            read = true;
            let end = start + len;
            match train {
                Some((who, each, old))
                    if who == from
                        && each == size
                        && len == size
                        && old + len <= TRAIN_BYTES
                        && (old + len) / each.max(1) <= TRAIN
                        && len > 0 =>
                {
                    train = Some((from, size, end));
                }
                Some((who, each, old)) => {
                    send(&mut self.stats, who, each, &self.scratch[..old]);
                    self.scratch.copy_within(start..end, 0);
                    train = Some((from, size, len));
                }
                None => train = Some((from, size, len)),
            }
            if len == 0 || len > size {
                // Whole as it came.
                if let Some((who, each, end)) = train.take() {
                    send(&mut self.stats, who, each, &self.scratch[..end]);
                }
            }
        }
        if let Some((who, each, end)) = train {
            send(&mut self.stats, who, each, &self.scratch[..end]);
        }
        udp.pace.found(count);
        for peer in peers {
            udp.remember(peer);
        }
        if read {
            udp.last = cx.now;
            self.table.touch(id);
        }
    }
}
