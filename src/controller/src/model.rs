// SPDX-License-Identifier: Apache-2.0

//! CLATs, their events, and observers of these.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use clat_host::{Fwmark, IfaceName};
use clat_xlat::Prefix;

use crate::host::{OffloadCounters, Traffic};

/// A CLAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clat {
    /// The uplink.
    pub iface: IfaceName,
    /// Its index.
    pub index: u32,
    /// The TUN device.
    pub v4iface: IfaceName,
    /// Its index.
    pub v4index: u32,
    /// The NAT64 prefix.
    pub prefix: Prefix,
    /// The CLAT's IPv4 address.
    pub v4: Ipv4Addr,
    /// The CLAT's IPv6 address.
    pub v6: Ipv6Addr,
    /// Mark of the packets it sends.
    pub mark: Fwmark,
    /// When it was started.
    pub since: Instant,
}

/// The path of a CLAT's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PacketPath {
    /// By the uplink itself, where programs translate what they can.
    Direct,
    /// By the TUN device and programs on it, which translate what they can.
    Device,
    /// By the TUN device, all through clatd.
    Daemon,
}

impl PacketPath {
    /// Its name in options and in `ClatStatus.aidl`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Device => "device",
            Self::Daemon => "daemon",
        }
    }
}

/// One running CLAT, for those who want to know.
#[derive(Clone, Debug)]
pub struct Running {
    /// What it is.
    pub clat: Clat,
    /// Process id of its clatd; 0 while that is being started again.
    pub pid: i32,
    /// How often clatd was started again.
    pub restarts: u32,
    /// What passed the TUN device, translated by clatd; `None` when it cannot be read.
    pub traffic: Option<Traffic>,
    /// Which path its packets take now.
    pub path: PacketPath,
    /// Whether IPv4 works.
    pub working: Working,
    /// IPv4 packets that were to leave by the TUN device, seen from the program there; `None`
    /// without.
    pub egress: Option<OffloadCounters>,
    /// IPv6 packets that arrived on the uplink, seen from the program there; `None` without.
    pub ingress: Option<OffloadCounters>,
    /// What keeps packets from the programs.
    pub hindrances: Vec<String>,
}

/// An event of a CLAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was started, or continues with other names, addresses or indices.
    Started(Clat),
    /// It has ended, and all its resources are released.
    Stopped {
        /// Its uplink.
        iface: IfaceName,
        /// Why it ended.
        reason: StopReason,
    },
    /// A probe has shown whether IPv4 works over it.
    Probed {
        /// Its uplink.
        iface: IfaceName,
        /// Whether it works.
        working: Working,
    },
    /// Its clatd died.
    Died {
        /// Its uplink.
        iface: IfaceName,
        /// Its process id.
        pid: i32,
        /// How it ended, as in "exited with status 1".
        cause: String,
    },
    /// Another clatd was started instead of one that died.
    Restarted {
        /// Its uplink.
        iface: IfaceName,
        /// Process id of the new clatd.
        pid: i32,
        /// Number of restarts of this CLAT's clatd.
        restarts: u32,
        /// How the last clatd ended, as in "exited with status 1".
        cause: String,
    },
}

/// Whether IPv4 works over a CLAT, by a probe of a host on the IPv4 internet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Working {
    /// There was no probe, or no answer yet.
    #[default]
    Unknown,
    /// The host answers.
    Yes,
    /// The host does not answer.
    No,
}

impl Working {
    /// As text, as in ClatStatus.aidl.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Yes => "yes",
            Self::No => "no",
        }
    }
}

/// Why a CLAT ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It was requested.
    Requested,
    /// The controller is ending.
    Shutdown,
    /// Its uplink left its network, or the network no longer exists.
    NetworkGone,
    /// Its uplink no longer exists, or was replaced by another of that name.
    UplinkGone,
    /// It could not be brought to the desired state; the log says why.
    Failed,
}

/// Called with every [`Event`]; must not block.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;
