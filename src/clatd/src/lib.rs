// SPDX-License-Identifier: Apache-2.0

//! The CLAT's translator daemon (RFC 6877): translates IPv4 packets of a TUN device to IPv6 packets
//! on the uplink, and back.
//!
//! [`daemon::run`] opens everything, drops its privileges and then forwards packets with
//! [`clat_datapath`].
#![forbid(unsafe_code)]

pub mod args;
pub mod counters;
pub mod daemon;
pub mod interest;
pub mod link;
pub mod load;
pub mod logging;
pub mod neighbour;
pub mod privileges;
pub mod queue;
