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

/// Reads a packet that has arrived: everything its header promises must be there, and the checksum
/// right.
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
    // In two steps, since the compiler knows the length of the fixed header: this is faster.
    if (Sum::of(header) + Sum::of(options)).fold() != 0xffff {
        return Err(Malformed::BadHeaderChecksum);
    }
    if ip.fragment.is_some_and(|f| f.overruns(ip.payload_len())) {
        return Err(Malformed::BadFragment);
    }
    Ok(ip)
}

/// Reads a header quoted in an ICMP error: the packet may be cut anywhere behind it, and routers on
/// the way have changed fields that the checksum covers.
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

/// Whether no packet on its way may have this address, as its source or its destination (RFC 1812
/// §5.3.7, RFC 3927 §2.7): "this network", loopback, link-local, multicast, the limited broadcast.
#[must_use]
#[inline(always)]
pub const fn is_martian(addr: u32) -> bool {
    matches!(addr >> 24, 0 | 127 | 224..=239) || addr >> 16 == 0xa9fe || addr == u32::MAX
}

/// The identification, which a packet carries even where it is no fragment; zero where it is cut
/// off.
#[must_use]
pub fn identification(bytes: &[u8]) -> u16 {
    prefix::<Header>(bytes).map_or(0, |h| h.identification.get())
}

/// Whether the options hold a source route that has not been used up (RFC 7915 §4.1). Options that
/// cannot be parsed are ignored, like all other options. `bytes` are those that `ip` was read from.
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

/// Writes a header of [`HEADER`] bytes, checksum included, to the start of `out`; to less room it
/// does nothing.
///
/// `ip.header_len` is that of the packet it comes from and does not matter here; `len` is the total
/// length, of which only the low 16 bits fit.
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
    // as documented; IPv6 identifications lose their high half (§5.1.1)
    let (total_length, identification) = (len as u16, fragment.id as u16);
    let first = u16::from_be_bytes([VERSION_IHL, ip.class]);
    let middle = u16::from_be_bytes([ip.hops, ip.protocol]);
    // From the values, not from the bytes: reading back what has just been written in other sizes
    // is slow.
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

/// Makes the packet that fills `packet` a fragment: sets length, offset (in units of 8 bytes) and
/// MF of a header without options.
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
