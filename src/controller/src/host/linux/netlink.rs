//! Routes, kinds and the removal of devices, by netlink (rtnetlink(7)).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator, NLM_F_ACK,
    NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST,
};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};
use nix::errno::Errno;

/// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_ALIGN: usize = 4;

/// Sends one request.
fn send(message: RouteNetlinkMessage, flags: u16) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    Ok(socket)
}

/// Sends one request and waits for its acknowledgement.
pub(super) fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let socket = send(message, NLM_F_ACK | flags)?;
    read(&socket, |_| ())?;
    Ok(())
}

/// Asks for a list, and gives what each message of the answer holds to `each`.
pub(super) fn dump(message: RouteNetlinkMessage, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = send(message, NLM_F_DUMP)?;
    while !read(&socket, &mut each)? {}
    Ok(())
}

/// Reads messages that come together; true when the last of them ends an answer of several.
fn read(socket: &Socket, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
    let (bytes, _) = socket.recv_from_full()?;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code =
                    message.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
                }
            }
            _ => each(message.payload()),
        }
        let length = usize::try_from(message.length()).map_err(io::Error::other)?;
        rest = rest.get(length.next_multiple_of(NLMSG_ALIGN)..).unwrap_or_default();
    }
    Ok(false)
}

/// What kind of device an interface is: its ARPHRD number.
pub(super) fn link_type(index: u32) -> io::Result<u16> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let socket = send(RouteNetlinkMessage::GetLink(link), 0)?;
    let mut found = None;
    // struct ifinfomsg: family, padding, type.
    read(&socket, |link| {
        found = link.get(2..4).and_then(|kind| Some(u16::from_ne_bytes(kind.try_into().ok()?)));
    })?;
    found.ok_or_else(|| Errno::ENODEV.into())
}

/// The interface by which packets from `source` to `destination` are routed where `index` is preferred.
pub(super) fn route_by(
    index: u32,
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> io::Result<Option<u32>> {
    /// Of struct rtmsg, which attributes follow.
    const HEADER_LEN: usize = 12;
    /// linux/rtnetlink.h
    const RTA_OIF: u16 = 4;
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet6;
    route.header.destination_prefix_length = 128;
    route.header.source_prefix_length = 128;
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet6(destination)),
        RouteAttribute::Source(RouteAddress::Inet6(source)),
        RouteAttribute::Oif(index),
    ];
    let socket = send(RouteNetlinkMessage::GetRoute(route), 0)?;
    let mut by = None;
    read(&socket, |route| {
        let mut attributes = NlasIterator::new(route.get(HEADER_LEN..).unwrap_or_default());
        let oif = attributes.find_map(|nla| nla.ok().filter(|nla| nla.kind() == RTA_OIF));
        by = oif.and_then(|oif| Some(u32::from_ne_bytes(oif.value().try_into().ok()?)));
    })?;
    Ok(by)
}

/// Removes a device, unless it is gone.
pub(super) fn delete_link(index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    match request(RouteNetlinkMessage::DelLink(link), 0) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        done => done,
    }
}

/// An IPv4 default route that goes away when dropped.
#[derive(Debug)]
pub struct DefaultRoute(RouteMessage);

impl DefaultRoute {
    pub(super) fn add(index: u32, source: Ipv4Addr, metric: u32) -> io::Result<Self> {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Link;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![
            RouteAttribute::Oif(index),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)),
            RouteAttribute::Priority(metric),
        ];
        request(RouteNetlinkMessage::NewRoute(route.clone()), NLM_F_CREATE | NLM_F_EXCL)?;
        Ok(Self(route))
    }
}

impl Drop for DefaultRoute {
    fn drop(&mut self) {
        match request(RouteNetlinkMessage::DelRoute(self.0.clone()), 0) {
            // Gone before us, with its device or by someone's hand.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => {}
            Err(e) => log::error!("cannot remove the IPv4 default route: {e}"),
            Ok(()) => {}
        }
    }
}
