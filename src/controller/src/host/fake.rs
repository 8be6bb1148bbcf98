// SPDX-License-Identifier: Apache-2.0

//! A host in memory that records acquired resources and fails on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clat_datapath::path::Direction;
use clat_xlat::Prefix;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    AttachError, Child, ClatdArgs, Detach, Devices, EgressEntry, Ended, Firewall, Hook,
    IngressEntry, LinkKind, Links, Offload, OffloadCounters, Orphan, Place, ProbeTarget, Processes,
    Programs, Progress, Recovery, RouteAttributes, System, Taps, Traffic,
};
use crate::ebpf_mode::KernelVersion;
use clat_host::Fwmark;
use clat_host::IfaceName;

/// Calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    CreateTun,
    DisableIpv6,
    HasAddress,
    Source,
    Identifier,
    Rule,
    Spawn,
    IsConfigured,
    Route,
    Traffic,
    Programs,
    LinkKind,
    NextHop,
    EgressEntry,
    IngressEntry,
    /// On the interface of this index.
    Clsact(u32),
    EgressFilter,
    IngressFilter,
    Place,
    Maps,
    Counters,
    Direct,
    DirectFilter,
    DirectRoute,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) links: BTreeMap<String, u32>,
    pub(crate) addresses: BTreeSet<Ipv4Addr>,
    pub(crate) source: Option<Ipv6Addr>,
    pub(crate) faults: BTreeMap<Fault, Errno>,
    /// The resources that are held, as text.
    pub(crate) live: BTreeSet<String>,
    /// The events in order: `+` acquired, `-` released.
    pub(crate) log: Vec<String>,
    /// The running clatds by process id.
    pub(crate) children: BTreeMap<i32, Arc<EventFd>>,
    pub(crate) spawned: Vec<ClatdArgs>,
    /// The clatds of a previous controller.
    pub(crate) orphans: Vec<(ClatdArgs, i32)>,
    next: u32,
    /// Whether a new clatd configures its device.
    pub(crate) lazy_clatd: bool,
    pub(crate) dead_on_arrival: bool,
    /// How a clatd that is killed exits.
    pub(crate) exit_status: Option<i32>,
    pub(crate) properties: BTreeMap<String, String>,
    /// Whether the host was told to do without translation in the kernel.
    pub(crate) no_offload: bool,
    /// The entries of the maps.
    pub(crate) egress: Vec<EgressEntry>,
    pub(crate) ingress: Vec<IngressEntry>,
    /// How long making a device takes.
    pub(crate) tun_delay: Duration,
    /// MTUs of devices that have another than theirs.
    pub(crate) mtus: BTreeMap<u32, u32>,
    /// How much smaller than 1500 bytes the path's MTU is.
    pub(crate) path_less: u32,
    /// The Ethernet address of the uplink.
    pub(crate) link_address: [u8; 6],
    /// The direction that has packets, which no clatd reads.
    pub(crate) packets: Option<Direction>,
    /// Uplinks by which IPv4 does not work.
    pub(crate) silent: BTreeSet<String>,
    /// Routes that are withdrawn.
    pub(crate) withdrawn: BTreeSet<String>,
    /// A device that goes when its address is next looked for.
    pub(crate) going: Option<String>,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeHost(Arc<Mutex<Inner>>);

/// A held resource, or one that remains without a holder.
#[derive(Debug)]
pub(crate) struct Held {
    host: FakeHost,
    name: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.host.inner();
        assert!(inner.live.remove(&self.name), "{} twice", self.name);
        inner.log.push(format!("-{}", self.name));
        if let Some(link) = self.name.strip_prefix("tun ") {
            inner.links.remove(link);
        }
    }
}

#[derive(Debug)]
pub(crate) struct FakeChild {
    held: Held,
    pid: i32,
    ended: Arc<EventFd>,
}

impl Drop for FakeChild {
    fn drop(&mut self) {
        self.held.host.inner().children.remove(&self.pid);
    }
}

impl Detach for Held {}
impl Detach for FakeChild {}
impl Detach for (EgressEntry, Option<Held>) {}

impl AsFd for FakeChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Child for FakeChild {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn kill(&self) -> io::Result<()> {
        self.ended.write(1)?;
        Ok(())
    }

    fn reap(&mut self) -> Ended {
        let status = self.held.host.inner().exit_status;
        Ended { how: "was told to die".to_owned(), status }
    }
}

