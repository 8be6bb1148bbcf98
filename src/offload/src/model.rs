// SPDX-License-Identifier: Apache-2.0

//! What is put into the maps, and what comes out of them.

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
    /// Index of the TUN device; of the uplink itself, where packets stay there as IPv4.
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
    /// Index of the uplink; for [`Hook::Direct`], both are the other way round.
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
    /// To the TUN device, for IPv4 packets that leave by it.
    Egress,
    /// To the uplink, for IPv6 packets that arrive there.
    Ingress,
    /// To the uplink, for IPv4 packets that leave by it: off Android, where a route leads there.
    Direct,
}

/// Why a program could not be attached.
#[derive(Debug)]
pub enum AttachError {
    /// What programs hang on could not be had: the clsact qdisc.
    Qdisc(io::Error),
    /// The program itself.
    Program(io::Error),
}

/// How packets come to a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the first that they meet.
    First,
    /// Others meet them before, which may keep them to themselves.
    Behind(String),
    /// Not at all: somebody has taken it away.
    Gone,
}

/// What a direct route is like, beside where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Of several default routes the lowest wins.
    pub metric: u32,
    /// The largest packet, in bytes of IPv4.
    pub mtu: u32,
}

/// Why the programs leave packets to clatd, in the order of `enum clat_reason` in
/// bpf_progs/clatd.h.
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

/// What a program has done for a CLAT since that was started: `struct clat_counters` of
/// bpf_progs/clatd.h.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct OffloadCounters {
    /// Packets translated; each segment of a super-packet counts.
    pub packets: u64,
    /// Their bytes as they came: IPv4 for egress, IPv6 for ingress. The headers of a super-packet
    /// count once.
    pub bytes: u64,
    /// Super-packets (GSO, GRO) among them.
    pub super_packets: u64,
    /// Packets whose neighbour the kernel resolved, super-packets counting once.
    pub neighbour: u64,
    /// Packets that were lost: the kernel failed when they had been changed already.
    pub lost: u64,
    /// Packets left to clatd, by [`PASSED_REASONS`].
    pub passed: [u64; PASSED_REASONS.len()],
}

impl OffloadCounters {
    /// Adds what another CPU has counted.
    pub fn add(&mut self, cpu: &Self) {
        const COUNTERS: usize = size_of::<OffloadCounters>() / size_of::<u64>();
        let sums: &mut [u64; COUNTERS] = zerocopy::transmute_mut!(self);
        let counts: &[u64; COUNTERS] = zerocopy::transmute_ref!(cpu);
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count;
        }
    }

    /// How many packets were left to clatd, by reason; only reasons that occurred.
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
