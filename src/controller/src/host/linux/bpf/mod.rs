//! The tc programs and their maps (docs/contract.md, "Maps and programs"): pinned by bpfloader on Android, elsewhere loaded and pinned by us.

mod abi;
#[cfg(not(target_os = "android"))]
mod load;
mod next_hop;

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clat_netlink::Target;
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, MapType, Program};
use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::tc;
use crate::host::{EgressEntry, Hook, IngressEntry, LinkKind, OffloadCounters, Programs};
use abi::{
    counters_slot, slot, Counters, EgressKey, EgressValue, IngressKey, IngressValue, NextHopValue,
    Plain,
};
use clat_sys::HostError;
use next_hop::{NextHop, NextHops};

/// Where bpfloader pins things, and where we do unless told otherwise.
pub const BPF_DIR: &str = "/sys/fs/bpf";

const EGRESS_MAP: PinnedMap<EgressKey, EgressValue> =
    PinnedMap::new("map_clatd_clat_egress_map", MapType::Hash);
const INGRESS_MAP: PinnedMap<IngressKey, IngressValue> =
    PinnedMap::new("map_clatd_clat_ingress_map", MapType::Hash);
const NEXT_HOP_MAP: PinnedMap<u32, NextHopValue> =
    PinnedMap::new("map_clatd_clat_next_hop_map", MapType::Array);
const COUNTERS_MAP: PinnedMap<u32, Counters> =
    PinnedMap::new("map_clatd_clat_counters_map", MapType::PercpuArray);

/// The name that a map is pinned under, and what it is.
struct PinnedMap<K, V> {
    name: &'static str,
    kind: MapType,
    layout: PhantomData<(K, V)>,
}

impl<K, V> PinnedMap<K, V> {
    const fn new(name: &'static str, kind: MapType) -> Self {
        Self { name, kind, layout: PhantomData }
    }

    /// The one in `dir`; EINVAL where it is of another kind.
    fn open(&self, dir: &Path) -> io::Result<MapHandle> {
        let path = dir.join(self.name);
        let map = MapHandle::from_pinned_path(&path)
            .map_err(|e| HostError::during(path.display(), from_libbpf(e)))?;
        let found = (map.map_type(), map.key_size() as usize, map.value_size() as usize);
        let wanted = (self.kind, size_of::<K>(), size_of::<V>());
        if found == wanted {
            Ok(map)
        } else {
            let cause = format!("{}: {found:?} where {wanted:?} is wanted", path.display());
            Err(HostError::because(Errno::EINVAL, cause))
        }
    }
}

/// The name that a program is pinned under.
pub(super) fn program_name(hook: Hook, link: LinkKind) -> &'static str {
    match (hook, link) {
        (Hook::Egress, LinkKind::RawIp) => "prog_clatd_schedcls_egress_clat_rawip",
        (Hook::Egress, LinkKind::Ethernet) => "prog_clatd_schedcls_egress_clat_ether",
        (Hook::Ingress, LinkKind::RawIp) => "prog_clatd_schedcls_ingress_clat_rawip",
        (Hook::Ingress, LinkKind::Ethernet) => "prog_clatd_schedcls_ingress_clat_ether",
    }
}

/// All four programs.
pub(super) const PROGRAMS: [(Hook, LinkKind); 4] = [
    (Hook::Egress, LinkKind::RawIp),
    (Hook::Egress, LinkKind::Ethernet),
    (Hook::Ingress, LinkKind::RawIp),
    (Hook::Ingress, LinkKind::Ethernet),
];

/// The programs and maps in a folder of the BPF file system.
#[derive(Debug)]
pub struct Objects {
    dir: PathBuf,
    egress: Arc<MapHandle>,
    ingress: Arc<MapHandle>,
    /// Other people's objects have none of these.
    next_hops: Option<NextHops>,
    counters: Option<MapHandle>,
    #[cfg(not(target_os = "android"))]
    _pins: load::Pins,
}

