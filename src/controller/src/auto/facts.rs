// SPDX-License-Identifier: Apache-2.0

//! Finds the uplinks, and the host's state on them.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use clat_discover::Host;
use clat_host::address::{is_usable_source, FIRST_V4, POOL_LEN};
use clat_host::{packet_socket_table, packet_sockets, IfaceName};
use clat_netlink::{
    addresses4, addresses6, default_sources4, next_hop, Address6, Link, LinkKind, Target,
};
use nix::libc;

use super::resolvers::{is_link_local, resolvers};
use super::settings::Settings;

/// Kinds of virtual device (IFLA_INFO_KIND) that can be uplinks. Tunnels, VPNs and container
/// devices are not.
const KINDS: [&str; 8] = ["", "bond", "dsa", "macvlan", "rmnet", "team", "vlan", "wwan"];

/// The uplinks among these interfaces, by their kind unless the settings name them.
pub(super) fn uplinks(links: &[Link], settings: &Settings) -> BTreeMap<u32, IfaceName> {
    let is_port = |link: &Link, bridge: u32| link.master == Some(bridge) && is_physical(link);
    let is_uplink = |link: &Link| {
        // A port of a bond or bridge is no uplink itself.
        link.master.is_none()
            && (is_physical(link)
                || link.kind == "bridge" && links.iter().any(|port| is_port(port, link.index)))
    };
    let wanted = links.iter().filter(|link| {
        let can_be = LinkKind::from_hardware(link.hardware).is_some();
        can_be && settings.names(&link.name).unwrap_or_else(|| is_uplink(link))
    });
    wanted.filter_map(|link| Some((link.index, IfaceName::parse(&link.name).ok()?))).collect()
}

/// Whether an interface leads out of the machine, and is no virtual function, which may be meant
/// for a guest.
fn is_physical(link: &Link) -> bool {
    let is_virtual_function =
        || Path::new("/sys/class/net").join(&link.name).join("device/physfn").exists();
    LinkKind::from_hardware(link.hardware).is_some()
        && KINDS.contains(&link.kind.as_str())
        && !is_virtual_function()
}

/// Whether another program has a CLAT on one of these interfaces: an address of RFC 7335's range,
/// which NetworkManager sets on the uplink itself and others on their own device. Our devices are
/// named as Android's.
pub(super) fn has_other_clat(links: &[Link]) -> bool {
    let mut others = links.iter().filter(|link| !link.name.starts_with("v4-"));
    others.any(|link| addresses4(link.index).is_ok_and(|found| found.into_iter().any(is_of_clat)))
}

/// The host's state on this interface. `ours` is the inode of our own packet socket there.
pub(super) fn host(link: &Link, ours: Option<u64>, has_other_clat: bool) -> io::Result<Host> {
    let addresses = addresses6(link.index)?;
    let preferred = || addresses.iter().filter(|a| a.is_preferred).map(|a| a.address);
    let default = |source| {
        let all = Target { oif: link.index, source, prefix: Ipv6Addr::UNSPECIFIED, prefix_len: 0 };
        Ok::<_, io::Error>(next_hop(&all)?.is_some())
    };
    let mut has_ipv6 = false;
    for source in preferred().filter(|address| is_usable_source(*address, false)) {
        has_ipv6 = has_ipv6 || link.has_carrier && default(source)?;
    }
    let has_neighbours = LinkKind::from_hardware(link.hardware) == Some(LinkKind::Ethernet);
    let sockets = packet_socket_table().unwrap_or_default();
    Ok(Host {
        has_link: link.has_carrier,
        has_link_local: preferred().any(is_link_local),
        has_ipv6,
        has_single_address: has_neighbours && are_single(&addresses),
        has_ipv4: link.has_carrier
            && addresses4(link.index)?.into_iter().any(is_native)
            && default_sources4(link.index)?.into_iter().any(is_native_or_none),
        has_dhcpv4: has_dhcpv4(&sockets, link.index, ours),
        has_other_clat,
        resolvers: resolvers(Path::new("/"), link.index, &link.name),
    })
}

/// Whether each of these addresses was assigned to this host individually, as by DHCPv6 (RFC 8415
/// §21.6), and none is of a prefix in which hosts choose addresses.
fn are_single(addresses: &[Address6]) -> bool {
    let mut usable = addresses.iter().filter(|found| is_usable_source(found.address, false));
    usable.all(|found| found.prefix_len > 64)
}

