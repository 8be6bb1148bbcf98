//! The CLAT's translator daemon (RFC 6877): IPv4 packets from a TUN device are translated and leave by the uplink as
//! IPv6, and back.
//!
//! [`daemon::run`] opens everything, gives up its privileges and then forwards packets one by one ([`forward`]). What
//! needs no system call is pure and is told the time: [`reassembly`], [`segment`], [`checksum`], [`limit`], [`load`].

pub mod args;
pub mod checksum;
pub mod counters;
pub mod daemon;
pub mod filter;
pub mod forward;
pub mod group;
pub mod interest;
pub mod limit;
pub mod link;
pub mod load;
pub mod neighbour;
pub mod open;
pub mod privileges;
pub mod queue;
pub mod reassembly;
pub mod segment;
pub mod slots;
pub mod socket;
pub mod uplink;
pub mod way;
