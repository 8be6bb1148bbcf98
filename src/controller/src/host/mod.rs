// SPDX-License-Identifier: Apache-2.0

//! The controller's interface to the system, as small traits. What must be undone is a value whose
//! `Drop` undoes it. [`linux`] implements them for Linux and Android; tests have a host that fails
//! on demand.

pub mod linux;

#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
pub(crate) mod fake;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

pub use clat_host::links::Traffic;
pub use clat_host::{ClatdArgs, Ended, ProbeTarget, Progress};
use clat_host::{Fwmark, IfaceName};
pub use clat_netlink::LinkKind;
pub use clat_offload::{
    AttachError, EgressEntry, Hook, IngressEntry, OffloadCounters, Place, RouteAttributes,
    PASSED_REASONS,
};
use clat_xlat::Prefix;

use crate::ebpf_mode::KernelVersion;

/// All traits of a host.
pub trait Host:
    System + Links + Devices + Firewall + Processes + Offload + Recovery + Send + Sync + 'static
{
}

impl<T> Host for T where
    T: System + Links + Devices + Firewall + Processes + Offload + Recovery + Send + Sync + 'static
{
}

/// A resource that can outlive this process.
pub trait Detach: Sized {
    /// Forgets it without its `Drop`. Memory and descriptors end with the process.
    fn detach(self) {
        std::mem::forget(self);
    }
}

/// Other references may remain.
impl<T> Detach for Arc<T> {}

/// The system.
pub trait System {
    /// A system property by its Android name.
    fn property(&self, name: &str) -> Option<String>;

    /// The kernel's version; 0.0 if it cannot be read.
    fn kernel_version(&self) -> KernelVersion;

    /// The bytes to make the interface identifier of a CLAT's address of, in the /64 of `net` on
    /// `uplink`: others than before for each address that was found to be a duplicate (RFC 7217's
    /// DAD_Counter).
    ///
    /// # Errors
    /// Those of getrandom(2).
    fn identifier(&self, uplink: &IfaceName, net: Ipv6Addr, duplicates: u32)
        -> io::Result<[u8; 8]>;
}

/// Descriptors that become readable with the next packet of a CLAT.
#[derive(Debug)]
pub struct Taps {
    /// One that leaves by its device for clatd, or by the uplink.
    pub leaving: [OwnedFd; 2],
    /// One that arrives on the uplink from the PLAT.
    pub arriving: OwnedFd,
}

/// Interfaces, addresses and routes.
pub trait Links {
    /// An address for which the kernel answers neighbours until it is dropped.
    type Claim: Send + 'static;

    /// A route that is removed when dropped.
    type Route: Detach + Send + 'static;

    /// The index of an interface; `None` if there is none of that name.
    fn index_of(&self, iface: &IfaceName) -> Option<u32>;

    /// The name of an interface; `None` if there is none of that index.
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

    /// Whether an interface has a source address in the /64 of `v6`.
    ///
    /// # Errors
    /// Those of netlink.
    fn has_prefix(&self, index: u32, v6: Ipv6Addr) -> io::Result<bool>;

    /// Whether `prefix` belongs to a network on the interface's link.
    ///
    /// # Errors
    /// Those of netlink.
    fn is_on_link(&self, index: u32, prefix: &Prefix) -> io::Result<bool>;

    /// Lets the kernel answer neighbour solicitations for `v6` on an interface, together with clatd
    /// or without one.
    ///
    /// # Errors
    /// EADDRNOTAVAIL where no prefix of the interface covers it.
    fn claim(&self, index: u32, v6: Ipv6Addr) -> io::Result<Self::Claim>;

    /// The Ethernet address of an interface; `None` if it has none or no longer exists.
    fn link_address(&self, index: u32) -> Option<[u8; 6]>;

    /// Announces a claimed address with this Ethernet address to all neighbours.
    ///
    /// # Errors
    /// ENETDOWN where the interface is down.
    fn announce(&self, claim: &Self::Claim, v6: Ipv6Addr, own: [u8; 6]) -> io::Result<()>;

    /// Whether IPv4 works through the PLAT of `prefix`: whether the target answers in time.
    ///
    /// # Errors
    /// If the probe cannot be sent.
    fn probe(
        &self,
        uplink: &IfaceName,
        mark: Fwmark,
        prefix: &Prefix,
        target: ProbeTarget,
        patience: Duration,
    ) -> io::Result<bool>;

    /// Descriptors that tell of packets of the CLAT with the device `v4index`, from `v6` to
    /// `prefix` by the interface `uplink`, and back.
    ///
    /// # Errors
    /// Those of packet(7).
    fn taps(&self, v4index: u32, uplink: u32, v6: Ipv6Addr, prefix: &Prefix) -> io::Result<Taps>;

    /// The MTU of the path of packets with `mark` to `prefix` by `uplink`, in bytes of an IPv6
    /// packet.
    ///
    /// # Errors
    /// Those of connect(2): ENETUNREACH where there is no route.
    fn path_mtu(&self, uplink: &IfaceName, mark: Fwmark, prefix: &Prefix) -> io::Result<u32>;

