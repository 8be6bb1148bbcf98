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
/// Reserved bits beside offset and M flag, which a receiver ignores.
const RESERVED: u16 = 6;

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

/// The headers of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// `protocol` is an extension header ([`protocol::is_extension`]) only in a fragment that is
    /// not atomic: parsing ends behind its Fragment Header.
    pub ip: Ip<u128>,
    /// Offset of the first Segments Left field that is not zero (RFC 7915 §5.1).
    pub segments_left_at: Option<usize>,
}

/// Parses a received packet, which must be as long as its header says.
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
    // A jumbogram has a Payload Length of zero (RFC 2675 §3), and is too large for IPv4.
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

/// Parses headers quoted in an ICMPv6 error. The packet may be cut anywhere behind them.
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
    let mut extensions =
        Extensions { packet: bytes, protocol: ip.protocol, named_at: 6, at: HEADER };
    // Behind the Fragment Header of a fragment there may be half a header, or payload.
    while !ip.fragment.is_some_and(|fragment| !fragment.is_atomic()) {
        let Some(extension) = extensions.next() else { break };
        let extension = extension?;
        match extension.protocol {
            protocol::ROUTING if extension.bytes[3] != 0 => {
                segments_left_at.get_or_insert(extension.at + 3);
            }
            // A second Fragment Header is invalid (RFC 8200 §4.1), and would leave the offset
            // ambiguous.
            protocol::FRAGMENT if ip.fragment.is_some() => return Err(Malformed::BadExtension),
            protocol::FRAGMENT => ip.fragment = extension.fragment(),
            _ => {}
        }
    }
    ip.protocol = extensions.protocol;
    ip.header_len = extensions.at;
    Ok(Parsed { ip, segments_left_at })
}

/// An extension header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension<'p> {
    /// Its protocol number, one of [`protocol::is_extension`].
    pub protocol: u8,
    /// Its offset in the packet.
    pub at: usize,
    /// All of it, from its Next Header field on; 8 bytes or more.
    pub bytes: &'p [u8],
}

impl Extension<'_> {
    /// The contents of a Fragment Header; `None` for another header.
    #[must_use]
    #[inline(always)]
    pub fn fragment(&self) -> Option<Fragment> {
        let header: &FragmentHeader =
            prefix(self.bytes).filter(|_| self.protocol == protocol::FRAGMENT)?;
        let offset_more = header.offset_more.get();
        Some(Fragment {
            offset: offset_more >> 3,
            more: offset_more & MORE_FRAGMENTS != 0,
            id: header.identification.get(),
        })
    }
}

/// Iterates over the extension headers of a packet (RFC 8200 §4). Ends before the first header that
/// is none of [`protocol::is_extension`], or with an error if the packet ends first. Callers stop
/// at the Fragment Header of a later fragment: what follows it is payload.
#[derive(Clone, Copy, Debug)]
pub struct Extensions<'p> {
    packet: &'p [u8],
    /// Protocol number of the header at [`Self::at`].
    pub protocol: u8,
    /// Offset of that number in the packet, for the pointer of a Parameter Problem.
    pub named_at: usize,
    /// Offset of the next header in the packet.
    pub at: usize,
}

impl<'p> Extensions<'p> {
    /// Begins behind the fixed header of `packet`; `None` if that is cut off.
    #[must_use]
    pub fn of(packet: &'p [u8]) -> Option<Self> {
        let header: &Header = prefix(packet)?;
        Some(Self { packet, protocol: header.next_header, named_at: 6, at: HEADER })
    }
}

impl<'p> Iterator for Extensions<'p> {
    type Item = Result<Extension<'p>, Malformed>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if !protocol::is_extension(self.protocol) {
            return None;
        }
        let rest = self.packet.get(self.at..)?;
        let len = match *rest {
            [_, _, ..] if self.protocol == protocol::FRAGMENT => FRAGMENT_HEADER,
            [_, len, ..] => (usize::from(len) + 1) * 8,
            _ => return self.fail(),
        };
        let Some(bytes) = rest.get(..len) else { return self.fail() };
        let extension = Extension { protocol: self.protocol, at: self.at, bytes };
        (self.protocol, self.named_at, self.at) = (bytes[0], self.at, self.at + len);
        Some(Ok(extension))
    }
}

impl Extensions<'_> {
    /// Returns an error and ends the iteration.
    #[cold]
    fn fail<T>(&mut self) -> Option<Result<T, Malformed>> {
        self.packet = &[];
        Some(Err(Malformed::BadExtension))
    }
}

/// Length of the headers that [`write()`] writes for this packet.
#[must_use]
#[inline(always)]
pub fn header_len<A>(ip: &Ip<A>) -> usize {
    HEADER + if ip.fragment.is_some() { FRAGMENT_HEADER } else { 0 }
}

/// Writes the header, and a Fragment Header if the packet is a fragment, to the start of `out`, or
/// nothing if `out` is shorter.
///
/// `payload_len` counts what follows these headers; `ip.header_len` and `ip.len` are ignored. The
/// flow label is zero (RFC 7915 §4.1).
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

/// Makes `packet` a fragment as long as the slice: sets Payload Length, and offset (in units of 8
/// bytes) and M flag of its Fragment Header, if it has one.
pub fn mark(packet: &mut [u8], offset: u16, more: bool) {
    let at = Extensions::of(packet).and_then(|mut all| {
        all.find_map(|one| one.ok().filter(|one| one.protocol == protocol::FRAGMENT))
            .map(|one| one.at)
    });
    let len = packet.len().saturating_sub(HEADER);
    if let Ok((header, _)) = Header::mut_from_prefix(packet) {
        #[allow(clippy::cast_possible_truncation)] // shorter than the packet it was cut from
        let len = len as u16;
        header.payload_length = len.into();
    }
    let header = at.and_then(|at| FragmentHeader::mut_from_prefix(packet.get_mut(at..)?).ok());
    if let Some((header, _)) = header {
        let reserved = header.offset_more.get() & RESERVED;
        header.offset_more = (offset << 3 | reserved | u16::from(more)).into();
    }
}
