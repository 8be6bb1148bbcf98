// SPDX-License-Identifier: Apache-2.0

//! The programs and maps (docs/contract.md, "Maps and programs"): pinned by bpfloader on Android,
//! elsewhere loaded and pinned by us.

use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clat_netlink::{LinkKind, Target};
use clat_sys::{errno_of, HostError};
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, Program};
use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{counters_slot, slot, Plain};
use crate::direct::Direct;
#[cfg(not(target_os = "android"))]
use crate::load;
use crate::model::{AttachError, EgressEntry, Hook, IngressEntry, OffloadCounters};
use crate::next_hop::{NextHop, NextHops};
use crate::pins::{
    from_libbpf, program_name, COUNTERS_MAP, EGRESS_MAP, GUARD, INGRESS_MAP, NEXT_HOP_MAP, PROGRAMS,
};
use crate::tc::{self, Filter};

/// The programs and maps in a folder of the BPF file system.
#[derive(Debug)]
pub struct Objects {
    dir: PathBuf,
    egress: Arc<MapHandle>,
    ingress: Arc<MapHandle>,
    /// `None` for objects of others, which lack this map.
    next_hops: Option<NextHops>,
    counters: Option<MapHandle>,
    #[cfg(not(target_os = "android"))]
    _pins: load::Pins,
}

