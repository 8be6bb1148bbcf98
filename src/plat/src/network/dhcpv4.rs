// SPDX-License-Identifier: Apache-2.0

//! The DHCP server (RFC 2131) of `--dual-stack`, which tells guests that they need no IPv4 (RFC
//! 8925).

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::wire::{
    ArpHardware, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpPacket, EthernetAddress,
};

use super::wire::same_net;
use crate::fairness;
use crate::frame::Mac;
use crate::settings::{DualStack, Settings};

pub(super) const SERVER_PORT: u16 = 67;
pub(super) const CLIENT_PORT: u16 = 68;

/// Option codes (RFC 2132; RFC 8925 §3.1 for the last).
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const MTU: u8 = 26;
/// RFC 3397.
const DOMAIN_SEARCH: u8 = 119;
const REQUESTED: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER_ID: u8 = 54;
const PARAMETERS: u8 = 55;
const RENEWAL: u8 = 58;
const REBINDING: u8 = 59;
const CLIENT_ID: u8 = 61;
const V6ONLY: u8 = 108;
const END: u8 = 255;

const MAGIC: u32 = 0x6382_5363;
/// Offset of the options, and the shortest message that every client takes (RFC 1542 §2.1).
const OPTIONS: usize = 240;
const SHORTEST: usize = 300;

/// Seconds for which a guest that can do so disables IPv4 (V6ONLY_WAIT's default, RFC 8925 §3.4).
const V6ONLY_WAIT: u32 = 1800;
const LEASE: Duration = Duration::from_secs(3600);
/// How long an offered address is reserved, and how long an address is avoided after a client has
/// declined it.
const OFFERED: Duration = Duration::from_secs(60);
const DECLINED: Duration = Duration::from_secs(600);
const MAX_LEASES: usize = 256;
/// An answer and its destination.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) message: Vec<u8>,
    pub(super) to: Ipv4Addr,
    pub(super) mac: Mac,
}

/// The leases.
#[derive(Debug, Default)]
pub(super) struct Server {
    leases: Vec<Lease>,
}

#[derive(Debug)]
struct Lease {
    /// The station that has asked for it.
    by: Mac,
    /// The client's identifier, or its hardware address; empty for an address in use by an unknown
    /// station.
    client: Vec<u8>,
    addr: Ipv4Addr,
    until: Instant,
    /// Whether it was requested, not only offered.
    requested: bool,
}

impl Lease {
    /// Whether it is this station's: no other station can release it, whatever identifier that
    /// sends.
    fn is_of(&self, by: Mac, client: &[u8]) -> bool {
        self.by == by && self.client == client
    }
}

/// The station that is known to use an address.
type Owner<'a> = &'a dyn Fn(Ipv4Addr) -> Option<Mac>;

impl Server {
    /// The answer to a client's message, if any. `from` is the sender's Ethernet address; `owner`
    /// tells which station uses an address.
    pub(super) fn answer(
        &mut self,
        bytes: &[u8],
        from: Mac,
        (net, settings): (DualStack, &Settings),
        owner: Owner<'_>,
        now: Instant,
    ) -> Option<Answer> {
        let request = Request::read(bytes)?;
        let Request { kind, client, wanted, .. } = &request;
        let (client, wanted) = (client.as_slice(), *wanted);
        let to_other = request.server.is_some_and(|server| server != net.router);
        let (kind, addr) = match kind {
            DhcpMessageType::Discover => {
                let addr = self.lease((from, client), wanted, net, OFFERED, owner, now)?;
                (DhcpMessageType::Offer, addr)
            }
            DhcpMessageType::Request if to_other => {
                self.leases.retain(|lease| !lease.is_of(from, client));
                return None;
            }
            DhcpMessageType::Request => {
                match self.lease((from, client), wanted, net, LEASE, owner, now) {
                    Some(addr) if addr == wanted => (DhcpMessageType::Ack, addr),
                    _ => (DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED),
                }
            }
            DhcpMessageType::Inform => (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED),
            DhcpMessageType::Release => {
                self.leases.retain(|lease| !lease.is_of(from, client));
                return None;
            }
            DhcpMessageType::Decline => {
                let theirs =
                    self.leases.iter_mut().find(|l| l.is_of(from, client) && l.addr == wanted);
                if let Some(lease) = theirs {
                    lease.client.clear();
                    lease.until = now + DECLINED;
                }
                return None;
            }
            _ => return None,
        };
        let (to, mac) = if kind == DhcpMessageType::Nak {
            (Ipv4Addr::BROADCAST, Mac::BROADCAST)
        } else if !request.addr.is_unspecified() {
            (request.addr, from)
        } else if request.broadcast || addr.is_unspecified() {
            (Ipv4Addr::BROADCAST, Mac::BROADCAST)
        } else {
            (addr, from)
        };
        // Do not answer to an address that is no guest's.
        if !to.is_broadcast() && !is_guest(to, net) {
            return None;
        }
        Some(Answer { message: request.reply(kind, addr, net, settings), to, mac })
    }

