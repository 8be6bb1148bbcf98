// SPDX-License-Identifier: Apache-2.0

//! Flows: what a guest sends to the world, carried by sockets of the host.
//!
//! [`Engine`] is the seam, and knows neither clocks nor what waits for descriptors. A packet goes
//! in by [`Engine::handle_input`], a socket's readiness by [`Engine::handle_ready`], time by
//! [`Engine::handle_timeout`]; [`Engine::poll_transmit`] is due after each batch of them, and sends
//! what came of it: datagrams to the host's [`Sockets`], frames to a [`Sink`].
//! [`Engine::poll_timeout`] says when it wants to be asked again.

mod engine;
#[doc(hidden)] // for tests and fuzz targets
pub mod errors;
#[doc(hidden)]
pub mod fragments;
pub(crate) mod key;
mod memory;
mod ring;
pub(crate) mod sockets;
mod stats;
mod table;
#[doc(hidden)]
pub mod target;
pub mod tcp;
#[doc(hidden)]
pub mod wire;

use std::time::Instant;

use clat_tun::VirtioHeader;

use crate::settings::Settings;

pub use engine::{Bounds, Engine, FlowStatus};
pub use key::Id;
pub use sockets::{Connection, Datagrams, Ends, Ready, Received, Report, Sockets};
pub use stats::{DropReason, Drops, Stats};
pub use wire::Offload;

/// Where frames for the guest go.
pub trait Sink {
    /// Takes a frame, in pieces: what to complete in it is in `vnet`.
    fn frame(&mut self, vnet: &VirtioHeader, parts: &[&[u8]]);
    /// An identification for fragments.
    fn next_id(&mut self) -> u32;
    /// Whether whoever can wait should: connections can, since what they have to say stays where it
    /// is.
    fn is_full(&self) -> bool {
        false
    }
}

/// What all steps need to know.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The network as it is now.
    pub settings: &'a Settings,
    /// The time.
    pub now: Instant,
}
