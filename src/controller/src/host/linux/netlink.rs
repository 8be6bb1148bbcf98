//! What takes netlink: routes and interface counters (rtnetlink(7)).

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL,
    NLM_F_REQUEST,
};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};

use crate::host::Traffic;

/// Sends one request and returns what comes back first: an object, or nothing for a mere acknowledgement.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
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

    let (answer, _) = socket.recv_from_full()?;
    let answer =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(object) => Ok(Some(object)),
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(None),
    }
}

/// The counters of an interface.
pub(super) fn traffic(index: u32) -> io::Result<Traffic> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let Some(RouteNetlinkMessage::NewLink(link)) = request(RouteNetlinkMessage::GetLink(link), 0)?
    else {
        return Err(io::Error::other("netlink answered something else"));
    };
    let stats = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats),
        _ => None,
    });
    let stats = stats.ok_or_else(|| io::Error::other("netlink told no counters"))?;
    Ok(Traffic {
        tx_packets: stats.tx_packets,
        tx_bytes: stats.tx_bytes,
        rx_packets: stats.rx_packets,
        rx_bytes: stats.rx_bytes,
    })
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
        request(
            RouteNetlinkMessage::NewRoute(route.clone()),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        )?;
        Ok(Self(route))
    }
}

impl Drop for DefaultRoute {
    fn drop(&mut self) {
        match request(RouteNetlinkMessage::DelRoute(self.0.clone()), NLM_F_ACK) {
            // Gone before us, with its device or by someone's hand.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => {}
            Err(e) => log::error!("cannot remove the IPv4 default route: {e}"),
            Ok(_) => {}
        }
    }
}
