// SPDX-License-Identifier: Apache-2.0

//! Which NAT64 prefix an uplink's network has, and whether a CLAT is wanted there.
//!
//! Nothing here does I/O or asks for the time: messages and facts go in with the time at which
//! they came, and out come messages to be sent, a verdict, and when to ask again.
//!
//! Prefixes come from router advertisements (RFC 8781), and where none has one, from the network's
//! DNS (RFC 7050); RFC 9872 wants that order. Whether they are used follows
//! draft-ietf-v6ops-claton.
#![forbid(unsafe_code)]

mod advertised;
mod dhcpv4;
mod resolved;
mod uplink;

pub use uplink::{Found, Host, Message, Source, Uplink, Verdict};
