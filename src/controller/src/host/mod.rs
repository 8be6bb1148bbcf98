// SPDX-License-Identifier: Apache-2.0

//! What the controller needs of the machine it runs on, as small traits. What must be undone is a
//! value whose `Drop` undoes it. Linux and Android implement them in [`linux`]; tests do so with a
//! host that fails on demand.

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
    AttachError, EgressEntry, Hook, IngressEntry, OffloadCounters, Place, Way, PASSED_REASONS,
};
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

/// What may outlive this process.
pub trait Detach: Sized {
    /// Leaves it as it is: what its `Drop` would undo stays. What memory and descriptors there are
    /// goes with the process.
    fn detach(self) {
        std::mem::forget(self);
    }
}

/// Whoever else still holds it.
impl<T> Detach for Arc<T> {}

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
    /// An address that the kernel answers neighbours for until it is dropped.
    type Claim: Send + 'static;

    /// A route that goes away when dropped.
    type Route: Detach + Send + 'static;

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

    /// Whether an interface has an address to send from in the /64 that `v6` is of.
    ///
    /// # Errors
    /// Those of netlink.
    fn has_prefix(&self, index: u32, v6: Ipv6Addr) -> io::Result<bool>;

    /// Whether `prefix` is of a network that the interface itself is on.
    ///
    /// # Errors
    /// Those of netlink.
    fn is_on_link(&self, index: u32, prefix: &Prefix) -> io::Result<bool>;

    /// Has the kernel answer neighbours that look for `v6` on an interface, beside clatd and while
    /// there is none.
    ///
    /// # Errors
    /// EADDRNOTAVAIL where no prefix of the interface covers it.
    fn claim(&self, index: u32, v6: Ipv6Addr) -> io::Result<Self::Claim>;

    /// The Ethernet address of an interface; `None` where it has none, or is gone.
    fn link_address(&self, index: u32) -> Option<[u8; 6]>;

    /// Tells all neighbours that a claimed address is at this Ethernet address.
    ///
    /// # Errors
    /// ENETDOWN where the interface is down.
    fn announce(&self, claim: &Self::Claim, v6: Ipv6Addr, own: [u8; 6]) -> io::Result<()>;

    /// Whether IPv4 works by the PLAT that `prefix` is of. Takes seconds.
    ///
    /// # Errors
    /// Where that cannot be asked.
    fn probe(
        &self,
        uplink: &IfaceName,
        mark: Fwmark,
        prefix: &Prefix,
        target: ProbeTarget,
    ) -> io::Result<bool>;

    /// What the path of packets with `mark` to `prefix` by `uplink` carries, in bytes of IPv6.
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

    /// Has an interface take packets from anywhere, whichever the way back would be.
    ///
    /// # Errors
    /// Those of writing a sysctl.
    fn accept_from_anywhere(&self, iface: &IfaceName) -> io::Result<()>;

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

    /// Sets the IPv4 default route by the interface `index`, with `source` as the address to send
    /// from. Of several the lowest `metric` wins.
    ///
    /// # Errors
    /// Those of netlink.
    fn default_route(&self, index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Self::Route>;

    /// Takes a route away until it is put back.
    ///
    /// # Errors
    /// Those of netlink.
    fn withdraw_route(&self, route: &Self::Route) -> io::Result<()>;

    /// Puts a route back that is missing.
    ///
    /// # Errors
    /// Those of netlink.
    fn restore_route(&self, route: &Self::Route) -> io::Result<()>;

    /// Whether the kernel has a route.
    ///
    /// # Errors
    /// Those of netlink.
    fn is_route_set(&self, route: &Self::Route) -> io::Result<bool>;

    /// Takes over such a route of a former life, and sets it where it is missing.
    ///
    /// # Errors
    /// Those of netlink.
    fn adopt_route(&self, index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Self::Route>;
}

/// TUN devices.
pub trait Devices {
    /// A TUN device that goes away when dropped.
    type Tun: Detach + Send + Sync + 'static;

    /// Opens `/dev/net/tun` and creates a device of exactly this name.
    ///
    /// # Errors
    /// Those of open(2) and TUNSETIFF: EBUSY when the name is taken.
    fn create_tun(&self, name: &IfaceName) -> io::Result<Self::Tun>;

    /// What becomes readable when a packet is about to leave by the device of this index.
    ///
    /// # Errors
    /// Those of packet(7).
    fn outgoing(&self, index: u32) -> io::Result<OwnedFd>;

    /// What becomes readable when an IPv6 packet to `v6` has arrived by the interface of this index
    /// that no program there has translated.
    ///
    /// # Errors
    /// Those of packet(7).
    fn incoming(&self, index: u32, v6: Ipv6Addr) -> io::Result<OwnedFd>;
}

/// What keeps the kernel from answering or forwarding what is clatd's.
pub trait Firewall {
    /// A rule that goes away when dropped.
    type Rule: Detach + Send + 'static;

    /// Has the kernel drop what it receives from `prefix` for `v6` on `uplink`.
    ///
    /// # Errors
    /// Those of netlink; with netd those of running ip6tables-restore.
    fn drop_rule(
        &self,
        uplink: &IfaceName,
        prefix: &Prefix,
        v6: Ipv6Addr,
    ) -> io::Result<Self::Rule>;

    /// Puts a rule back where it is missing, and returns whether it was.
    ///
    /// # Errors
    /// As of [`Self::drop_rule`].
    fn restore_rule(&self, rule: &Self::Rule) -> io::Result<bool>;
}

/// A running process. Its descriptor becomes readable when it ends (pidfd). Dropping it ends it,
/// and reaps it unless a former life has started it.
pub trait Child: AsFd + Detach + Send + 'static {
    /// Its process id.
    fn pid(&self) -> i32;

    /// Ends the process at once, whatever it is doing.
    ///
    /// # Errors
    /// Those of kill(2).
    fn kill(&self) -> io::Result<()>;

    /// Reaps the process after it has ended, and says how it did.
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

    /// How a clatd gets on with what arrives by its uplink.
    ///
    /// # Errors
    /// Those of proc(5).
    fn progress(&self, pid: i32, uplink: u32) -> io::Result<Progress>;

    /// How long a new clatd gets to set up its TUN device.
    fn clatd_patience(&self) -> Duration {
        // Duplicate address detection takes one to two seconds (RFC 4862 §5.4).
        Duration::from_secs(10)
    }
}

