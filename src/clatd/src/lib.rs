// SPDX-License-Identifier: Apache-2.0

//! The CLAT's translator daemon (RFC 6877): IPv4 packets from a TUN device are translated and leave
//! by the uplink as IPv6, and back.
//!
//! [`daemon::run`] opens everything, gives up its privileges and then forwards packets by
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
