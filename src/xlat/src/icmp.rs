// SPDX-License-Identifier: Apache-2.0

//! Translation of ICMP messages: types, codes and fields (RFC 7915 §4.2, §5.2), echo, and the
//! layout of errors: quoted packet, padding, extensions (RFC 4884).

use core::ops::Range;

use clat_packet::checksum::{adjust, Sum};
use clat_packet::icmp::{v4, v6, Head, CHECKSUM, HEADER};
use clat_packet::{field_at, ipv4, ipv6};

use crate::{Config, Reason};

/// [`ipv6::MIN_MTU`] as an ICMPv6 message has it.
const MIN_MTU: u32 = 1280;

/// What the layout of an ICMP error depends on by family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Most bytes that an error may quote, extensions included.
    limit: usize,
    /// The unit in which an error gives the length of what it quotes (RFC 4884 §4).
    unit: usize,
    /// Which of the four bytes behind the checksum holds that length.
    length_at: usize,
    /// The types that may have extensions.
    extensible: &'static [u8],
}

impl Shape {
    /// RFC 1812 §4.3.2.3: no more than 576 bytes in all.
    pub(crate) const V4: Self = Self {
        limit: 576 - ipv4::HEADER - HEADER,
        unit: 4,
        length_at: 1,
        extensible: &[v4::UNREACHABLE, v4::TIME_EXCEEDED, v4::PARAMETER_PROBLEM],
    };
    /// RFC 4443 §2.4 (c): no more than the minimum MTU.
    pub(crate) const V6: Self = Self {
        limit: ipv6::MIN_MTU - ipv6::HEADER - HEADER,
        unit: 8,
        length_at: 0,
        extensible: &[v6::UNREACHABLE, v6::TIME_EXCEEDED],
    };

    /// Splits the body of an error, at `body`, into the quoted packet with its padding, and the
    /// extensions.
    ///
    /// Routers without RFC 4884 may leave anything in the length byte, which was unused before. So
    /// a length is believed if it is at least what RFC 4884 §4 requires, or if a valid extension
    /// structure follows; else all of `body` is the quoted packet (RFC 4884 §5.5).
    pub(crate) fn split(
        &self,
        buf: &[u8],
        head: Head,
        body: Range<usize>,
    ) -> (Range<usize>, Range<usize>) {
        let len = usize::from(head.rest[self.length_at]) * self.unit;
        if self.extensible.contains(&head.kind) && len > 0 && len <= body.len() {
            let middle = body.start + len;
            if len >= MIN_QUOTE || is_extension_structure(&buf[middle..body.end]) {
                return (body.start..middle, middle..body.end);
            }
        }
        (body.clone(), body.end..body.end)
    }

    /// Lays out an error around the payload of the quoted packet, which stays at `payload`: cuts
    /// it, pads it and moves the extensions behind it. The caller writes a quoted IP header of
    /// `header` bytes in front. `origin` is an address to add as an extension. Returns the end of
    /// the message, and sets the length in `head`.
    ///
    /// The first 128 bytes of the quote have priority over extensions, and extensions over the rest
    /// of the quote. Extensions that do not fit are truncated ([`truncate`]).
    pub(crate) fn arrange(
        &self,
        buf: &mut [u8],
        head: &mut Head,
        header: usize,
        payload: Range<usize>,
        extensions: Range<usize>,
        origin: Option<u128>,
    ) -> usize {
        let room = self.limit - MIN_QUOTE;
        let quoted = header + payload.len();
        let extensible = self.extensible.contains(&head.kind);

        let kept = if extensible && extensions.len() >= EXTENSION_HEADER {
            truncate(buf, extensions, room)
        } else {
            payload.end..payload.end
        };
        let origin = origin.filter(|_| extensible).map(NodeId).filter(|_| {
            let start = if kept.is_empty() { EXTENSION_HEADER } else { kept.len() };
            (kept.is_empty() || buf[kept.start] >> 4 == EXTENSION_VERSION)
                && start + NodeId::LEN <= room
        });
        if kept.is_empty() && origin.is_none() {
            // Other types have no length field; `rest` holds something else.
            if extensible {
                head.rest[self.length_at] = 0;
            }
            return payload.start + quoted.min(self.limit) - header;
        }

        let mut len = kept.len();
        if origin.is_some() {
            len = len.max(EXTENSION_HEADER) + NodeId::LEN;
        }
        let most = (self.limit - len) / self.unit * self.unit;
        let padded = quoted.next_multiple_of(self.unit).max(MIN_QUOTE).min(most);
        let start = payload.start + padded - header;
        let end = start + len;
        let kept_len = kept.len();
        buf.copy_within(kept, start);
        buf[payload.start + quoted.min(padded) - header..start].fill(0);
        if let Some(origin) = origin {
            origin.append(&mut buf[start..end], kept_len);
        }
        #[allow(clippy::cast_possible_truncation)] // at most 1,232 / 8 or 548 / 4
        let units = (padded / self.unit) as u8;
        head.rest[self.length_at] = units;
        end
    }
}

