// SPDX-License-Identifier: Apache-2.0

//! IPv6 to IPv4: ingress6 (RFC 7915 §5).

use core::net::Ipv6Addr;
use core::ops::Range;

use clat_packet::checksum::Sum;
use clat_packet::icmp::{v6, Head, CHECKSUM, HEADER};
use clat_packet::{ipv4, ipv6, protocol, Fragment, Ip};

use crate::addr::NoCounterpart;
use crate::icmp::{self, Shape};
use crate::reply::{self, Stop};
use crate::{transport, HopPolicy, Output, Reason, Rule, Split, Translator};

/// Largest IPv4 packet that routers may fragment (RFC 7915 §5.1): IPv6 senders ignore an MTU below
/// 1280.
const MOST_WITHOUT_DF: usize = 1260;

/// Translates the packet at `start..end` of `buf`, which is unchanged if this fails.
#[inline(always)]
pub(crate) fn translate(
    t: &mut Translator,
    buf: &mut [u8],
    Range { start, end }: Range<usize>,
    excess: usize,
) -> Result<Output, Stop> {
    let ipv6::Parsed { ip, segments_left_at } = ipv6::parse(&buf[start..end])?;
    let payload = start + ip.header_len..start + ip.len;
    let message = match ip.protocol {
        protocol::ICMPV6 => Some(Head::read(&buf[payload.clone()])),
        _ => None,
    };
    let is_error = message.flatten().is_some_and(|head| v6::is_error(head.kind)) && ip.is_whole();
    let (src, dst) = addresses(t, &ip, is_error)
        .map_err(|reason| reply::bad_address(t, reason, reply::refuse_v6))?;

    if t.config.hop == HopPolicy::Decrement && ip.hops <= 1 {
        return Err(Stop::Answer(Reason::HopLimit, Head::new(v6::TIME_EXCEEDED, 0, 0)));
    }
    if let Some(at) = segments_left_at {
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        return Err(Stop::Answer(Reason::SegmentsLeft, Head::new(v6::PARAMETER_PROBLEM, 0, at)));
    }
    match ip.protocol {
        // No ICMPv6 error is sent about an ICMPv6 message (RFC 7915 §5.4).
        protocol::ICMPV6 if !ip.is_whole() => return Err(Reason::FragmentedIcmp.into()),
        protocol::IGMP => return Err(Reason::GroupManagement.into()),
        protocol::AUTHENTICATION => return Err(reply::refuse_v6(Reason::AuthenticationHeader)),
        protocol::ICMP => return Err(reply::refuse_v6(Reason::NoCounterpart)),
        // The parser stops at an extension header only in a fragment.
        other if protocol::is_extension(other) && t.reassembled => {
            return Err(Reason::ExtensionBehindFragment.into())
        }
        other if protocol::is_extension(other) => {
            return Err(reply::refuse_v6(Reason::ExtensionBehindFragment))
        }
        _ => transport::check(&ip, &buf[payload.clone()])?,
    }

    let hops = match t.config.hop {
        HopPolicy::Copy => ip.hops,
        HopPolicy::Decrement => ip.hops - 1,
    };
    let protocol = if ip.protocol == protocol::ICMPV6 { protocol::ICMP } else { ip.protocol };
    let (src_or_router, origin) = match src {
        Some(src) => (src, None),
        None => (t.config.router4.of(ip.src.into()).to_bits(), Some(ip.src)),
    };
    let class = t.config.class.unwrap_or(ip.class);
    let mut new = Ip { class, hops, protocol, ..readdressed(&ip, src_or_router, dst, excess) };

    if let Some(head) = message {
        let head = head.ok_or(Reason::Truncated)?;
        if is_error {
            return error(t, buf, payload, head, (&ip, &mut new), origin);
        }
        let Some(kind) = icmp::echo_to_v4(head.kind) else {
            return Err(untranslatable(head.kind).into());
        };
        fit(t, &ip, &mut new, excess)?;
        let pseudo = Sum::pseudo6(ip.src, ip.dst, payload.len(), protocol::ICMPV6);
        icmp::retype_echo(&mut buf[payload.clone()], kind, pseudo, Sum::default());
        return Ok(finish(t, buf, payload, &new, 0, Rule::To4Echo));
    }

    let rule = if ip.fragment.is_some() { Rule::To4Fragment } else { Rule::To4 };
    fit(t, &ip, &mut new, excess)?;
    if !t.neutral || new.src == new.dst {
        let (old, sum) = (Sum::addresses6(ip.src, ip.dst), Sum::addresses4(new.src, new.dst));
        transport::readdress(&ip, &mut buf[payload.clone()], old, sum);
    }
    Ok(finish(t, buf, payload, &new, excess, rule))
}

