// SPDX-License-Identifier: Apache-2.0

//! What a network is like, as its owner wants it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clat_xlat::Prefix;
use hickory_proto::rr::Name;

use crate::frame::Mac;

/// The least MTU that a link of IPv6 may have (RFC 8200 §5), in bytes.
pub const LEAST_MTU: u16 = 1280;

/// A network. [`Settings::default`] is one that works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The /64 that is advertised, host bits zero.
    pub prefix: Ipv6Addr,
    /// The NAT64 prefix.
    pub prefix64: Prefix,
    /// MTU of the link, bytes of an IP packet: [`LEAST_MTU`] to 65520.
    pub mtu: u16,
    /// The router's Ethernet address.
    pub mac: Mac,
    /// The router's link-local address.
    pub router: Ipv6Addr,
    /// Whether PREF64 (RFC 8781) is advertised.
    pub pref64: bool,
    /// Whether DNS answers are synthesized (RFC 6147); without, questions are only passed on.
    pub dns64: bool,
    /// Whether they are synthesized even for names that have an IPv6 address: for a host without
    /// IPv6.
    pub dns64_always: bool,
    /// Names that are answered here, with their addresses.
    pub hosts: Vec<(Name, IpAddr)>,
    /// Where questions are passed on to; none: all are answered SERVFAIL, but `ipv4only.arpa` still
    /// works.
    pub resolvers: Vec<SocketAddr>,
    /// What older guests want beside IPv6.
    pub dual_stack: Option<DualStack>,
    /// Addresses outside the guest's own network that stand for the host itself (`--map-host`);
    /// nothing else ever reaches the host's loopback.
    pub map_host: Vec<IpAddr>,
}

/// IPv4 on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualStack {
    /// The router's address, and the DNS server's.
    pub router: Ipv4Addr,
    /// The first address for guests.
    pub guest: Ipv4Addr,
    /// Bits of the network.
    pub prefix_len: u8,
}

impl Default for DualStack {
    fn default() -> Self {
        Self { router: [192, 168, 64, 1].into(), guest: [192, 168, 64, 2].into(), prefix_len: 24 }
    }
}

impl Settings {
    /// Where DNS is answered: `::53` of the advertised prefix.
    #[must_use]
    pub fn dns(&self) -> Ipv6Addr {
        (self.prefix.to_bits() | 0x53).into()
    }

    /// The router's global address, the source of its ICMPv6 errors: `::1` of the advertised
    /// prefix.
    #[must_use]
    pub fn router_global(&self) -> Ipv6Addr {
        (self.prefix.to_bits() | 1).into()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefix: Ipv6Addr::new(0x2001, 0xdb8, 0x464, 0, 0, 0, 0, 0),
            prefix64: Prefix::WELL_KNOWN,
            mtu: 1500,
            mac: Mac([0x02, 0, 0, 0, 0x04, 0x64]),
            router: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            pref64: true,
            dns64: true,
            dns64_always: false,
            hosts: Vec::new(),
            resolvers: Vec::new(),
            dual_stack: None,
            map_host: Vec::new(),
        }
    }
}