/// An error with extensions quotes at least this many bytes, padded with zeros (RFC 4884 §5).
const MIN_QUOTE: usize = 128;
/// Version, reserved bits, checksum (RFC 4884 §7).
const EXTENSION_HEADER: usize = 4;
const EXTENSION_VERSION: u8 = 2;

/// Length and class of an object (RFC 4884 §8).
const OBJECT_HEADER: usize = 4;

/// Shortens the extension structure at `range` to at most `room` bytes, as RFC 7915 §4.2 asks.
/// Whole objects are kept, and the checksum is updated: a receiver would discard all of them for
/// half an object or the old checksum. Of a structure that does not parse, nothing is kept.
fn truncate(buf: &mut [u8], range: Range<usize>, room: usize) -> Range<usize> {
    if range.len() <= room {
        return range;
    }
    let start = range.start;
    let mut end = start + EXTENSION_HEADER;
    if buf[start] >> 4 == EXTENSION_VERSION {
        while let [high, low, ..] = buf[end..range.end] {
            let len = usize::from(u16::from_be_bytes([high, low]));
            let is_object = len >= OBJECT_HEADER && len % 4 == 0 && len <= range.end - end;
            if !is_object || end + len > start + room {
                break;
            }
            end += len;
        }
    }
    if end == start + EXTENSION_HEADER {
        return range.end..range.end;
    }
    let cut = Sum::of(&buf[end..range.end]);
    if let Some(field) = field_at(buf, start + CHECKSUM).filter(|field| **field != [0, 0]) {
        // Zero means "no checksum" (RFC 4884 §7).
        *field = match adjust(*field, cut, Sum::default()) {
            [0, 0] => [0xff, 0xff],
            field => field,
        };
    }
    start..end
}

/// Whether these bytes are an extension structure with the right version and checksum (RFC 4884
/// §7).
fn is_extension_structure(bytes: &[u8]) -> bool {
    bytes.len() > EXTENSION_HEADER
        && bytes[0] >> 4 == EXTENSION_VERSION
        && bytes[2..4] != [0, 0]
        && Sum::of(bytes).is_right()
}

/// The IPv6 address of the router that sent an error, where the IPv4 header cannot carry it: a Node
/// Identification Object (draft-ietf-intarea-extended-icmp-nodeid §3, as
/// draft-ietf-v6ops-icmpext-xlat-v6only-source §3 asks).
#[derive(Clone, Copy)]
struct NodeId(u128);

impl NodeId {
    const LEN: usize = 24;
    const CLASS: u8 = 5;
    /// An IP Address Sub-Object is present.
    const C_TYPE: u8 = 0x04;
    /// Address family number of IPv6.
    const AFI: u8 = 2;

