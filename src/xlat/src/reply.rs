// SPDX-License-Identifier: Apache-2.0

//! ICMP errors that the translator itself sends back (RFC 7915 §4.4, §5.4).

use clat_packet::checksum::Sum;
use clat_packet::icmp::{v4, v6, Head, CHECKSUM, HEADER};
use clat_packet::{ipv4, ipv6, protocol, Fragment, Ip, Malformed};

use crate::{Reason, Translator};

/// Why a packet is not translated, and the ICMP error that answers it, if any.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    Drop(Reason),
    Answer(Reason, Head),
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Self::Drop(reason)
    }
}

impl From<Malformed> for Stop {
    fn from(malformed: Malformed) -> Self {
        Self::Drop(malformed.into())
    }
}

/// The default answer to an IPv4 packet that is discarded (RFC 7915 §4.4).
#[cold]
pub(crate) const fn refuse_v4(reason: Reason) -> Stop {
    Stop::Answer(reason, Head::new(v4::UNREACHABLE, v4::PROHIBITED, 0))
}

/// The default answer to an IPv6 packet that is discarded (RFC 7915 §5.4).
#[cold]
pub(crate) const fn refuse_v6(reason: Reason) -> Stop {
    Stop::Answer(reason, Head::new(v6::UNREACHABLE, v6::PROHIBITED, 0))
}

/// The answer to an address that cannot be translated. A SIIT without a mapping sends an error; a
/// CLAT does not, since the packet was not meant for it. Other reasons are addresses that no packet
/// may have, which are dropped silently (RFC 1812 §5.3.7).
#[cold]
pub(crate) fn bad_address(t: &Translator, reason: Reason, refuse: fn(Reason) -> Stop) -> Stop {
    match reason {
        Reason::SourceUnmapped | Reason::DestinationUnmapped if t.addresses.local.is_none() => {
            refuse(reason)
        }
        reason => Stop::Drop(reason),
    }
}

/// Precedence 6, internetwork control, which RFC 1812 §4.3.2.5 asks of ICMP errors.
const CLASS: u8 = 0xc0;
const HOPS: u8 = 64;
/// Longest ICMPv4 error (RFC 1812 §4.3.2.3).
const MOST_V4: usize = 576;

/// Whether an error may be sent about this packet (RFC 1812 §4.3.2.7), whose addresses have been
/// checked.
pub(crate) fn may_answer_v4(ip: &Ip<u32>, payload: &[u8]) -> bool {
    let about_an_error =
        ip.protocol == protocol::ICMP && payload.first().map_or(true, |kind| v4::is_error(*kind));
    !ip.is_later_fragment() && !about_an_error
}

/// Whether an error may be sent about this packet, which begins with its IP header (RFC 4443 §2.4
/// (e)). Its addresses have been checked.
///
/// An ICMPv6 error may follow extension headers, and these a Fragment Header. A later fragment does
/// not show what its datagram is, so none of such a datagram is answered.
pub(crate) fn may_answer_v6(ip: &Ip<u128>, packet: &[u8]) -> bool {
    if ip.is_later_fragment() {
        return ip.protocol != protocol::ICMPV6 && !protocol::is_extension(ip.protocol);
    }
    let Some(mut extensions) = ipv6::Extensions::of(packet) else { return false };
    if extensions.by_ref().any(|extension| extension.is_err()) {
        return false;
    }
    extensions.protocol != protocol::ICMPV6
        || packet.get(extensions.at).is_some_and(|kind| !v6::is_error(*kind))
}

/// Writes an ICMPv4 error in front of the packet of `len` bytes at `start` that it quotes. Returns
/// its start and end.
pub(crate) fn write_v4(
    buf: &mut [u8],
    (start, len): (usize, usize),
    head: Head,
    (src, dst): (u32, u32),
    id: u16,
) -> (usize, usize) {
    let len = (ipv4::HEADER + HEADER + len).min(MOST_V4);
    let begin = start - ipv4::HEADER - HEADER;
    let (header, message) = buf[begin..begin + len].split_at_mut(ipv4::HEADER);
    head.write(message);
    let field = Sum::of(message).field();
    message[CHECKSUM..CHECKSUM + 2].copy_from_slice(&field);
    let fragment = Some(Fragment { offset: 0, more: false, id: id.into() });
    ipv4::write(header, &Ip { fragment, ..fresh(src, dst, protocol::ICMP) }, len);
    (begin, begin + len)
}

/// Writes an ICMPv6 error in front of the packet of `len` bytes at `start` that it quotes. Returns
/// its start and end.
pub(crate) fn write_v6(
    buf: &mut [u8],
    (start, len): (usize, usize),
    head: Head,
    (src, dst): (u128, u128),
) -> (usize, usize) {
    let len = (ipv6::HEADER + HEADER + len).min(ipv6::MIN_MTU);
    let begin = start - ipv6::HEADER - HEADER;
    let (header, message) = buf[begin..begin + len].split_at_mut(ipv6::HEADER);
    head.write(message);
    let field =
        (Sum::of(message) + Sum::pseudo6(src, dst, message.len(), protocol::ICMPV6)).field();
    message[CHECKSUM..CHECKSUM + 2].copy_from_slice(&field);
    ipv6::write(header, &fresh(src, dst, protocol::ICMPV6), message.len());
    (begin, begin + len)
}

/// The header of a packet that the translator itself sends.
fn fresh<A>(src: A, dst: A, protocol: u8) -> Ip<A> {
    let (class, hops) = (CLASS, HOPS);
    Ip {
        src,
        dst,
        class,
        hops,
        protocol,
        fragment: None,
        dont_fragment: false,
        header_len: 0,
        len: 0,
    }
}
