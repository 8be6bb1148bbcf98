// SPDX-License-Identifier: Apache-2.0

//! IPv6 and its extension headers (RFC 8200).

use zerocopy::network_endian::{U128, U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{prefix, protocol, Fragment, Ip, Malformed};

/// Length of the fixed header.
pub const HEADER: usize = 40;
/// Length of a Fragment Header.
pub const FRAGMENT_HEADER: usize = 8;
/// The smallest MTU of a link (RFC 8200 §5).
pub const MIN_MTU: usize = 1280;

const MORE_FRAGMENTS: u16 = 1;

/// The fixed header (RFC 8200 §3).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    /// Version, traffic class, flow label.
    first: U32,
    payload_length: U16,
    next_header: u8,
    hop_limit: u8,
    src: U128,
    dst: U128,
}

/// The Fragment Header (RFC 8200 §4.5).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FragmentHeader {
    next_header: u8,
    reserved: u8,
    offset_more: U16,
    identification: U32,
}

/// A packet and what its extension headers hold against it.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Its headers. The protocol is an extension header's ([`protocol::is_extension`]) only where one stands behind a
    /// Fragment Header, at which the walk ends.
    pub ip: Ip<u128>,
    /// Where the Segments Left field of a routing header stands that is not zero.
    pub segments_left_at: Option<usize>,
}

/// Reads a packet that has arrived: everything that its header promises must be there.
///
/// # Errors
/// What is wrong with it.
#[inline(always)]
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let parsed = parse_quoted(bytes)?;
    let ip = &parsed.ip;
    if bytes.len() < ip.len {
        return Err(Malformed::Truncated);
    }
    // All that a jumbogram leaves in this field is a zero (RFC 2675 §3); no IPv4 packet is that large.
    if ip.len == HEADER && ip.header_len > HEADER {
        return Err(Malformed::BadHeader);
    }
    if ip.header_len > ip.len {
        return Err(Malformed::BadExtension);
    }
    if ip.fragment.is_some_and(|f| f.overruns(ip.payload_len())) {
        return Err(Malformed::BadFragment);
    }
    Ok(parsed)
}

/// Reads headers quoted in an ICMPv6 error: the packet may be cut anywhere behind them.
///
/// # Errors
/// What is wrong with its headers.
#[inline(always)]
pub fn parse_quoted(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let header: &Header = prefix(bytes).ok_or(Malformed::Truncated)?;
    let first = header.first.get();
    if first >> 28 != 6 {
        return Err(Malformed::NotIp);
    }
    let mut ip = Ip {
        src: header.src.get(),
        dst: header.dst.get(),
        class: (first >> 20 & 0xff) as u8,
        hops: header.hop_limit,
        protocol: header.next_header,
        fragment: None,
        dont_fragment: true,
        header_len: HEADER,
        len: HEADER + usize::from(header.payload_length.get()),
    };
    let mut segments_left_at = None;
    loop {
        let rest = &bytes[ip.header_len..];
        match ip.protocol {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                let &[next, len, _, segments_left, ..] = rest else {
                    return Err(Malformed::BadExtension);
                };
                if ip.protocol == protocol::ROUTING && segments_left != 0 {
                    segments_left_at.get_or_insert(ip.header_len + 3);
                }
                let len = (usize::from(len) + 1) * 8;
                if rest.len() < len {
                    return Err(Malformed::BadExtension);
                }
                ip.protocol = next;
                ip.header_len += len;
            }
            protocol::FRAGMENT => {
                let header: &FragmentHeader = prefix(rest).ok_or(Malformed::BadExtension)?;
                let offset_more = header.offset_more.get();
                ip.fragment = Some(Fragment {
                    offset: offset_more >> 3,
                    more: offset_more & MORE_FRAGMENTS != 0,
                    id: header.identification.get(),
                });
                ip.protocol = header.next_header;
                ip.header_len += FRAGMENT_HEADER;
                return Ok(Parsed { ip, segments_left_at });
            }
            _ => return Ok(Parsed { ip, segments_left_at }),
        }
    }
}

/// Length of the headers that [`write`] will write for this packet.
#[must_use]
#[inline(always)]
pub fn header_len<A>(ip: &Ip<A>) -> usize {
    HEADER + if ip.fragment.is_some() { FRAGMENT_HEADER } else { 0 }
}

/// Writes the header, and a Fragment Header if the packet is a fragment, to the start of `out`; to less room it does
/// nothing.
///
/// `ip.header_len` is that of the packet it comes from and does not matter here; `payload_len` counts what follows
/// these headers. The flow label is zero (RFC 7915 §4.1).
#[inline(always)]
pub fn write(out: &mut [u8], ip: &Ip<u128>, payload_len: usize) {
    let headers = header_len(ip);
    let Ok((header, rest)) = Header::mut_from_prefix(out) else { return };
    #[allow(clippy::cast_possible_truncation)] // an IPv4 packet has at most 65,515 bytes of payload
    let payload_length = (payload_len + headers - HEADER) as u16;
    header.first = (6 << 28 | u32::from(ip.class) << 20).into();
    header.payload_length = payload_length.into();
    header.next_header = if ip.fragment.is_some() { protocol::FRAGMENT } else { ip.protocol };
    header.hop_limit = ip.hops;
    header.src = ip.src.into();
    header.dst = ip.dst.into();
    if let (Some(fragment), Ok((header, _))) = (ip.fragment, FragmentHeader::mut_from_prefix(rest))
    {
        header.next_header = ip.protocol;
        header.reserved = 0;
        header.offset_more = (fragment.offset << 3 | u16::from(fragment.more)).into();
        header.identification = fragment.id.into();
    }
}

/// Makes the packet that fills `packet` a fragment: sets payload length, offset (in units of 8 bytes) and M flag of a
/// fixed header with a Fragment Header behind it.
pub fn mark(packet: &mut [u8], offset: u16, more: bool) {
    let len = packet.len().saturating_sub(HEADER);
    let Ok((header, rest)) = Header::mut_from_prefix(packet) else { return };
    #[allow(clippy::cast_possible_truncation)] // shorter than the packet it was cut from
    let len = len as u16;
    header.payload_length = len.into();
    if let Ok((header, _)) = FragmentHeader::mut_from_prefix(rest) {
        header.offset_more = (offset << 3 | u16::from(more)).into();
    }
}
