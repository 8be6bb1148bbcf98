// SPDX-License-Identifier: Apache-2.0

//! Flows through the engine: translation, fairness, and building and parsing of packets.
#![allow(clippy::unwrap_used)] // helpers are tests too

mod fairness;
#[path = "../invariants/mod.rs"]
#[allow(dead_code)] // what DNS over TCP must hold to
mod invariants;
mod lab;
mod properties;
mod visits;
