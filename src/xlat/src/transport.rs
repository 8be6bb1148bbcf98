// SPDX-License-Identifier: Apache-2.0

//! Transport headers: all that translation touches in them is a checksum over the pseudo-header.

use clat_packet::checksum::{adjust, Sum};
use clat_packet::{field_at, protocol, Ip};

use crate::Reason;

const UDP_HEADER: usize = 8;
const UDP_CHECKSUM: usize = 6;

/// Where a protocol keeps its checksum, if that covers the addresses (RFC 7915 §4.5, §5.5). DCCP's
/// pseudo-header is TCP's (RFC 4340 §9.1), UDP-Lite's is UDP's (RFC 3828 §3.1).
const fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => Some(UDP_CHECKSUM),
        _ => None,
    }
}

/// Whether a checksum of zero means that there is none, so that a computed zero is sent as 0xffff.
const fn zero_is_none(protocol: u8) -> bool {
    matches!(protocol, protocol::UDP | protocol::UDP_LITE)
}

/// Checks that the header of a packet that has arrived can be translated.
#[inline(always)]
pub(crate) fn check<A>(ip: &Ip<A>, payload: &[u8]) -> Result<(), Reason> {
    let Some(at) = checksum_at(ip.protocol) else { return Ok(()) };
    if ip.is_later_fragment() {
        return Ok(());
    }
    if payload.len() < at + 2 {
        // A first fragment too short for its checksum is an attack (RFC 1858 §3).
        return Err(if ip.is_whole() { Reason::Truncated } else { Reason::BadFragment });
    }
    if ip.protocol == protocol::UDP && ip.is_whole() {
        udp_data(payload)?;
    }
    Ok(())
}

/// Header and data of a whole UDP datagram, without what may follow it in the packet.
fn udp_data(payload: &[u8]) -> Result<&[u8], Reason> {
    let &[_, _, _, _, high, low, ..] = payload else { return Err(Reason::Truncated) };
    let len = usize::from(u16::from_be_bytes([high, low]));
    payload.get(..len).filter(|data| data.len() >= UDP_HEADER).ok_or(Reason::BadLength)
}

/// Whether this is the start of a UDP datagram that has no checksum.
#[inline(always)]
pub(crate) fn is_udp_without_checksum<A>(ip: &Ip<A>, payload: &[u8]) -> bool {
    ip.protocol == protocol::UDP
        && !ip.is_later_fragment()
        && payload.get(UDP_CHECKSUM..UDP_HEADER) == Some(&[0, 0])
}

/// Computes the checksum of a whole UDP datagram that has passed [`check`].
#[inline(never)]
pub(crate) fn compute_udp(payload: &mut [u8], src: u128, dst: u128) {
    let Ok(data) = udp_data(payload) else { return };
    let field = (Sum::of(data) + Sum::pseudo6(src, dst, data.len(), protocol::UDP)).field();
    store(payload, UDP_CHECKSUM, field, true);
}

/// Follows a change of addresses that summed to `old` and now sum to `new`. Works on the start of a
/// payload however short, since what an ICMP error quotes may be cut anywhere.
#[inline(always)]
pub(crate) fn readdress<A>(ip: &Ip<A>, payload: &mut [u8], old: Sum, new: Sum) {
    if ip.is_later_fragment() {
        return;
    }
    let Some(at) = checksum_at(ip.protocol) else { return };
    let Some(&mut field) = field_at(payload, at) else { return };
    // What has no checksum gets none here; where IPv6 asks for one, the caller has seen to it.
    if field == [0, 0] && zero_is_none(ip.protocol) {
        return;
    }
    store(payload, at, adjust(field, old, new), zero_is_none(ip.protocol));
}

fn store(payload: &mut [u8], at: usize, field: [u8; 2], zero_is_none: bool) {
    if let Some(place) = field_at(payload, at) {
        *place = if zero_is_none && field == [0, 0] { [0xff, 0xff] } else { field };
    }
}
