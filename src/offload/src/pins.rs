// SPDX-License-Identifier: Apache-2.0

//! The pinned objects and their names (docs/contract.md, "Maps and programs").

use std::io;
use std::mem::size_of;
use std::path::Path;

use clat_netlink::LinkKind;
use clat_sys::HostError;
use libbpf_rs::{ErrorKind, MapCore, MapHandle, MapType};
use nix::errno::Errno;

use crate::abi::{EgressKey, EgressValue, IngressKey, IngressValue, NextHopValue};
use crate::model::{Hook, OffloadCounters};

/// A pin's name: kind, object, and name in the object. Android's network loader names the object
/// after its file, bpf_progs/clatrs.c.
#[cfg(target_os = "android")]
macro_rules! pin {
    ($what:literal, $name:literal) => {
        concat!($what, "_clatrs_", $name)
    };
}
#[cfg(not(target_os = "android"))]
macro_rules! pin {
    ($what:literal, $name:literal) => {
        concat!($what, "_clatd_", $name)
    };
}

pub(crate) const EGRESS_MAP: PinnedMap =
    PinnedMap::new::<EgressKey, EgressValue>(pin!("map", "clat_egress_map"), MapType::Hash);
pub(crate) const INGRESS_MAP: PinnedMap =
    PinnedMap::new::<IngressKey, IngressValue>(pin!("map", "clat_ingress_map"), MapType::Hash);
pub(crate) const NEXT_HOP_MAP: PinnedMap =
    PinnedMap::new::<u32, NextHopValue>(pin!("map", "clat_next_hop_map"), MapType::Array);
pub(crate) const COUNTERS_MAP: PinnedMap =
    PinnedMap::new::<u32, OffloadCounters>(pin!("map", "clat_counters_map"), MapType::PercpuArray);

/// All maps except the programs' scratch memory.
pub const MAPS: [PinnedMap; 4] = [EGRESS_MAP, INGRESS_MAP, NEXT_HOP_MAP, COUNTERS_MAP];

/// A pinned map.
pub struct PinnedMap {
    /// Its file name.
    pub name: &'static str,
    kind: MapType,
    /// Sizes of a key and a value, in bytes.
    sizes: (usize, usize),
}

impl PinnedMap {
    const fn new<K, V>(name: &'static str, kind: MapType) -> Self {
        Self { name, kind, sizes: (size_of::<K>(), size_of::<V>()) }
    }

    /// Opens the one in `dir`; EINVAL if it is of another kind.
    pub(crate) fn open(&self, dir: &Path) -> io::Result<MapHandle> {
        let path = dir.join(self.name);
        let map = MapHandle::from_pinned_path(&path)
            .map_err(|e| HostError::during(path.display(), from_libbpf(e)))?;
        let sizes = (map.key_size() as usize, map.value_size() as usize);
        let (found, wanted) = ((map.map_type(), sizes), (self.kind, self.sizes));
        if found == wanted {
            Ok(map)
        } else {
            let cause = format!("{}: {found:?} where {wanted:?} is wanted", path.display());
            Err(HostError::because(Errno::EINVAL, cause))
        }
    }
}

/// The name in the object of the pin `pin`.
#[cfg(not(target_os = "android"))]
pub(crate) fn name_in_object(pin: &str) -> &str {
    pin.split_once("_clatd_").map_or(pin, |(_, name)| name)
}

/// The name of a program's pin.
#[must_use]
pub const fn program_name(hook: Hook, link: LinkKind) -> &'static str {
    match (hook, link) {
        (Hook::Egress, LinkKind::RawIp) => pin!("prog", "schedcls_egress_clat_rawip"),
        (Hook::Egress, LinkKind::Ethernet) => pin!("prog", "schedcls_egress_clat_ether"),
        (Hook::Ingress, LinkKind::RawIp) => pin!("prog", "schedcls_ingress_clat_rawip"),
        (Hook::Ingress, LinkKind::Ethernet) => pin!("prog", "schedcls_ingress_clat_ether"),
        (Hook::Direct, LinkKind::RawIp) => pin!("prog", "schedcls_direct_clat_rawip"),
        (Hook::Direct, LinkKind::Ethernet) => pin!("prog", "schedcls_direct_clat_ether"),
    }
}

/// The name of the pin of the direct route's program.
pub(crate) const GUARD: &str = pin!("prog", "lwt_xmit_clat_guard");

/// The four programs that every platform has.
pub const PROGRAMS: [(Hook, LinkKind); 4] = [
    (Hook::Egress, LinkKind::RawIp),
    (Hook::Egress, LinkKind::Ethernet),
    (Hook::Ingress, LinkKind::RawIp),
    (Hook::Ingress, LinkKind::Ethernet),
];

/// libbpf-rs gives only the kind of an error; the rest is in its text.
#[allow(clippy::needless_pass_by_value)] // for map_err
pub(crate) fn from_libbpf(error: libbpf_rs::Error) -> io::Error {
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