    /// The MTU of an interface in bytes of IP.
    ///
    /// # Errors
    /// ENODEV where it is gone.
    fn mtu(&self, index: u32) -> io::Result<u32>;

    /// Sets the MTU of an interface.
    ///
    /// # Errors
    /// Those of netlink.
    fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()>;

    /// Brings an interface up, with this address and MTU.
    ///
    /// # Errors
    /// Those of netlink.
    fn configure(&self, index: u32, addr: Ipv4Addr, mtu: u32) -> io::Result<()>;

    /// Accepts packets from any source on an interface, whatever the route back to it.
    ///
    /// # Errors
    /// Those of writing a sysctl.
    fn accept_from_anywhere(&self, iface: &IfaceName) -> io::Result<()>;

    /// Turns IPv6 off on an interface.
    ///
    /// # Errors
    /// Those of writing a sysctl.
    fn disable_ipv6(&self, iface: &IfaceName) -> io::Result<()>;

    /// The traffic counters of an interface.
    ///
    /// # Errors
    /// ENODEV when it is gone.
    fn traffic(&self, iface: &IfaceName) -> io::Result<Traffic>;

    /// Whether the interface is up and has the address.
    ///
    /// # Errors
    /// Those of getifaddrs(3).
    fn is_configured(&self, iface: &IfaceName, addr: Ipv4Addr) -> io::Result<bool>;

    /// Sets the IPv4 default route by the interface `index`, with `source` as the address to send
    /// from. Of several the lowest `metric` wins.
    ///
    /// # Errors
    /// Those of netlink.
    fn default_route(&self, index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Self::Route>;

    /// Removes a route until it is restored.
    ///
    /// # Errors
    /// Those of netlink.
    fn withdraw_route(&self, route: &Self::Route) -> io::Result<()>;

    /// Restores a missing route.
    ///
    /// # Errors
    /// Those of netlink.
    fn restore_route(&self, route: &Self::Route) -> io::Result<()>;

    /// Whether the kernel has a route.
    ///
    /// # Errors
    /// Those of netlink.
    fn is_route_set(&self, route: &Self::Route) -> io::Result<bool>;

    /// Takes over such a route of a previous controller, and sets it if it is missing.
    ///
    /// # Errors
    /// Those of netlink.
    fn adopt_route(&self, index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Self::Route>;
}

/// TUN devices.
pub trait Devices {
    /// A TUN device that is removed when dropped.
    type Tun: Detach + Send + Sync + 'static;

    /// Opens `/dev/net/tun` and creates a device of exactly this name.
    ///
    /// # Errors
    /// Those of open(2) and TUNSETIFF: EBUSY when the name is taken.
    fn create_tun(&self, name: &IfaceName) -> io::Result<Self::Tun>;

    /// A descriptor that becomes readable when a packet is about to leave by the device of this
    /// index.
    ///
    /// # Errors
    /// Those of packet(7).
    fn outgoing(&self, index: u32) -> io::Result<OwnedFd>;

    /// A descriptor that becomes readable when an IPv6 packet to `v6` that no program has
    /// translated has arrived on the interface of this index.
    ///
    /// # Errors
    /// Those of packet(7).
    fn incoming(&self, index: u32, v6: Ipv6Addr) -> io::Result<OwnedFd>;
}

/// Keeps the kernel from answering or forwarding packets for clatd.
pub trait Firewall {
    /// A rule that is removed when dropped.
    type Rule: Detach + Send + 'static;

    /// Makes the kernel drop packets from `prefix` for `v6` on `uplink`.
    ///
    /// # Errors
    /// Those of netlink; with netd those of running ip6tables-restore.
    fn drop_rule(
        &self,
        uplink: &IfaceName,
        prefix: &Prefix,
        v6: Ipv6Addr,
    ) -> io::Result<Self::Rule>;

    /// Restores a rule if it is missing, and returns whether it was.
    ///
    /// # Errors
    /// As of [`Self::drop_rule`].
    fn restore_rule(&self, rule: &Self::Rule) -> io::Result<bool>;
}

/// A running process. Its descriptor becomes readable when it ends (pidfd). Dropping it ends it,
/// and reaps it unless a previous controller has started it.
pub trait Child: AsFd + Detach + Send + 'static {
    /// Its process id.
    fn pid(&self) -> i32;

    /// Kills the process.
    ///
    /// # Errors
    /// Those of kill(2).
    fn kill(&self) -> io::Result<()>;

    /// Reaps the ended process, and returns how it ended.
    fn reap(&mut self) -> Ended;
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

    /// A clatd's progress with packets from its uplink.
    ///
    /// # Errors
    /// Those of proc(5).
    fn progress(&self, pid: i32, uplink: u32) -> io::Result<Progress>;

    /// How long a new clatd may take to configure its TUN device.
    fn clatd_patience(&self) -> Duration {
        // Duplicate address detection takes one to two seconds (RFC 4862 §5.4).
        Duration::from_secs(10)
    }
}

/// The translation in the kernel.
pub trait Offload {
    /// The programs and maps.
    type Programs: Programs;

