// SPDX-License-Identifier: Apache-2.0

//! What keeps the kernel from answering or forwarding what is clatd's, where there is no netd: a
//! route, which nobody flushes who reloads a firewall (docs/firewall.md).

use std::io;
use std::net::Ipv6Addr;

use clat_xlat::Prefix;

use crate::{ClatdArgs, IfaceName};

/// A blackhole route for a CLAT's IPv6 address, which goes away when dropped.
#[derive(Debug)]
pub struct Rule(clat_netlink::Blackhole);

impl Rule {
    /// Has the kernel drop what it receives for `v6`.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn add(_uplink: &IfaceName, _prefix: &Prefix, v6: Ipv6Addr) -> io::Result<Self> {
        let route = clat_netlink::Blackhole(v6);
        route.set()?;
        Ok(Self(route))
    }

    /// Puts it back where it is missing, and returns whether it was.
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

    /// Takes over what a controller left behind: one for each of `kept`, in this order, and no
    /// other.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn adopt(kept: &[ClatdArgs]) -> io::Result<Vec<Self>> {
        for route in clat_netlink::Blackhole::all()? {
            if !kept.iter().any(|args| args.v6 == route.0) {
                log::warn!("removing the blackhole route of a former life for {}", route.0);
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
