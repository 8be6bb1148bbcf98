// SPDX-License-Identifier: Apache-2.0

//! ICMP errors from guests, and from routers behind them, about packets of ours.

use std::net::{Ipv4Addr, Ipv6Addr};

use clat_packet::{ipv4, ipv6};

use super::{Context, Engine, Flow, Key, Mac, Packet};
use crate::flow::sockets::Sockets;
use crate::flow::stats::DropReason;
use crate::flow::wire;
use crate::settings::LEAST_MTU;

/// Least IPv4 MTU that is believed; RFC 1191 §7.1 has smaller ones, of links that are history.
const LEAST_MTU4: u16 = 576;

/// What an error reports.
#[derive(Clone, Copy)]
enum Fault {
    /// A hop has this MTU, in bytes.
    TooBig(u16),
    /// No program listens on the port.
    PortUnreachable,
}

/// The contents of an error about a packet of ours.
struct GuestError<'a> {
    fault: Fault,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    protocol: u8,
    /// The quoted part of the L4 packet.
    l4: &'a [u8],
}

impl<'a> GuestError<'a> {
    fn read(packet: &Packet<'a>) -> Option<Self> {
        let (fault, quote) = match (packet.protocol, packet.payload) {
            (wire::ICMP6, [2, 0, _, _, a, b, c, d, quote @ ..]) => {
                let mtu = u32::from_be_bytes([*a, *b, *c, *d]);
                let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).max(LEAST_MTU);
                (Fault::TooBig(mtu), quote)
            }
            (wire::ICMP4, [3, 4, _, _, _, _, a, b, quote @ ..]) => {
                (Fault::TooBig(u16::from_be_bytes([*a, *b]).max(LEAST_MTU4)), quote)
            }
            (wire::ICMP6, [1, 4, _, _, _, _, _, _, quote @ ..])
            | (wire::ICMP4, [3, 3, _, _, _, _, _, _, quote @ ..]) => {
                (Fault::PortUnreachable, quote)
            }
            _ => return None,
        };
        if packet.protocol == wire::ICMP6 {
            let ip = ipv6::parse_quoted(quote).ok()?.ip;
            let (src, dst) = (Ipv6Addr::from_bits(ip.src), Ipv6Addr::from_bits(ip.dst));
            Some(Self { fault, src, dst, protocol: ip.protocol, l4: quote.get(ip.header_len..)? })
        } else {
            let ip = ipv4::parse_quoted(quote).ok()?;
            let [src, dst] = [ip.src, ip.dst].map(|ip| Ipv4Addr::from_bits(ip).to_ipv6_mapped());
            Some(Self { fault, src, dst, protocol: ip.protocol, l4: quote.get(ip.header_len..)? })
        }
    }
}

impl<S: Sockets> Engine<S> {
    /// Handles an ICMP error about a packet to a guest; `false` if it is none that matters.
    pub(super) fn guest_error(&mut self, cx: Context<'_>, mac: Mac, packet: &Packet<'_>) -> bool {
        let Some(GuestError { fault, src, dst, protocol, l4 }) = GuestError::read(packet) else {
            return false;
        };
        let &[a, b, c, d, ref rest @ ..] = l4 else { return false };
        let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        // Only for the guest's own flow; else a guest could reduce the MTU of others.
        let family = |ipv6| (Ipv6Addr::UNSPECIFIED, if ipv6 { 6 } else { 4 });
        let keys = match protocol {
            wire::TCP => vec![Key { protocol, guest: (dst, to), remote: (src, from) }],
            wire::UDP => [false, true]
                .map(|ipv6| Key { protocol, guest: (dst, to), remote: family(ipv6) })
                .to_vec(),
            // A quoted echo reply has its identifier behind type, code and checksum, where TCP and
            // UDP have other fields.
            wire::ICMP4 | wire::ICMP6 => {
                let &[id0, id1, ..] = rest else { return false };
                let guest = (dst, u16::from_be_bytes([id0, id1]));
                [false, true]
                    .map(|ipv6| Key { protocol: wire::ICMP6, guest, remote: family(ipv6) })
                    .to_vec()
            }
            _ => return false,
        };
        let found: Vec<_> = keys.iter().filter_map(|key| self.table.find(key)).collect();
        let Some(&id) = found.first() else { return false };
        let Some(entry) = self.table.get(id) else { return false };
        if entry.mac != mac {
            self.stats.drop(DropReason::Forbidden);
            return true;
        }
        let mtu = match fault {
            Fault::TooBig(mtu) => mtu,
            Fault::PortUnreachable => {
                self.refused.extend(found);
                return true;
            }
        };
        if let (Flow::Tcp(tcp, ..), [s0, s1, s2, s3, ..]) = (&mut entry.flow, rest) {
            let headers = if dst.to_ipv4_mapped().is_some() { 40 } else { 60 };
            let seq = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
            if !tcp.handle_path_mtu(seq, mtu.saturating_sub(headers)) {
                return false;
            }
            self.make_ready(id);
        }
        self.paths.learn(dst, mtu, cx.now);
        true
    }
}
