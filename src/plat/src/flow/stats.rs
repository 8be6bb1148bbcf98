// SPDX-License-Identifier: Apache-2.0

//! What is counted.

use serde::{Deserialize, Serialize};

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DropReason {
    /// Its lengths lie, or it has a source that nobody has.
    Malformed,
    Checksum,
    HopLimit,
    Protocol,
    /// It was for the host itself, or for nobody.
    Forbidden,
    Limit,
    /// The host's kernel refused.
    HostError,
    /// A segment of no connection.
    NoFlow,
    /// From someone to whom the guest did not speak.
    Filtered,
    /// Its source address is another station's.
    ForeignSource,
}

/// Counters since the start.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct Stats {
    pub packets_up: u64,
    pub packets_down: u64,
    /// Payload, by what host sockets took and gave.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Several datagrams that a host socket took or gave as one (UDP_SEGMENT, UDP_GRO).
    pub trains_up: u64,
    pub trains_down: u64,
    /// Calls by which a host socket took several datagrams that are no train (sendmmsg).
    pub batches_up: u64,
    pub tcp: u64,
    pub udp: u64,
    pub echo: u64,
    /// Flows that were ended to make room for others.
    pub evicted: u64,
    /// Fragments of the guest.
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
