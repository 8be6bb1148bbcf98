// SPDX-License-Identifier: Apache-2.0

//! IP/ICMP translation (SIIT, RFC 7915) as a pure function: bytes in, verdict out.
//!
//! Nothing blocks or reads a clock. The only allocations are the lists of [`Addresses`], and the
//! copy of a packet that is sent back between two nodes with explicit mappings. A caller puts a
//! packet into a buffer with some room around it ([`Packet`]), calls [`Translator::translate`] and
//! does what the [`Verdict`] says.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod addr;
mod hairpin;
mod icmp;
mod neutral;
mod packet;
mod reply;
mod transport;
mod v4to6;
mod v6to4;
mod verdict;

use core::net::{Ipv4Addr, Ipv6Addr};
use core::ops::Range;

pub use addr::{
    Addresses, AddressesError, Eam, EamError, Local, Pool, PoolError, Prefix, PrefixError,
};
use clat_packet::{ipv4, ipv6};
pub use packet::{Gso, NoRoom, Packet, HEADROOM, TAILROOM};
use reply::Stop;
use verdict::Split;
pub use verdict::{Counters, Frame, Frames, Reason, Rule, Verdict};

/// What to do with an IPv4 UDP packet without a checksum (RFC 7915 §4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UdpZero {
    /// Compute one; fragments are dropped, since it covers the whole datagram.
    #[default]
    Compute,
    /// Drop it.
    Drop,
    /// Forward it without one (RFC 6936).
    Forward,
}

/// What happens to TTL and hop limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HopPolicy {
    /// Copied: the kernel has decremented it when it forwarded to a host-based CLAT.
    #[default]
    Copy,
    /// Decremented, with a Time Exceeded error at zero, as a router does.
    Decrement,
}

/// Parameters of a translator. Lengths are bytes of whole IP packets.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// MTU of the IPv4 link.
    pub mtu4: u32,
    /// MTU of the IPv6 link, at least 1280.
    pub mtu6: u32,
    /// Largest IPv6 packet made of an IPv4 packet without DF; longer ones are fragmented (RFC 7915
    /// §4.1). At least 1280.
    pub lowest_ipv6_mtu: u32,
    /// What to do with UDP without a checksum.
    pub udp_zero: UdpZero,
    /// What to do with TTL and hop limit.
    pub hop: HopPolicy,
    /// TOS and traffic class of translated packets; `None` copies them (RFC 7915 §4.1, §5.1).
    pub class: Option<u8>,
    /// Sources of ICMP errors sent to IPv4: for the translator itself, and for IPv6 routers that
    /// have no IPv4 form.
    pub router4: Pool,
    /// Source of ICMPv6 errors sent to IPv6; while it is `::`, none are sent.
    pub router6: Ipv6Addr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mtu4: 1500,
            mtu6: 1500,
            lowest_ipv6_mtu: 1280,
            udp_zero: UdpZero::default(),
            hop: HopPolicy::default(),
            class: None,
            router4: Ipv4Addr::new(192, 0, 0, 8).into(),
            router6: Ipv6Addr::UNSPECIFIED,
        }
    }
}

/// A translator, stateless but for its counters and the next IPv4 identification.
#[derive(Clone, Debug)]
pub struct Translator {
    config: Config,
    addresses: Addresses,
    /// Whether translation leaves checksums unchanged in all packets but those from the CLAT to
    /// itself.
    neutral: bool,
    /// Whether packets between nodes with explicit mappings are sent back as IPv6.
    hairpins: bool,
    /// See [`Translator::expect_reassembly`].
    reassembled: bool,
    next_id: u16,
    counters: Counters,
}

impl Translator {
    /// A translator between `addresses`. `first_id` is the first IPv4 identification given to
    /// packets without one: random for real traffic, fixed in tests.
    ///
    /// # Errors
    /// The first fault found in the addresses.
    pub fn new(
        config: Config,
        addresses: Addresses,
        first_id: u16,
    ) -> Result<Self, AddressesError> {
        addresses.check()?;
        let neutral = addresses.are_neutral();
        let hairpins = addresses.local.is_none() && !addresses.eams.is_empty();
        let (next_id, counters) = (first_id, Counters::default());
        let reassembled = false;
        Ok(Self { config, addresses, neutral, hairpins, reassembled, next_id, counters })
    }

    /// Says that the caller reassembles what is dropped as [`Reason::FragmentedIcmp`] or
    /// [`Reason::ExtensionBehindFragment`] and offers it again whole, so that no ICMP error is sent
    /// about the fragments.
    pub fn expect_reassembly(&mut self) {
        self.reassembled = true;
    }

    /// Changes [`Config::mtu6`], for packets from now on.
    pub fn set_mtu6(&mut self, mtu6: u32) {
        self.config.mtu6 = mtu6;
    }

    /// Translates one packet in place; its IP version gives the direction.
    #[inline]
    pub fn translate<'p>(&mut self, packet: &'p mut Packet<'_>) -> Verdict<'p> {
        match packet.bytes().first().map(|b| b >> 4) {
            Some(4) => self.to_ipv6(packet),
            Some(6) => self.to_ipv4(packet),
            _ => self.drop(Reason::NotIp),
        }
    }

