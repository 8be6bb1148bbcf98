// SPDX-License-Identifier: Apache-2.0

//! Parses and builds packets of the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clat_packet::nd::ethernet_group;
use clat_tun::VirtioHeader;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv6Packet,
    IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket,
};

use crate::frame::{Mac, Out, ETHERNET};

/// Hop limit and TTL of packets that the network sends.
pub(super) const HOP_LIMIT: u8 = 64;

/// The two stations of the link: the router, and a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub(super) router: Mac,
    pub(super) guest: Mac,
}

impl Link {
    /// The same, to a group's Ethernet address.
    pub(super) fn to(self, guest: Mac) -> Self {
        Self { guest, ..self }
    }
}

/// A valid packet, without padding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub(super) link: Link,
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    /// Hop limit or TTL.
    pub(super) hops: u8,
    /// Protocol number behind the fixed header, where the payload begins.
    pub(super) next: u8,
    pub(super) payload: &'a [u8],
    /// Whether its transport checksum need not be verified: its sender has left it open, or the
    /// link has verified it.
    pub(super) trusted: bool,
    /// The packet from its IP header on.
    pub(super) whole: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The IPv6 packet in a frame's payload.
    pub(super) fn ipv6(link: Link, bytes: &'a [u8]) -> Option<Self> {
        let ip = Ipv6Packet::new_checked(bytes).ok().filter(|ip| ip.version() == 6)?;
        Some(Self {
            link,
            src: ip.src_addr().into(),
            dst: ip.dst_addr().into(),
            hops: ip.hop_limit(),
            next: ip.next_header().into(),
            payload: ip.payload(),
            trusted: false,
            whole: bytes.get(..ip.total_len())?,
        })
    }

    /// The IPv4 packet in a frame's payload, with a valid header checksum.
    pub(super) fn ipv4(link: Link, bytes: &'a [u8]) -> Option<Self> {
        let ip = Ipv4Packet::new_checked(bytes)
            .ok()
            .filter(|ip| ip.version() == 4 && ip.header_len() >= 20 && ip.verify_checksum())?;
        Some(Self {
            link,
            src: ip.src_addr().into(),
            dst: ip.dst_addr().into(),
            hops: ip.hop_limit(),
            next: ip.next_header().into(),
            payload: ip.payload(),
            trusted: false,
            whole: bytes.get(..ip.total_len().into())?,
        })
    }

    /// The same, with the frame's checksum state.
    pub(super) fn with(self, vnet: &VirtioHeader) -> Self {
        Self { trusted: vnet.needs_csum || vnet.data_valid, ..self }
    }

    /// Source and destination of an answer; the source is `from` if the packet was to a group.
    pub(super) fn reply_addrs(&self, from: IpAddr) -> (IpAddr, IpAddr) {
        (if self.dst.is_multicast() { from } else { self.dst }, self.src)
    }
}

/// The stations of a frame, its EtherType and its payload; `None` if it is not for the router, or
/// comes from a group address.
pub(super) fn ethernet(frame: &[u8], router: Mac) -> Option<(Link, EthernetProtocol, &[u8])> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let (to, guest) = (Mac(frame.dst_addr().0), Mac(frame.src_addr().0));
    if (to != router && !to.is_multicast()) || guest.is_multicast() {
        return None;
    }
    Some((Link { router, guest }, frame.ethertype(), frame.payload()))
}

/// Appends a frame of any protocol.
pub(super) fn send_raw(out: &mut Out, link: Link, protocol: EthernetProtocol, payload: &[u8]) {
    out.push_with(VirtioHeader::default(), |buf| {
        let start = buf.len();
        buf.resize(start + ETHERNET, 0);
        EthernetRepr {
            src_addr: EthernetAddress(link.router.0),
            dst_addr: EthernetAddress(link.guest.0),
            ethertype: protocol,
        }
        .emit(&mut EthernetFrame::new_unchecked(&mut buf[start..]));
        buf.extend_from_slice(payload);
    });
}

/// Appends a packet with `payload`, and fills in its checksum. Both addresses are of one family.
pub(super) fn send(
    out: &mut Out,
    link: Link,
    (src, dst): (IpAddr, IpAddr),
    hops: u8,
    protocol: IpProtocol,
    mut payload: Vec<u8>,
) {
    let addrs = (&src.into(), &dst.into());
    match (protocol, src, dst) {
        (IpProtocol::Icmpv6, IpAddr::V6(src), IpAddr::V6(dst)) => {
            Icmpv6Packet::new_unchecked(&mut payload).fill_checksum(&src, &dst);
        }
        (IpProtocol::Icmp, ..) => Icmpv4Packet::new_unchecked(&mut payload).fill_checksum(),
        (IpProtocol::Tcp, ..) => {
            TcpPacket::new_unchecked(&mut payload).fill_checksum(addrs.0, addrs.1);
        }
        (IpProtocol::Udp, ..) => {
            UdpPacket::new_unchecked(&mut payload).fill_checksum(addrs.0, addrs.1);
        }
        _ => {}
    }
    let ethertype = match (src, dst) {
        (IpAddr::V6(_), IpAddr::V6(_)) => EthernetProtocol::Ipv6,
        (IpAddr::V4(_), IpAddr::V4(_)) => EthernetProtocol::Ipv4,
        _ => return,
    };
    let header = IpRepr::new(src.into(), dst.into(), protocol, payload.len(), hops);
    let mut packet = vec![0; header.header_len()];
    header.emit(&mut packet[..], &ChecksumCapabilities::default());
    packet.append(&mut payload);
    send_raw(out, link, ethertype, &packet);
}

/// Ports and payload of a UDP packet with valid length and checksum, which is mandatory (RFC 8200
/// §8.1).
pub(super) fn udp<'a>(packet: &Packet<'a>, payload: &'a [u8]) -> Option<(u16, u16, &'a [u8])> {
    let udp = UdpPacket::new_checked(payload).ok()?;
    let has_one = udp.checksum() != 0 || packet.src.is_ipv4();
    let right = || has_one && udp.verify_checksum(&packet.src.into(), &packet.dst.into());
    if !packet.trusted && !right() {
        return None;
    }
    Some((udp.src_port(), udp.dst_port(), udp.payload()))
}

/// A UDP packet without its checksum, for [`send`]. `payload` has to fit.
pub(super) fn udp_with(src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 8];
    packet.extend_from_slice(payload);
    let mut udp = UdpPacket::new_unchecked(&mut packet);
    udp.set_src_port(src_port);
    udp.set_dst_port(dst_port);
    udp.set_len(u16::try_from(8 + payload.len()).unwrap_or(0));
    packet
}

/// The Ethernet address of an IPv6 group.
pub(super) fn group(addr: Ipv6Addr) -> Mac {
    Mac(ethernet_group(addr))
}

/// Whether two addresses are in one /64.
pub(super) fn same_64(a: Ipv6Addr, b: Ipv6Addr) -> bool {
    (a.to_bits() ^ b.to_bits()) >> 64 == 0
}

/// Whether two addresses are in one network of `bits`, 0 to 32.
pub(super) fn same_net(a: Ipv4Addr, b: Ipv4Addr, bits: u8) -> bool {
    (a.to_bits() ^ b.to_bits()).checked_shr(32 - u32::from(bits.min(32))).unwrap_or(0) == 0
}