impl Objects {
    /// Opens the objects in `dir`, and those of the direct way if wanted. The maps keep their
    /// entries.
    ///
    /// # Errors
    /// Those of bpf(2) and of the BPF file system; EBUSY where another controller has them.
    #[cfg_attr(target_os = "android", allow(unused_variables))]
    pub fn get(dir: &Path, direct: bool) -> io::Result<Self> {
        #[cfg(not(target_os = "android"))]
        let pins = load::Pins::make(dir, direct)?;
        let egress = EGRESS_MAP.open(dir)?;
        let ingress = INGRESS_MAP.open(dir)?;
        // Check for the programs: a loader may have left them out, since they are optional, or be
        // of another kind.
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

    /// Removes what a previous controller has left in `dir`, without loading anything: the pins, or
    /// the entries where the pins are Android's.
    ///
    /// # Errors
    /// Those of the file system, and on Android of bpf(2); EBUSY where another controller has them.
    pub fn remove(dir: &Path) -> io::Result<()> {
        #[cfg(not(target_os = "android"))]
        return load::Pins::remove(dir);
        #[cfg(target_os = "android")]
        return Self::get(dir, false)?.clear_maps(&[], &[]);
    }

    /// Closes the objects and leaves their pins for the next controller.
    pub fn detach(self) {
        #[cfg(not(target_os = "android"))]
        self._pins.detach();
    }

    /// Adds an entry to `map`, and resets its counters in `slot`.
    fn insert<K: Plain, V: Plain>(
        &self,
        map: &Arc<MapHandle>,
        slot: u32,
        (key, value): (K, V),
    ) -> io::Result<Entry> {
        let (key, value) = (key.as_bytes(), value.as_bytes());
        match map.update(key, value, MapFlags::NO_EXIST) {
            // Of a previous controller: keep its counters.
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

/// Resets the counters of all CPUs.
fn zero(counters: &MapHandle, slot: u32) -> libbpf_rs::Result<()> {
    let none = vec![vec![0; size_of::<OffloadCounters>()]; libbpf_rs::num_possible_cpus()?];
    counters.update_percpu(slot.as_bytes(), &none, MapFlags::ANY)
}

/// Removes all entries except those whose keys are `kept`.
fn clear(map: &MapHandle, kept: &[Vec<u8>]) -> io::Result<()> {
    // Collect the keys first: after the deletion of a key, the kernel would restart the iteration.
    let keys: Vec<_> = map.keys().filter(|key| !kept.contains(key)).collect();
    keys.iter().try_for_each(|key| map.delete(key)).map_err(from_libbpf)
}

fn entries<K: Plain, V: Plain, E>(map: &MapHandle, entry: fn(K, V) -> E) -> io::Result<Vec<E>> {
    let mut entries = Vec::new();
    for key in map.keys() {
        // The entry may have been removed meanwhile.
        let Some(value) = map.lookup(&key, MapFlags::ANY).map_err(from_libbpf)? else { continue };
        let read = K::read_from_bytes(&key).ok().zip(V::read_from_bytes(&value).ok());
        let (key, value) = read.ok_or(Errno::EINVAL)?;
        entries.push(entry(key, value));
    }
    Ok(entries)
}

/// An entry of a map, removed when dropped.
#[derive(Debug)]
pub struct Entry {
    map: Arc<MapHandle>,
    key: Vec<u8>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Err(e) = self.map.delete(&self.key) {
            // The message of AOSP's ClatdController.
            let egress = self.map.name().to_string_lossy().contains("egress");
            let map = if egress { "mClatEgressMap" } else { "mClatIngressMap" };
            log::error!("{map}.deleteValue failure: {}", errno_of(&from_libbpf(e)).desc());
        }
    }
}

impl Objects {
    /// The kind of link of an interface.
    ///
    /// # Errors
    /// EAFNOSUPPORT where it is neither Ethernet nor raw IP; ENODEV where there is none.
    pub fn link_kind(index: u32) -> io::Result<LinkKind> {
        let hardware = clat_netlink::link(index)?.hardware;
        LinkKind::from_hardware(hardware).ok_or_else(|| {
            let cause = format!("it is neither Ethernet nor raw IP, but of ARPHRD type {hardware}");
            HostError::because(Errno::EAFNOSUPPORT, cause)
        })
    }

    /// Keeps the next hop for the entry's uplink in the map of next hops, until the value is
    /// dropped.
    ///
    /// # Errors
    /// Those of bpf(2) and of netlink.
    pub fn next_hop(&self, entry: &EgressEntry) -> io::Result<Option<NextHop>> {
        let follow = |next_hops: &NextHops| {
            let target = Target {
                oif: entry.oif,
                source: entry.local6,
                prefix: entry.prefix,
                prefix_len: 96,
            };
            next_hops.follow(slot(entry.local4), target)
        };
        self.next_hops.as_ref().map(follow).transpose()
    }

    /// Adds an entry to the egress map.
    ///
    /// # Errors
    /// Those of bpf(2): E2BIG where it is full.
    pub fn egress_entry(&self, entry: &EgressEntry) -> io::Result<Entry> {
        self.insert(&self.egress, counters_slot(Hook::Egress, entry.local4), entry.to_abi())
    }

    /// Adds an entry to the ingress map.
    ///
    /// # Errors
    /// Those of bpf(2): E2BIG where it is full.
    pub fn ingress_entry(&self, entry: &IngressEntry) -> io::Result<Entry> {
        self.insert(&self.ingress, counters_slot(Hook::Ingress, entry.local4), entry.to_abi())
    }

    /// The direct way of the CLAT with these entries, without a route yet.
    ///
    /// # Errors
    /// Those of bpf(2): ENOENT where the kernel took no program for it.
    pub fn direct(&self, egress: &EgressEntry, ingress: &IngressEntry) -> io::Result<Direct> {
        let path = self.dir.join(GUARD);
        let guard = Program::fd_from_pinned_path(&path)
            .map_err(|e| HostError::during(path.display(), from_libbpf(e)))?;
        let (egress, ingress) = (egress.clone(), ingress.clone());
        let ingress_map = Arc::clone(&self.ingress);
        Ok(Direct { guard, ingress_map, egress, ingress, route: None })
    }

    /// Attaches the program for this hook and kind of link to an interface.
    ///
    /// # Errors
    /// Those of bpf(2) and of netlink: ENOENT of the program where the kernel lacks NET_CLS_BPF.
    pub fn attach(&self, index: u32, hook: Hook, link: LinkKind) -> Result<Filter, AttachError> {
        self.put(index, hook, link)?;
        Ok(Filter { index, hook, link })
    }

    /// Whether a filter can be attached there: another program's filter may have its place.
    ///
    /// # Errors
    /// Those of netlink: ENODEV where there is no such interface.
    pub fn has_room(&self, index: u32, hook: Hook) -> io::Result<bool> {
        tc::has_room(index, hook)
    }

    /// Attaches a filter again that others have removed.
    ///
    /// # Errors
    /// As of [`Self::attach`].
    pub fn restore(&self, filter: &Filter) -> Result<(), AttachError> {
        self.put(filter.index, filter.hook, filter.link)
    }

    fn put(&self, index: u32, hook: Hook, link: LinkKind) -> Result<(), AttachError> {
        let name = program_name(hook, link);
        let path = self.dir.join(name);
        // Not ENOENT, which would mean a kernel without NET_CLS_BPF.
        let program = Program::fd_from_pinned_path(&path).map_err(|e| {
            let cause = format!("{}: {e:#}", path.display());
            AttachError::Program(HostError::because(Errno::EIO, cause))
        });
        tc::attach(index, hook, program, name)
    }

    /// Clears the maps, except these entries and their next hops.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn clear_maps(&self, egress: &[&EgressEntry], ingress: &[&IngressEntry]) -> io::Result<()> {
        let egress: Vec<_> = egress.iter().map(|e| e.to_abi().0.as_bytes().to_vec()).collect();
        let ingress: Vec<_> = ingress.iter().map(|i| i.to_abi().0.as_bytes().to_vec()).collect();
        clear(&self.egress, &egress)?;
        clear(&self.ingress, &ingress)?;
        // Counters are reset when an entry is added.
        self.next_hops.as_ref().map_or(Ok(()), NextHops::clear)
    }

    /// The entries of the ingress map.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn ingress_map(&self) -> io::Result<Vec<IngressEntry>> {
        entries(&self.ingress, IngressEntry::from_abi)
    }

    /// The entries of the egress map.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn egress_map(&self) -> io::Result<Vec<EgressEntry>> {
        entries(&self.egress, EgressEntry::from_abi)
    }

    /// The counters of one direction for the CLAT with an address; `None` without a map of
    /// counters.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn counters(&self, hook: Hook, local4: Ipv4Addr) -> io::Result<Option<OffloadCounters>> {
        let Some(counters) = &self.counters else { return Ok(None) };
        let slot = counters_slot(hook, local4);
        let cpus = counters.lookup_percpu(slot.as_bytes(), MapFlags::ANY).map_err(from_libbpf)?;
        let Some(cpus) = cpus else { return Ok(None) };
        let mut sum = OffloadCounters::default();
        for cpu in cpus {
            sum.add(&OffloadCounters::read_from_bytes(&cpu).map_err(|_| Errno::EINVAL)?);
        }
        Ok(Some(sum))
    }
}