    /// Appends the object to an extension structure of `len` bytes at the start of `out`, or makes
    /// a structure if `len` is 0.
    fn append(self, out: &mut [u8], len: usize) {
        #[allow(clippy::cast_possible_truncation)]
        let head = [0, Self::LEN as u8, Self::CLASS, Self::C_TYPE, 0, Self::AFI, 0, 0];
        let start = if len == 0 {
            out[..EXTENSION_HEADER].copy_from_slice(&[EXTENSION_VERSION << 4, 0, 0, 0]);
            EXTENSION_HEADER
        } else {
            len
        };
        out[start..start + 8].copy_from_slice(&head);
        out[start + 8..start + Self::LEN].copy_from_slice(&self.0.to_be_bytes());
        let field = if len == 0 {
            Sum::of(out).field()
        } else if out[2..4] == [0, 0] {
            // It was sent without a checksum (RFC 4884 §7) and stays so.
            [0, 0]
        } else {
            adjust([out[2], out[3]], Sum::default(), Sum::of(&out[start..start + Self::LEN]))
        };
        out[2..4].copy_from_slice(&field);
    }
}

/// The ICMPv6 type of an ICMP echo type; `None` for other types.
pub(crate) const fn echo_to_v6(kind: u8) -> Option<u8> {
    match kind {
        v4::ECHO => Some(v6::ECHO),
        v4::ECHO_REPLY => Some(v6::ECHO_REPLY),
        _ => None,
    }
}

/// The ICMP type of an ICMPv6 echo type; `None` for other types.
pub(crate) const fn echo_to_v4(kind: u8) -> Option<u8> {
    match kind {
        v6::ECHO => Some(v4::ECHO),
        v6::ECHO_REPLY => Some(v4::ECHO_REPLY),
        _ => None,
    }
}

/// Changes the type of an echo message and updates its checksum. `old` and `new` are the sums of
/// the pseudo-headers; ICMP for IPv4 has none. A quoted message may be cut anywhere.
#[inline(never)]
pub(crate) fn retype_echo(message: &mut [u8], kind: u8, old: Sum, new: Sum) {
    let Some((first, _)) = message.split_first_mut() else { return };
    let code = 0; // the code does not change, so any value gives the right difference
    let (old, new) =
        (old.word(u16::from_be_bytes([*first, code])), new.word(u16::from_be_bytes([kind, code])));
    *first = kind;
    let Some(field) = field_at(message, CHECKSUM) else { return };
    *field = adjust(*field, old, new);
    // Only an ICMPv4 echo reply of zeros sums to zero; its checksum is 0xffff.
    if *field == [0, 0] && message.iter().all(|b| *b == 0) {
        message[CHECKSUM..CHECKSUM + 2].fill(0xff);
    }
}

