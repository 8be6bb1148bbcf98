//! The TUN device's address, MTU and state, and the path MTU of the uplink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{anyhow, Context};
use clat_datapath::next_hop::MIN_MTU6;
use netlink_packet_core::{
    NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::net::if_::if_nametoindex;

/// What translation adds to an IPv4 packet at most: IPv6's longer header and a Fragment Header (RFC 7915 §4.1).
const GROWTH: u32 = 28;

/// MTU of the TUN device for a path MTU of the uplink, both in bytes of IP.
#[must_use]
pub fn tun_mtu(mtu6: u32) -> u32 {
    // 65535 is what an IPv4 packet and a TUN device can have at most.
    mtu6.clamp(MIN_MTU6, 65535) - GROWTH
}

/// Gives the device `name` the address `v4`/32 and the MTU, and brings it up.
///
/// # Errors
/// What the kernel said, with the step that failed.
pub fn configure(name: &str, v4: Ipv4Addr, mtu: u32) -> anyhow::Result<()> {
    let index = if_nametoindex(name).with_context(|| format!("cannot find {name}"))?;
    let mut socket = Socket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
    socket.bind_auto().context("cannot bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("cannot connect a netlink socket")?;

    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = vec![LinkAttribute::Mtu(mtu)];
    request(&socket, RouteNetlinkMessage::SetLink(link), 0)
        .with_context(|| format!("cannot set {name} up with MTU {mtu}"))?;

    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 32;
    address.header.scope = AddressScope::Universe;
    address.header.index = index;
    address.attributes =
        vec![AddressAttribute::Local(IpAddr::V4(v4)), AddressAttribute::Address(IpAddr::V4(v4))];
    request(&socket, RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_REPLACE)
        .with_context(|| format!("cannot give {name} the address {v4}/32"))
}

/// One request, and the kernel's answer to it.
fn request(socket: &Socket, message: RouteNetlinkMessage, flags: u16) -> anyhow::Result<()> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io().into()),
        other => Err(anyhow!("unexpected netlink answer {other:?}")),
    }
}

/// An address inside the prefix, to ask the way there: that of 8.8.8.8, as the original asks.
#[must_use]
pub fn inside(prefix: &clat_xlat::Prefix) -> Ipv6Addr {
    prefix.embed(Ipv4Addr::new(8, 8, 8, 8))
}

/// The path MTU of the uplink, at least 1280 bytes; with a warning, 1280 when it cannot be asked.
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