impl FakeHost {
    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic in the fake host")
    }

    pub(crate) fn add_link(&self, name: &str, index: u32) {
        self.inner().links.insert(name.to_owned(), index);
    }

    /// A host with an uplink of this name that has a usable address.
    pub(crate) fn with_uplink(name: &str) -> Self {
        let host = Self::default();
        host.add_link(name, 21);
        host.inner().source = "2001:db8:1:2::5".parse().ok();
        host.inner().next = 100;
        host
    }

    /// Leaves the remains of a previous controller: a CLAT on `wlan0` that was translated in the
    /// kernel; returns its arguments.
    pub(crate) fn leave_behind(&self) -> ClatdArgs {
        let args = ClatdArgs {
            uplink: IfaceName::parse("wlan0").expect("a name"),
            mark: Fwmark::new(21),
            prefix: Prefix::WELL_KNOWN,
            v4: [192, 0, 0, 6].into(),
            v6: "2001:db8:1:2:3:4:5:6".parse().expect("an address"),
        };
        self.add_link("v4-wlan0", 50);
        let rule = format!("rule wlan0 {} {}", args.prefix, args.v6);
        for name in ["tun v4-wlan0", &rule, "clatd wlan0", "programs", "next hop of 21"]
            .into_iter()
            .chain(["egress entry of 50", "ingress entry of 21", "Egress RawIp filter on 50"])
            .chain(["Ingress Ethernet filter on 21", "route by 50 from 192.0.0.6 metric 2069"])
            // Of another CLAT, whose clatd has ended.
            .chain(["egress entry of 7", "ingress entry of 8", "Ingress RawIp filter on 8"])
        {
            self.inner().live.insert(name.to_owned());
        }
        let ended = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd"));
        self.inner().children.insert(77, ended);
        self.inner().orphans.push((args.clone(), 77));
        args
    }

    /// The clatd with this process id dies.
    pub(crate) fn kill(&self, pid: i32) {
        self.inner().children[&pid].write(1).expect("an eventfd");
    }

    fn fault(&self, fault: Fault) -> io::Result<()> {
        self.inner().faults.get(&fault).map_or(Ok(()), |errno| Err((*errno).into()))
    }

    /// Gives a remaining resource a new holder.
    fn adopt(&self, name: String) -> Option<Held> {
        let is_there = self.inner().live.contains(&name);
        is_there.then(|| Held { host: self.clone(), name })
    }

    /// Removes resources without a holder.
    fn sweep(&self, goes: impl Fn(&str) -> bool) {
        let names: Vec<_> = self.inner().live.iter().filter(|name| goes(name)).cloned().collect();
        names.into_iter().for_each(|name| drop(self.adopt(name)));
    }

    /// A resource that a previous controller may have left.
    fn hold_or_adopt(&self, name: String) -> Held {
        self.adopt(name.clone()).unwrap_or_else(|| self.hold(name))
    }

    fn arrival(&self, way: Direction) -> io::Result<OwnedFd> {
        let packets = u32::from(self.inner().packets == Some(way));
        Ok(EventFd::from_value_and_flags(packets, EfdFlags::EFD_CLOEXEC)?.into())
    }

    fn hold(&self, name: String) -> Held {
        let mut inner = self.inner();
        inner.log.push(format!("+{name}"));
        assert!(inner.live.insert(name.clone()), "{name} is there already");
        Held { host: self.clone(), name }
    }
}

impl System for FakeHost {
    fn property(&self, name: &str) -> Option<String> {
        self.inner().properties.get(name).cloned()
    }

    fn kernel_version(&self) -> KernelVersion {
        KernelVersion(6, 1)
    }

    fn identifier(&self, _: &IfaceName, _: Ipv6Addr, duplicates: u32) -> io::Result<[u8; 8]> {
        self.fault(Fault::Identifier)?;
        let last = 0x88 + u8::try_from(duplicates).expect("few");
        Ok([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, last])
    }
}

impl Links for FakeHost {
    type Claim = Held;
    type Route = Held;

    fn index_of(&self, iface: &IfaceName) -> Option<u32> {
        self.inner().links.get(iface.as_str()).copied()
    }

    fn name_of(&self, index: u32) -> Option<String> {
        self.inner().links.iter().find(|(_, i)| **i == index).map(|(name, _)| name.clone())
    }

    fn has_address(&self, addr: Ipv4Addr) -> io::Result<bool> {
        self.fault(Fault::HasAddress)?;
        Ok(self.inner().addresses.contains(&addr))
    }

