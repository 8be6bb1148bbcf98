// SPDX-License-Identifier: Apache-2.0

//! `platd`: an IPv6-only carrier network in one unprivileged process.
//!
//! A guest's Ethernet frames arrive on a [`link`]. [`network`] answers those to the network itself:
//! router advertisements, neighbour discovery, DHCPv6, DNS64, echo. All others belong to flows,
//! which become sockets of the host ([`flow`]). [`carrier`] connects these parts, [`driver`] runs
//! them, and [`daemon`] is the process.
#![forbid(unsafe_code)]

pub mod carrier;
pub mod clat;
pub mod cli;
pub mod control;
pub mod daemon;
#[doc(hidden)] // for tests and fuzz targets
pub mod dns_server;
mod dns_stream;
pub mod driver;
#[doc(hidden)]
pub mod fairness;
pub mod flow;
pub mod forward;
pub mod frame;
mod host_helper;
pub mod host_sockets;
pub mod icmp_error;
pub mod link;
pub mod net;
mod netlink;
mod netns_helper;
pub mod network;
pub mod profile;
mod read_budget;
mod resolv_conf;
mod resolvers;
mod sandbox;
pub mod settings;
pub mod status;
