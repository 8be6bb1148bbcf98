// SPDX-License-Identifier: Apache-2.0

//! What would be done on each uplink, found out once and without doing it.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use clat_discover::{Found, Host, Verdict};
use clat_host::IfaceName;
use nix::sys::eventfd::EventFd;

use super::network::{Network, Watched};
use super::settings::{Pattern, Settings};
use super::sockets::Routers;

/// What was found out about one uplink.
#[derive(Clone, Debug)]
pub struct Report {
    /// The uplink.
    pub iface: IfaceName,
    /// What it has.
    pub host: Host,
    /// Its network's NAT64 prefix, and where it is from.
    pub found: Option<Found>,
    /// What that means.
    pub verdict: Verdict,
    /// Whether routers could be heard, which takes root.
    pub hears_routers: bool,
}

/// Finds out about all uplinks, or about this interface, whatever it is. Takes at most `patience`,
/// and no longer than there is something to wait for.
///
/// # Errors
/// Those of netlink(7).
pub fn discover(only: Option<&Pattern>, patience: Duration) -> io::Result<Vec<Report>> {
    let settings = only.map_or_else(Settings::default, Settings::only);
    let routers =
        Routers::open().inspect_err(|e| log::debug!("cannot listen to routers: {e}")).ok();
    let mut network = Network::new(settings, routers)?;
    let never = EventFd::new()?;
    let deadline = Instant::now() + patience;
    loop {
        let now = Instant::now();
        network.step(now);
        let waits = |verdict| matches!(verdict, Verdict::NoPrefix | Verdict::AwaitsDhcpv4);
        let waits = network.uplinks.values().any(|watched| waits(watched.uplink.verdict(now)));
        if !waits || now >= deadline {
            break;
        }
        network.wait(never.as_fd(), Some(deadline));
    }
    let now = Instant::now();
    let report = |watched: &Watched| Report {
        iface: watched.name.clone(),
        host: watched.uplink.host().clone(),
        found: watched.uplink.found(None, now),
        verdict: watched.uplink.verdict(now),
        hears_routers: network.hears_routers(),
    };
    Ok(network.uplinks.values().map(report).collect())
}
