// SPDX-License-Identifier: Apache-2.0

//! Counters.

use serde::{Deserialize, Serialize};

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DropReason {
    /// Wrong lengths, or a source address that no host has.
    Malformed,
    Checksum,
    HopLimit,
    Protocol,
    /// To the host itself, or to an address that no host has.
    Forbidden,
    Limit,
    /// The host's kernel refused.
    HostError,
    /// A segment of no connection.
    NoFlow,
    /// From a peer to which the guest has not sent.
    Filtered,
    /// Its source address belongs to another station.
    ForeignSource,
}

/// Counters since the start.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct Stats {
    pub packets_up: u64,
    pub packets_down: u64,
    /// Bytes of payload sent and received by host sockets.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// UDP_SEGMENT sends and UDP_GRO receptions of several datagrams.
    pub gso_up: u64,
    pub gro_down: u64,
    /// sendmmsg calls that sent several datagrams.
    pub batches_up: u64,
    pub tcp: u64,
    pub udp: u64,
    pub echo: u64,
    /// Flows that were ended to make room for others.
    pub evicted: u64,
    /// Fragments from guests.
    pub fragments: u64,
    pub drops: Drops,
}

/// Drops by reason.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct Drops {
    pub malformed: u64,
    pub checksum: u64,
    pub hop_limit: u64,
    pub protocol: u64,
    pub forbidden: u64,
    pub limit: u64,
    pub host_error: u64,
    pub no_flow: u64,
    pub filtered: u64,
    pub foreign_source: u64,
}

impl Stats {
    /// Counts one.
    pub fn drop(&mut self, why: DropReason) {
        let drops = &mut self.drops;
        *match why {
            DropReason::Malformed => &mut drops.malformed,
            DropReason::Checksum => &mut drops.checksum,
            DropReason::HopLimit => &mut drops.hop_limit,
            DropReason::Protocol => &mut drops.protocol,
            DropReason::Forbidden => &mut drops.forbidden,
            DropReason::Limit => &mut drops.limit,
            DropReason::HostError => &mut drops.host_error,
            DropReason::NoFlow => &mut drops.no_flow,
            DropReason::Filtered => &mut drops.filtered,
            DropReason::ForeignSource => &mut drops.foreign_source,
        } += 1;
    }
}