    /// The client's address: its present one, else the requested one, else the first free one.
    fn lease(
        &mut self,
        (by, client): (Mac, &[u8]),
        wanted: Ipv4Addr,
        net: DualStack,
        time: Duration,
        owner: Owner<'_>,
        now: Instant,
    ) -> Option<Ipv4Addr> {
        let requested = time == LEASE;
        if let Some(lease) = self.leases.iter_mut().find(|lease| lease.is_of(by, client)) {
            lease.until = lease.until.max(now + time);
            lease.requested |= requested;
            return Some(lease.addr);
        }
        self.leases.retain(|lease| lease.until > now);
        let addr = match self.free(by, wanted, net, owner) {
            Some(addr) => addr,
            None => self.leases.remove(self.to_evict(by, owner)?).addr,
        };
        let client = client.to_vec();
        self.leases.push(Lease { by, client, addr, until: now + time, requested });
        Some(addr)
    }

    /// The lease to replace when all are taken: the oldest one of a station that has asked by
    /// several identifiers, as long as it has two more than the asking station; else the oldest
    /// that no station uses, offered ones first. So requests in the name of absent stations take no
    /// address from a present one. `None` if all are in use.
    fn to_evict(&self, by: Mac, owner: Owner<'_>) -> Option<usize> {
        let all = self.leases.iter().enumerate().map(|(i, lease)| (lease.by, lease.until, i));
        let (i, count) = fairness::to_evict(all)?;
        let own = self.leases.iter().filter(|lease| lease.by == by).count();
        if count > own + 1 || (count == own && own > 1) {
            return Some(i);
        }
        let all = self.leases.iter().enumerate();
        let unused = all.filter(|(_, lease)| {
            let free = owner(lease.addr).is_none_or(|station| station == by && by != lease.by);
            !lease.client.is_empty() && free
        });
        unused.min_by_key(|(_, lease)| (lease.requested, lease.until)).map(|(i, _)| i)
    }

    /// The wanted address, else the first one, of those that are free and that no other station
    /// uses.
    fn free(
        &self,
        by: Mac,
        wanted: Ipv4Addr,
        net: DualStack,
        owner: Owner<'_>,
    ) -> Option<Ipv4Addr> {
        if self.leases.len() >= MAX_LEASES {
            return None;
        }
        let free = |addr: &Ipv4Addr| {
            is_guest(*addr, net)
                && self.leases.iter().all(|lease| lease.addr != *addr)
                && owner(*addr).is_none_or(|station| station == by)
        };
        let first = net.guest.to_bits();
        // As many as can be leased or in use, and one more.
        let candidates = (0..).take(2 * MAX_LEASES + 2).filter_map(|n| first.checked_add(n));
        std::iter::once(wanted).chain(candidates.map(Ipv4Addr::from_bits)).find(free)
    }
}

/// Whether an address can be a guest's: in the network, and neither the router's nor the broadcast
/// address.
pub(super) fn is_guest(addr: Ipv4Addr, net: DualStack) -> bool {
    let host = (u32::MAX).checked_shr(net.prefix_len.into()).unwrap_or(0);
    let of_host = addr.to_bits() & host;
    same_net(addr, net.router, net.prefix_len)
        && addr != net.router
        && of_host != 0
        && of_host != host
}