impl Objects {
    /// Gets hold of the objects in `dir`. The maps hold what they held.
    pub(super) fn get(dir: &Path) -> io::Result<Self> {
        #[cfg(not(target_os = "android"))]
        let pins = load::Pins::make(dir)?;
        let egress = EGRESS_MAP.open(dir)?;
        let ingress = INGRESS_MAP.open(dir)?;
        // Maps without programs translate nothing: a loader may have left them out (they are optional), or be of another
        // kind.
        for (hook, link) in
            PROGRAMS.into_iter().filter(|used| *used != (Hook::Egress, LinkKind::Ethernet))
        {
            let path = dir.join(program_name(hook, link));
            let program = Program::fd_from_pinned_path(&path);
            program.map_err(|e| HostError::during(path.display(), from_libbpf(e)))?;
        }
        let next_hops = NEXT_HOP_MAP
            .open(dir)
            .inspect_err(|e| log::info!("the kernel's own routes will do: {e}"))
            .ok();
        let counters = COUNTERS_MAP
            .open(dir)
            .inspect_err(|e| log::info!("nothing will be counted in the kernel: {e}"))
            .ok();
        Ok(Self {
            dir: dir.to_owned(),
            egress: Arc::new(egress),
            ingress: Arc::new(ingress),
            next_hops: next_hops.map(NextHops::new).transpose()?,
            counters,
            #[cfg(not(target_os = "android"))]
            _pins: pins,
        })
    }

    /// Goes as a process does that is killed: the pins stay.
    #[cfg(test)]
    pub(super) fn abandon(mut self) {
        self._pins.abandon();
    }

    /// Adds an entry to `map`, and has what is counted for it in `slot` begin with zeros.
    fn insert<K: Plain, V: Plain>(
        &self,
        map: &Arc<MapHandle>,
        slot: u32,
        (key, value): (K, V),
    ) -> io::Result<Entry> {
        let (key, value) = (key.as_bytes(), value.as_bytes());
        match map.update(key, value, MapFlags::NO_EXIST) {
            // Of a former life, which this one goes on with.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                map.update(key, value, MapFlags::ANY).map_err(from_libbpf)?;
            }
            Err(e) => return Err(from_libbpf(e)),
            Ok(()) => {
                if let Some(counters) = &self.counters {
                    zero(counters, slot).unwrap_or_else(|e| {
                        log::warn!("the kernel's numbers do not begin with zero: {e}");
                    });
                }
            }
        }
        Ok(Entry { map: Arc::clone(map), key: key.to_vec() })
    }
}

/// Has all CPUs begin to count from zero.
fn zero(counters: &MapHandle, slot: u32) -> libbpf_rs::Result<()> {
    let none = vec![vec![0; size_of::<Counters>()]; libbpf_rs::num_possible_cpus()?];
    counters.update_percpu(slot.as_bytes(), &none, MapFlags::ANY)
}

/// Removes all entries, but not those whose keys are `kept`.
fn clear(map: &MapHandle, kept: &[Vec<u8>]) -> io::Result<()> {
    // Collected first: the kernel starts over when the key is gone that it is to go on from.
    let keys: Vec<_> = map.keys().filter(|key| !kept.contains(key)).collect();
    keys.iter().try_for_each(|key| map.delete(key)).map_err(from_libbpf)
}

fn entries<K: Plain, V: Plain, E>(map: &MapHandle, entry: fn(K, V) -> E) -> io::Result<Vec<E>> {
    let mut entries = Vec::new();
    for key in map.keys() {
        // One that has gone meanwhile is not there.
        let Some(value) = map.lookup(&key, MapFlags::ANY).map_err(from_libbpf)? else { continue };
        let read = K::read_from_bytes(&key).ok().zip(V::read_from_bytes(&value).ok());
        let (key, value) = read.ok_or(Errno::EINVAL)?;
        entries.push(entry(key, value));
    }
    Ok(entries)
}

/// libbpf-rs tells the kind of an error, and the rest in words.
#[allow(clippy::needless_pass_by_value)] // for map_err
fn from_libbpf(error: libbpf_rs::Error) -> io::Error {
    let errno = match error.kind() {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::PermissionDenied => Errno::EPERM,
        ErrorKind::AlreadyExists => Errno::EEXIST,
        ErrorKind::InvalidInput => Errno::EINVAL,
        ErrorKind::OutOfMemory => Errno::ENOMEM,
        _ => Errno::EIO,
    };
    HostError::because(errno, format!("{error:#}"))
}

