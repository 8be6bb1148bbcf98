// SPDX-License-Identifier: Apache-2.0

//! The settings of a network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use clat_xlat::Prefix;
use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};

use crate::frame::Mac;

/// The least MTU of an IPv6 link in bytes (RFC 8200 §5).
pub const LEAST_MTU: u16 = 1280;

/// The settings of a network; the default ones work.
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
    /// Whether AAAA records are synthesized (RFC 6147); else questions are only passed on.
    pub dns64: bool,
    /// Whether they are synthesized also for names that have an IPv6 address, for a host without
    /// IPv6.
    pub dns64_always: bool,
    /// Names answered here, with their addresses.
    pub hosts: Vec<(Name, IpAddr)>,
    /// Nodes whose names are answered here, with their Ethernet addresses.
    pub nodes: Vec<(Label, Mac)>,
    /// Resolvers for questions; without any, questions are answered SERVFAIL, but for
    /// `ipv4only.arpa`.
    pub resolvers: Vec<SocketAddr>,
    /// Whether guests are told of the DNS server.
    pub dns: bool,
    /// Domains in which guests search names, for RFC 8106, RFC 3646 and RFC 3397: at most
    /// [`LONGEST_SEARCH`] bytes in all.
    pub search: Vec<Name>,
    /// How the host's sockets leave it.
    pub outbound: Outbound,
    /// IPv4 for older guests.
    pub dual_stack: Option<DualStack>,
    /// Addresses outside the guest's network that represent the host itself (`--map-host`); guests
    /// cannot reach the host's loopback otherwise.
    pub map_host: Vec<IpAddr>,
}

/// A name of one DNS label of letters, digits and hyphens (RFC 1123 §2.1), in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl FromStr for Label {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=63).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-');
        if !fits || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err("a name has 1 to 63 letters, digits and hyphens between them");
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for Label {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The most bytes of a search list: what a DHCP option takes (RFC 2132 §2).
pub const LONGEST_SEARCH: usize = 255;

/// The source addresses and the interface of the host's sockets; without any, the host chooses.
/// Connections to its own loopback are excepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    /// The source of IPv4.
    pub v4: Option<Ipv4Addr>,
    /// The source of IPv6.
    pub v6: Option<Ipv6Addr>,
    /// The interface by its name.
    pub interface: Option<String>,
}

/// IPv4 on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualStack {
    /// The router's address, and the DNS server's.
    pub router: Ipv4Addr,
    /// The first address for guests.
    pub guest: Ipv4Addr,
    /// Prefix length in bits.
    pub prefix_len: u8,
}

impl Default for DualStack {
    fn default() -> Self {
        Self { router: [192, 168, 64, 1].into(), guest: [192, 168, 64, 2].into(), prefix_len: 24 }
    }
}

impl Settings {
    /// The search list as DNS writes names, uncompressed (RFC 1035 §3.1), one behind the other.
    #[must_use]
    pub fn search_list(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for name in &self.search {
            for label in name {
                list.push(u8::try_from(label.len()).unwrap_or(0));
                list.extend_from_slice(label);
            }
            list.push(0);
        }
        list
    }

    /// The addresses of a name that is answered here.
    #[must_use]
    pub fn addresses_of(&self, name: &Name) -> Vec<IpAddr> {
        let hosts = self.hosts.iter().filter(|(host, _)| host == name).map(|(_, ip)| *ip);
        let is_named = |node: &Label| {
            let mut labels = name.iter();
            let first = labels.next().filter(|_| labels.next().is_none());
            first.is_some_and(|label| label.eq_ignore_ascii_case(node.0.as_bytes()))
        };
        let nodes = self.nodes.iter().filter(|(node, _)| is_named(node));
        hosts.chain(nodes.map(|(_, mac)| mac.address_in(self.prefix).into())).collect()
    }

    /// The DNS server: `::53` in the advertised prefix.
    #[must_use]
    pub fn dns(&self) -> Ipv6Addr {
        (self.prefix.to_bits() | 0x53).into()
    }

    /// The router's global address, the source of its ICMPv6 errors: `::1` in the advertised
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
            nodes: Vec::new(),
            resolvers: Vec::new(),
            dns: true,
            search: Vec::new(),
            outbound: Outbound::default(),
            dual_stack: None,
            map_host: Vec::new(),
        }
    }
}
