// SPDX-License-Identifier: Apache-2.0

//! A CLAT's translation in the kernel: the tc programs of bpf_progs, their maps, attachment,
//! counters and next hops. What has to be undone is a value whose `Drop` undoes it.
#![forbid(unsafe_code)]

#[cfg(feature = "bpf")]
pub mod abi;
#[cfg(feature = "bpf")]
mod direct;
#[cfg(all(feature = "bpf", not(target_os = "android")))]
mod load;
mod model;
#[cfg(feature = "bpf")]
mod next_hop;
#[cfg(not(feature = "bpf"))]
mod none;
#[cfg(feature = "bpf")]
mod objects;
#[cfg(feature = "bpf")]
mod pins;
#[cfg(feature = "bpf")]
mod tc;

pub use model::{
    AttachError, EgressEntry, Hook, IngressEntry, OffloadCounters, Place, RouteAttributes,
    PASSED_REASONS,
};
#[cfg(not(feature = "bpf"))]
pub use none::{remove_leftovers, Direct, Entry, Filter, NextHop, Objects};
#[cfg(feature = "bpf")]
pub use {
    direct::Direct,
    next_hop::NextHop,
    objects::{Entry, Objects},
    pins::{program_name, MAPS, PROGRAMS},
    tc::{remove_leftovers, Filter},
};

/// Whether this build has programs and maps.
pub const HAS_BPF: bool = cfg!(feature = "bpf");

/// Where Android's network loader pins the programs.
#[cfg(target_os = "android")]
pub const BPF_DIR: &str = "/sys/fs/bpf/net_shared";
/// Where we pin the programs, unless told otherwise.
#[cfg(not(target_os = "android"))]
pub const BPF_DIR: &str = "/sys/fs/bpf";
