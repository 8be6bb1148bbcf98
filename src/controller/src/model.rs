// SPDX-License-Identifier: Apache-2.0

//! What a CLAT is, what becomes of it, and who is told.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use clat_host::{Fwmark, IfaceName};
use clat_xlat::Prefix;

/// What a CLAT is.
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

/// What became of a CLAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was started, or goes on with other names, addresses or indices.
    Started(Clat),
    /// It has ended, and all that it held is gone.
    Stopped {
        /// Its uplink.
        iface: IfaceName,
        /// Why it ended.
        reason: StopReason,
    },
    /// Whether IPv4 works by it has become known.
    Probed {
        /// Its uplink.
        iface: IfaceName,
        /// Whether it does.
        working: Working,
    },
    /// Its clatd died.
    Died {
        /// Its uplink.
        iface: IfaceName,
        /// Process id that it had.
        pid: i32,
        /// How it ended, as in "exited with status 1".
        cause: String,
    },
    /// Another clatd was started in the place of one that died.
    Restarted {
        /// Its uplink.
        iface: IfaceName,
        /// Process id of the new clatd.
        pid: i32,
        /// How often that has happened to it.
        restarts: u32,
        /// How the last clatd ended, as in "exited with status 1".
        cause: String,
    },
}

/// Whether IPv4 works by a CLAT, as a host on the IPv4 internet answered or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Working {
    /// It was not asked, or has not answered yet.
    #[default]
    Unknown,
    /// It answers.
    Yes,
    /// It does not.
    No,
}

impl Working {
    /// In a word, as in ClatStatus.aidl.
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
    /// Somebody asked for it.
    Requested,
    /// The controller is ending.
    Shutdown,
    /// Its uplink left its network, or that is gone.
    NetworkGone,
    /// Its uplink is gone, or is another one.
    UplinkGone,
    /// It could not be brought to what is wanted of it; the log says why.
    Failed,
}

/// Is told of every [`Event`]; must not wait for anybody.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;
