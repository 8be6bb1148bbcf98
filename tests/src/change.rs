// SPDX-License-Identifier: Apache-2.0

//! Changes of a network while a phone is on it.

use std::net::Ipv6Addr;

use anyhow::{Context, Result};

use crate::lab::{Lab, UPLINK6};
use crate::packet::{icmpv6, proto, V6};
use crate::wire::send_raw;

/// Lifetime in seconds of advertised options.
const VALID: u32 = 1800;

/// An MTU option (RFC 4861 §4.6.4).
#[must_use]
pub fn mtu_option(mtu: u32) -> Vec<u8> {
    [&[5, 1, 0, 0][..], &mtu.to_be_bytes()].concat()
}

/// A prefix option (RFC 4861 §4.6.2): a /64 on the link, for autoconfiguration; deprecated if
/// `is_preferred` is false.
#[must_use]
pub fn prefix_option(prefix: Ipv6Addr, is_preferred: bool) -> Vec<u8> {
    const ON_LINK_AND_AUTONOMOUS: u8 = 0xc0;
    let preferred = if is_preferred { VALID } else { 0 };
    let lifetimes = [VALID.to_be_bytes(), preferred.to_be_bytes(), [0; 4]].concat();
    [&[3, 4, 64, ON_LINK_AND_AUTONOMOUS][..], &lifetimes, &prefix.octets()].concat()
}

/// Sends a router advertisement (RFC 4861 §4.2) with these options and router lifetime 0 to an
/// address of the phone on `up0`.
///
/// # Errors
/// If the router has no link-local address.
pub fn advertise(lab: &Lab, to: Ipv6Addr, options: &[u8]) -> Result<()> {
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const HOP_LIMIT: u32 = 64 << 24;
    // Reachable Time and Retrans Timer are unspecified.
    send(lab, to, ROUTER_ADVERTISEMENT, HOP_LIMIT, &[&[0; 8], options].concat())
}

/// Makes the router advertise an address as its own (RFC 4861 §4.4).
///
/// # Errors
/// If the router has no link-local address.
pub fn claim(lab: &Lab, address: Ipv6Addr) -> Result<()> {
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u32 = 1 << 29;
    const AT: [u8; 8] = [2, 1, 2, 0, 0, 0, 0x56, 0x78];
    let rest = [&address.octets()[..], &AT].concat();
    send(lab, UPLINK6, NEIGHBOUR_ADVERTISEMENT, OVERRIDE, &rest)
}

/// Sends a neighbour discovery message from the router's link-local address on `up0`'s link.
fn send(lab: &Lab, to: Ipv6Addr, kind: u8, word: u32, rest: &[u8]) -> Result<()> {
    let addresses = lab.router.run("ip -o -6 addr show dev ph0 scope link")?;
    let own = addresses.split_whitespace().find_map(|word| word.strip_suffix("/64")?.parse().ok());
    let own: Ipv6Addr = own.with_context(|| format!("no link-local address: {addresses}"))?;
    let message = icmpv6(own, to, kind, 0, word, rest);
    let header = V6 { hops: 255, ..V6::new(own, to, proto::ICMPV6) };
    send_raw(&lab.router, &header.packet(&message))
}

/// Moves `up0` from one /64 to another, by hand.
///
/// # Errors
/// The error of `ip`.
pub fn renumber(lab: &Lab) -> Result<()> {
    lab.router.run("ip -6 addr add 2001:db8:11::1/64 dev ph0 nodad")?;
    lab.phone.run("ip -6 addr del 2001:db8:1::2/64 dev up0")?;
    lab.phone.run("ip -6 addr add 2001:db8:11::2/64 dev up0 nodad")?;
    lab.phone.run("ip -6 route replace default via 2001:db8:11::1 dev up0 metric 100").map(drop)
}

/// Sets the MTU of both ends of `up0`.
///
/// # Errors
/// The error of `ip`.
pub fn set_link_mtu(lab: &Lab, mtu: u32) -> Result<()> {
    lab.router.run(&format!("ip link set ph0 mtu {mtu}"))?;
    lab.phone.run(&format!("ip link set up0 mtu {mtu}")).map(drop)
}

/// Renames `up0`, and restores what it loses if the kernel renames no interface that is up (before
/// Linux 6.2).
///
/// # Errors
/// The error of `ip`.
pub fn rename(lab: &Lab, name: &str) -> Result<()> {
    if lab.phone.run(&format!("ip link set up0 name {name}")).is_err() {
        lab.phone.run("ip link set up0 down")?;
        lab.phone.run(&format!("ip link set up0 name {name}"))?;
        lab.phone.run(&format!("ip link set {name} up"))?;
        lab.phone.run(&format!("ip -6 addr replace 2001:db8:1::2/64 dev {name} nodad"))?;
        let route = format!("default via 2001:db8:1::1 dev {name} metric 100");
        lab.phone.run(&format!("ip -6 route replace {route}"))?;
    }
    Ok(())
}
