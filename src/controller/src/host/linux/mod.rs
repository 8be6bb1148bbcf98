// SPDX-License-Identifier: Apache-2.0

//! The Linux host, with or without Android.

mod properties;

#[cfg(test)]
mod kernel_tests;
// For programs that this build loads itself.
#[cfg(all(test, not(target_os = "android")))]
mod offload_tests;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use clat_datapath::path::Direction;
use clat_datapath::socket::{incoming, outgoing, passing, AnycastAddress};
#[cfg(not(target_os = "android"))]
use clat_host::blackhole::Rule;
#[cfg(target_os = "android")]
use clat_host::firewall::Rule;
use clat_host::{
    links, record, recovery, spawn, spawn_heard, ClatdArgs, ClatdProcess, DefaultRoute, Device,
    Fwmark, IfaceName,
};
use clat_netlink::{add_address, addresses6, set_up, Address6, Existing, LinkKind};
use clat_offload::{
    AttachError, Direct, EgressEntry, Entry, Filter, IngressEntry, NextHop, OffloadCounters, Place,
    RouteAttributes,
};
use clat_sys::HostError;
use clat_xlat::Prefix;

pub use clat_host::{NamespaceLock, Share, HAS_NETD};
pub use clat_offload::{Objects, BPF_DIR, HAS_BPF};
pub use properties::Properties;

use super::{
    Child, Detach, Devices, Ended, Firewall, Hook, Links, Offload, Orphan, ProbeTarget, Processes,
    Programs, Progress, Recovery, System, Taps, Traffic,
};
use crate::auto::Secret;
use crate::ebpf_mode::KernelVersion;

/// The system of this process, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct LinuxHost {
    clatd: PathBuf,
    properties: Properties,
    bpf_dir: Option<PathBuf>,
    share: Share,
    direct: bool,
    secret: Option<Secret>,
}

impl LinuxHost {
    /// A host that starts `clatd` for its CLATs, with these system properties. The programs and
    /// maps are pinned in `bpf_dir`; without it there are none.
    #[must_use]
    pub fn new(clatd: PathBuf, properties: Properties, bpf_dir: Option<PathBuf>) -> Self {
        Self { clatd, properties, bpf_dir, share: Share::default(), direct: false, secret: None }
    }

    /// Shares the CLATs with hosts behind this one.
    #[must_use]
    pub fn sharing(mut self, share: Share) -> Self {
        self.share = share;
        self
    }

    /// Also loads the programs of the direct way.
    #[must_use]
    pub fn direct(self, direct: bool) -> Self {
        Self { direct, ..self }
    }

    /// Makes stable IPv6 addresses with a secret. Without one they are random.
    #[must_use]
    pub fn stable(self, secret: Option<Secret>) -> Self {
        Self { secret, ..self }
    }
}

impl System for LinuxHost {
    fn property(&self, name: &str) -> Option<String> {
        self.properties.get(name)
    }

    fn kernel_version(&self) -> KernelVersion {
        let release =
            nix::sys::utsname::uname().map(|uname| uname.release().to_string_lossy().into_owned());
        release.unwrap_or_default().parse().unwrap_or_else(|e| {
            log::error!("cannot read the kernel's version: {e}");
            KernelVersion(0, 0)
        })
    }

    fn identifier(
        &self,
        uplink: &IfaceName,
        net: Ipv6Addr,
        duplicates: u32,
    ) -> io::Result<[u8; 8]> {
        let Some(secret) = &self.secret else { return Ok(clat_sys::random_bytes()?) };
        let link_address = self.index_of(uplink).and_then(|index| self.link_address(index));
        Ok(secret.identifier(net, uplink, link_address, duplicates))
    }
}

impl Devices for LinuxHost {
    type Tun = Device;

    fn create_tun(&self, name: &IfaceName) -> io::Result<Device> {
        let device = Device::create(name)?;
        self.share.forward(name)?;
        Ok(device)
    }

    fn outgoing(&self, index: u32) -> io::Result<OwnedFd> {
        outgoing(index)
    }

    fn incoming(&self, index: u32, v6: Ipv6Addr) -> io::Result<OwnedFd> {
        incoming(index, v6)
    }
}

impl Links for LinuxHost {
    type Claim = AnycastAddress;
    type Route = DefaultRoute;

    fn index_of(&self, iface: &IfaceName) -> Option<u32> {
        links::index_of(iface)
    }

    fn name_of(&self, index: u32) -> Option<String> {
        links::name_of(index)
    }

    fn has_address(&self, addr: Ipv4Addr) -> io::Result<bool> {
        links::has_address(addr)
    }

    fn source_towards(
        &self,
        uplink: &IfaceName,
        mark: Fwmark,
        destination: Ipv6Addr,
    ) -> io::Result<Ipv6Addr> {
        links::source_towards(uplink, mark, destination)
    }

