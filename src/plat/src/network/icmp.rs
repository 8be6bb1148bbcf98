// SPDX-License-Identifier: Apache-2.0

//! ICMPv6 (RFC 4443) and ICMP (RFC 792, RFC 1812 §4.3) of a router: errors, and which packets get
//! none.

use std::net::IpAddr;

use clat_packet::icmp::{v4, v6};
use clat_packet::ipv6::{self, Extensions};
use clat_packet::protocol;
use smoltcp::wire::{IpProtocol, TcpPacket, TcpSeqNumber};

use super::wire::Packet;
use crate::icmp_error::IcmpError;
use crate::settings::LEAST_MTU;

/// Longest errors (RFC 4443 §2.4 c; RFC 1812 §4.3.2.3), in bytes with IP header.
const MAX_ICMPV6: usize = LEAST_MTU as usize;
const MAX_ICMPV4: usize = 576;

/// The error about a packet, without its checksum; `None` if there must be none (RFC 4443 §2.4 e,
/// RFC 1812 §4.3.2.7).
pub(super) fn error(error: IcmpError, packet: &Packet<'_>) -> Option<(IpProtocol, Vec<u8>)> {
    if packet.src.is_unspecified() || packet.src.is_multicast() || packet.src.is_loopback() {
        return None;
    }
    let (protocol, (kind, code, field), quote) = match packet.dst {
        IpAddr::V6(dst) => {
            // About a packet to a group, every node might send others.
            let to_groups =
                matches!(error, IcmpError::TooBig(_) | IcmpError::Parameter { code: 2, .. });
            if (dst.is_multicast() && !to_groups) || is_icmpv6_error(packet) {
                return None;
            }
            (IpProtocol::Icmpv6, error.icmp6(), MAX_ICMPV6 - 48)
        }
        IpAddr::V4(dst) => {
            let later_fragment = packet.whole[6] & 0x1f != 0 || packet.whole[7] != 0;
            // Unknown types may be errors.
            let known = matches!(
                packet.payload.first(),
                Some(&(v4::ECHO | v4::ECHO_REPLY | v4::TIMESTAMP | v4::TIMESTAMP_REPLY))
            );
            let is_error = packet.next == protocol::ICMP && !known;
            if dst.is_multicast() || dst.is_broadcast() || later_fragment || is_error {
                return None;
            }
            (IpProtocol::Icmp, error.icmp4(), MAX_ICMPV4 - 28)
        }
    };
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(&field.to_be_bytes());
    message.extend_from_slice(&packet.whole[..packet.whole.len().min(quote)]);
    Some((protocol, message))
}

/// Whether it is an ICMPv6 error: types below 128 (RFC 4443 §2.1) and redirects. One that is cut
/// off could be one.
fn is_icmpv6_error(packet: &Packet<'_>) -> bool {
    match walk(packet) {
        Walk::Upper { protocol: protocol::ICMPV6, payload, .. } => {
            payload.first().is_none_or(|kind| v6::is_error(*kind))
        }
        Walk::Fragment { protocol } => protocol == protocol::ICMPV6,
        _ => false,
    }
}

/// What follows the extension headers of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Walk<'a> {
    /// An upper-layer protocol, its bytes, and the offset of the field with its number.
    Upper { protocol: u8, payload: &'a [u8], named_at: usize },
    /// A fragment.
    Fragment { protocol: u8 },
    /// Invalid; to be answered with this parameter problem.
    Error(IcmpError),
    /// Invalid; to be dropped.
    Broken,
}

/// Processes the extension headers of a packet to the router (RFC 8200 §4).
pub(super) fn walk<'a>(packet: &Packet<'a>) -> Walk<'a> {
    if packet.src.is_ipv4() {
        return Walk::Upper { protocol: packet.next, payload: packet.payload, named_at: 9 };
    }
    let Some(mut extensions) = Extensions::of(packet.whole) else { return Walk::Broken };
    loop {
        let named_at = extensions.named_at;
        let extension = match extensions.next() {
            Some(Ok(extension)) => extension,
            Some(Err(_)) => return Walk::Broken,
            None => {
                let payload = packet.whole.get(extensions.at..).unwrap_or_default();
                return Walk::Upper { protocol: extensions.protocol, payload, named_at };
            }
        };
        let problem = |code, at: usize| {
            let pointer = u32::try_from(at).unwrap_or(0);
            Walk::Error(IcmpError::Parameter { code, pointer })
        };
        match extension.protocol {
            // Hop-by-Hop Options have to come first.
            protocol::HOP_BY_HOP if extension.at != ipv6::HEADER => {
                return problem(v6::NEXT_HEADER, named_at);
            }
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS => {
                match options(extension.bytes, extension.at, packet.dst.is_multicast()) {
                    Ok(()) => {}
                    Err(error) => return error.map_or(Walk::Broken, Walk::Error),
                }
            }
            protocol::ROUTING if extension.bytes[3] != 0 => {
                return problem(v6::FIELD, extension.at + 2);
            }
            _ => {}
        }
        // An atomic fragment is a whole packet (RFC 6946).
        if extension.fragment().is_some_and(|fragment| !fragment.is_atomic()) {
            return Walk::Fragment { protocol: extensions.protocol };
        }
    }
}

/// Processes options. Unknown ones tell by their type what to do (RFC 8200 §4.2).
fn options(header: &[u8], at: usize, to_group: bool) -> Result<(), Option<IcmpError>> {
    let mut offset = 2;
    while let Some(kind) = header.get(offset) {
        if *kind == 0 {
            offset += 1;
            continue;
        }
        let Some(len) = header.get(offset + 1) else { return Err(None) };
        let pointer = u32::try_from(at + offset).unwrap_or(0);
        match (kind, kind >> 6) {
            // Router alert (RFC 2711) and padding are known.
            (1 | 5, _) | (_, 0) => {}
            (_, 2) => return Err(Some(IcmpError::Parameter { code: 2, pointer })),
            (_, 3) if !to_group => return Err(Some(IcmpError::Parameter { code: 2, pointer })),
            _ => return Err(None),
        }
        offset += 2 + usize::from(*len);
    }
    if offset > header.len() {
        return Err(None);
    }
    Ok(())
}

/// The reply to an echo request, without its checksum.
pub(super) fn echo_reply(request: &[u8], kind: u8) -> Vec<u8> {
    let mut reply = request.to_vec();
    reply[..4].copy_from_slice(&[kind, 0, 0, 0]);
    reply
}

/// The reset of a closed port (RFC 9293 §3.10.7.1), without its checksum.
pub(super) fn reset(packet: &Packet<'_>, segment: &[u8]) -> Option<Vec<u8>> {
    let tcp = TcpPacket::new_checked(segment).ok().filter(|tcp| {
        let right = || tcp.verify_checksum(&packet.src.into(), &packet.dst.into());
        !tcp.rst() && (packet.trusted || right())
    })?;
    let mut message = vec![0; 20];
    let mut reset = TcpPacket::new_unchecked(&mut message);
    reset.set_src_port(tcp.dst_port());
    reset.set_dst_port(tcp.src_port());
    reset.set_header_len(20);
    reset.set_rst(true);
    if tcp.ack() {
        reset.set_seq_number(tcp.ack_number());
    } else {
        reset.set_seq_number(TcpSeqNumber(0));
        reset.set_ack(true);
        reset.set_ack_number(tcp.seq_number() + tcp.segment_len());
    }
    Some(message)
}
