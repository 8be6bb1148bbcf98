//! IP/ICMP translation (SIIT, RFC 7915) as a pure function: bytes in, verdict out.
//!
//! Nothing here allocates, blocks or asks the time. A caller puts a packet into a buffer with some room around it
//! ([`Packet`]), calls [`Translator::translate`] and does what the [`Verdict`] says.
#![no_std]
#![forbid(unsafe_code)]

mod addr;
mod packet;
mod verdict;

use core::net::{Ipv4Addr, Ipv6Addr};

pub use addr::{Addresses, Eam, EamError, Local, Prefix, PrefixError};
pub use packet::{NoRoom, Packet, HEADROOM, TAILROOM};
pub use verdict::{Counters, Frames, Reason, Rule, Verdict};

/// What to do with a UDP packet that has no checksum, on its way to IPv6 (RFC 7915 §4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UdpZero {
    /// Compute one; a fragment of such is dropped.
    #[default]
    Compute,
    /// Drop it.
    Drop,
    /// Let it pass without one (RFC 6936).
    Forward,
}

/// What happens to TTL and hop limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HopPolicy {
    /// Copied: the kernel that forwards to a host-based CLAT has counted the hop.
    #[default]
    Copy,
    /// Decremented, with time exceeded at zero: a router.
    Decrement,
}

/// How a translator behaves. Lengths are bytes of whole IP packets.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// MTU of the IPv4 link.
    pub mtu4: u32,
    /// MTU of the IPv6 link, at least 1280.
    pub mtu6: u32,
    /// Size up to which IPv4 packets without DF are sent whole (RFC 7915 §4.1), at least 1280.
    pub lowest_ipv6_mtu: u32,
    /// UDP without a checksum.
    pub udp_zero: UdpZero,
    /// TTL and hop limit.
    pub hop: HopPolicy,
    /// Source of ICMP errors sent to IPv4, and stand-in for routers without an IPv4 form.
    pub router4: Ipv4Addr,
    /// Source of ICMPv6 errors sent to IPv6.
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
            router4: Ipv4Addr::new(192, 0, 0, 8),
            router6: Ipv6Addr::UNSPECIFIED,
        }
    }
}

/// A stateless translator, apart from its counters and the IPv4 identification it gives out next.
#[derive(Clone, Debug)]
pub struct Translator<'t> {
    config: Config,
    addresses: Addresses<'t>,
    next_id: u16,
    counters: Counters,
}

impl<'t> Translator<'t> {
    /// A translator between `addresses`. `first_id` seeds the IPv4 identification of packets that have none; random
    /// for real traffic, fixed for tests.
    #[must_use]
    pub fn new(config: Config, addresses: Addresses<'t>, first_id: u16) -> Self {
        Self { config, addresses, next_id: first_id, counters: Counters::default() }
    }

    /// Translates one packet in place, in the direction that its IP version says.
    pub fn translate<'p>(&mut self, packet: &'p mut Packet<'_>) -> Verdict<'p> {
        match packet.bytes().first().map(|b| b >> 4) {
            Some(4) => self.to_ipv6(packet),
            Some(6) => self.to_ipv4(packet),
            _ => self.drop(Reason::NotIp),
        }
    }

    /// Translates an IPv4 packet to IPv6 (egress4). Anything else is dropped as [`Reason::NotIp`].
    pub fn to_ipv6<'p>(&mut self, _packet: &'p mut Packet<'_>) -> Verdict<'p> {
        self.drop(Reason::NotIp)
    }

    /// Translates an IPv6 packet to IPv4 (ingress6). Anything else is dropped as [`Reason::NotIp`].
    pub fn to_ipv4<'p>(&mut self, _packet: &'p mut Packet<'_>) -> Verdict<'p> {
        self.drop(Reason::NotIp)
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn drop<'p>(&mut self, reason: Reason) -> Verdict<'p> {
        self.counters.count_drop(reason);
        Verdict::Drop(reason)
    }
}