/// An entry of a map, which goes away when dropped.
#[derive(Debug)]
pub struct Entry {
    map: Arc<MapHandle>,
    key: Vec<u8>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Err(e) = self.map.delete(&self.key) {
            log::error!("cannot remove an entry of map {:?}: {e}", self.map.name());
        }
    }
}

impl Programs for Objects {
    type Entry = Entry;
    type NextHop = Option<NextHop>;
    type Filter = tc::Filter;

    fn link_kind(&self, index: u32) -> io::Result<LinkKind> {
        let hardware = clat_netlink::link(index)?.hardware;
        LinkKind::from_hardware(hardware).ok_or_else(|| {
            let cause = format!("it is neither Ethernet nor raw IP, but of ARPHRD type {hardware}");
            HostError::because(Errno::EAFNOSUPPORT, cause)
        })
    }

    fn next_hop(&self, entry: &EgressEntry) -> io::Result<Option<NextHop>> {
        let follow = |next_hops: &NextHops| {
            let target = Target {
                oif: entry.oif,
                source: entry.local6,
                prefix: entry.pfx96,
                prefix_len: 96,
            };
            next_hops.follow(slot(entry.local4), target)
        };
        self.next_hops.as_ref().map(follow).transpose()
    }

    fn egress_entry(&self, entry: &EgressEntry) -> io::Result<Entry> {
        self.insert(&self.egress, counters_slot(Hook::Egress, entry.local4), entry.to_abi())
    }

    fn ingress_entry(&self, entry: &IngressEntry) -> io::Result<Entry> {
        self.insert(&self.ingress, counters_slot(Hook::Ingress, entry.local4), entry.to_abi())
    }

    fn add_clsact(&self, index: u32) -> io::Result<()> {
        tc::add_clsact(index)
    }

    fn add_filter(&self, index: u32, hook: Hook, link: LinkKind) -> io::Result<tc::Filter> {
        let name = program_name(hook, link);
        let path = self.dir.join(name);
        // Not ENOENT, which would speak of a kernel without NET_CLS_BPF.
        let program = Program::fd_from_pinned_path(&path)
            .map_err(|e| HostError::because(Errno::EIO, format!("{}: {e:#}", path.display())))?;
        tc::Filter::attach(index, hook, program.as_fd(), name)
    }

    fn is_attached(&self, filter: &tc::Filter) -> io::Result<bool> {
        filter.is_attached()
    }

    fn clear_maps(&self, kept: &[&(EgressEntry, IngressEntry)]) -> io::Result<()> {
        let bytes = |key: &dyn AsRef<[u8]>| key.as_ref().to_vec();
        let egress: Vec<_> = kept.iter().map(|(e, _)| bytes(&e.to_abi().0.as_bytes())).collect();
        let ingress: Vec<_> = kept.iter().map(|(_, i)| bytes(&i.to_abi().0.as_bytes())).collect();
        clear(&self.egress, &egress)?;
        clear(&self.ingress, &ingress)?;
        // What is counted begins with the next entry.
        self.next_hops.as_ref().map_or(Ok(()), NextHops::clear)
    }

    fn ingress_map(&self) -> io::Result<Vec<IngressEntry>> {
        entries(&self.ingress, IngressEntry::from_abi)
    }

    fn egress_map(&self) -> io::Result<Vec<EgressEntry>> {
        entries(&self.egress, EgressEntry::from_abi)
    }

    fn counters(&self, hook: Hook, local4: Ipv4Addr) -> io::Result<Option<OffloadCounters>> {
        let Some(counters) = &self.counters else { return Ok(None) };
        let slot = counters_slot(hook, local4);
        let cpus = counters.lookup_percpu(slot.as_bytes(), MapFlags::ANY).map_err(from_libbpf)?;
        let Some(cpus) = cpus else { return Ok(None) };
        let mut sum = OffloadCounters::default();
        for cpu in cpus {
            sum.add(&Counters::read_from_bytes(&cpu).map_err(|_| Errno::EINVAL)?);
        }
        Ok(Some(sum))
    }
}
