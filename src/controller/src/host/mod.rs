// SPDX-License-Identifier: Apache-2.0

//! What the controller needs of the machine it runs on, as small traits. What must be undone is a value whose `Drop`
//! undoes it. Linux and Android implement them in [`linux`]; tests do so with a host that fails on demand.

pub mod linux;

#[cfg(test)]
pub(crate) mod fake;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::Duration;

pub use clat_host::links::Traffic;
pub use clat_host::ClatdArgs;
use clat_host::{Fwmark, IfaceName};
pub use clat_netlink::LinkKind;
use clat_xlat::Prefix;

use crate::ebpf_mode::KernelVersion;

/// All of it.
pub trait Host:
    System + Links + Devices + Firewall + Processes + Offload + Recovery + Send + Sync + 'static
{
}

impl<T> Host for T where
    T: System + Links + Devices + Firewall + Processes + Offload + Recovery + Send + Sync + 'static
{
}

/// The machine itself.
pub trait System {
    /// A system property by its Android name.
    fn property(&self, name: &str) -> Option<String>;

    /// The kernel's version; 0.0 where it cannot be read.
    fn kernel_version(&self) -> KernelVersion;

    /// Eight random bytes that nobody can guess.
    ///
    /// # Errors
    /// Those of getrandom(2).
    fn random(&self) -> io::Result<[u8; 8]>;
}

/// Interfaces, addresses and routes.
pub trait Links {
    /// A route that goes away when dropped.
    type Route: Send + 'static;

    /// The index of an interface; `None` when there is none of that name.
    fn index_of(&self, iface: &IfaceName) -> Option<u32>;

    /// The name of an interface; `None` when there is none of that index.
    fn name_of(&self, index: u32) -> Option<String>;

    /// Whether an interface has this address.
    ///
    /// # Errors
    /// Those of socket(2).
    fn has_address(&self, addr: Ipv4Addr) -> io::Result<bool>;

    /// The source address of packets with `mark` to `destination` by `uplink`.
    ///
    /// # Errors
    /// Those of connect(2): ENETUNREACH where there is no route.
    fn source_towards(
        &self,
        uplink: &IfaceName,
        mark: Fwmark,
        destination: Ipv6Addr,
    ) -> io::Result<Ipv6Addr>;

    /// Turns IPv6 off on an interface.
    ///
    /// # Errors
    /// Those of writing a sysctl.
    fn disable_ipv6(&self, iface: &IfaceName) -> io::Result<()>;

    /// What passed an interface.
    ///
    /// # Errors
    /// ENODEV when it is gone.
    fn traffic(&self, iface: &IfaceName) -> io::Result<Traffic>;

    /// Whether the interface is up and has the address.
    ///
    /// # Errors
    /// Those of getifaddrs(3).
    fn is_configured(&self, iface: &IfaceName, addr: Ipv4Addr) -> io::Result<bool>;

    /// Sets the IPv4 default route by the interface `index`, with `source` as the address to send from. Of several the
    /// lowest `metric` wins.
    ///
    /// # Errors
    /// Those of netlink.
    fn default_route(&self, index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Self::Route>;

    /// Takes over such a route of a former life, and sets it where it is missing.
    ///
    /// # Errors
    /// Those of netlink.
    fn adopt_route(&self, index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Self::Route>;
}

/// TUN devices.
pub trait Devices {
    /// A TUN device that goes away when dropped.
    type Tun: Send + Sync + 'static;

    /// Opens `/dev/net/tun` and creates a device of exactly this name.
    ///
    /// # Errors
    /// Those of open(2) and TUNSETIFF: EBUSY when the name is taken.
    fn create_tun(&self, name: &IfaceName) -> io::Result<Self::Tun>;
}

/// The packet filter.
pub trait Firewall {
    /// The chain that drop rules live in; made when first needed and gone when dropped, unless it is netd's.
    type Chain: Send + 'static;

    /// A rule that goes away when dropped.
    type Rule: Send + 'static;

    /// Makes sure of the chain.
    ///
    /// # Errors
    /// Those of running ip6tables-restore.
    fn chain(&self) -> io::Result<Self::Chain>;

    /// Adds the rule that keeps the kernel from answering what is clatd's: packets from `prefix` to `v6` on `uplink`
    /// are dropped.
    ///
    /// # Errors
    /// Those of running ip6tables-restore.
    fn drop_rule(
        &self,
        uplink: &IfaceName,
        prefix: &Prefix,
        v6: Ipv6Addr,
    ) -> io::Result<Self::Rule>;
}

/// A running process. Its descriptor becomes readable when it ends (pidfd). Dropping it ends it, and reaps it unless a
/// former life has started it.
pub trait Child: AsFd + Send + 'static {
    /// Its process id.
    fn pid(&self) -> i32;

    /// Reaps the process after it has ended, and says how it did, as in "exited with status 1".
    fn reap(&mut self) -> String;
}

/// Processes.
pub trait Processes: Devices {
    /// A running clatd.
    type Child: Child;

    /// Starts clatd with a copy of the TUN's descriptor.
    ///
    /// # Errors
    /// Those of posix_spawn(3): ENOENT when the program is not there.
    fn spawn_clatd(&self, args: &ClatdArgs, tun: &Self::Tun) -> io::Result<Self::Child>;

    /// How long a new clatd gets to set up its TUN device.
    fn clatd_patience(&self) -> Duration {
        // Duplicate address detection takes one to two seconds (RFC 4862 §5.4).
        Duration::from_secs(10)
    }
}

/// An entry of the ingress map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressEntry {
    /// Index of the uplink.
    pub iif: u32,
    /// The NAT64 prefix, a /96.
    pub pfx96: Ipv6Addr,
    /// The CLAT's IPv6 address.
    pub local6: Ipv6Addr,
    /// Index of the TUN device.
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
    /// Index of the uplink.
    pub oif: u32,
    /// The CLAT's IPv6 address.
    pub local6: Ipv6Addr,
    /// The NAT64 prefix, a /96.
    pub pfx96: Ipv6Addr,
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
}

