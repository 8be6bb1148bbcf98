// SPDX-License-Identifier: Apache-2.0

//! Replaces programs and maps in builds without BPF, which do not link libbpf. The types have no
//! values.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use clat_netlink::LinkKind;
use clat_sys::HostError;
use nix::errno::Errno;

use crate::model::{
    AttachError, EgressEntry, Hook, IngressEntry, OffloadCounters, Place, RouteAttributes,
};

/// The programs and maps.
#[derive(Debug)]
pub enum Objects {}

/// An entry of a map.
#[derive(Debug)]
pub enum Entry {}

/// A filter.
#[derive(Debug)]
pub enum Filter {}

/// The direct way of one CLAT.
#[derive(Debug)]
pub enum Direct {}

/// The next hop of one CLAT.
#[derive(Debug)]
pub enum NextHop {}

impl Objects {
    /// There are none.
    ///
    /// # Errors
    /// EOPNOTSUPP, always.
    pub fn get(_dir: &Path, _direct: bool) -> io::Result<Self> {
        Err(HostError::because(Errno::EOPNOTSUPP, "built without BPF"))
    }

    /// There are none.
    ///
    /// # Errors
    /// None.
    pub fn remove(_dir: &Path) -> io::Result<()> {
        Ok(())
    }

    /// The kind of link of an interface. Not called without programs.
    ///
    /// # Errors
    /// EOPNOTSUPP, always.
    pub fn link_kind(_index: u32) -> io::Result<LinkKind> {
        Err(Errno::EOPNOTSUPP.into())
    }
}

/// Methods that cannot be called.
macro_rules! never {
    ($of:ident: $($name:ident($($argument:ty),*) -> $result:ty;)+) => {
        #[allow(missing_docs, clippy::missing_errors_doc)]
        impl $of {
            $(pub fn $name(&self, $(_: $argument),*) -> $result {
                match *self {}
            })+
        }
    };
}

never! { Objects:
    next_hop(&EgressEntry) -> io::Result<Option<NextHop>>;
    egress_entry(&EgressEntry) -> io::Result<Entry>;
    ingress_entry(&IngressEntry) -> io::Result<Entry>;
    attach(u32, Hook, LinkKind) -> Result<Filter, AttachError>;
    restore(&Filter) -> Result<(), AttachError>;
    has_room(u32, Hook) -> io::Result<bool>;
    direct(&EgressEntry, &IngressEntry) -> io::Result<Direct>;
    clear_maps(&[&EgressEntry], &[&IngressEntry]) -> io::Result<()>;
    ingress_map() -> io::Result<Vec<IngressEntry>>;
    egress_map() -> io::Result<Vec<EgressEntry>>;
    counters(Hook, Ipv4Addr) -> io::Result<Option<OffloadCounters>>;
}

never! { Direct:
    set_route(Option<RouteAttributes>) -> io::Result<bool>;
}

never! { Filter:
    place() -> io::Result<Place>;
}

/// There are none.
///
/// # Errors
/// None.
pub fn remove_leftovers(_kept: &[(u32, Hook)]) -> io::Result<()> {
    Ok(())
}
