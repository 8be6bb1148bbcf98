// SPDX-License-Identifier: Apache-2.0

//! A CLAT's path between its TUN device and its uplink, apart from translation: partial checksums,
//! segmentation, reassembly, and sending in batches to the next hop.
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