/// The ICMPv6 error for an ICMPv4 one (RFC 7915 §4.2). `quoted_len` is the total length of the
/// packet it quotes.
pub(crate) fn error_to_v6(head: Head, quoted_len: usize, config: &Config) -> Result<Head, Reason> {
    let Head { kind, code, rest } = head;
    let pointer = rest[0];
    match (kind, code) {
        (v4::UNREACHABLE, v4::PROTOCOL_UNREACHABLE) => {
            // Points at the Next Header field of the fixed header.
            Ok(Head::new(v6::PARAMETER_PROBLEM, v6::NEXT_HEADER, 6))
        }
        (v4::UNREACHABLE, v4::PORT_UNREACHABLE) => {
            Ok(Head::new(v6::UNREACHABLE, v6::PORT_UNREACHABLE, 0))
        }
        (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED) => {
            let mtu = match u16::from_be_bytes([rest[2], rest[3]]) {
                0 => plateau_below(quoted_len),
                mtu => mtu.into(),
            };
            let mtu = (mtu + 20).min(config.mtu6).min(config.mtu4.saturating_add(20)).max(MIN_MTU);
            Ok(Head::new(v6::PACKET_TOO_BIG, 0, mtu))
        }
        (v4::UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => {
            Ok(Head::new(v6::UNREACHABLE, v6::NO_ROUTE, 0))
        }
        (v4::UNREACHABLE, 9 | v4::HOST_PROHIBITED | v4::PROHIBITED | 15) => {
            Ok(Head::new(v6::UNREACHABLE, v6::PROHIBITED, 0))
        }
        (v4::TIME_EXCEEDED, _) => Ok(Head::new(v6::TIME_EXCEEDED, code, 0)),
        (v4::PARAMETER_PROBLEM, 0 | 2) => {
            let pointer = match pointer {
                0 | 1 => pointer,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return Err(Reason::IcmpPointer),
            };
            Ok(Head::new(v6::PARAMETER_PROBLEM, 0, pointer.into()))
        }
        _ => Err(Reason::IcmpType),
    }
}

/// The ICMPv4 error for an ICMPv6 one (RFC 7915 §5.2). `is_fragment` says whether the packet that
/// it quotes has a Fragment Header.
pub(crate) fn error_to_v4(head: Head, is_fragment: bool, config: &Config) -> Result<Head, Reason> {
    let Head { kind, code, rest } = head;
    let value = u32::from_be_bytes(rest);
    match (kind, code) {
        (v6::UNREACHABLE, 0 | 2 | 3) => Ok(Head::new(v4::UNREACHABLE, v4::HOST_UNREACHABLE, 0)),
        (v6::UNREACHABLE, v6::PROHIBITED) => Ok(Head::new(v4::UNREACHABLE, v4::HOST_PROHIBITED, 0)),
        (v6::UNREACHABLE, v6::PORT_UNREACHABLE) => {
            Ok(Head::new(v4::UNREACHABLE, v4::PORT_UNREACHABLE, 0))
        }
        // A host must not believe such an MTU (RFC 8201 §4), and the CLAT stands for the host. No
        // path needs it: every IPv6 link carries 1280 bytes (RFC 8200 §5), and a translator further
        // on never asks for less (RFC 7915 §4.2). Forged, it would make a host send packets of 68
        // bytes.
        (v6::PACKET_TOO_BIG, _) if value < MIN_MTU => Err(Reason::MtuBelowMinimum),
        (v6::PACKET_TOO_BIG, _) => {
            // A fragment loses 28 bytes of headers. Told only 20 less, its sender would send the
            // next fragment 8 bytes too big, again and again.
            let difference = if is_fragment { 28 } else { 20 };
            let mtu = (value.min(config.mtu6).saturating_sub(difference)).min(config.mtu4);
            let mtu = mtu.clamp(68, 0xffff);
            Ok(Head::new(v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, mtu))
        }
        (v6::TIME_EXCEEDED, _) => Ok(Head::new(v4::TIME_EXCEEDED, code, 0)),
        (v6::PARAMETER_PROBLEM, 0) => {
            let pointer: u8 = match value {
                0 => 0,
                1 => 1,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return Err(Reason::IcmpPointer),
            };
            Ok(Head::new(v4::PARAMETER_PROBLEM, 0, u32::from(pointer) << 24))
        }
        (v6::PARAMETER_PROBLEM, v6::NEXT_HEADER) => {
            Ok(Head::new(v4::UNREACHABLE, v4::PROTOCOL_UNREACHABLE, 0))
        }
        _ => Err(Reason::IcmpType),
    }
}

/// The likely MTU where a router gave none: the largest plateau below the packet's length (RFC 1191
/// §7.1).
fn plateau_below(len: usize) -> u32 {
    const PLATEAUS: [u16; 10] = [32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];
    PLATEAUS.into_iter().find(|p| usize::from(*p) < len).unwrap_or(68).into()
}

/// The checksum of a translated message that sums to `new` without it. `was` is the sum of the
/// original message with its checksum: if that was wrong, the new one is wrong by the same amount.
pub(crate) fn equally_wrong(was: Sum, new: Sum) -> [u8; 2] {
    match was.fold() {
        0xffff => new.field(),
        was => {
            let [a, b] = new.field();
            (Sum::of(&was.to_ne_bytes()) + Sum::of(&[a, b])).fold().to_ne_bytes()
        }
    }
}