    /// Opens the programs and their maps with the entries of a previous controller. `None` if the
    /// host was told to do without.
    ///
    /// # Errors
    /// Those of bpf(2) and of the BPF file system; EBUSY where another controller has them.
    fn programs(&self) -> io::Result<Option<Self::Programs>>;

    /// Why the host was told to do without, in a word or two.
    fn why_no_programs(&self) -> &'static str;
}

/// A clatd of a previous controller, and its TUN device. Dropping it ends the process and removes
/// the device.
#[derive(Debug)]
pub struct Orphan<C, T> {
    /// The process.
    pub child: C,
    /// Its device.
    pub tun: T,
    /// Its arguments.
    pub args: ClatdArgs,
    /// The index of its uplink, which may have been renamed.
    pub index: u32,
}

/// The remains of a controller that was killed, or left its CLATs running.
pub trait Recovery: Firewall + Processes {
    /// Takes over every clatd of ours, and ends those for which that fails.
    fn orphans(&self) -> Vec<Orphan<Self::Child, Self::Tun>>;

    /// Removes our filters, except those on the `kept` interface indices.
    fn remove_filters(&self, kept: &[(u32, Hook)]);

    /// Takes over the drop rules: one for each of `kept`, in this order, and removes others.
    ///
    /// # Errors
    /// As of [`Firewall::drop_rule`].
    fn adopt_rules(&self, kept: &[ClatdArgs]) -> io::Result<Vec<Self::Rule>>;
}

/// The tc programs and their maps (docs/contract.md, "Maps and programs").
pub trait Programs: Send + Sync + 'static {
    /// An entry of a map, removed when dropped.
    type Entry: Detach + Send + 'static;

    /// The next hop of an uplink, kept in step with routes.
    type NextHop: Detach + Send + 'static;

    /// An attached program that is detached when dropped.
    type Filter: Detach + Send + 'static;

    /// The direct way of a CLAT, removed when dropped.
    type Direct: Detach + Send + 'static;

    /// The direct way of the CLAT with these entries, without a route yet.
    ///
    /// # Errors
    /// Those of bpf(2): ENOENT where the kernel took no program for it.
    fn direct(&self, egress: &EgressEntry, ingress: &IngressEntry) -> io::Result<Self::Direct>;

    /// Routes packets the direct way by a route with these attributes; without any, by the TUN
    /// device, as after an error. Returns whether somebody else had removed the route.
    ///
    /// # Errors
    /// EHOSTUNREACH without a router; those of netlink and of bpf(2).
    fn set_route(
        &self,
        direct: &mut Self::Direct,
        route: Option<RouteAttributes>,
    ) -> io::Result<bool>;

    /// The kind of link of an interface.
    ///
    /// # Errors
    /// EAFNOSUPPORT where it is neither; ENODEV where there is none.
    fn link_kind(&self, index: u32) -> io::Result<LinkKind>;

    /// Keeps the next hop for the entry's uplink in the map of next hops, until the value is
    /// dropped. The map has none while there is no route to the prefix.
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

    /// Attaches the program for this hook and kind of link to an interface, with a clsact qdisc,
    /// which stays until the interface is removed.
    ///
    /// # Errors
    /// Those of bpf(2) and of netlink: ENOENT of the program where the kernel lacks NET_CLS_BPF.
    fn attach(&self, index: u32, hook: Hook, link: LinkKind) -> Result<Self::Filter, AttachError>;

    /// Whether a filter can be attached there: another program's filter may have its place.
    ///
    /// # Errors
    /// Those of netlink: ENODEV where there is no such interface.
    fn has_room(&self, index: u32, hook: Hook) -> io::Result<bool>;

    /// The position of a filter, which others may have removed.
    ///
    /// # Errors
    /// Those of netlink: ENODEV where its interface is gone.
    fn place(&self, filter: &Self::Filter) -> io::Result<Place>;

    /// Attaches a filter again that others have removed.
    ///
    /// # Errors
    /// As of [`Self::attach`].
    fn restore(&self, filter: &Self::Filter) -> Result<(), AttachError>;

    /// Clears the maps, except these entries and their next hops: the last step of the cleanup
    /// after a previous controller.
    ///
    /// # Errors
    /// Those of bpf(2).
    fn clear_maps(&self, egress: &[&EgressEntry], ingress: &[&IngressEntry]) -> io::Result<()>;

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

    /// The counters of one direction for the CLAT with an address; `None` without a map of
    /// counters.
    ///
    /// # Errors
    /// Those of bpf(2).
    fn counters(&self, hook: Hook, local4: Ipv4Addr) -> io::Result<Option<OffloadCounters>>;
}
