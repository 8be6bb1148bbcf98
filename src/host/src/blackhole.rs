// SPDX-License-Identifier: Apache-2.0

//! Keeps the kernel from answering or forwarding clatd's packets where there is no netd: a
//! blackhole route, which reloading a firewall does not remove (docs/firewall.md).

use std::io;
use std::net::Ipv6Addr;

use clat_xlat::Prefix;

use crate::{ClatdArgs, IfaceName};

/// A blackhole route for a CLAT's IPv6 address, removed when dropped.
#[derive(Debug)]
pub struct Rule(clat_netlink::Blackhole);

impl Rule {
    /// Makes the kernel drop packets to `v6`.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn add(_uplink: &IfaceName, _prefix: &Prefix, v6: Ipv6Addr) -> io::Result<Self> {
        let route = clat_netlink::Blackhole(v6);
        route.set()?;
        Ok(Self(route))
    }

    /// Restores the route if it is missing; returns whether it was.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn restore(&self) -> io::Result<bool> {
        let is_missing = !clat_netlink::Blackhole::all()?.contains(&self.0);
        if is_missing {
            self.0.set()?;
        }
        Ok(is_missing)
    }

    /// Takes over the routes that a previous controller left behind: one for each of `kept`, in
    /// this order. Removes others.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn adopt(kept: &[ClatdArgs]) -> io::Result<Vec<Self>> {
        for route in clat_netlink::Blackhole::all()? {
            if !kept.iter().any(|args| args.v6 == route.0) {
                log::warn!("removing the blackhole route of a previous controller for {}", route.0);
                route.delete()?;
            }
        }
        kept.iter().map(|args| Self::add(&args.uplink, &args.prefix, args.v6)).collect()
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        if let Err(e) = self.0.delete() {
            log::error!("cannot remove the blackhole route for {}: {e}", self.0 .0);
        }
    }
}