/// Why the programs leave packets to clatd, in the order of `enum clat_reason` in bpf_progs/clatd.h.
pub const PASSED_REASONS: [&str; 13] = [
    "foreign-source",
    "header",
    "address",
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

/// What a program has done for a CLAT since that was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffloadCounters {
    /// Packets translated; each segment of a super-packet counts.
    pub packets: u64,
    /// Their bytes as they came: IPv4 for egress, IPv6 for ingress. The headers of a super-packet count once.
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

/// The translation in the kernel.
pub trait Offload {
    /// The programs and maps.
    type Programs: Programs;

    /// Gets hold of the programs and of their maps, which hold what a former life has left. `None` where the host was told
    /// to do without.
    ///
    /// # Errors
    /// Those of bpf(2) and of the BPF file system; EBUSY where another controller has them.
    fn programs(&self) -> io::Result<Option<Self::Programs>>;

    /// Why the host was told to do without, in a word or two.
    fn why_no_programs(&self) -> &'static str;
}

/// A clatd of a former life, and the TUN device that it holds. Dropping it ends the one and removes the other.
#[derive(Debug)]
pub struct Orphan<C, T> {
    /// The process.
    pub child: C,
    /// Its device.
    pub tun: T,
    /// What it was told.
    pub args: ClatdArgs,
}

/// What a controller left behind that was killed, or was to leave its CLATs running.
pub trait Recovery: Firewall + Processes {
    /// Takes over every clatd of ours, and ends those that cannot be taken over.
    fn orphans(&self) -> Vec<Orphan<Self::Child, Self::Tun>>;

    /// Removes our filters, but not those that are `kept`: indices of interfaces.
    fn remove_filters(&self, kept: &[(u32, Hook)]);

    /// Takes over the drop rules' chain, and has in it one rule for each of `kept`, in this order, and no other; all at one
    /// blow. Without any, the chain goes, too, unless it is netd's.
    ///
    /// # Errors
    /// Those of running ip6tables-save and ip6tables-restore.
    #[allow(clippy::type_complexity)] // said once
    fn adopt_rules(&self, kept: &[ClatdArgs])
        -> io::Result<Option<(Self::Chain, Vec<Self::Rule>)>>;
}

/// The tc programs and their maps (docs/contract.md, "Maps and programs").
pub trait Programs: Send + Sync + 'static {
    /// An entry of a map that goes away when dropped.
    type Entry: Send + 'static;

    /// The next hop of an uplink, kept as routes change.
    type NextHop: Send + 'static;

    /// An attached program that is detached when dropped.
    type Filter: Send + 'static;

    /// What the packets of an interface begin with.
    ///
    /// # Errors
    /// EAFNOSUPPORT where it is neither; ENODEV where there is none.
    fn link_kind(&self, index: u32) -> io::Result<LinkKind>;

    /// Has the map of next hops say who gets what leaves by the entry's uplink, and goes on saying so as routes change,
    /// until the value is dropped. Nothing is said while no route leads to the prefix.
    ///
    /// # Errors
    /// Those of bpf(2) and of netlink.
    fn next_hop(&self, entry: &EgressEntry) -> io::Result<Self::NextHop>;

    /// Adds an entry to the egress map.
    ///
    /// # Errors
    /// Those of bpf(2): E2BIG where it is full.
    fn egress_entry(&self, entry: &EgressEntry) -> io::Result<Self::Entry>;

    /// Adds an entry to the ingress map.
    ///
    /// # Errors
    /// Those of bpf(2): E2BIG where it is full.
    fn ingress_entry(&self, entry: &IngressEntry) -> io::Result<Self::Entry>;

    /// Makes sure of an interface's clsact qdisc, which filters hang on. It goes with the interface.
    ///
    /// # Errors
    /// Those of netlink.
    fn add_clsact(&self, index: u32) -> io::Result<()>;

    /// Attaches the program for this hook and this kind of link to an interface.
    ///
    /// # Errors
    /// Those of bpf(2) and of netlink: ENOENT where the kernel lacks NET_CLS_BPF.
    fn add_filter(&self, index: u32, hook: Hook, link: LinkKind) -> io::Result<Self::Filter>;

    /// Whether a filter is still attached; others may have taken it away.
    ///
    /// # Errors
    /// Those of netlink: ENODEV where its interface is gone.
    fn is_attached(&self, filter: &Self::Filter) -> io::Result<bool>;

    /// Removes what is in the maps, but not what belongs to the entries that are `kept`: the last step of cleaning up after
    /// a former life.
    ///
    /// # Errors
    /// Those of bpf(2).
    fn clear_maps(&self, kept: &[&(EgressEntry, IngressEntry)]) -> io::Result<()>;

    /// The entries of the ingress map.
    ///
    /// # Errors
    /// Those of bpf(2).
    fn ingress_map(&self) -> io::Result<Vec<IngressEntry>>;

    /// The entries of the egress map.
    ///
    /// # Errors
    /// Those of bpf(2).
    fn egress_map(&self) -> io::Result<Vec<EgressEntry>>;

    /// What was counted one way for the CLAT that has an address; `None` where nothing is.
    ///
    /// # Errors
    /// Those of bpf(2).
    fn counters(&self, hook: Hook, local4: Ipv4Addr) -> io::Result<Option<OffloadCounters>>;
}
