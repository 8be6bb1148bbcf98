// SPDX-License-Identifier: Apache-2.0

//! The TUN device's address, MTU and state, and the path MTU of the uplink.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use clat_datapath::next_hop::MIN_MTU6;
use clat_netlink::{add_address, set_up};
use nix::net::if_::if_nametoindex;

/// Sets the address `v4`/32 and the MTU of the device `name`, and brings it up.
///
/// # Errors
/// The kernel's error, with the step that failed.
pub fn configure(name: &str, v4: Ipv4Addr, mtu: u32) -> anyhow::Result<()> {
    let index = if_nametoindex(name).with_context(|| format!("cannot find {name}"))?;
    set_up(index, Some(mtu)).with_context(|| format!("cannot set {name} up with MTU {mtu}"))?;
    add_address(index, v4).with_context(|| format!("cannot give {name} the address {v4}/32"))
}

/// An address inside the prefix for looking up its route: that of 8.8.8.8, as in AOSP's clatd.
#[must_use]
pub fn inside(prefix: &clat_xlat::Prefix) -> Ipv6Addr {
    prefix.embed(Ipv4Addr::new(8, 8, 8, 8))
}

/// The path MTU of the uplink, at least 1280 bytes; 1280, with a warning, if it is not known.
#[must_use]
pub fn mtu6_or_least(asked: io::Result<u32>) -> u32 {
    match asked {
        Ok(mtu) => mtu.max(MIN_MTU6),
        Err(error) => {
            log::warn!("cannot ask the path MTU towards the prefix ({error}); taking {MIN_MTU6}");
            MIN_MTU6
        }
    }
}
