// SPDX-License-Identifier: Apache-2.0

//! Translation between guests' destinations and addresses on the host's network, and which are
//! forbidden.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::settings::Settings;

/// Why a destination is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The host itself, or its link.
    Forbidden,
    /// No host can have it.
    NoRoute,
}

/// The host's address for a guest's `remote`.
pub fn target(settings: &Settings, remote: Ipv6Addr) -> Result<IpAddr, Refused> {
    let (address, mapped) = if let Some(v4) = settings.prefix64.extract(remote) {
        (IpAddr::V4(v4), false)
    } else if let Some(v4) = remote.to_ipv4_mapped() {
        (IpAddr::V4(v4), true)
    } else {
        (IpAddr::V6(remote), false)
    };
    if mapped && settings.dual_stack.is_none() {
        return Err(Refused::Forbidden);
    }
    if settings.map_host.contains(&address) || settings.map_host.contains(&IpAddr::V6(remote)) {
        return Ok(match address {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let forbidden = match address {
        IpAddr::V4(v4) => is_forbidden4(v4),
        IpAddr::V6(v6) => is_forbidden6(v6),
    };
    if forbidden {
        return Err(Refused::Forbidden);
    }
    // There is no other host on the guest's own network.
    let own = match (address, settings.dual_stack) {
        (IpAddr::V6(v6), _) => v6.to_bits() >> 64 == settings.prefix.to_bits() >> 64,
        (IpAddr::V4(v4), Some(dual)) if mapped => {
            let host_bits = 32 - u32::from(dual.prefix_len.min(32));
            (v4.to_bits() ^ dual.router.to_bits()).checked_shr(host_bits).unwrap_or(0) == 0
        }
        _ => false,
    };
    if own {
        Err(Refused::NoRoute)
    } else {
        Ok(address)
    }
}

/// Loopback, "this host", link-local, multicast, broadcast.
fn is_forbidden4(v4: Ipv4Addr) -> bool {
    v4.octets()[0] == 0
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_broadcast()
        || v4 == STAND_IN
}

/// The same, and every form that the host's kernel would read as an IPv4 address.
fn is_forbidden6(v6: Ipv6Addr) -> bool {
    v6.to_bits() >> 32 == 0
        || v6.to_ipv4_mapped().is_some()
        || v6.is_multicast()
        || v6.is_unicast_link_local()
}

/// The address that a guest sees for `address`; `like` is an address of the guest itself.
pub fn seen(settings: &Settings, address: IpAddr, like: Ipv6Addr) -> Ipv6Addr {
    let name = |address| match address {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(v4) if like.to_ipv4_mapped().is_some() => v4.to_ipv6_mapped(),
        IpAddr::V4(v4) => settings.prefix64.embed(v4),
    };
    if address.is_loopback() {
        // The host answers by its mapped address; if there are several, by the first, since it is
        // not known which was used.
        let mut names = settings.map_host.iter().map(|ip| name(*ip));
        if let Some(name) = names.find(|name| target(settings, *name) == Ok(address)) {
            return name;
        }
    }
    name(address)
}

/// Represents the host itself to a guest: the IPv4 dummy address (RFC 7600 §4.8).
pub const STAND_IN: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Whether an address is the host's own or on its link, so that a guest cannot name it.
pub fn is_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_forbidden4(v4),
        IpAddr::V6(v6) => is_forbidden6(v6),
    }
}

/// The address that a guest sees for a peer at a forwarded port.
pub fn visitor(settings: &Settings, address: IpAddr, like: Ipv6Addr) -> Ipv6Addr {
    let address = address.to_canonical();
    seen(settings, if is_local(address) { STAND_IN.into() } else { address }, like)
}

/// The same for a guest that listens by IPv4 only, which cannot name an IPv6 peer.
pub fn visitor4(settings: &Settings, address: IpAddr, like: Ipv6Addr) -> Ipv6Addr {
    let address = address.to_canonical();
    visitor(settings, if address.is_ipv6() { STAND_IN.into() } else { address }, like)
}

#[cfg(test)]
#[path = "../../tests/unit/target.rs"]
mod tests;
