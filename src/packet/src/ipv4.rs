// SPDX-License-Identifier: Apache-2.0

//! IPv4 (RFC 791).

use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::Sum;
use crate::{prefix, Fragment, Ip, Malformed};

/// Length of a header without options.
pub const HEADER: usize = 20;

/// Version 4, five words of header.
const VERSION_IHL: u8 = 0x45;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// The fixed part of the header (RFC 791 §3.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    version_ihl: u8,
    tos: u8,
    total_length: U16,
    identification: U16,
    flags_offset: U16,
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    src: U32,
    dst: U32,
}

/// Parses a received packet, which must be as long as its header says and have the right header
/// checksum.
///
/// # Errors
/// What is wrong with it.
#[inline(always)]
pub fn parse(bytes: &[u8]) -> Result<Ip<u32>, Malformed> {
    let ip = parse_quoted(bytes)?;
    if bytes.len() < ip.len {
        return Err(Malformed::Truncated);
    }
    let (header, options) = bytes[..ip.header_len].split_at(HEADER);
    // The compiler knows the length of the fixed part; summing it separately is faster.
    if (Sum::of(header) + Sum::of(options)).fold() != 0xffff {
        return Err(Malformed::BadHeaderChecksum);
    }
    if ip.fragment.is_some_and(|f| f.overruns(ip.payload_len())) {
        return Err(Malformed::BadFragment);
    }
    Ok(ip)
}

/// Parses a header quoted in an ICMP error. The packet may be cut anywhere behind it, and the
/// checksum is not verified: routers quote headers in which they have already changed fields.
///
/// # Errors
/// What is wrong with its header.
#[inline(always)]
pub fn parse_quoted(bytes: &[u8]) -> Result<Ip<u32>, Malformed> {
    let header: &Header = prefix(bytes).ok_or(Malformed::Truncated)?;
    if header.version_ihl >> 4 != 4 {
        return Err(Malformed::NotIp);
    }
    let header_len = usize::from(header.version_ihl & 0xf) * 4;
    let len = usize::from(header.total_length.get());
    if header_len < HEADER || len < header_len {
        return Err(Malformed::BadHeader);
    }
    if bytes.len() < header_len {
        return Err(Malformed::Truncated);
    }
    let flags = header.flags_offset.get();
    let fragment = Fragment {
        offset: flags & OFFSET,
        more: flags & MORE_FRAGMENTS != 0,
        id: header.identification.get().into(),
    };
    Ok(Ip {
        src: header.src.get(),
        dst: header.dst.get(),
        class: header.tos,
        hops: header.ttl,
        protocol: header.protocol,
        fragment: (!fragment.is_atomic()).then_some(fragment),
        dont_fragment: flags & DONT_FRAGMENT != 0,
        header_len,
        len,
    })
}

/// Whether no forwarded packet may have this address as source or destination (RFC 1812 §5.3.7, RFC
/// 3927 §2.7): "this network", loopback, link-local, multicast, limited broadcast.
#[must_use]
#[inline(always)]
pub const fn is_martian(addr: u32) -> bool {
    matches!(addr >> 24, 0 | 127 | 224..=239) || addr >> 16 == 0xa9fe || addr == u32::MAX
}

/// The Identification field, which a packet has even if it is no fragment; zero if the header is
/// cut off.
#[must_use]
pub fn identification(bytes: &[u8]) -> u16 {
    prefix::<Header>(bytes).map_or(0, |h| h.identification.get())
}

/// Whether the options have an unexpired source route (RFC 7915 §4.1). Options that do not parse
/// are ignored, like all others. `bytes` is the packet that `ip` was parsed from.
#[must_use]
#[inline(always)]
pub fn has_unexpired_source_route(bytes: &[u8], ip: &Ip<u32>) -> bool {
    ip.header_len > HEADER && bytes.get(HEADER..ip.header_len).is_some_and(is_source_route_left)
}

#[cold]
#[inline(never)]
fn is_source_route_left(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 0x83;
    const STRICT_SOURCE_ROUTE: u8 = 0x89;

    loop {
        match *options {
            [] | [END, ..] => return false,
            [NO_OPERATION, ref rest @ ..] => options = rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, len, pointer, ..] if pointer <= len => {
                return true
            }
            [_, len, ..] if len >= 2 => options = options.get(usize::from(len)..).unwrap_or(&[]),
            _ => return false,
        }
    }
}

/// Writes a header of [`HEADER`] bytes, checksum included, to the start of `out`, or nothing if
/// `out` is shorter.
///
/// `len` is the total length, of which the low 16 bits are written; `ip.header_len` and `ip.len`
/// are ignored.
#[inline(always)]
pub fn write(out: &mut [u8], ip: &Ip<u32>, len: usize) {
    let Ok((header, _)) = Header::mut_from_prefix(out) else { return };
    let fragment = ip.fragment.unwrap_or(Fragment { offset: 0, more: false, id: 0 });
    let mut flags = fragment.offset & OFFSET;
    if fragment.more {
        flags |= MORE_FRAGMENTS;
    }
    if ip.dont_fragment {
        flags |= DONT_FRAGMENT;
    }
    #[allow(clippy::cast_possible_truncation)]
    // documented above; of an IPv6 identification, the low 16 bits (RFC 7915 §5.1.1)
    let (total_length, identification) = (len as u16, fragment.id as u16);
    let first = u16::from_be_bytes([VERSION_IHL, ip.class]);
    let middle = u16::from_be_bytes([ip.hops, ip.protocol]);
    // From the values: reading back bytes that were just written in other sizes is slow.
    let sum = Sum::addresses4(ip.src, ip.dst)
        .word(first)
        .word(total_length)
        .word(identification)
        .word(flags)
        .word(middle);
    header.version_ihl = VERSION_IHL;
    header.tos = ip.class;
    header.total_length = total_length.into();
    header.identification = identification.into();
    header.flags_offset = flags.into();
    header.ttl = ip.hops;
    header.protocol = ip.protocol;
    header.checksum = sum.field();
    header.src = ip.src.into();
    header.dst = ip.dst.into();
}

/// Makes `packet`, which has no options, a fragment as long as the slice: sets Total Length, offset
/// (in units of 8 bytes), MF and the checksum, and clears DF.
pub fn mark(packet: &mut [u8], offset: u16, more: bool) {
    let len = packet.len();
    let Ok((header, _)) = Header::mut_from_prefix(packet) else { return };
    #[allow(clippy::cast_possible_truncation)] // shorter than the packet it was cut from
    let len = len as u16;
    header.total_length = len.into();
    header.flags_offset = (offset & OFFSET | if more { MORE_FRAGMENTS } else { 0 }).into();
    header.checksum = [0; 2];
    header.checksum = Sum::of(header.as_bytes()).field();
}

#[cfg(test)]
mod tests {
    use super::is_martian;
    use core::net::Ipv4Addr;

    #[test]
    fn rfc_1812_5_3_7_martians() {
        for (martian, addresses) in [
            (true, ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255"]),
            (true, ["169.254.0.0", "169.254.255.255", "224.0.0.1", "239.255.255.255"]),
            (true, ["255.255.255.255"; 4]),
            (false, ["1.0.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255"]),
            (false, ["169.255.0.0", "223.255.255.255", "240.0.0.1", "255.255.255.254"]),
            (false, ["10.0.0.1", "192.168.0.1", "192.0.0.4", "8.8.8.8"]),
        ] {
            for address in addresses {
                let address: Ipv4Addr = address.parse().expect(address);
                assert_eq!(is_martian(address.to_bits()), martian, "{address}");
            }
        }
    }
}
