//! `platd`: an IPv6-only carrier network in one unprivileged process.
//!
//! Ethernet frames of a guest come in by a link. [`network`] answers what is for the network itself: router
//! advertisements, neighbour discovery, DHCPv6, DNS64, echo. The rest are flows, which become sockets of the host.
#![forbid(unsafe_code)]

pub mod frame;
pub mod link;
pub mod network;
pub mod settings;