    /// Translates an IPv4 packet to IPv6 (egress4). Anything else is dropped as [`Reason::NotIp`].
    #[inline]
    pub fn to_ipv6<'p>(&mut self, packet: &'p mut Packet<'_>) -> Verdict<'p> {
        let (excess, (count, bytes)) = (packet.excess(), packet.tally());
        let (buf, start, end) = packet.parts();
        match v4to6::translate::<false>(self, buf, start..end, excess) {
            Ok(output) => {
                self.counters.packets46 += count;
                self.counters.bytes46 += bytes;
                output.forward(buf)
            }
            Err(stop) => self.stop_v4(stop, buf, start, end),
        }
    }

    /// Translates an IPv6 packet to IPv4 (ingress6). Anything else is dropped as [`Reason::NotIp`].
    ///
    /// In a SIIT, a packet between two nodes with explicit mappings becomes IPv6 again
    /// ([`Rule::Hairpin`]).
    #[inline]
    pub fn to_ipv4<'p>(&mut self, packet: &'p mut Packet<'_>) -> Verdict<'p> {
        if self.hairpins && self.is_hairpin(packet.bytes()) {
            return self.hairpin(packet);
        }
        let (excess, (count, bytes)) = (packet.excess(), packet.tally());
        let first = packet.first_fragment();
        let (buf, start, end) = packet.parts();
        match v6to4::translate(self, buf, start..end, excess) {
            Ok(output) => {
                // Each segment of a GSO packet takes an identification when it is cut.
                #[allow(clippy::cast_possible_truncation)] // modulo is what is wanted
                let others = (count - 1) as u16;
                self.next_id = self.next_id.wrapping_add(others);
                self.counters.packets64 += count;
                self.counters.bytes64 += bytes;
                output.forward(buf)
            }
            Err(stop) => self.stop_v6(stop, buf, start..end, first),
        }
    }

    /// Counters since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    #[cold]
    #[inline(never)]
    fn stop_v4<'p>(
        &mut self,
        stop: Stop,
        buf: &'p mut [u8],
        start: usize,
        end: usize,
    ) -> Verdict<'p> {
        let (reason, head) = match stop {
            Stop::Drop(reason) => return self.drop(reason),
            Stop::Answer(reason, head) => (reason, head),
        };
        match ipv4::parse(&buf[start..end]) {
            Ok(ip) if reply::may_answer_v4(&ip, &buf[start + ip.header_len..start + ip.len]) => {
                let id = self.next_identification();
                let addresses = (self.config.router4.own().to_bits(), ip.src);
                let (start, end) = reply::write_v4(buf, (start, ip.len), head, addresses, id);
                self.reply(reason, &buf[start..end])
            }
            _ => self.drop(reason),
        }
    }

    #[cold]
    #[inline(never)]
    fn stop_v6<'p>(
        &mut self,
        stop: Stop,
        buf: &'p mut [u8],
        packet: Range<usize>,
        first_fragment: Option<usize>,
    ) -> Verdict<'p> {
        let (reason, head) = match stop {
            Stop::Drop(reason) => return self.drop(reason),
            Stop::Answer(reason, head) => (reason, head),
        };
        let start = packet.start;
        match ipv6::parse(&buf[packet]) {
            Ok(ipv6::Parsed { ip, .. })
                if !self.config.router6.is_unspecified()
                    && reply::may_answer_v6(&ip, &buf[start..start + ip.len]) =>
            {
                let len = first_fragment.map_or(ip.len, |len| len.min(ip.len));
                if len < ip.len {
                    ipv6::mark(&mut buf[start..start + len], 0, true);
                }
                let addresses = (self.config.router6.to_bits(), ip.src);
                let (start, end) = reply::write_v6(buf, (start, len), head, addresses);
                self.reply(reason, &buf[start..end])
            }
            _ => self.drop(reason),
        }
    }

    fn reply<'p>(&mut self, reason: Reason, error: &'p [u8]) -> Verdict<'p> {
        self.counters.count_reply(reason);
        Verdict::Reply { reason, error }
    }

    fn drop<'p>(&mut self, reason: Reason) -> Verdict<'p> {
        self.counters.count_drop(reason);
        Verdict::Drop(reason)
    }

    /// The next IPv4 identification. Never zero, which means "none".
    #[inline(always)]
    fn next_identification(&mut self) -> u16 {
        let id = self.next_id.max(1);
        self.next_id = id.wrapping_add(1);
        id
    }
}

/// A translated packet: where it is in the buffer, and how to fragment it.
struct Output {
    rule: Rule,
    range: Range<usize>,
    split: Option<Split>,
}

impl Output {
    #[inline(always)]
    fn forward(self, buf: &mut [u8]) -> Verdict<'_> {
        let frames = Frames::new(buf, self.range, self.split);
        Verdict::Forward { rule: self.rule, frames }
    }
}
