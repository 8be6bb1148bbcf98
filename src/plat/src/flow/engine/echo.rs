// SPDX-License-Identifier: Apache-2.0

//! ICMP echo (RFC 5508): one ping socket of the host for each identifier and family of the guest.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::recent::Recent;
use super::{addresses, Context, Engine, Entry, Flow, Id, Key, Sink};
use crate::flow::errors;
use crate::flow::sockets::{Datagrams, Sockets};
use crate::flow::stats::DropReason;
use crate::flow::target::{seen, target};
use crate::flow::wire::{self, Addresses, Packet};
use crate::frame::Mac;
use crate::icmp_error::IcmpError;

/// RFC 6146 §4, ICMP_DEFAULT.
const IDLE: Duration = Duration::from_secs(60);
/// Most replies read before other flows are served.
const READS: usize = 32;
const REQUEST4: u8 = 8;
const REPLY4: u8 = 0;
const REQUEST6: u8 = 128;
const REPLY6: u8 = 129;

/// A mapping of one identifier.
pub(super) struct Echo<D> {
    socket: D,
    peers: Recent<IpAddr, ()>,
    hops: u8,
    class: u8,
    /// Whether the host may fragment what is sent.
    cut: bool,
    last: Instant,
}

impl<D> Echo<D> {
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(self.last + IDLE)
    }

    pub(super) fn socket(&self) -> &D {
        &self.socket
    }
}

impl<S: Sockets> Engine<S> {
    pub(super) fn echo_input(&mut self, cx: Context<'_>, mac: Mac, packet: &Packet<'_>) {
        let &[kind, 0, _, _, id0, id1, ref rest @ ..] = packet.payload else {
            return self.stats.drop(DropReason::Protocol);
        };
        let request = if packet.protocol == wire::ICMP6 { REQUEST6 } else { REQUEST4 };
        if kind != request {
            // ICMP errors are not for these sockets: the kernel handles those from the host's
            // network, [`super::guest_errors`] those of guests.
            return self.stats.drop(DropReason::Protocol);
        }
        let address = match target(cx.settings, packet.dst) {
            Ok(address) => address,
            Err(refused) => {
                return self.refuse(cx, DropReason::Forbidden, refused.into(), packet.whole, mac)
            }
        };
        let family = if address.is_ipv6() { 6 } else { 4 };
        let identifier = u16::from_be_bytes([id0, id1]);
        let key = Key {
            protocol: wire::ICMP6,
            guest: (packet.src, identifier),
            remote: (Ipv6Addr::UNSPECIFIED, family),
        };
        let id = match self.table.find(&key) {
            Some(id) => id,
            None if !self.make_room(mac) => return self.stats.drop(DropReason::Limit),
            None => match self.echo_open(cx, key, mac) {
                Some(id) => id,
                None => {
                    return self.refuse(
                        cx,
                        DropReason::HostError,
                        IcmpError::Prohibited,
                        packet.whole,
                        mac,
                    )
                }
            },
        };
        self.table.touch(id);
        let Some(Entry { flow: Flow::Echo(echo), held, .. }) = self.table.get(id) else { return };
        echo.last = cx.now;
        if !echo.peers.is_latest(address) {
            let memory = self.memory.limits(mac, *held).memory;
            echo.peers.note(address, (), cx.now, memory);
            self.memory.change(mac, *held, echo.peers.held());
            *held = echo.peers.held();
        }
        if echo.class != packet.class && echo.socket.set_class(packet.class).is_ok() {
            echo.class = packet.class;
        }
        let hops = packet.hop_limit - 1;
        if S::Datagrams::hops_differ(echo.hops, hops) && echo.socket.set_hops(hops).is_ok() {
            echo.hops = hops;
        }
        let cut = packet.may_cut || errors::is_cut_anyway(packet.src, packet.whole.len());
        if echo.cut != cut && echo.socket.let_cut(cut).is_ok() {
            echo.cut = cut;
        }
        let mut message = vec![if family == 6 { REQUEST6 } else { REQUEST4 }, 0, 0, 0, 0, 0];
        message.extend_from_slice(rest);
        match echo.socket.send_some(&[(SocketAddr::new(address, 0).into(), &message)]) {
            Ok(_) => self.stats.bytes_up += message.len() as u64,
            Err(errno) => {
                let error = self.what_failed(cx, id, errno, address).unwrap_or(IcmpError::NoRoute);
                self.refuse(cx, DropReason::HostError, error, packet.whole, mac);
            }
        }
    }

    fn echo_open(&mut self, cx: Context<'_>, key: Key, mac: Mac) -> Option<Id> {
        let socket = match self.sockets.echo(key.remote.1 == 6) {
            Ok(socket) => socket,
            Err(e) => {
                if !std::mem::replace(&mut self.told_of_ping, true) {
                    log::warn!(
                        "no ping: the host gives no ping socket ({e}); allow it with \
                         `sysctl net.ipv4.ping_group_range='0 2147483647'`"
                    );
                }
                return None;
            }
        };
        log::debug!("{key} begins");
        self.stats.echo += 1;
        let peers = Recent::default();
        let flow = Flow::Echo(Echo { socket, peers, hops: 64, class: 0, cut: false, last: cx.now });
        let id = self.table.insert(key, mac, flow);
        let Some(Entry { flow: Flow::Echo(echo), .. }) = self.table.get(id) else { return None };
        if self.sockets.watch_datagrams(&echo.socket, id).is_err() {
            self.end(id, "it cannot be watched");
            return None;
        }
        self.table.wake(id, cx.now + IDLE);
        Some(id)
    }

    /// Reads replies.
    pub(super) fn echo_receive(&mut self, cx: Context<'_>, id: Id, sink: &mut dyn Sink) {
        let Some(entry) = self.table.get(id) else { return };
        let (key, mac) = (entry.key, entry.mac);
        let ipv4_guest = key.guest.0.to_ipv4_mapped().is_some();
        let mtu = self.paths.get(key.guest.0, cx.settings.mtu, cx.now);
        for _ in 0..READS {
            let Some(Entry { flow: Flow::Echo(echo), .. }) = self.table.get(id) else { return };
            let Ok(received) = echo.socket.recv(&mut self.scratch) else { return };
            let (len, class) = (received.len, received.class);
            let Some(from) = received.from else { continue };
            if echo.peers.get(from.ip(), None).is_none() {
                self.stats.drop(DropReason::Filtered);
                continue;
            }
            self.stats.bytes_down += len as u64;
            let message = &mut self.scratch[..len];
            rewrite(message, if ipv4_guest { REPLY4 } else { REPLY6 }, key.guest.1);
            let src = seen(cx.settings, from.ip(), key.guest.0);
            let addresses = Addresses { src, class, ..addresses(cx.settings, mac, &key) };
            wire::send_icmp(sink, &addresses, message, 64, mtu.into());
        }
    }
}

/// Turns a message into the request that the guest of this key has sent.
pub(super) fn as_request(message: &mut [u8], key: &Key) {
    let ipv4 = key.guest.0.to_ipv4_mapped().is_some();
    rewrite(message, if ipv4 { REQUEST4 } else { REQUEST6 }, key.guest.1);
}

/// Sets type and identifier, and clears the checksum.
fn rewrite(message: &mut [u8], kind: u8, identifier: u16) {
    let [id0, id1] = identifier.to_be_bytes();
    if let Some(head) = message.get_mut(..6) {
        head.copy_from_slice(&[kind, 0, 0, 0, id0, id1]);
    }
}
