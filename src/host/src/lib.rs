// SPDX-License-Identifier: Apache-2.0

//! What a CLAT needs of the host: a TUN device, addresses, a route, a drop rule, a clatd. Each is a
//! value whose `Drop` undoes it. For Linux and Android, in the network namespace of the calling
//! thread.
#![forbid(unsafe_code)]

pub mod address;
pub mod blackhole;
mod clatd_args;
mod default_route;
mod device;
pub mod firewall;
mod fwmark;
pub mod links;
mod lock;
mod names;
mod packet_sockets;
mod probe;
mod process;
mod progress;
pub mod record;
pub mod recovery;
mod share;

pub use clat_sys::HAS_NETD;
pub use clatd_args::ClatdArgs;
pub use default_route::DefaultRoute;
pub use device::Device;
pub use fwmark::Fwmark;
pub use lock::NamespaceLock;
pub use names::{IfaceName, NameError};
pub use packet_sockets::{packet_socket_table, packet_sockets, PacketSocket};
pub use probe::{probe, ProbeTarget, PROBE_PATIENCE};
pub use process::{spawn, spawn_heard, ClatdProcess, Ended};
pub use progress::{progress, Progress};
pub use record::RUN_DIR;
pub use share::Share;

/// Where programs are searched, independently of $PATH.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/system/bin";
