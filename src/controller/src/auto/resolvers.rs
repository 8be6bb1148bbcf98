// SPDX-License-Identifier: Apache-2.0

//! The resolvers of an uplink, from files of network managers: its own if known, else the host's,
//! which are asked over the uplink in any case.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;

/// Directories in which systemd-networkd and systemd-resolved have a file per interface index, and
/// its key for servers.
const PER_LINK: [(&str, &str); 2] =
    [("run/systemd/netif/links", "DNS"), ("run/systemd/resolve/netif", "SERVERS")];

/// Files with all servers known to NetworkManager, and those of the host; the first that has any is
/// used.
const OF_ALL: [&str; 3] = [
    "run/NetworkManager/no-stub-resolv.conf",
    "run/systemd/resolve/resolv.conf",
    "etc/resolv.conf",
];

const PORT: u16 = 53;

/// The resolvers of the interface with this index and name, in files below `root`, best first.
pub(super) fn resolvers(root: &Path, index: u32, name: &str) -> Vec<SocketAddr> {
    let scoped = |word: &str| address(word, index, name);
    let mut found: Vec<SocketAddr> = Vec::new();
    for (folder, key) in PER_LINK {
        let text = read(&root.join(folder).join(index.to_string()));
        let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.extend(values.flat_map(str::split_whitespace).filter_map(scoped));
    }
    for file in OF_ALL {
        if !found.is_empty() {
            break;
        }
        let text = read(&root.join(file));
        let values = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        found.extend(values.filter_map(|value| scoped(value.trim())));
    }
    let mut known = std::collections::HashSet::new();
    found.retain(|resolver| known.insert(*resolver));
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A server in the format of these files: an address with optional zone, port, and TLS name after
/// `#`. `None` if the uplink cannot reach it: on another link, or on this host.
fn address(word: &str, index: u32, name: &str) -> Option<SocketAddr> {
    let word = word.split('#').next().unwrap_or_default();
    let (word, port) = match word.strip_prefix('[') {
        Some(rest) => {
            let (inside, behind) = rest.split_once(']')?;
            (inside, behind.strip_prefix(':').map_or(Some(PORT), |port| port.parse().ok())?)
        }
        None if word.matches(':').count() == 1 => {
            let (address, port) = word.split_once(':')?;
            (address, port.parse().ok()?)
        }
        None => (word, PORT),
    };
    let (word, zone) = word.split_once('%').map_or((word, None), |(a, zone)| (a, Some(zone)));
    if zone.is_some_and(|zone| zone != name && zone != index.to_string()) {
        return None;
    }
    let address: IpAddr = word.parse().ok()?;
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return None;
    }
    Some(match address {
        IpAddr::V6(address) if is_link_local(address) => {
            SocketAddrV6::new(address, port, 0, index).into()
        }
        _ => SocketAddr::new(address, port),
    })
}

/// Whether an address is in fe80::/10.
pub(super) fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_files_write_them() {
        for (word, resolver) in [
            ("2001:db8::53", Some("[2001:db8::53]:53")),
            ("192.0.2.53", Some("192.0.2.53:53")),
            ("192.0.2.53:5353", Some("192.0.2.53:5353")),
            ("[2001:db8::53]:5353#dns.example", Some("[2001:db8::53]:5353")),
            ("2001:db8::53#dns.example", Some("[2001:db8::53]:53")),
            ("fe80::1%wlan0", Some("[fe80::1%7]:53")),
            ("fe80::1%7", Some("[fe80::1%7]:53")),
            ("fe80::1", Some("[fe80::1%7]:53")),
            ("fe80::1%tun0", None),
            ("127.0.0.53", None),
            ("::1", None),
            ("::", None),
            ("", None),
            ("dns.example", None),
            ("[2001:db8::53", None),
            ("192.0.2.53:x", None),
        ] {
            let resolver = resolver.map(|text| text.parse().expect(text));
            assert_eq!(address(word, 7, "wlan0"), resolver, "{word}");
        }
    }

    #[test]
    fn an_uplink_s_own_before_those_of_all() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        let write = |file: &str, text: &str| {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("below root")).expect("a folder");
            fs::write(path, text).expect("written");
        };
        let of = |index| resolvers(root, index, "wlan0");
        assert_eq!(of(7), []);
        write(
            "etc/resolv.conf",
            "# by hand\nsearch example\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n",
        );
        assert_eq!(of(7), ["192.0.2.1:53".parse().expect("an address")]);
        write("run/systemd/resolve/netif/7", "LLMNR=yes\nSERVERS=2001:db8::1 2001:db8::2\n");
        write(
            "run/systemd/netif/links/7",
            "ADMIN_STATE=configured\nDNS=2001:db8::1\nDNS_OTHER=x\n",
        );
        let own = ["[2001:db8::1]:53", "[2001:db8::2]:53"].map(|text| text.parse().expect(text));
        assert_eq!(of(7), own);
        assert_eq!(of(8), ["192.0.2.1:53".parse().expect("an address")]);
    }
}
