// SPDX-License-Identifier: Apache-2.0

//! The IPv4 default route as a value.

use std::io;

use clat_netlink::Existing;

/// An IPv4 default route, removed when dropped.
#[derive(Debug)]
pub struct DefaultRoute(clat_netlink::DefaultRoute);

impl DefaultRoute {
    /// Adds the route; `existing` says what to do with one of the same metric.
    ///
    /// # Errors
    /// Those of [`clat_netlink::DefaultRoute::set`].
    pub fn set(route: clat_netlink::DefaultRoute, existing: Existing) -> io::Result<Self> {
        route.set(existing)?;
        Ok(Self(route))
    }

    /// Whether the route exists in the kernel.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn is_set(&self) -> io::Result<bool> {
        self.0.is_set()
    }

    /// Adds the route again.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn restore(&self) -> io::Result<()> {
        self.0.set(Existing::Replace)
    }

    /// Removes the route until [`Self::restore`].
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn withdraw(&self) -> io::Result<()> {
        self.0.delete()
    }
}

impl Drop for DefaultRoute {
    fn drop(&mut self) {
        if let Err(e) = self.0.delete() {
            log::error!("cannot remove the IPv4 default route: {e}");
        }
    }
}