    fn has_prefix(&self, index: u32, v6: Ipv6Addr) -> io::Result<bool> {
        let is_of_it = |found: &Address6| {
            found.is_preferred && found.address.segments()[..4] == v6.segments()[..4]
        };
        Ok(addresses6(index)?.iter().any(is_of_it))
    }

    fn is_on_link(&self, index: u32, prefix: &Prefix) -> io::Result<bool> {
        let is_of_it = |found: &Address6| {
            let bits = u32::from(found.prefix_len.min(prefix.bits()));
            let differing = found.address.to_bits() ^ prefix.addr().to_bits();
            bits > 0 && differing.leading_zeros() >= bits
        };
        Ok(addresses6(index)?.iter().any(is_of_it))
    }

    fn claim(&self, index: u32, v6: Ipv6Addr) -> io::Result<AnycastAddress> {
        AnycastAddress::join(index, v6)
    }

    fn link_address(&self, index: u32) -> Option<[u8; 6]> {
        clat_netlink::link(index).ok()?.address
    }

    fn announce(&self, claim: &AnycastAddress, v6: Ipv6Addr, own: [u8; 6]) -> io::Result<()> {
        claim.announce(v6, own)
    }

    fn probe(
        &self,
        uplink: &IfaceName,
        mark: Fwmark,
        prefix: &Prefix,
        target: ProbeTarget,
        patience: Duration,
    ) -> io::Result<bool> {
        clat_host::probe(uplink, mark, prefix, target, patience)
    }

    fn taps(&self, v4index: u32, uplink: u32, v6: Ipv6Addr, prefix: &Prefix) -> io::Result<Taps> {
        let passing = |way| passing(uplink, way, v6, prefix);
        let leaving = [outgoing(v4index)?, passing(Direction::Egress)?];
        Ok(Taps { leaving, arriving: passing(Direction::Ingress)? })
    }

    fn path_mtu(&self, uplink: &IfaceName, mark: Fwmark, prefix: &Prefix) -> io::Result<u32> {
        // Any address will do; that of 8.8.8.8, as the original asks.
        let to = prefix.embed(Ipv4Addr::new(8, 8, 8, 8));
        clat_datapath::socket::path_mtu(Some(uplink.as_str()), mark.bits(), to)
    }

    fn mtu(&self, index: u32) -> io::Result<u32> {
        Ok(clat_netlink::link(index)?.mtu)
    }

    fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        set_up(index, Some(mtu))
    }

    fn configure(&self, index: u32, addr: Ipv4Addr, mtu: u32) -> io::Result<()> {
        set_up(index, Some(mtu))?;
        add_address(index, addr)
    }

    fn accept_from_anywhere(&self, iface: &IfaceName) -> io::Result<()> {
        links::accept_from_anywhere(iface)
    }

    fn disable_ipv6(&self, iface: &IfaceName) -> io::Result<()> {
        links::disable_ipv6(iface)
    }

    fn traffic(&self, iface: &IfaceName) -> io::Result<Traffic> {
        links::traffic(iface)
    }

    fn is_configured(&self, iface: &IfaceName, addr: Ipv4Addr) -> io::Result<bool> {
        links::is_configured(iface, addr)
    }

    fn default_route(&self, oif: u32, source: Ipv4Addr, metric: u32) -> io::Result<DefaultRoute> {
        let route = clat_netlink::DefaultRoute { oif, source, metric };
        DefaultRoute::set(route, Existing::Refuse)
    }

    fn withdraw_route(&self, route: &DefaultRoute) -> io::Result<()> {
        route.withdraw()
    }

    fn restore_route(&self, route: &DefaultRoute) -> io::Result<()> {
        route.restore()
    }

    fn is_route_set(&self, route: &DefaultRoute) -> io::Result<bool> {
        route.is_set()
    }

    fn adopt_route(&self, oif: u32, source: Ipv4Addr, metric: u32) -> io::Result<DefaultRoute> {
        let route = clat_netlink::DefaultRoute { oif, source, metric };
        // A direct route is set again when the direct way is used.
        let direct = clat_netlink::DirectRoute { oif, gateway: None, source, metric, mtu: 0 };
        direct.delete()?;
        DefaultRoute::set(route, Existing::Replace)
    }
}

impl Firewall for LinuxHost {
    type Rule = Rule;

    fn drop_rule(&self, uplink: &IfaceName, prefix: &Prefix, v6: Ipv6Addr) -> io::Result<Rule> {
        Rule::add(uplink, prefix, v6)
    }

    fn restore_rule(&self, rule: &Rule) -> io::Result<bool> {
        rule.restore()
    }
}

impl Detach for DefaultRoute {}
impl Detach for Device {}
impl Detach for Rule {}
impl Detach for Entry {}
impl Detach for Option<NextHop> {}
impl Detach for Filter {}
impl Detach for Direct {}

