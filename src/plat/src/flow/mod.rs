// SPDX-License-Identifier: Apache-2.0

//! Flows: the traffic of guests, carried by sockets of the host.
//!
//! [`Engine`] uses neither clocks nor epoll. Packets enter by [`Engine::handle_input`], readiness
//! of sockets by [`Engine::handle_ready`], time by [`Engine::handle_timeout`]. After each batch of
//! these, [`Engine::poll_transmit`] sends the results: datagrams to the host's [`Sockets`], frames
//! to a [`Sink`]. [`Engine::poll_timeout`] says when it has to be called again.

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

/// The receiver of frames for the guest.
pub trait Sink {
    /// Takes a frame in pieces; `vnet` says what is left to complete in it.
    fn frame(&mut self, vnet: &VirtioHeader, parts: &[&[u8]]);
    /// An identification for fragments.
    fn next_id(&mut self) -> u32;
    /// Whether senders that can wait should do so: connections can, since their data stays in their
    /// rings.
    fn is_full(&self) -> bool {
        false
    }
}

/// Arguments of all steps.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The network's current settings.
    pub settings: &'a Settings,
    /// The time.
    pub now: Instant,
}
