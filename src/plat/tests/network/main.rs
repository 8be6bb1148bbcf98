// SPDX-License-Identifier: Apache-2.0

//! The network as a guest sees it: frames in, frames out.
#![allow(clippy::unwrap_used)] // helpers are tests too

mod dhcp;
mod dns;
mod guest;
mod icmp;
mod nd;
mod properties;
