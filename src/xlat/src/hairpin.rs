// SPDX-License-Identifier: Apache-2.0

//! Hairpinning: a packet from one IPv6 node with an explicit mapping to the IPv4 address of another
//! is sent back as IPv6 (RFC 7757 §4.2.2, "intrinsic"). Its source becomes the sender's IPv4
//! address in the prefix; if the other node saw the sender's own address, its answers would bypass
//! the translator and come from an address unknown to the sender.
//!
//! Not for a CLAT, which has no such nodes.

use clat_packet::icmp::{v6, Head, HEADER};
use clat_packet::{ipv6, protocol};

use crate::reply::Stop;
use crate::{icmp, v4to6, v6to4, HopPolicy, Packet, Rule, Translator, Verdict};

impl Translator {
    /// Whether this IPv6 packet is sent back: judged by its destination, or for an ICMPv6 error by
    /// the source of the quoted packet.
    #[cold]
    pub(crate) fn is_hairpin(&self, packet: &[u8]) -> bool {
        let Ok(ipv6::Parsed { ip, .. }) = ipv6::parse(packet) else { return false };
        let payload = &packet[ip.header_len..ip.len];
        let is_icmp = ip.protocol == protocol::ICMPV6 && ip.is_whole();
        match Head::read(payload).filter(|head| is_icmp && v6::is_error(head.kind)) {
            None => self.addresses.is_hairpin(ip.dst),
            Some(_) => ipv6::parse_quoted(&payload[HEADER..])
                .is_ok_and(|quoted| self.addresses.is_hairpin(quoted.ip.src)),
        }
    }

    /// Translates an IPv6 packet to IPv4 and back.
    #[cold]
    pub(crate) fn hairpin<'p>(&mut self, packet: &'p mut Packet<'_>) -> Verdict<'p> {
        let (excess, (count, bytes)) = (packet.excess(), packet.tally());
        let first = packet.first_fragment();
        let original = packet.bytes().to_vec();
        let (buf, start, end) = packet.parts();

        let config = self.config;
        // No IPv4 link is crossed in between, and the hop limit is decremented once.
        self.config.mtu4 = u32::MAX;
        let once = v6to4::translate(self, buf, start..end, excess);
        self.config.hop = HopPolicy::Copy;
        let twice = once.map(|ipv4| v4to6::translate::<true>(self, buf, ipv4.range, excess));
        self.config = config;

        let stop = match twice {
            Ok(Ok(mut output)) => {
                self.counters.packets64 += count;
                self.counters.bytes64 += bytes;
                output.rule = Rule::Hairpin;
                return output.forward(buf);
            }
            Err(stop) => stop,
            // The error for the IPv4 packet, translated for the sender of the IPv6 packet.
            Ok(Err(Stop::Answer(reason, head))) => {
                match icmp::error_to_v6(head, original.len(), &self.config) {
                    Ok(head) => Stop::Answer(reason, head),
                    Err(_) => Stop::Drop(reason),
                }
            }
            Ok(Err(stop)) => stop,
        };
        buf[start..end].copy_from_slice(&original);
        self.stop_v6(stop, buf, start..end, first)
    }
}
