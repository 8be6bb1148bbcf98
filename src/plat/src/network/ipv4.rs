// SPDX-License-Identifier: Apache-2.0

//! IPv4 packets of guests with `--dual-stack`: which are the router's, and which may leave.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use smoltcp::wire::{Icmpv4Packet, IpProtocol};

use super::wire::{self, Packet};
use super::{dhcpv4, icmp, is_dns, Handled, Network};
use crate::frame::Out;
use crate::icmp_error::IcmpError;
use crate::settings::DualStack;

impl Network {
    pub(super) fn ipv4(
        &mut self,
        packet: &Packet<'_>,
        net: DualStack,
        now: Instant,
        out: &mut Out,
    ) -> Handled {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (packet.src, packet.dst) else {
            return Handled::Yes;
        };
        let everybody = Ipv4Addr::from_bits(
            net.router.to_bits() | u32::MAX.checked_shr(net.prefix_len.into()).unwrap_or(0),
        );
        if dst == net.router || dst.is_broadcast() || dst == everybody {
            return self.local4(packet, net, now, out);
        }
        let nowhere = dst.octets()[0] == 0 || dst.is_loopback() || dst.is_link_local();
        if nowhere || dst.is_multicast() || !dhcpv4::is_guest(src, net) {
            return Handled::Yes;
        }
        if !self.owns(src.into(), packet.link, now, out) {
            return Handled::ForeignSource;
        }
        let error = if packet.hops <= 1 {
            IcmpError::HopLimit
        } else if wire::same_net(dst, net.router, net.prefix_len) {
            IcmpError::AddressUnreachable
        } else {
            return Handled::NotForUs;
        };
        self.error(error, packet, now, out);
        Handled::Yes
    }

    /// Handles an IPv4 packet for the router, or a broadcast.
    fn local4(
        &mut self,
        packet: &Packet<'_>,
        net: DualStack,
        now: Instant,
        out: &mut Out,
    ) -> Handled {
        // Fragments, by flag and offset.
        if packet.whole[6] & 0x3f != 0 || packet.whole[7] != 0 {
            return Handled::Yes;
        }
        let to_router = packet.dst == IpAddr::V4(net.router);
        if let Some((_, dhcpv4::SERVER_PORT, message)) =
            wire::udp(packet, packet.payload).filter(|_| packet.next == 17)
        {
            let from = packet.link.guest;
            let owner = |address: Ipv4Addr| self.neighbours.station(address.to_ipv6_mapped());
            let answer = self.dhcpv4.answer(message, from, (net, &self.settings), &owner, now);
            if let Some(dhcpv4::Answer { message, to, mac }) = answer {
                let message = wire::udp_with(dhcpv4::SERVER_PORT, dhcpv4::CLIENT_PORT, &message);
                let addrs = (net.router.into(), to.into());
                let link = packet.link.to(mac);
                wire::send(out, link, addrs, wire::HOP_LIMIT, IpProtocol::Udp, message);
            }
            return Handled::Yes;
        }
        match packet.src {
            IpAddr::V4(src) if to_router && dhcpv4::is_guest(src, net) => {
                if !self.owns(src.into(), packet.link, now, out) {
                    return Handled::ForeignSource;
                }
            }
            _ => return Handled::Yes,
        }
        match (packet.next, packet.payload) {
            (1, [8, 0, _, _, _, _, _, _, ..]) => {
                let right = || Icmpv4Packet::new_unchecked(packet.payload).verify_checksum();
                if packet.trusted || right() {
                    let reply = icmp::echo_reply(packet.payload, 0);
                    let addrs = packet.reply_addrs(net.router.into());
                    wire::send(out, packet.link, addrs, wire::HOP_LIMIT, IpProtocol::Icmp, reply);
                }
            }
            (1, _) => {}
            (6, payload) if is_dns(packet, payload) => return Handled::Dns,
            (protocol, payload) => self.upper(packet, protocol, payload, 9, now, out),
        }
        Handled::Yes
    }
}
