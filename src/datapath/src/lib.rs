// SPDX-License-Identifier: Apache-2.0

//! What a CLAT does to packets between its TUN device and its uplink, beside translating them:
//! checksums and segmentation that a sender has left to its hardware, reassembly, and sending in
//! batches to the next hop.
#![forbid(unsafe_code)]

pub mod batch;
pub mod coalesce;
pub mod filter;
pub mod forward;
pub mod next_hop;
pub mod partial_checksum;
pub mod path;
pub mod segment;
pub mod socket;
pub mod tally;
pub mod tun;
pub mod uplink;
