// SPDX-License-Identifier: Apache-2.0

//! The ClatdController: it starts, supervises and stops CLATs on network interfaces (464XLAT, RFC
//! 6877), and offers a binder service for that.
//!
//! [`controller::Controller`] holds a tracker for each running CLAT. Everything that a CLAT needs
//! of the system comes from a [`host::Host`] as a value that undoes itself when dropped.
#![forbid(unsafe_code)]

pub mod args;
#[cfg(not(target_os = "android"))]
pub mod auto;
pub mod binder_adapter;
pub mod client;
pub mod confinement;
pub mod controller;
pub mod dump;
pub mod ebpf_mode;
pub mod errors;
pub mod follow;
#[cfg(all(not(soong), any(test, fuzzing)))]
pub mod fuzz;
#[cfg(not(soong))]
pub mod gate;
pub mod host;
pub mod listeners;
pub mod logging;
pub mod model;
#[cfg(target_os = "android")]
pub mod no_auto;
mod offload;
mod original;
mod probe;
mod reconcile;
mod resources;
pub mod service;
pub mod status;
mod supervisor;
mod tracker;

#[cfg(target_os = "android")]
pub use no_auto as auto;

/// Where the controller listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/clat/controller.sock";

/// The service's name, on every transport.
pub const SERVICE_NAME: &str = "clatd_controller";