impl Detach for ClatdProcess {
    fn detach(self) {
        self.detach();
    }
}

impl Child for ClatdProcess {
    fn pid(&self) -> i32 {
        self.pid()
    }

    fn kill(&self) -> io::Result<()> {
        self.kill()
    }

    fn reap(&mut self) -> Ended {
        self.reap()
    }
}

impl Processes for LinuxHost {
    type Child = ClatdProcess;

    fn spawn_clatd(&self, args: &ClatdArgs, tun: &Device) -> io::Result<ClatdProcess> {
        let argv = args.argv(tun.as_fd().as_raw_fd());
        record::write(tun.name(), links::index_of(&args.uplink).unwrap_or_default(), &argv)?;
        // SELinux allows clatd no other descriptor.
        let spawn = if HAS_NETD { spawn } else { spawn_heard };
        spawn(&self.clatd, &argv, &[tun.as_fd()])
            .map_err(|e| HostError::during(self.clatd.display(), e))
    }

    fn progress(&self, pid: i32, uplink: u32) -> io::Result<Progress> {
        clat_host::progress(pid, uplink)
    }
}

impl Recovery for LinuxHost {
    fn orphans(&self) -> Vec<Orphan<ClatdProcess, Device>> {
        let adopt = |orphan| {
            let recovery::Orphan { child, tun, args, index } = orphan;
            Orphan { child, tun, args, index }
        };
        recovery::orphans().into_iter().map(adopt).collect()
    }

    fn remove_filters(&self, kept: &[(u32, Hook)]) {
        if let Err(e) = clat_offload::remove_leftovers(kept) {
            log::warn!("cannot look for filters of a previous controller: {e}");
        }
    }

    fn adopt_rules(&self, kept: &[ClatdArgs]) -> io::Result<Vec<Rule>> {
        Rule::adopt(kept)
    }
}

impl Offload for LinuxHost {
    type Programs = Objects;

    fn programs(&self) -> io::Result<Option<Objects>> {
        self.bpf_dir.as_deref().map(|dir| Objects::get(dir, self.direct)).transpose()
    }

    fn why_no_programs(&self) -> &'static str {
        // It is built so for devices whose SELinux lets only a few domains of AOSP's own use BPF.
        if HAS_BPF {
            "not wanted"
        } else {
            "policy"
        }
    }
}

impl Programs for Objects {
    type Entry = Entry;
    type NextHop = Option<NextHop>;
    type Filter = Filter;
    type Direct = Direct;

    fn direct(&self, egress: &EgressEntry, ingress: &IngressEntry) -> io::Result<Direct> {
        self.direct(egress, ingress)
    }

    fn set_route(&self, direct: &mut Direct, route: Option<RouteAttributes>) -> io::Result<bool> {
        direct.set_route(route)
    }

    fn link_kind(&self, index: u32) -> io::Result<LinkKind> {
        Self::link_kind(index)
    }

    fn next_hop(&self, entry: &EgressEntry) -> io::Result<Option<NextHop>> {
        self.next_hop(entry)
    }

    fn egress_entry(&self, entry: &EgressEntry) -> io::Result<Entry> {
        self.egress_entry(entry)
    }

    fn ingress_entry(&self, entry: &IngressEntry) -> io::Result<Entry> {
        self.ingress_entry(entry)
    }

    fn attach(&self, index: u32, hook: Hook, link: LinkKind) -> Result<Filter, AttachError> {
        self.attach(index, hook, link)
    }

    fn has_room(&self, index: u32, hook: Hook) -> io::Result<bool> {
        self.has_room(index, hook)
    }

    fn place(&self, filter: &Filter) -> io::Result<Place> {
        filter.place()
    }

    fn restore(&self, filter: &Filter) -> Result<(), AttachError> {
        self.restore(filter)
    }

    fn clear_maps(&self, egress: &[&EgressEntry], ingress: &[&IngressEntry]) -> io::Result<()> {
        self.clear_maps(egress, ingress)
    }

    fn ingress_map(&self) -> io::Result<Vec<IngressEntry>> {
        self.ingress_map()
    }

    fn egress_map(&self) -> io::Result<Vec<EgressEntry>> {
        self.egress_map()
    }

    fn counters(&self, hook: Hook, local4: Ipv4Addr) -> io::Result<Option<OffloadCounters>> {
        self.counters(hook, local4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_has_a_version_and_random_bytes() {
        let host =
            LinuxHost::new(PathBuf::new(), Properties::new(None, None).expect("no file"), None);
        assert!(host.kernel_version() > KernelVersion(4, 0));
        let (lo, net) = (IfaceName::parse("lo").expect("a name"), Ipv6Addr::LOCALHOST);
        let random = || host.identifier(&lo, net, 0).expect("random");
        assert_ne!(random(), random());
    }
}
