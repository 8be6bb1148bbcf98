// SPDX-License-Identifier: Apache-2.0

//! The errors of requests: an errno for programs, and a line for people.

use std::io;

use clat_sys::errno_of;
use nix::errno::Errno;

/// The step of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Step {
    /// Checking the name that the caller gave.
    #[error("use this name")]
    CheckName,
    /// Checking whether a CLAT runs there already (docs/contract.md, start, 1).
    #[error("start a CLAT")]
    Start,
    /// Looking for the CLAT to stop (3.3).
    #[error("stop its CLAT")]
    Stop,
    /// Changing its network.
    #[error("change its network")]
    ChangeNetwork,
    /// Finding the network of the interface (2).
    #[error("find its network")]
    FindNetwork,
    /// Creating the TUN device (3 and 4).
    #[error("create its TUN device")]
    CreateTun,
    /// Parsing the NAT64 prefix (5).
    #[error("parse the NAT64 prefix")]
    ParsePrefix,
    /// Picking an IPv4 address (5).
    #[error("pick an IPv4 address")]
    PickV4,
    /// Making an IPv6 address (5).
    #[error("make an IPv6 address")]
    MakeV6,
    /// Adding the drop rule (7).
    #[error("add the drop rule")]
    AddRule,
    /// Starting clatd (8).
    #[error("start clatd")]
    Spawn,
    /// Finding out whether the uplink has Ethernet headers (9). Errors of this and the following
    /// steps of the offload are only logged.
    #[error("offload its CLAT: tell its kind of link")]
    FindLinkKind,
    /// Finding the next hop of an Ethernet uplink (9).
    #[error("offload its CLAT: find its next hop")]
    FindNextHop,
    /// Adding the entry of the egress map (9).
    #[error("offload its CLAT: add its entry to the egress map")]
    AddEgressEntry,
    /// Adding the entry of the ingress map (9).
    #[error("offload its CLAT: add its entry to the ingress map")]
    AddIngressEntry,
    /// Adding a clsact (9).
    #[error("offload its CLAT: add a clsact qdisc")]
    AddClsact,
    /// Attaching the filter of the TUN device (9).
    #[error("offload its CLAT: attach the egress filter")]
    AddEgressFilter,
    /// Attaching the filter of the uplink (9).
    #[error("offload its CLAT: attach the ingress filter")]
    AddIngressFilter,
    /// Preparing the direct way.
    #[error("have its packets go directly")]
    GoDirect,
    /// Waiting for clatd to set up the TUN device (standalone only).
    #[error("get clatd ready")]
    AwaitClatd,
    /// Setting the default route (standalone only).
    #[error("set the IPv4 default route")]
    AddRoute,
    /// Starting the supervision of clatd (10).
    #[error("watch over clatd")]
    Supervise,
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{iface}: cannot {step}: {cause}")]
pub struct Error {
    /// Its errno.
    pub errno: Errno,
    /// The interface, made printable.
    pub iface: String,
    /// The step that failed.
    pub step: Step,
    /// What happened, and what helps.
    pub cause: String,
}

impl Error {
    /// An error of `step` on `iface`.
    pub fn new(
        errno: Errno,
        iface: impl Into<String>,
        step: Step,
        cause: impl Into<String>,
    ) -> Self {
        Self { errno, iface: iface.into(), step, cause: cause.into() }
    }

    /// An error of the host in `step`; EIO if it has no errno.
    pub fn io(error: &io::Error, iface: impl Into<String>, step: Step) -> Self {
        Self::new(errno_of(error), iface, step, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use clat_sys::HostError;

    use super::*;

    #[test]
    fn an_error_says_where_and_which_step() {
        let error = HostError::during("/dev/net/tun", Errno::EPERM);
        let error = Error::io(&error, "wlan0", Step::CreateTun);
        assert_eq!(
            error.to_string(),
            "wlan0: cannot create its TUN device: /dev/net/tun: Operation not permitted (os error \
                1)"
        );
    }
}