#[cold]
const fn untranslatable(kind: u8) -> Reason {
    match kind {
        v6::MLD_QUERY..=v6::MLD_DONE | v6::MLD_REPORT_V2 => Reason::GroupManagement,
        _ => Reason::IcmpType,
    }
}

/// The IPv4 forms of both addresses. The source of an ICMPv6 error may have none: routers rarely
/// do.
#[inline(always)]
fn addresses(t: &Translator, ip: &Ip<u128>, is_error: bool) -> Result<(Option<u32>, u32), Reason> {
    let (src, dst) = (Ipv6Addr::from_bits(ip.src), Ipv6Addr::from_bits(ip.dst));
    if src.is_unspecified() || src.is_loopback() || src.is_multicast() {
        return Err(Reason::IllegalSource);
    }
    if dst.is_multicast() {
        return Err(Reason::Multicast);
    }
    let dst = t.addresses.own_v4_of(ip.dst).map_err(|e| match e {
        NoCounterpart::NonGlobal => Reason::NonGlobalInWellKnownPrefix,
        NoCounterpart::Foreign | NoCounterpart::Unmapped => Reason::DestinationUnmapped,
    })?;
    if ipv4::is_martian(dst) {
        return Err(Reason::IllegalDestination);
    }
    let src = match t.addresses.v4_of(ip.src) {
        // The CLAT never sends from its IPv4 address in the prefix; such a source is forged (RFC
        // 2827).
        Ok(src) if ipv4::is_martian(src) || src == dst && ip.src != ip.dst => {
            return Err(Reason::IllegalSource)
        }
        Ok(src) => Some(src),
        // This holds for ICMPv6 errors too (RFC 6052 §3.1).
        Err(NoCounterpart::NonGlobal) => return Err(Reason::NonGlobalInWellKnownPrefix),
        Err(_) if is_error => None,
        Err(NoCounterpart::Foreign | NoCounterpart::Unmapped) => {
            return Err(Reason::SourceUnmapped)
        }
    };
    Ok((src, dst))
}

/// The same header with IPv4 addresses, and DF by size (RFC 7915 §5.1, §5.1.1).
#[inline(always)]
fn readdressed(ip: &Ip<u128>, src: u32, dst: u32, excess: usize) -> Ip<u32> {
    let Ip { class, hops, protocol, fragment, header_len, len, .. } = *ip;
    let longest = ipv4::HEADER + ip.payload_len().saturating_sub(excess);
    let dont_fragment = fragment.is_none() && longest > MOST_WITHOUT_DF;
    Ip { src, dst, class, hops, protocol, fragment, dont_fragment, header_len, len }
}

/// Checks that the packet fits, or may be fragmented. Gives an identification to a packet that has
/// none and may be fragmented.
#[inline(always)]
fn fit(t: &mut Translator, ip: &Ip<u128>, new: &mut Ip<u32>, excess: usize) -> Result<(), Stop> {
    let mtu = mtu4(t);
    let payload = ip.payload_len().saturating_sub(excess);
    if ipv4::HEADER + payload > mtu && ip.len.saturating_sub(excess) > ipv6::MIN_MTU {
        let mtu6 = u32::try_from(mtu).unwrap_or(u32::MAX) + 20;
        return Err(Stop::Answer(
            Reason::TooBigForIpv4,
            Head::new(v6::PACKET_TOO_BIG, 0, mtu6.max(1280)),
        ));
    }
    identify(t, new);
    Ok(())
}

fn mtu4(t: &Translator) -> usize {
    usize::try_from(t.config.mtu4).unwrap_or(usize::MAX).clamp(68, 0xffff)
}

