//! Interfaces and addresses: what the socket interface tells about them.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{if_indextoname, if_nametoindex, InterfaceFlags};
use nix::sys::socket::{
    connect, getsockname, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType,
    SockaddrIn6,
};

use super::{netlink, LinuxHost};
use crate::fwmark::Fwmark;
use crate::host::{Links, Traffic};
use crate::names::IfaceName;

/// Nothing is sent to it: connecting a datagram socket only looks up a route. DNS, as in the original.
const ANY_PORT: u16 = 53;

impl Links for LinuxHost {
    type Route = netlink::DefaultRoute;

    fn index_of(&self, iface: &IfaceName) -> Option<u32> {
        if_nametoindex(iface.as_str()).ok()
    }

    fn name_of(&self, index: u32) -> Option<String> {
        if_indextoname(index).ok().and_then(|name: CString| name.into_string().ok())
    }

    fn has_address(&self, addr: Ipv4Addr) -> io::Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // The kernel talks to an address of its own from that same address.
        Ok(socket.connect((addr, ANY_PORT)).is_ok()
            && socket.local_addr()?.ip() == IpAddr::V4(addr))
    }

    fn source_towards(
        &self,
        uplink: &IfaceName,
        mark: Fwmark,
        destination: Ipv6Addr,
    ) -> io::Result<Ipv6Addr> {
        let socket =
            socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(uplink.as_str()))?;
        setsockopt(&socket, sockopt::Mark, &mark.bits())?;
        let destination = SockaddrIn6::from(SocketAddrV6::new(destination, ANY_PORT, 0, 0));
        connect(socket.as_raw_fd(), &destination)?;
        Ok(getsockname::<SockaddrIn6>(socket.as_raw_fd())?.ip())
    }

    fn disable_ipv6(&self, iface: &IfaceName) -> io::Result<()> {
        fs::write(format!("/proc/sys/net/ipv6/conf/{iface}/disable_ipv6"), "1")
    }

    fn traffic(&self, index: u32) -> io::Result<Traffic> {
        netlink::traffic(index)
    }

    fn is_configured(&self, iface: &IfaceName, addr: Ipv4Addr) -> io::Result<bool> {
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

    fn default_route(&self, index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Self::Route> {
        netlink::DefaultRoute::add(index, source, metric)
    }
}