    fn source_towards(&self, _: &IfaceName, _: Fwmark, _: Ipv6Addr) -> io::Result<Ipv6Addr> {
        self.fault(Fault::Source)?;
        self.inner().source.ok_or_else(|| Errno::ENETUNREACH.into())
    }

    fn has_prefix(&self, _: u32, v6: Ipv6Addr) -> io::Result<bool> {
        let source = self.inner().source;
        Ok(source.is_some_and(|source| source.segments()[..4] == v6.segments()[..4]))
    }

    fn is_on_link(&self, _: u32, prefix: &Prefix) -> io::Result<bool> {
        let source = self.inner().source;
        let of_it = |source: Ipv6Addr| source.segments()[..4] == prefix.addr().segments()[..4];
        Ok(source.is_some_and(of_it))
    }

    fn claim(&self, _: u32, _: Ipv6Addr) -> io::Result<Held> {
        Err(Errno::EADDRNOTAVAIL.into())
    }

    fn link_address(&self, index: u32) -> Option<[u8; 6]> {
        (index == 21).then(|| self.inner().link_address)
    }

    fn announce(&self, _: &Held, _: Ipv6Addr, _: [u8; 6]) -> io::Result<()> {
        Ok(())
    }

    fn probe(
        &self,
        uplink: &IfaceName,
        _: Fwmark,
        _: &Prefix,
        _: ProbeTarget,
        _: Duration,
    ) -> io::Result<bool> {
        Ok(!self.inner().silent.contains(uplink.as_str()))
    }

    fn taps(&self, _: u32, _: u32, _: Ipv6Addr, _: &Prefix) -> io::Result<Taps> {
        let leaving = [self.arrival(Direction::Egress)?, self.arrival(Direction::Egress)?];
        Ok(Taps { leaving, arriving: self.arrival(Direction::Ingress)? })
    }

    fn path_mtu(&self, _: &IfaceName, _: Fwmark, _: &Prefix) -> io::Result<u32> {
        let inner = self.inner();
        if inner.source.is_none() {
            return Err(Errno::ENETUNREACH.into());
        }
        Ok(1500 - inner.path_less)
    }

    fn mtu(&self, index: u32) -> io::Result<u32> {
        let inner = self.inner();
        let is_there = inner.links.values().any(|link| *link == index);
        let mtu = inner.mtus.get(&index).copied().unwrap_or(1472);
        is_there.then_some(mtu).ok_or_else(|| Errno::ENODEV.into())
    }

    fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        self.inner().mtus.insert(index, mtu);
        Ok(())
    }

    fn configure(&self, index: u32, _: Ipv4Addr, mtu: u32) -> io::Result<()> {
        self.mtu(index)?;
        self.inner().lazy_clatd = false;
        self.set_mtu(index, mtu)
    }

    fn accept_from_anywhere(&self, _: &IfaceName) -> io::Result<()> {
        Ok(())
    }

    fn disable_ipv6(&self, _: &IfaceName) -> io::Result<()> {
        self.fault(Fault::DisableIpv6)
    }

    fn traffic(&self, _: &IfaceName) -> io::Result<Traffic> {
        self.fault(Fault::Traffic)?;
        Ok(Traffic { tx_packets: 1, tx_bytes: 20, rx_packets: 3, rx_bytes: 400 })
    }

    fn is_configured(&self, _: &IfaceName, _: Ipv4Addr) -> io::Result<bool> {
        self.fault(Fault::IsConfigured)?;
        let mut inner = self.inner();
        let gone = inner.going.take().and_then(|going| inner.links.remove(&going));
        Ok(gone.is_none() && !inner.lazy_clatd)
    }

    fn default_route(&self, index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Held> {
        self.fault(Fault::Route)?;
        Ok(self.hold(format!("route by {index} from {source} metric {metric}")))
    }

    fn withdraw_route(&self, route: &Held) -> io::Result<()> {
        self.inner().withdrawn.insert(route.name.clone());
        Ok(())
    }

    fn restore_route(&self, route: &Held) -> io::Result<()> {
        self.fault(Fault::Route)?;
        let mut inner = self.inner();
        inner.withdrawn.remove(&route.name);
        inner.live.insert(route.name.clone());
        Ok(())
    }

    fn is_route_set(&self, route: &Held) -> io::Result<bool> {
        let inner = self.inner();
        Ok(inner.live.contains(&route.name) && !inner.withdrawn.contains(&route.name))
    }

    fn adopt_route(&self, index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Held> {
        self.fault(Fault::Route)?;
        Ok(self.hold_or_adopt(format!("route by {index} from {source} metric {metric}")))
    }
}

impl Devices for FakeHost {
    type Tun = Held;

    fn create_tun(&self, name: &IfaceName) -> io::Result<Held> {
        let delay = self.inner().tun_delay;
        std::thread::sleep(delay);
        self.fault(Fault::CreateTun)?;
        let held = self.hold(format!("tun {name}"));
        let mut inner = self.inner();
        inner.next += 1;
        let index = inner.next;
        inner.links.insert(name.to_string(), index);
        Ok(held)
    }

    fn outgoing(&self, _: u32) -> io::Result<OwnedFd> {
        self.arrival(Direction::Egress)
    }

    fn incoming(&self, _: u32, _: Ipv6Addr) -> io::Result<OwnedFd> {
        self.arrival(Direction::Ingress)
    }
}

impl Firewall for FakeHost {
    type Rule = Held;

    fn drop_rule(&self, uplink: &IfaceName, prefix: &Prefix, v6: Ipv6Addr) -> io::Result<Held> {
        self.fault(Fault::Rule)?;
        Ok(self.hold(format!("rule {uplink} {prefix} {v6}")))
    }

    fn restore_rule(&self, _: &Held) -> io::Result<bool> {
        Ok(false)
    }
}

impl Processes for FakeHost {
    type Child = FakeChild;

    fn spawn_clatd(&self, args: &ClatdArgs, tun: &Held) -> io::Result<FakeChild> {
        self.fault(Fault::Spawn)?;
        assert!(tun.name.starts_with("tun v4-"));
        let ended = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let pid = {
            let mut inner = self.inner();
            inner.next += 1;
            let pid = i32::try_from(inner.next).expect("small");
            inner.children.insert(pid, Arc::clone(&ended));
            inner.spawned.push(args.clone());
            if inner.dead_on_arrival {
                ended.write(1)?;
            }
            pid
        };
        Ok(FakeChild { held: self.hold(format!("clatd {}", args.uplink)), pid, ended })
    }

    fn progress(&self, _: i32, _: u32) -> io::Result<Progress> {
        Ok(Progress { packets_wait: true, done: 0 })
    }

    fn clatd_patience(&self) -> Duration {
        Duration::from_millis(100)
    }
}

impl Recovery for FakeHost {
    fn orphans(&self) -> Vec<Orphan<FakeChild, Held>> {
        let orphans = std::mem::take(&mut self.inner().orphans);
        let orphan = |(args, pid): (ClatdArgs, i32)| {
            let ended = self.inner().children.get(&pid).cloned()?;
            let held = self.adopt(format!("clatd {}", args.uplink))?;
            let tun = self.adopt(format!("tun v4-{}", args.uplink))?;
            // That of wlan0 (`leave_behind`).
            Some(Orphan { child: FakeChild { held, pid, ended }, tun, args, index: 21 })
        };
        orphans.into_iter().filter_map(orphan).collect()
    }

    fn remove_filters(&self, kept: &[(u32, Hook)]) {
        let is_kept = |name: &str| {
            kept.iter().any(|(index, hook)| {
                name.starts_with(&format!("{hook:?}")) && name.ends_with(&format!(" on {index}"))
            })
        };
        self.sweep(|name| name.contains(" filter on ") && !is_kept(name));
    }

    fn adopt_rules(&self, kept: &[ClatdArgs]) -> io::Result<Vec<Held>> {
        self.sweep(|name| name.starts_with("rule "));
        kept.iter().map(|args| self.drop_rule(&args.uplink, &args.prefix, args.v6)).collect()
    }
}

impl Offload for FakeHost {
    type Programs = FakePrograms;

    fn programs(&self) -> io::Result<Option<FakePrograms>> {
        self.fault(Fault::Programs)?;
        let wanted = !self.inner().no_offload;
        Ok(wanted.then(|| FakePrograms(self.hold_or_adopt("programs".to_owned()))))
    }

    fn why_no_programs(&self) -> &'static str {
        "policy"
    }
}

/// Maps and filters that exist only in memory.
#[derive(Debug)]
pub(crate) struct FakePrograms(Held);

impl FakePrograms {
    fn hold(&self, fault: Fault, name: String) -> io::Result<Held> {
        self.0.host.fault(fault)?;
        Ok(self.0.host.hold_or_adopt(name))
    }
}