/// Sets the identification (RFC 7915 §5.1). With DF it has no meaning and is zero (RFC 6864 §4.1).
#[inline(always)]
fn identify(t: &mut Translator, new: &mut Ip<u32>) {
    if new.fragment.is_none() && !new.dont_fragment {
        new.fragment =
            Some(Fragment { offset: 0, more: false, id: t.next_identification().into() });
    }
}

/// Writes the header in front of the payload, which is fragmented if it is too long for the link.
#[inline(always)]
fn finish(
    t: &Translator,
    buf: &mut [u8],
    payload: Range<usize>,
    new: &Ip<u32>,
    excess: usize,
    rule: Rule,
) -> Output {
    let start = payload.start - ipv4::HEADER;
    let mtu = mtu4(t);
    ipv4::write(&mut buf[start..], new, payload.end - start);
    let range = start..payload.end;
    if range.len().saturating_sub(excess) <= mtu {
        return Output { rule, range, split: None };
    }
    let split = Some(Split::new(ipv4::HEADER, mtu, new.fragment));
    Output { rule: Rule::To4Split, range, split }
}

/// Translates an ICMPv6 error and the packet that it quotes (RFC 7915 §5.2, §5.3).
#[cold]
#[inline(never)]
fn error(
    t: &mut Translator,
    buf: &mut [u8],
    message: Range<usize>,
    head: Head,
    (ip, new): (&Ip<u128>, &mut Ip<u32>),
    origin: Option<u128>,
) -> Result<Output, Stop> {
    let body = message.start + HEADER..message.end;
    let (quote, extensions) = Shape::V6.split(buf, head, body);
    let inner = ipv6::parse_quoted(&buf[quote.clone()]).map_err(|_| Reason::QuotedPacket)?.ip;
    let mut new_head = icmp::error_to_v4(head, inner.fragment.is_some(), &t.config)?;
    if inner.len < inner.header_len || protocol::is_extension(inner.protocol) {
        return Err(Reason::QuotedPacket.into());
    }
    let payload = quote.start + inner.header_len..quote.end.min(quote.start + inner.len);

    // The quoted packet went in the other direction: its source is on our IPv4 side.
    let src = t.addresses.own_v4_of(inner.src).map_err(|_| Reason::QuotedAddress)?;
    let dst = t.addresses.v4_of(inner.dst).map_err(|_| Reason::QuotedAddress)?;
    if ipv4::is_martian(src) || ipv4::is_martian(dst) {
        return Err(Reason::QuotedAddress.into());
    }
    let mut new_inner = readdressed(&inner, src, dst, 0);
    let mut echo = None;
    if inner.protocol == protocol::ICMPV6 {
        new_inner.protocol = protocol::ICMP;
        if let (false, Some(kind)) = (inner.is_later_fragment(), buf[payload.clone()].first()) {
            if v6::is_error(*kind) {
                return Err(Reason::NestedError.into());
            }
            echo = Some(icmp::echo_to_v4(*kind).ok_or(Reason::IcmpType)?);
        }
    }

    let was = Sum::of(&buf[message.clone()])
        + Sum::pseudo6(ip.src, ip.dst, message.len(), protocol::ICMPV6);
    let quoted = &mut buf[payload.clone()];
    if let Some(kind) = echo {
        let pseudo = Sum::pseudo6(inner.src, inner.dst, inner.payload_len(), protocol::ICMPV6);
        icmp::retype_echo(quoted, kind, pseudo, Sum::default());
    } else {
        let (old, new) = (Sum::addresses6(inner.src, inner.dst), Sum::addresses4(src, dst));
        transport::readdress(&inner, quoted, old, new);
    }

    let start = payload.start - ipv4::HEADER - HEADER;
    let end = Shape::V4.arrange(buf, &mut new_head, ipv4::HEADER, payload, extensions, origin);
    ipv4::write(&mut buf[start + HEADER..], &new_inner, ipv4::HEADER + inner.payload_len());
    new_head.write(&mut buf[start..end]);
    let field = icmp::equally_wrong(was, Sum::of(&buf[start..end]));
    buf[start + CHECKSUM..][..2].copy_from_slice(&field);

    // An atomic fragment already has an identification (RFC 7915 §5.1.1).
    new.dont_fragment = false;
    identify(t, new);
    let rule = if origin.is_some() { Rule::To4ErrorUnmapped } else { Rule::To4Error };
    Ok(finish(t, buf, start..end, new, 0, rule))
}
