// SPDX-License-Identifier: Apache-2.0

//! The direct way: an IPv4 default route through the uplink itself, along the IPv6 route; received
//! packets stay on the uplink as IPv4.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use clat_netlink::{next_hop, DirectRoute, NextHop, Target};
use clat_sys::HostError;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::errno::Errno;
use zerocopy::IntoBytes;

use crate::model::{EgressEntry, IngressEntry, RouteAttributes};
use crate::pins::from_libbpf;

/// The direct way of one CLAT. Packets use the TUN device before [`Self::set_route`] and after the
/// drop.
#[derive(Debug)]
pub struct Direct {
    pub(crate) guard: OwnedFd,
    pub(crate) ingress_map: Arc<MapHandle>,
    pub(crate) egress: EgressEntry,
    pub(crate) ingress: IngressEntry,
    /// The route that is set.
    pub(crate) route: Option<DirectRoute>,
}

impl Direct {
    /// Routes packets through the uplink itself by a route with these
    /// attributes; without any, through the TUN device, as after an error. Returns whether somebody
    /// else had removed the route.
    ///
    /// # Errors
    /// EHOSTUNREACH without a router; those of [`DirectRoute::set`] and of bpf(2).
    pub fn set_route(&mut self, route: Option<RouteAttributes>) -> io::Result<bool> {
        let Some(route) = route else { return self.withdraw().map(|()| false) };
        let is_repair = self.route_by(route);
        if is_repair.is_err() {
            self.withdraw()?;
        }
        is_repair
    }

    fn route_by(&mut self, attributes: RouteAttributes) -> io::Result<bool> {
        let route = self.desired_route(attributes)?;
        let is_known = self.route == Some(route);
        if is_known && route.is_set()? {
            return Ok(false);
        }
        self.route = Some(route);
        route.set(self.guard.as_fd())?;
        // After the route, so that rp_filter accepts the packets.
        self.receive_by(self.egress.oif)?;
        Ok(is_known)
    }

    /// The route, through the uplink's router for the prefix.
    fn desired_route(&self, attributes: RouteAttributes) -> io::Result<DirectRoute> {
        let RouteAttributes { metric, mtu } = attributes;
        let EgressEntry { local4, oif, local6, prefix, oif_is_ethernet, .. } = self.egress;
        let found = next_hop(&Target { oif, source: local6, prefix, prefix_len: 96 })?;
        let gateway = match found {
            Some(NextHop::Gateway(router)) => Some(router).filter(|_| oif_is_ethernet),
            Some(NextHop::OnLink) if !oif_is_ethernet => None,
            _ => {
                let cause = format!("no router leads to {prefix}/96");
                return Err(HostError::because(Errno::EHOSTUNREACH, cause));
            }
        };
        Ok(DirectRoute { oif, gateway, source: local4, metric, mtu })
    }

    fn withdraw(&mut self) -> io::Result<()> {
        let Some(route) = self.route.take() else { return Ok(()) };
        // Deletes the route even if this fails: packets of the other direction are accepted all the
        // same.
        let received = self.receive_by(self.ingress.oif);
        route.delete()?;
        received
    }

    /// Sets the interface that receives translated packets.
    fn receive_by(&self, oif: u32) -> io::Result<()> {
        let (key, value) = IngressEntry { oif, ..self.ingress.clone() }.to_abi();
        let put = self.ingress_map.update(key.as_bytes(), value.as_bytes(), MapFlags::EXIST);
        put.map_err(from_libbpf)
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        if let Err(e) = self.withdraw() {
            log::error!("cannot take the direct way back: {e}");
        }
    }
}