/// Whether an address is of native IPv4: not link-local (RFC 3927), loopback or a CLAT's.
fn is_native(address: Ipv4Addr) -> bool {
    !(address.is_link_local() || address.is_loopback() || is_of_clat(address))
}

fn is_native_or_none(source: Ipv4Addr) -> bool {
    source.is_unspecified() || is_native(source)
}

fn is_of_clat(address: Ipv4Addr) -> bool {
    let network = |address: Ipv4Addr| address.to_bits() >> (32 - POOL_LEN);
    network(address) == network(FIRST_V4)
}

/// Whether a packet socket receives IPv4 on an interface, as DHCP clients do before they have an
/// address. `table` is as of [`packet_socket_table`].
fn has_dhcpv4(table: &str, index: u32, ours: Option<u64>) -> bool {
    packet_sockets(table).any(|socket| {
        [libc::ETH_P_ALL, libc::ETH_P_IP].contains(&socket.protocol.into())
            && socket.iface == index
            && Some(socket.inode) != ours
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str, hardware: u16, master: Option<u32>) -> Link {
        let (name, kind) = (name.to_owned(), kind.to_owned());
        let address = None;
        Link {
            index,
            name,
            hardware,
            mtu: 1500,
            is_up: true,
            has_carrier: true,
            kind,
            master,
            address,
        }
    }

    #[test]
    fn which_interfaces_are_uplinks() {
        let links = [
            link(1, "lo", "", 772, None),
            link(2, "eth0", "", 1, None),
            link(3, "veth12", "veth", 1, None),
            link(4, "docker0", "bridge", 1, None),
            link(5, "wg0", "wireguard", 0xfffe, None),
            link(6, "tun0", "tun", 0xfffe, None),
            link(7, "rmnet_data0", "rmnet", 519, None),
            link(8, "eth1", "", 1, Some(9)),
            link(9, "br0", "bridge", 1, None),
            link(10, "veth13", "veth", 1, Some(4)),
            link(11, "eth0.7", "vlan", 1, None),
            link(12, "v4-eth0", "tun", 0xfffe, None),
            link(13, "sit0", "sit", 776, None),
        ];
        let of = |settings: &Settings| uplinks(&links, settings).into_keys().collect::<Vec<_>>();
        assert_eq!(of(&Settings::default()), [2, 7, 9, 11]);
        let named = Settings::named(&["veth1*", "sit0"], &["eth0", "br*"]);
        assert_eq!(of(&named), [3, 7, 10, 11]);
    }

    #[test]
    fn single_addresses() {
        for (addresses, single) in [
            (&[("fe80::1", 64), ("2001:db8::5", 128)][..], true),
            (&[("2001:db8::5", 128), ("2001:db8::a:b:c:d", 64)], false),
            (&[("fd00::5", 128)], true),
            (&[("2001:db8::5", 48)], false),
        ] {
            let found = addresses.iter().map(|(text, prefix_len)| Address6 {
                address: text.parse().expect(text),
                prefix_len: *prefix_len,
                is_preferred: true,
            });
            assert_eq!(are_single(&found.collect::<Vec<_>>()), single, "{addresses:?}");
        }
    }

    #[test]
    fn native_ipv4() {
        for (text, native) in [
            ("192.0.2.1", true),
            ("10.0.0.1", true),
            ("169.254.7.7", false),
            ("192.0.0.4", false),
            ("192.0.0.8", true),
            ("127.0.0.1", false),
        ] {
            assert_eq!(text.parse().map(is_native), Ok(native), "{text}");
        }
    }

    #[test]
    fn dhcp_clients() {
        let table = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode
ffff8a5f0a0b5800 3      3    0800   3     1 0      0      41234
ffff8a5f0a0b5000 3      3    86dd   2     1 0      0      41235
ffff8a5f0a0b6000 3      3    0003   4     1 0      0      41236
";
        assert!(has_dhcpv4(table, 3, None) && has_dhcpv4(table, 4, Some(41234)));
        assert!(!has_dhcpv4(table, 3, Some(41234)), "ours");
        assert!(!has_dhcpv4(table, 2, None) && !has_dhcpv4("", 3, None));
    }
}
