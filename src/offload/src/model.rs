// SPDX-License-Identifier: Apache-2.0

//! Entries of the maps, and counters.

use std::fmt;
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An entry of the ingress map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressEntry {
    /// Index of the uplink.
    pub iif: u32,
    /// The NAT64 prefix, a /96.
    pub prefix: Ipv6Addr,
    /// The CLAT's IPv6 address.
    pub local6: Ipv6Addr,
    /// Index of the TUN device, or of the uplink itself where packets stay there as IPv4.
    pub oif: u32,
    /// The CLAT's IPv4 address.
    pub local4: Ipv4Addr,
}

/// An entry of the egress map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressEntry {
    /// Index of the TUN device.
    pub iif: u32,
    /// The CLAT's IPv4 address.
    pub local4: Ipv4Addr,
    /// Index of the uplink. For [`Hook::Direct`], `iif` and `oif` are exchanged.
    pub oif: u32,
    /// The CLAT's IPv6 address.
    pub local6: Ipv6Addr,
    /// The NAT64 prefix, a /96.
    pub prefix: Ipv6Addr,
    /// Whether the uplink has Ethernet headers.
    pub oif_is_ethernet: bool,
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// On the TUN device, for outgoing IPv4 packets.
    Egress,
    /// On the uplink, for incoming IPv6 packets.
    Ingress,
    /// On the uplink, for outgoing IPv4 packets of the direct way; not on Android.
    Direct,
}

/// Why a program could not be attached.
#[derive(Debug)]
pub enum AttachError {
    /// The clsact qdisc could not be added.
    Qdisc(io::Error),
    /// The program could not be opened or attached.
    Program(io::Error),
}

/// The position of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Packets meet it first.
    First,
    /// Packets meet other filters before, which may take them.
    Behind(String),
    /// Somebody has removed it.
    Gone,
}

/// The attributes of a direct route, without its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteAttributes {
    /// The metric; the default route with the lowest one is used.
    pub metric: u32,
    /// The MTU in bytes of an IPv4 packet.
    pub mtu: u32,
}

/// The reasons to leave packets to clatd, in the order of `enum clat_reason` in bpf_progs/clatd.h.
pub const PASSED_REASONS: [&str; 14] = [
    "foreign-source",
    "header",
    "address",
    "martian",
    "options",
    "protocol",
    "fragment",
    "icmp",
    "checksum",
    "size",
    "gso",
    "ethernet",
    "next-hop",
    "kernel",
];

/// The counters of a program since its CLAT was started: `struct clat_counters` of
/// bpf_progs/clatd.h.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct OffloadCounters {
    /// Packets translated; each segment of a super-packet counts.
    pub packets: u64,
    /// Their bytes before the translation: IPv4 for egress, IPv6 for ingress. The headers of a
    /// super-packet count once.
    pub bytes: u64,
    /// Super-packets (GSO, GRO) among them.
    pub super_packets: u64,
    /// Packets whose neighbour the kernel resolved, super-packets counting once.
    pub neighbour: u64,
    /// Packets dropped because a kernel helper failed on the partly changed packet.
    pub lost: u64,
    /// Packets left to clatd, by [`PASSED_REASONS`].
    pub passed: [u64; PASSED_REASONS.len()],
}

impl OffloadCounters {
    /// Adds another CPU's counters.
    pub fn add(&mut self, cpu: &Self) {
        const COUNTERS: usize = size_of::<OffloadCounters>() / size_of::<u64>();
        let sums: &mut [u64; COUNTERS] = zerocopy::transmute_mut!(self);
        let counts: &[u64; COUNTERS] = zerocopy::transmute_ref!(cpu);
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count;
        }
    }

    /// The number of packets left to clatd by reason, without zeros.
    pub fn passed_by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        PASSED_REASONS.into_iter().zip(self.passed).filter(|(_, count)| *count > 0)
    }
}

impl fmt::Display for OffloadCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, bytes, super_packets, neighbour, lost, .. } = self;
        write!(f, "{packets} packets {bytes} bytes, {super_packets} super-packets, ")?;
        write!(f, "{neighbour} neighbours resolved, {lost} lost, passed to clatd:")?;
        let mut reasons = self.passed_by_reason().peekable();
        if reasons.peek().is_none() {
            return f.write_str(" none");
        }
        reasons.try_for_each(|(reason, count)| write!(f, " {reason}={count}"))
    }
}
