// SPDX-License-Identifier: Apache-2.0

//! Hops behind a guest that take less than the link does (RFC 8201; RFC 1191 for IPv4): who they
//! are in front of is told by Packet Too Big, and believed for as long as it may be.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use clat_packet::{ipv4, ipv6};

use super::{Context, Engine, Flow, Key, Mac, Packet};
use crate::flow::sockets::Sockets;
use crate::flow::stats::DropReason;
use crate::flow::wire;
use crate::settings::LEAST_MTU;

/// RFC 8201 §4: after that a larger packet may be tried again.
const LIFETIME: Duration = Duration::from_secs(600);
/// Destinations that are remembered.
const MOST: usize = 1024;
/// What every hop of IPv4 takes that is worth the name (RFC 1191 §7.1 has less for links of that
/// time).
const LEAST_MTU4: u16 = 576;

/// MTUs by the guest's address, and when each was told.
#[derive(Debug, Default)]
pub(super) struct PathMtus(HashMap<Ipv6Addr, (u16, Instant)>);

impl PathMtus {
    /// The MTU towards a guest's address, of a link with `mtu`.
    pub(super) fn get(&self, guest: Ipv6Addr, mtu: u16, now: Instant) -> u16 {
        let told = self.0.get(&guest).filter(|(_, since)| now < *since + LIFETIME);
        told.map_or(mtu, |(told, _)| mtu.min(*told))
    }

    fn learn(&mut self, guest: Ipv6Addr, mtu: u16, now: Instant) {
        if self.0.len() >= MOST {
            self.0.retain(|_, (_, since)| now < *since + LIFETIME);
        }
        if self.0.len() < MOST || self.0.contains_key(&guest) {
            self.0.insert(guest, (mtu, now));
        }
    }
}

/// What a message says of a packet of ours.
struct TooBig<'a> {
    mtu: u16,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    protocol: u8,
    /// As much as is quoted.
    l4: &'a [u8],
}

impl<'a> TooBig<'a> {
    fn read(packet: &Packet<'a>) -> Option<Self> {
        match (packet.protocol, packet.payload) {
            (wire::ICMP6, [2, 0, _, _, a, b, c, d, quote @ ..]) => {
                let mtu = u32::from_be_bytes([*a, *b, *c, *d]);
                let ip = ipv6::parse_quoted(quote).ok()?.ip;
                Some(Self {
                    mtu: u16::try_from(mtu).unwrap_or(u16::MAX).max(LEAST_MTU),
                    src: Ipv6Addr::from_bits(ip.src),
                    dst: Ipv6Addr::from_bits(ip.dst),
                    protocol: ip.protocol,
                    l4: quote.get(ip.header_len..)?,
                })
            }
            (wire::ICMP4, [3, 4, _, _, _, _, a, b, quote @ ..]) => {
                let ip = ipv4::parse_quoted(quote).ok()?;
                Some(Self {
                    mtu: u16::from_be_bytes([*a, *b]).max(LEAST_MTU4),
                    src: Ipv4Addr::from_bits(ip.src).to_ipv6_mapped(),
                    dst: Ipv4Addr::from_bits(ip.dst).to_ipv6_mapped(),
                    protocol: ip.protocol,
                    l4: quote.get(ip.header_len..)?,
                })
            }
            _ => None,
        }
    }
}

impl<S: Sockets> Engine<S> {
    /// Takes an ICMP error about something that went to a guest; `false` if it is none that
    /// matters.
    pub(super) fn packet_too_big(
        &mut self,
        cx: Context<'_>,
        mac: Mac,
        packet: &Packet<'_>,
    ) -> bool {
        let Some(TooBig { mtu, src, dst, protocol, l4 }) = TooBig::read(packet) else {
            return false;
        };
        let &[a, b, c, d, ref rest @ ..] = l4 else { return false };
        let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        // Only about a flow of its own, or anybody could have others' packets cut.
        let family = |ipv6| (Ipv6Addr::UNSPECIFIED, if ipv6 { 6 } else { 4 });
        let keys = match protocol {
            wire::TCP => vec![Key { protocol, guest: (dst, to), remote: (src, from) }],
            wire::UDP => [false, true]
                .map(|ipv6| Key { protocol, guest: (dst, to), remote: family(ipv6) })
                .to_vec(),
            // An echo reply of ours has the identifier where others have the second half of their
            // ports and length.
            wire::ICMP4 | wire::ICMP6 => {
                let &[id0, id1, ..] = rest else { return false };
                let guest = (dst, u16::from_be_bytes([id0, id1]));
                [false, true]
                    .map(|ipv6| Key { protocol: wire::ICMP6, guest, remote: family(ipv6) })
                    .to_vec()
            }
            _ => return false,
        };
        let found = keys.iter().find_map(|key| self.table.find(key));
        let Some(id) = found else { return false };
        let Some(entry) = self.table.get(id) else { return false };
        if entry.mac != mac {
            self.stats.drop(DropReason::Forbidden);
            return true;
        }
        if let (Flow::Tcp(tcp, _), [s0, s1, s2, s3, ..]) = (&mut entry.flow, rest) {
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
