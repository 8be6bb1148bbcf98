// SPDX-License-Identifier: Apache-2.0

//! A guest's side of the link: builds and parses frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use clat_plat::frame::{Mac, Out};
use clat_plat::network::{Handled, Network, Query};
use clat_plat::settings::{DualStack, Settings};
use clat_tun::VirtioHeader;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv6Packet,
    IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpPacket, UdpPacket,
};

pub(crate) const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
pub(crate) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
pub(crate) const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const ROUTER_GLOBAL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x464, 0, 0, 0, 0, 1);
pub(crate) const GLOBAL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x464, 0, 0, 0, 0, 9);
pub(crate) const DNS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x464, 0, 0, 0, 0, 0x53);
pub(crate) const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc633, 0x6401);
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
pub(crate) const ROUTER4: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
pub(crate) const GUEST4: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 2);

/// A network, a clock, and the last output.
pub(crate) struct Lab {
    pub(crate) network: Network,
    pub(crate) now: Instant,
}

/// A packet from the network; its checksums have been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) to: Mac,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) hops: u8,
    pub(crate) protocol: IpProtocol,
    pub(crate) payload: Vec<u8>,
    pub(crate) whole: Vec<u8>,
}

impl Lab {
    pub(crate) fn new(settings: Settings) -> Self {
        let now = Instant::now();
        Self { network: Network::new(settings, now), now }
    }

    pub(crate) fn dual_stack() -> Self {
        Self::new(Settings { dual_stack: Some(DualStack::default()), ..Settings::default() })
    }

    pub(crate) fn sleep(&mut self, time: Duration) -> Vec<Got> {
        self.now += time;
        let mut out = Out::default();
        self.network.poll(self.now, &mut out);
        read(&out)
    }

    /// Sends a frame; returns the answers, and whom it was for.
    pub(crate) fn send(&mut self, frame: &[u8]) -> (Handled, Vec<Got>) {
        let mut out = Out::default();
        let handled = self.network.input(frame, &VirtioHeader::default(), self.now, &mut out);
        (handled, read(&out))
    }

    /// Sends a packet to the network, which gets one answer or none.
    pub(crate) fn ask(&mut self, frame: &[u8]) -> Option<Got> {
        let (handled, mut got) = self.send(frame);
        assert_eq!(handled, Handled::Yes);
        assert!(got.len() <= 1, "{got:?}");
        got.pop()
    }

    pub(crate) fn dns(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let got = self.ask(&udp6((GLOBAL, 4000), (DNS, 53), message))?;
        assert_eq!((got.src, got.dst), (DNS.into(), GLOBAL.into()));
        assert_eq!(got.payload[..4], [0, 53, 0x0f, 0xa0]);
        Some(got.payload[8..].to_vec())
    }

    pub(crate) fn query(&mut self) -> Query {
        let mut queries = self.network.take_queries();
        assert_eq!(queries.len(), 1, "{queries:?}");
        queries.remove(0)
    }

    pub(crate) fn resolved(&mut self, token: u64, message: &[u8]) -> Option<Vec<u8>> {
        let mut out = Out::default();
        self.network.dns_answer(token, message, self.now, &mut out);
        let mut got = read(&out);
        assert!(got.len() <= 1);
        got.pop().map(|got| got.payload[8..].to_vec())
    }
}

pub(crate) fn read(out: &Out) -> Vec<Got> {
    out.iter().map(|(_, frame)| parse(frame)).collect()
}

fn parse(frame: &[u8]) -> Got {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(frame.src_addr(), EthernetAddress(Settings::default().mac.0));
    let to = Mac(frame.dst_addr().0);
    let bytes = frame.payload();
    let got = match frame.ethertype() {
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(bytes).unwrap();
            assert_eq!(ip.total_len(), bytes.len());
            Got {
                to,
                src: ip.src_addr().into(),
                dst: ip.dst_addr().into(),
                hops: ip.hop_limit(),
                protocol: ip.next_header(),
                payload: ip.payload().to_vec(),
                whole: bytes.to_vec(),
            }
        }
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(bytes).unwrap();
            assert!(ip.verify_checksum());
            assert_eq!(usize::from(ip.total_len()), bytes.len());
            Got {
                to,
                src: ip.src_addr().into(),
                dst: ip.dst_addr().into(),
                hops: ip.hop_limit(),
                protocol: ip.next_header(),
                payload: ip.payload().to_vec(),
                whole: bytes.to_vec(),
            }
        }
        other => Got {
            to,
            src: Ipv4Addr::UNSPECIFIED.into(),
            dst: Ipv4Addr::UNSPECIFIED.into(),
            hops: 0,
            protocol: IpProtocol::Unknown(other.into_u8()),
            payload: bytes.to_vec(),
            whole: bytes.to_vec(),
        },
    };
    let addrs = (&got.src.into(), &got.dst.into());
    assert!(match (got.protocol, got.src, got.dst) {
        (IpProtocol::Icmpv6, IpAddr::V6(src), IpAddr::V6(dst)) => {
            Icmpv6Packet::new_checked(&got.payload).unwrap().verify_checksum(&src, &dst)
        }
        (IpProtocol::Icmp, ..) =>
            Icmpv4Packet::new_checked(&got.payload).unwrap().verify_checksum(),
        (IpProtocol::Udp, ..) => {
            let udp = UdpPacket::new_checked(&got.payload).unwrap();
            udp.checksum() != 0 && udp.verify_checksum(addrs.0, addrs.1)
        }
        (IpProtocol::Tcp, ..) => {
            TcpPacket::new_checked(&got.payload).unwrap().verify_checksum(addrs.0, addrs.1)
        }
        _ => true,
    });
    got
}

