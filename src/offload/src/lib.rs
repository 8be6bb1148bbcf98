// SPDX-License-Identifier: Apache-2.0

//! A CLAT's translation in the kernel: the tc programs of bpf_progs, their maps, where they are
//! attached, what they count, and the next hops that they use. Whatever has to be undone is a value
//! whose `Drop` undoes it.
#![forbid(unsafe_code)]

pub mod abi;
#[cfg(not(target_os = "android"))]
mod load;
mod model;
mod next_hop;
mod objects;
mod pins;
mod tc;

pub use model::{EgressEntry, Hook, IngressEntry, OffloadCounters, PASSED_REASONS};
pub use next_hop::NextHop;
pub use objects::{Entry, Objects};
pub use pins::{program_name, BPF_DIR, PROGRAMS};
pub use tc::{remove_leftovers, AttachError, Filter, Place};