/// The used parts of a client's message.
#[derive(Debug)]
struct Request {
    kind: DhcpMessageType,
    xid: u32,
    mac: EthernetAddress,
    /// Its present address (`ciaddr`), or `0.0.0.0`.
    addr: Ipv4Addr,
    broadcast: bool,
    /// Its identifier, or its hardware address.
    client: Vec<u8>,
    /// The address that it wants, or has.
    wanted: Ipv4Addr,
    /// The server that it has chosen.
    server: Option<Ipv4Addr>,
    /// Its client identifier option, to be returned (RFC 6842).
    id: Option<Vec<u8>>,
    /// Whether it can do without IPv4.
    v6only: bool,
}

impl Request {
    /// Messages of relays are ignored.
    fn read(bytes: &[u8]) -> Option<Self> {
        let packet = DhcpPacket::new_checked(bytes).ok().filter(|packet| {
            packet.opcode() == DhcpOpCode::Request
                && packet.hardware_type() == ArpHardware::Ethernet
                && packet.hardware_len() == 6
                && packet.magic_number() == MAGIC
                && packet.relay_agent_ip().is_unspecified()
        })?;
        let find = |kind| packet.options().find(|option| option.kind == kind).map(|o| o.data);
        let addr = |kind| find(kind)?.first_chunk::<4>().map(|addr| Ipv4Addr::from(*addr));
        let mac = packet.client_hardware_address();
        let id = find(CLIENT_ID).filter(|id| !id.is_empty());
        Some(Self {
            kind: (*find(MESSAGE_TYPE)?.first()?).into(),
            xid: packet.transaction_id(),
            mac,
            addr: packet.client_ip(),
            broadcast: packet.flags().contains(DhcpFlags::BROADCAST),
            client: id.unwrap_or(mac.as_bytes()).to_vec(),
            wanted: addr(REQUESTED).unwrap_or(packet.client_ip()),
            server: addr(SERVER_ID),
            id: id.map(<[u8]>::to_vec),
            v6only: find(PARAMETERS).is_some_and(|list| list.contains(&V6ONLY)),
        })
    }

    /// A reply; with `addr` if it assigns one.
    fn reply(
        &self,
        kind: DhcpMessageType,
        addr: Ipv4Addr,
        net: DualStack,
        settings: &Settings,
    ) -> Vec<u8> {
        let mut message = vec![0; OPTIONS];
        let mut packet = DhcpPacket::new_unchecked(&mut message);
        packet.set_opcode(DhcpOpCode::Reply);
        packet.set_hardware_type(ArpHardware::Ethernet);
        packet.set_hardware_len(6);
        packet.set_transaction_id(self.xid);
        packet.set_client_hardware_address(self.mac);
        packet.set_magic_number(MAGIC);
        packet.set_your_ip(addr);
        if self.broadcast {
            packet.set_flags(DhcpFlags::BROADCAST);
        }
        if kind != DhcpMessageType::Nak {
            packet.set_client_ip(self.addr);
        }
        // No option is longer than a client's own, 255 bytes.
        let mut add = |kind: u8, value: &[u8]| {
            message.extend_from_slice(&[kind, u8::try_from(value.len()).unwrap_or(0)]);
            message.extend_from_slice(value);
        };
        let router = net.router.octets();
        add(MESSAGE_TYPE, &[kind.into()]);
        add(SERVER_ID, &router);
        if let Some(id) = &self.id {
            add(CLIENT_ID, id);
        }
        if kind != DhcpMessageType::Nak {
            if !addr.is_unspecified() {
                let seconds = u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX);
                add(LEASE_TIME, &seconds.to_be_bytes());
                add(RENEWAL, &(seconds / 2).to_be_bytes());
                add(REBINDING, &(seconds / 8 * 7).to_be_bytes());
            }
            let mask = u32::MAX.checked_shl(32 - u32::from(net.prefix_len)).unwrap_or(0);
            add(MASK, &mask.to_be_bytes());
            add(ROUTER, &router);
            if settings.dns {
                add(DNS, &router);
            }
            if !settings.search.is_empty() {
                add(DOMAIN_SEARCH, &settings.search_list());
            }
            add(MTU, &settings.mtu.to_be_bytes());
            // Only if requested (RFC 8925 §3.3).
            if self.v6only {
                add(V6ONLY, &V6ONLY_WAIT.to_be_bytes());
            }
        }
        message.push(END);
        message.resize(message.len().max(SHORTEST), 0);
        message
    }
}