trait LastByte {
    fn into_u8(self) -> u8;
}

impl LastByte for EthernetProtocol {
    fn into_u8(self) -> u8 {
        u16::from(self).to_be_bytes()[1]
    }
}

/// The Ethernet address for an IP address.
fn station(dst: IpAddr) -> Mac {
    match dst {
        IpAddr::V6(dst) if dst.is_multicast() => {
            let [.., a, b, c, d] = dst.octets();
            Mac([0x33, 0x33, a, b, c, d])
        }
        IpAddr::V4(dst) if dst.is_broadcast() => Mac::BROADCAST,
        _ => Settings::default().mac,
    }
}

pub(crate) fn ethernet(dst: Mac, protocol: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14];
    EthernetRepr {
        src_addr: EthernetAddress(MAC.0),
        dst_addr: EthernetAddress(dst.0),
        ethertype: protocol,
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut frame));
    frame.extend_from_slice(payload);
    frame
}

/// A frame with a packet whose checksum is put where its protocol has it.
pub(crate) fn packet(
    src: IpAddr,
    dst: IpAddr,
    hops: u8,
    protocol: IpProtocol,
    payload: &[u8],
) -> Vec<u8> {
    let mut payload = payload.to_vec();
    let addrs = (&src.into(), &dst.into());
    match (protocol, src, dst) {
        (IpProtocol::Icmpv6, IpAddr::V6(src), IpAddr::V6(dst)) if payload.len() >= 4 => {
            Icmpv6Packet::new_unchecked(&mut payload).fill_checksum(&src, &dst);
        }
        (IpProtocol::Icmp, ..) if payload.len() >= 4 => {
            Icmpv4Packet::new_unchecked(&mut payload).fill_checksum();
        }
        (IpProtocol::Udp, ..) if UdpPacket::new_checked(&payload).is_ok() => {
            UdpPacket::new_unchecked(&mut payload).fill_checksum(addrs.0, addrs.1);
        }
        (IpProtocol::Tcp, ..) if payload.len() >= 20 => {
            TcpPacket::new_unchecked(&mut payload).fill_checksum(addrs.0, addrs.1);
        }
        _ => {}
    }
    let payload_len = payload.len();
    let (kind, mut bytes) = match (src, dst) {
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let mut bytes = vec![0; 40];
            Ipv6Repr { src_addr, dst_addr, next_header: protocol, payload_len, hop_limit: hops }
                .emit(&mut Ipv6Packet::new_unchecked(&mut bytes));
            (EthernetProtocol::Ipv6, bytes)
        }
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let mut bytes = vec![0; 20];
            Ipv4Repr { src_addr, dst_addr, next_header: protocol, payload_len, hop_limit: hops }
                .emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
            (EthernetProtocol::Ipv4, bytes)
        }
        _ => panic!("two families"),
    };
    bytes.append(&mut payload);
    ethernet(station(dst), kind, &bytes)
}

pub(crate) fn icmp6(src: Ipv6Addr, dst: Ipv6Addr, hops: u8, message: &[u8]) -> Vec<u8> {
    packet(src.into(), dst.into(), hops, IpProtocol::Icmpv6, message)
}

pub(crate) fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 8];
    message.extend_from_slice(payload);
    let mut udp = UdpPacket::new_unchecked(&mut message);
    udp.set_src_port(src.port());
    udp.set_dst_port(dst.port());
    udp.set_len(u16::try_from(8 + payload.len()).unwrap());
    packet(src.ip(), dst.ip(), 64, IpProtocol::Udp, &message)
}

pub(crate) fn udp6(src: (Ipv6Addr, u16), dst: (Ipv6Addr, u16), payload: &[u8]) -> Vec<u8> {
    udp(src.into(), dst.into(), payload)
}

pub(crate) fn udp4(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    udp(src.into(), dst.into(), payload)
}

/// The options of neighbour discovery from `at` on, by type.
pub(crate) fn options(message: &[u8], at: usize) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &message[at..];
    let mut options = Vec::new();
    while let [kind, len, ..] = *rest {
        let (option, more) = rest.split_at(usize::from(len) * 8);
        options.push((kind, option[2..].to_vec()));
        rest = more;
    }
    assert!(rest.is_empty());
    options
}
