// SPDX-License-Identifier: Apache-2.0

//! Interfaces and addresses, by sockets and /proc.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use clat_sys::socket::{set_int, set_mark};
use clat_sys::HAS_NETD;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::{if_indextoname, if_nametoindex, InterfaceFlags};
use nix::sys::socket::{
    connect, getsockname, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType,
    SockaddrIn6,
};

use crate::{Fwmark, IfaceName};

/// The port to connect to, DNS's as in AOSP. Nothing is sent: connecting a datagram socket only
/// looks up a route.
const ANY_PORT: u16 = 53;

/// Traffic of an interface since it was created, as counted by the kernel; `tx` is sent by the
/// interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
}

/// The index of an interface; `None` if there is none of that name.
#[must_use]
pub fn index_of(iface: &IfaceName) -> Option<u32> {
    if_nametoindex(iface.as_str()).ok()
}

/// The name of an interface; `None` if there is none of that index.
#[must_use]
pub fn name_of(index: u32) -> Option<String> {
    // nix 0.29 takes the null pointer of a failure for success and returns an empty name.
    let name = if_indextoname(index).ok().and_then(|name: CString| name.into_string().ok());
    name.filter(|name| !name.is_empty())
}

/// Whether an interface has this address.
///
/// # Errors
/// Those of socket(2).
pub fn has_address(addr: Ipv4Addr) -> io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // To a local destination, the kernel chooses the same address as source.
    Ok(socket.connect((addr, ANY_PORT)).is_ok() && socket.local_addr()?.ip() == IpAddr::V4(addr))
}

/// The source address of packets with `mark` to `destination` by `uplink`; without netd a temporary
/// one (RFC 8981) only if there is no other, for it ends before a CLAT does.
///
/// # Errors
/// Those of connect(2): `ENETUNREACH` without a route.
pub fn source_towards(
    uplink: &IfaceName,
    mark: Fwmark,
    destination: Ipv6Addr,
) -> io::Result<Ipv6Addr> {
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(uplink.as_str()))?;
    set_mark(socket.as_fd(), mark.bits())?;
    if !HAS_NETD {
        // RFC 5014, linux/in6.h
        const IPV6_ADDR_PREFERENCES: i32 = 72;
        const IPV6_PREFER_SRC_PUBLIC: i32 = 2;
        set_int(&socket, libc::IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, IPV6_PREFER_SRC_PUBLIC)?;
    }
    let destination = SockaddrIn6::from(SocketAddrV6::new(destination, ANY_PORT, 0, 0));
    connect(socket.as_raw_fd(), &destination)?;
    Ok(getsockname::<SockaddrIn6>(socket.as_raw_fd())?.ip())
}

/// Disables IPv6 on an interface.
///
/// # Errors
/// Those of writing a sysctl.
pub fn disable_ipv6(iface: &IfaceName) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{iface}/disable_ipv6"), "1")
}

/// Has an interface take packets from anywhere, whichever the way back would be (RFC 3704 §2.4),
/// also where the machine is stricter.
///
/// # Errors
/// Those of writing a sysctl.
pub fn accept_from_anywhere(iface: &IfaceName) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv4/conf/{iface}/rp_filter"), "2")
}

/// The traffic counters of an interface.
///
/// # Errors
/// `ENODEV` if it no longer exists.
pub fn traffic(iface: &IfaceName) -> io::Result<Traffic> {
    // From /proc: /sys shows the network namespace in which it was mounted.
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    traffic_of(&table, iface.as_str()).ok_or_else(|| Errno::ENODEV.into())
}

/// Whether the interface is up and has the address.
///
/// # Errors
/// Those of getifaddrs(3).
pub fn is_configured(iface: &IfaceName, addr: Ipv4Addr) -> io::Result<bool> {
    Ok(getifaddrs()?.any(|found| {
        found.interface_name == iface.as_str()
            && found.flags.contains(InterfaceFlags::IFF_UP)
            && found
                .address
                .as_ref()
                .and_then(|a| a.as_sockaddr_in())
                .is_some_and(|a| a.ip() == addr)
    }))
}

/// The counters of an interface in the text of /proc/net/dev (proc_net(5)).
fn traffic_of(table: &str, iface: &str) -> Option<Traffic> {
    let numbers =
        table.lines().find_map(|line| line.trim_start().strip_prefix(iface)?.strip_prefix(':'))?;
    let numbers: Vec<u64> =
        numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let [rx_bytes, rx_packets, _, _, _, _, _, _, tx_bytes, tx_packets, ..] = numbers[..] else {
        return None;
    };
    Some(Traffic { tx_packets, tx_bytes, rx_packets, rx_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters() {
        let table = "Inter-|   Receive                                 |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls
    lo:   10    1    0    0    0    0    0    0       10    1    0    0    0    0    0    0
v4-wlan0: 18446744073709551615    3    4    5    6    7    8    9   20    2    0    0    0    0
";
        let traffic = Traffic { tx_packets: 2, tx_bytes: 20, rx_packets: 3, rx_bytes: u64::MAX };
        assert_eq!(traffic_of(table, "v4-wlan0"), Some(traffic));
        assert_eq!(traffic_of(table, "wlan0"), None);
        assert_eq!(traffic_of(table, "v4-wlan"), None);
        assert_eq!(traffic_of("v4-wlan0: 1 2 3", "v4-wlan0"), None);
    }
}
