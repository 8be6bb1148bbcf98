// SPDX-License-Identifier: Apache-2.0

//! Transport headers. Only checksums over a pseudo-header change in them.

use clat_packet::checksum::{adjust, Sum};
use clat_packet::{field_at, protocol, Ip};

use crate::Reason;

const UDP_HEADER: usize = 8;
const UDP_CHECKSUM: usize = 6;

/// Offset of a protocol's checksum, if that covers the addresses (RFC 7915 §4.5, §5.5). DCCP's
/// pseudo-header is TCP's (RFC 4340 §9.1), UDP-Lite's is UDP's (RFC 3828 §3.1).
const fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => Some(UDP_CHECKSUM),
        _ => None,
    }
}

/// Whether zero means "no checksum", so that a computed zero is sent as 0xffff.
const fn zero_is_none(protocol: u8) -> bool {
    matches!(protocol, protocol::UDP | protocol::UDP_LITE)
}

/// Checks that the transport header of a received packet can be translated.
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

/// Header and data of an unfragmented UDP datagram, without trailing bytes.
fn udp_data(payload: &[u8]) -> Result<&[u8], Reason> {
    let &[_, _, _, _, high, low, ..] = payload else { return Err(Reason::Truncated) };
    let len = usize::from(u16::from_be_bytes([high, low]));
    payload.get(..len).filter(|data| data.len() >= UDP_HEADER).ok_or(Reason::BadLength)
}

/// Whether this is a UDP header without a checksum.
#[inline(always)]
pub(crate) fn is_udp_without_checksum<A>(ip: &Ip<A>, payload: &[u8]) -> bool {
    ip.protocol == protocol::UDP
        && !ip.is_later_fragment()
        && payload.get(UDP_CHECKSUM..UDP_HEADER) == Some(&[0, 0])
}

/// Computes the checksum of an unfragmented UDP datagram that has passed [`check`].
#[inline(never)]
pub(crate) fn compute_udp(payload: &mut [u8], src: u128, dst: u128) {
    let Ok(data) = udp_data(payload) else { return };
    let field = (Sum::of(data) + Sum::pseudo6(src, dst, data.len(), protocol::UDP)).field();
    store(payload, UDP_CHECKSUM, field, true);
}

/// Updates the checksum for addresses that summed to `old` and now sum to `new`. The payload may be
/// cut anywhere, as in an ICMP error's quoted packet.
#[inline(always)]
pub(crate) fn readdress<A>(ip: &Ip<A>, payload: &mut [u8], old: Sum, new: Sum) {
    if ip.is_later_fragment() {
        return;
    }
    let Some(at) = checksum_at(ip.protocol) else { return };
    let Some(&mut field) = field_at(payload, at) else { return };
    // No checksum is computed here; where IPv6 requires one, the caller has done it.
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