impl Programs for FakePrograms {
    type Entry = Held;
    type NextHop = Held;
    type Filter = Held;
    type Direct = (EgressEntry, Option<Held>);

    fn direct(&self, egress: &EgressEntry, _: &IngressEntry) -> io::Result<Self::Direct> {
        self.0.host.fault(Fault::Direct)?;
        Ok((egress.clone(), None))
    }

    fn set_route(
        &self,
        direct: &mut Self::Direct,
        route: Option<RouteAttributes>,
    ) -> io::Result<bool> {
        let (EgressEntry { oif, local4, .. }, held) = direct;
        *held = held.take().filter(|_| route.is_some());
        if let (Some(RouteAttributes { metric, mtu }), None) = (route, &held) {
            let name = format!("direct route by {oif} from {local4} metric {metric} mtu {mtu}");
            *held = Some(self.hold(Fault::DirectRoute, name)?);
        }
        Ok(false)
    }

    fn link_kind(&self, index: u32) -> io::Result<LinkKind> {
        self.0.host.fault(Fault::LinkKind)?;
        Ok(if index == 21 { LinkKind::Ethernet } else { LinkKind::RawIp })
    }

    fn next_hop(&self, entry: &EgressEntry) -> io::Result<Held> {
        self.hold(Fault::NextHop, format!("next hop of {}", entry.oif))
    }

    fn egress_entry(&self, entry: &EgressEntry) -> io::Result<Held> {
        let held = self.hold(Fault::EgressEntry, format!("egress entry of {}", entry.iif))?;
        self.0.host.inner().egress.push(entry.clone());
        Ok(held)
    }

    fn ingress_entry(&self, entry: &IngressEntry) -> io::Result<Held> {
        let held = self.hold(Fault::IngressEntry, format!("ingress entry of {}", entry.iif))?;
        self.0.host.inner().ingress.push(entry.clone());
        Ok(held)
    }

    fn attach(&self, index: u32, hook: Hook, link: LinkKind) -> Result<Held, AttachError> {
        self.0.host.fault(Fault::Clsact(index)).map_err(AttachError::Qdisc)?;
        self.0.host.inner().log.push(format!("clsact on {index}"));
        let fault = match hook {
            Hook::Egress => Fault::EgressFilter,
            Hook::Ingress => Fault::IngressFilter,
            Hook::Direct => Fault::DirectFilter,
        };
        self.hold(fault, format!("{hook:?} {link:?} filter on {index}"))
            .map_err(AttachError::Program)
    }

    fn has_room(&self, _: u32, _: Hook) -> io::Result<bool> {
        Ok(true)
    }

    fn place(&self, _: &Held) -> io::Result<Place> {
        self.0.host.fault(Fault::Place).map(|()| Place::First)
    }

    fn restore(&self, _: &Held) -> Result<(), AttachError> {
        Ok(())
    }

    fn clear_maps(&self, egress: &[&EgressEntry], ingress: &[&IngressEntry]) -> io::Result<()> {
        let egress = egress.iter().flat_map(|entry| {
            [format!("egress entry of {}", entry.iif), format!("next hop of {}", entry.oif)]
        });
        let ingress = ingress.iter().map(|entry| format!("ingress entry of {}", entry.iif));
        let kept: Vec<_> = egress.chain(ingress).collect();
        let is_kept = |name: &str| kept.iter().any(|kept| kept == name);
        let is_entry = |name: &str| name.contains(" entry of ") || name.starts_with("next hop of ");
        self.0.host.sweep(|name| is_entry(name) && !is_kept(name));
        Ok(())
    }

    fn ingress_map(&self) -> io::Result<Vec<IngressEntry>> {
        self.0.host.fault(Fault::Maps)?;
        Ok(self.0.host.inner().ingress.clone())
    }

    fn egress_map(&self) -> io::Result<Vec<EgressEntry>> {
        self.0.host.fault(Fault::Maps)?;
        Ok(self.0.host.inner().egress.clone())
    }

    fn counters(&self, hook: Hook, local4: Ipv4Addr) -> io::Result<Option<OffloadCounters>> {
        self.0.host.fault(Fault::Counters)?;
        let packets = u64::from(local4.octets()[3]) + 10 * u64::from(hook == Hook::Ingress);
        let mut counters = OffloadCounters { packets, ..OffloadCounters::default() };
        counters.passed[1] = 5;
        Ok(Some(counters))
    }
}
