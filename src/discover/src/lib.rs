// SPDX-License-Identifier: Apache-2.0

//! Finds the NAT64 prefix of an uplink's network, and decides whether to run a CLAT there.
//!
//! Nothing here does I/O or reads a clock: callers pass in messages and the host's state with their
//! arrival time, and get messages to send, a verdict, and the time of the next call.
//!
//! Prefixes come from router advertisements (RFC 8781), or else from the network's DNS (RFC 7050),
//! in the order of RFC 9872. Whether a prefix is used follows draft-ietf-v6ops-claton.
#![forbid(unsafe_code)]

mod advertised;
mod dhcpv4;
mod resolved;
mod uplink;

pub use uplink::{Found, Host, Message, Source, Uplink, Verdict};
