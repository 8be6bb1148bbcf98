// SPDX-License-Identifier: Apache-2.0

//! IPv6 packets of guests: which are the router's, which another guest's, and which may leave.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use clat_tun::VirtioHeader;
use smoltcp::wire::{Icmpv6Packet, IpProtocol};

use super::icmp::{self, Walk};
use super::nd::{self, Asked};
use super::wire::{self, Packet};
use super::{is_dns, Handled, Network, ALL_NODES};
use crate::frame::Out;
use crate::icmp_error::IcmpError;

impl Network {
    pub(super) fn ipv6(
        &mut self,
        packet: &Packet<'_>,
        frame: (&VirtioHeader, &[u8]),
        now: Instant,
        out: &mut Out,
    ) -> Handled {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src, packet.dst) else {
            return Handled::Yes;
        };
        if src.is_multicast() || src.is_loopback() || self.is_ours(src) {
            return Handled::Yes;
        }
        let has_source = src.is_unicast_link_local() || self.is_served(src);
        if has_source && !self.owns(src.into(), packet.link, now, out) {
            return Handled::ForeignSource;
        }
        if dst.is_multicast() || self.is_ours(dst) {
            return self.local(packet, now, out);
        }
        if src.is_unspecified() || dst.is_unspecified() || dst.is_loopback() {
            return Handled::Yes;
        }
        let error = if dst.is_unicast_link_local() {
            // For another station; the link delivers it there.
            return Handled::Yes;
        } else if packet.hops <= 1 {
            IcmpError::HopLimit
        } else if src.is_unicast_link_local() {
            IcmpError::BeyondScope
        } else if !self.is_served(src) {
            IcmpError::ForeignSource
        } else if self.is_served(dst) {
            match self.neighbours.get(dst) {
                Some(mac) => return Handled::Neighbour(mac),
                None => self.wait_for(dst, frame, now, out),
            }
            return Handled::Yes;
        } else {
            return Handled::NotForUs;
        };
        self.error(error, packet, now, out);
        Handled::Yes
    }

    /// Handles a packet for one of the router's addresses, or for a group.
    fn local(&mut self, packet: &Packet<'_>, now: Instant, out: &mut Out) -> Handled {
        match icmp::walk(packet) {
            Walk::Upper { protocol: 58, payload, .. } => self.icmpv6(packet, payload, now, out),
            Walk::Upper { protocol: 6, payload, .. } if is_dns(packet, payload) => {
                return Handled::Dns
            }
            Walk::Upper { protocol, payload, named_at } => {
                self.upper(packet, protocol, payload, named_at, now, out);
            }
            Walk::Error(error) => self.error(error, packet, now, out),
            Walk::Fragment { .. } | Walk::Broken => {}
        }
        Handled::Yes
    }

    fn icmpv6(&mut self, packet: &Packet<'_>, payload: &[u8], now: Instant, out: &mut Out) {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src, packet.dst) else { return };
        let Ok(icmp) = Icmpv6Packet::new_checked(payload) else { return };
        if !packet.trusted && !icmp.verify_checksum(&src, &dst) {
            return;
        }
        let router = self.settings.router;
        match payload {
            [128, 0, _, _, _, _, _, _, ..] if !src.is_unspecified() => {
                let reply = icmp::echo_reply(payload, 129);
                let addrs = packet.reply_addrs(router.into());
                wire::send(out, packet.link, addrs, wire::HOP_LIMIT, IpProtocol::Icmpv6, reply);
            }
            [133..=137, ..] => match self.neighbours.read(packet, payload) {
                Some(Asked::Router) => {
                    if !src.is_unspecified() {
                        self.advertise(packet.link, src, out);
                    } else if self.advertiser.solicited(now) {
                        self.advertise(self.everybody(), ALL_NODES, out);
                    }
                }
                Some(Asked::Advertised(address, mac))
                    if self.owns(address.into(), packet.link, now, out) =>
                {
                    self.neighbours.learn(address, mac);
                    self.resolved(address, mac, out);
                }
                Some(Asked::Neighbour(target)) if self.is_ours(target) => {
                    let solicited = !src.is_unspecified();
                    let (link, to) =
                        if solicited { (packet.link, src) } else { (self.everybody(), ALL_NODES) };
                    let message = nd::advertisement(target, self.settings.mac, solicited);
                    self.send_nd(link, target, to, message, out);
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// Whether an address is one of the router's.
    fn is_ours(&self, addr: Ipv6Addr) -> bool {
        let iid = addr.to_bits() & u128::from(u64::MAX);
        addr == self.settings.router || (matches!(iid, 0x1 | 0x53) && self.is_served(addr))
    }

    /// Whether an address is in a prefix that is, or was, advertised.
    fn is_served(&self, addr: Ipv6Addr) -> bool {
        wire::same_64(addr, self.settings.prefix)
            || self.advertiser.old().iter().any(|old| wire::same_64(addr, *old))
    }
}
