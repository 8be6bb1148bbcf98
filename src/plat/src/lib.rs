//! `platd`: an IPv6-only carrier network in one unprivileged process.
//!
//! Ethernet frames of a guest come in by a [`link`]. [`network`] answers what is for the network itself: router
//! advertisements, neighbour discovery, DHCPv6, DNS64, echo. The rest are flows, which become sockets of the host
//! ([`flow`]). [`carrier`] brings them together, [`driver`] lets them work; [`daemon`] is the process around it.
#![forbid(unsafe_code)]

pub mod carrier;
#[cfg(any(test, fuzzing))]
pub mod check;
pub mod clat;
pub mod cli;
pub mod daemon;
mod dns_server;
pub mod driver;
mod fair;
pub mod flow;
pub mod forward;
pub mod frame;
mod inside;
pub mod link;
mod messages;
mod netlink;
pub mod network;
mod pace;
mod resolvers;
mod sandbox;
pub mod settings;
pub mod status;