/// The translation in the kernel.
pub trait Offload {
    /// The programs and maps.
    type Programs: Programs;

    /// Gets hold of the programs and of their maps, which hold what a former life has left. `None`
    /// where the host was told to do without.
    ///
    /// # Errors
    /// Those of bpf(2) and of the BPF file system; EBUSY where another controller has them.
    fn programs(&self) -> io::Result<Option<Self::Programs>>;

    /// Why the host was told to do without, in a word or two.
    fn why_no_programs(&self) -> &'static str;
}

/// A clatd of a former life, and the TUN device that it holds. Dropping it ends the one and removes
/// the other.
#[derive(Debug)]
pub struct Orphan<C, T> {
    /// The process.
    pub child: C,
    /// Its device.
    pub tun: T,
    /// What it was told.
    pub args: ClatdArgs,
    /// The index of its uplink, which may have another name by now.
    pub index: u32,
}

/// What a controller left behind that was killed, or was to leave its CLATs running.
pub trait Recovery: Firewall + Processes {
    /// Takes over every clatd of ours, and ends those that cannot be taken over.
    fn orphans(&self) -> Vec<Orphan<Self::Child, Self::Tun>>;

    /// Removes our filters, but not those that are `kept`: indices of interfaces.
    fn remove_filters(&self, kept: &[(u32, Hook)]);

    /// Takes over the drop rules: one for each of `kept`, in this order, and no other.
    ///
    /// # Errors
    /// As of [`Firewall::drop_rule`].
    fn adopt_rules(&self, kept: &[ClatdArgs]) -> io::Result<Vec<Self::Rule>>;
}

/// The tc programs and their maps (docs/contract.md, "Maps and programs").
pub trait Programs: Send + Sync + 'static {
    /// An entry of a map that goes away when dropped.
    type Entry: Detach + Send + 'static;

    /// The next hop of an uplink, kept as routes change.
    type NextHop: Detach + Send + 'static;

    /// An attached program that is detached when dropped.
    type Filter: Detach + Send + 'static;

    /// An IPv4 route by an uplink itself, which goes away when dropped.
    type Direct: Detach + Send + 'static;

    /// The direct way of the CLAT that has these entries. It does not lead yet.
    ///
    /// # Errors
    /// Those of bpf(2): ENOENT where the kernel took no program for it.
    fn direct(&self, egress: &EgressEntry, ingress: &IngressEntry) -> io::Result<Self::Direct>;

    /// Has packets go directly, if there is a `way`, else by the TUN device, as after an error.
    /// Returns whether somebody else had taken that away.
    ///
    /// # Errors
    /// EHOSTUNREACH without a router; those of netlink and of bpf(2).
    fn lead(&self, direct: &mut Self::Direct, way: Option<Way>) -> io::Result<bool>;

    /// What the packets of an interface begin with.
    ///
    /// # Errors
    /// EAFNOSUPPORT where it is neither; ENODEV where there is none.
    fn link_kind(&self, index: u32) -> io::Result<LinkKind>;

    /// Has the map of next hops say who gets what leaves by the entry's uplink, and goes on saying
    /// so as routes change, until the value is dropped. Nothing is said while no route leads to the
    /// prefix.
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

    /// Attaches the program for this hook and this kind of link to an interface, with what programs
    /// hang on there, which goes with the interface.
    ///
    /// # Errors
    /// Those of bpf(2) and of netlink: ENOENT of the program where the kernel lacks NET_CLS_BPF.
    fn attach(&self, index: u32, hook: Hook, link: LinkKind) -> Result<Self::Filter, AttachError>;

    /// Whether a filter can be attached there: no other's of another kind is in its place.
    ///
    /// # Errors
    /// Those of netlink: ENODEV where there is no such interface.
    fn has_room(&self, index: u32, hook: Hook) -> io::Result<bool>;

    /// How packets come to a filter; others may have taken it away.
    ///
    /// # Errors
    /// Those of netlink: ENODEV where its interface is gone.
    fn place(&self, filter: &Self::Filter) -> io::Result<Place>;

    /// Attaches a filter once more that others have taken away.
    ///
    /// # Errors
    /// As of [`Self::attach`].
    fn restore(&self, filter: &Self::Filter) -> Result<(), AttachError>;

    /// Removes what is in the maps, but not these entries and what belongs to them: the last step
    /// of cleaning up after a former life.
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

    /// What was counted one way for the CLAT that has an address; `None` where nothing is.
    ///
    /// # Errors
    /// Those of bpf(2).
    fn counters(&self, hook: Hook, local4: Ipv4Addr) -> io::Result<Option<OffloadCounters>>;
}
