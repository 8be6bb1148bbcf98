// SPDX-License-Identifier: Apache-2.0

//! What the controller would do on each uplink, determined once without doing it.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use clat_discover::{Found, Host, Verdict};
use clat_host::{Fwmark, IfaceName, ProbeTarget, PROBE_PATIENCE};
use clat_xlat::Prefix;
use nix::sys::eventfd::EventFd;

use super::network::{Network, Watched};
use super::settings::{Pattern, Settings};
use super::sockets::Routers;

/// The result for one uplink.
#[derive(Clone, Debug)]
pub struct Report {
    /// The uplink.
    pub iface: IfaceName,
    /// The host's state on it.
    pub host: Host,
    /// Its network's NAT64 prefix and the source of that.
    pub found: Option<Found>,
    /// The decision.
    pub verdict: Verdict,
    /// Whether router advertisements could be received, which needs root.
    pub hears_routers: bool,
}

/// Examines all uplinks, or the interfaces that match `only`. Takes at most `patience`, and no
/// longer than there is an answer to wait for.
///
/// # Errors
/// Those of netlink(7).
pub fn discover(only: Option<&Pattern>, patience: Duration) -> io::Result<Vec<Report>> {
    find(only.map_or_else(Settings::default, Settings::only), patience)
}

/// Finds out what would be done on this interface if it had no IPv4 and no DHCPv4 client asked for
/// it. `None` if it does not exist.
///
/// # Errors
/// Those of netlink(7).
pub fn without_ipv4(only: &Pattern, patience: Duration) -> io::Result<Option<Report>> {
    let settings = Settings { ignores_ipv4: true, ..Settings::only(only) };
    Ok(find(settings, patience)?.into_iter().next())
}

impl Report {
    /// Whether a host of the IPv4 internet answers by IPv6 through the PLAT of this prefix. Takes
    /// up to three seconds.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW.
    pub fn answers(&self, prefix: &Prefix, host: ProbeTarget) -> io::Result<bool> {
        clat_host::probe(&self.iface, Fwmark::from_bits(0), prefix, host, PROBE_PATIENCE)
    }
}

fn find(settings: Settings, patience: Duration) -> io::Result<Vec<Report>> {
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
