// SPDX-License-Identifier: Apache-2.0

//! IPv4 to IPv6: egress4 (RFC 7915 §4).

use core::net::Ipv4Addr;
use core::ops::Range;

use clat_packet::checksum::Sum;
use clat_packet::icmp::{v4, Head, CHECKSUM, HEADER};
use clat_packet::{ipv4, ipv6, protocol, Fragment, Ip};

use crate::addr::NoCounterpart;
use crate::icmp::{self, Shape};
use crate::reply::{self, Stop};
use crate::{transport, Config, HopPolicy, Output, Reason, Rule, Split, Translator, UdpZero};

/// Translates the packet at `start..end` of `buf`, which is unchanged if this fails. With
/// `HAIRPIN`, it has come as IPv6 and goes back ([`crate::hairpin`]).
#[inline(always)]
pub(crate) fn translate<const HAIRPIN: bool>(
    t: &mut Translator,
    buf: &mut [u8],
    Range { start, end }: Range<usize>,
    excess: usize,
) -> Result<Output, Stop> {
    let bytes = &buf[start..end];
    let ip = ipv4::parse(bytes)?;
    let payload = start + ip.header_len..start + ip.len;
    let message = match ip.protocol {
        protocol::ICMP => Some(Head::read(&buf[payload.clone()])),
        _ => None,
    };
    let is_error = message.flatten().is_some_and(|head| v4::is_error(head.kind)) && ip.is_whole();
    let addresses = if HAIRPIN {
        hairpin_addresses(t, &ip, &buf[payload.clone()], is_error)
    } else {
        addresses(t, &ip, is_error)
    };
    let (src, dst) = addresses.map_err(|reason| reply::bad_address(t, reason, reply::refuse_v4))?;

    if t.config.hop == HopPolicy::Decrement && ip.hops <= 1 {
        return Err(Stop::Answer(Reason::HopLimit, Head::new(v4::TIME_EXCEEDED, 0, 0)));
    }
    if ipv4::has_unexpired_source_route(bytes, &ip) {
        return Err(Stop::Answer(
            Reason::SourceRoute,
            Head::new(v4::UNREACHABLE, v4::SOURCE_ROUTE_FAILED, 0),
        ));
    }
    match ip.protocol {
        protocol::ICMP if !ip.is_whole() && t.reassembled => {
            return Err(Reason::FragmentedIcmp.into())
        }
        protocol::ICMP if !ip.is_whole() => return Err(reply::refuse_v4(Reason::FragmentedIcmp)),
        protocol::IGMP => return Err(Reason::GroupManagement.into()),
        protocol::AUTHENTICATION => return Err(reply::refuse_v4(Reason::AuthenticationHeader)),
        // In IPv6, these numbers are ICMPv6 (an ICMPv4 checksum cannot match) or extension headers.
        protocol::ICMPV6 => return Err(reply::refuse_v4(Reason::NoCounterpart)),
        other if protocol::is_extension(other) => {
            return Err(reply::refuse_v4(Reason::NoCounterpart))
        }
        _ => transport::check(&ip, &buf[payload.clone()])?,
    }

    let hops = match t.config.hop {
        HopPolicy::Copy => ip.hops,
        HopPolicy::Decrement => ip.hops - 1,
    };
    let protocol = if ip.protocol == protocol::ICMP { protocol::ICMPV6 } else { ip.protocol };
    let class = t.config.class.unwrap_or(ip.class);
    let mut new = Ip { class, hops, protocol, ..readdressed(&ip, src, dst) };

    if let Some(head) = message {
        let head = head.ok_or(Reason::Truncated)?;
        if is_error {
            return error(t, buf, payload, head, &new, HAIRPIN);
        }
        let Some(kind) = icmp::echo_to_v6(head.kind) else { return Err(Reason::IcmpType.into()) };
        let most = fit(&t.config, &ip, &mut new, bytes, excess)?;
        let pseudo = Sum::pseudo6(src, dst, payload.len(), protocol::ICMPV6);
        icmp::retype_echo(&mut buf[payload.clone()], kind, Sum::default(), pseudo);
        return Ok(finish(buf, payload, &new, most, Rule::To6Echo));
    }

    let mut rule = if ip.fragment.is_some() { Rule::To6Fragment } else { Rule::To6 };
    let without_checksum = transport::is_udp_without_checksum(&ip, &buf[payload.clone()]);
    if without_checksum {
        match t.config.udp_zero {
            UdpZero::Forward => {}
            _ if !ip.is_whole() => return Err(reply::refuse_v4(Reason::UdpZeroChecksumFragment)),
            UdpZero::Compute => rule = Rule::To6UdpZero,
            UdpZero::Drop => return Err(reply::refuse_v4(Reason::UdpZeroChecksum)),
        }
    }
    let most = fit(&t.config, &ip, &mut new, bytes, excess)?;
    if rule == Rule::To6UdpZero {
        transport::compute_udp(&mut buf[payload.clone()], src, dst);
    } else if !t.neutral || dst == src {
        let (old, new) = (Sum::addresses4(ip.src, ip.dst), Sum::addresses6(src, dst));
        transport::readdress(&ip, &mut buf[payload.clone()], old, new);
    }
    Ok(finish(buf, payload, &new, most, rule))
}

/// The IPv6 forms of both addresses. An ICMP error may come from any source, even a martian: it
/// helps to find faults (RFC 7915 §4.1).
#[inline(always)]
fn addresses(t: &Translator, ip: &Ip<u32>, is_error: bool) -> Result<(u128, u128), Reason> {
    if ipv4::is_martian(ip.src) || ipv4::is_martian(ip.dst) {
        check_martians(ip, is_error)?;
    }
    let src = t.addresses.own_v6_of(ip.src).map_err(no_source)?;
    let dst = t.addresses.v6_of(ip.dst).map_err(|e| match e {
        NoCounterpart::NonGlobal => Reason::NonGlobalInWellKnownPrefix,
        NoCounterpart::Foreign | NoCounterpart::Unmapped => Reason::DestinationUnmapped,
    })?;
    Ok((src, dst))
}

const fn no_source(why: NoCounterpart) -> Reason {
    match why {
        NoCounterpart::Foreign => Reason::ForeignSource,
        NoCounterpart::NonGlobal => Reason::NonGlobalInWellKnownPrefix,
        NoCounterpart::Unmapped => Reason::SourceUnmapped,
    }
}

/// The IPv6 forms of both addresses of a packet that is sent back (RFC 7757 §4.2.1). The source is
/// in the prefix, so that answers come to the translator too. An ICMP error has such a source only
/// if the destination of the quoted packet sent it; a router on the path keeps its own.
#[cold]
fn hairpin_addresses(
    t: &Translator,
    ip: &Ip<u32>,
    payload: &[u8],
    is_error: bool,
) -> Result<(u128, u128), Reason> {
    let (src, dst) = addresses(t, ip, is_error)?;
    let quoted = ipv4::parse_quoted(payload.get(HEADER..).unwrap_or_default());
    if is_error && !quoted.is_ok_and(|quoted| quoted.dst == ip.src) {
        return Ok((src, dst));
    }
    Ok((t.addresses.unmapped_v6_of(ip.src).map_err(no_source)?, dst))
}

/// The reason for dropping a packet with a martian address. An ICMP error may have a martian as
/// source.
#[cold]
fn check_martians(ip: &Ip<u32>, is_error: bool) -> Result<(), Reason> {
    let is_multicast = |addr: u32| Ipv4Addr::from_bits(addr).is_multicast();
    if is_multicast(ip.src) || ipv4::is_martian(ip.src) && !is_error {
        return Err(Reason::IllegalSource);
    }
    if is_multicast(ip.dst) {
        return Err(Reason::Multicast);
    }
    if ipv4::is_martian(ip.dst) {
        return Err(Reason::IllegalDestination);
    }
    Ok(())
}

/// The same header with IPv6 addresses.
#[inline(always)]
fn readdressed(ip: &Ip<u32>, src: u128, dst: u128) -> Ip<u128> {
    let Ip { class, hops, protocol, fragment, dont_fragment, header_len, len, .. } = *ip;
    Ip { src, dst, class, hops, protocol, fragment, dont_fragment, header_len, len }
}

/// Decides whether the packet fits: `None` if it does, the size of fragments if it has to be
/// fragmented. Gives a packet that has to be fragmented an identification.
#[inline(always)]
fn fit(
    config: &Config,
    ip: &Ip<u32>,
    new: &mut Ip<u128>,
    bytes: &[u8],
    excess: usize,
) -> Result<Option<usize>, Stop> {
    let headers = ipv6::header_len(new);
    let len = headers + ip.payload_len().saturating_sub(excess);
    let (mtu, lowest) = (size(config.mtu6), size(config.lowest_ipv6_mtu));
    if ip.dont_fragment {
        if len <= mtu {
            return Ok(None);
        }
        // For a fragment, `headers` includes the Fragment Header.
        let mtu4 = mtu - headers + ipv4::HEADER;
        let mtu4 = u32::try_from(mtu4).unwrap_or(u32::MAX).min(0xffff);
        let head = Head::new(v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, mtu4);
        return Err(Stop::Answer(Reason::TooBigForIpv6, head));
    }
    let most = lowest.min(mtu);
    if len <= most {
        return Ok(None);
    }
    let id = ipv4::identification(bytes).into();
    new.fragment.get_or_insert(Fragment { offset: 0, more: false, id });
    Ok(Some(most))
}

fn size(mtu: u32) -> usize {
    usize::try_from(mtu).unwrap_or(usize::MAX).max(ipv6::MIN_MTU)
}

/// Writes the header in front of the payload, which is then fragmented to `most` bytes if given.
#[inline(always)]
fn finish(
    buf: &mut [u8],
    payload: Range<usize>,
    new: &Ip<u128>,
    most: Option<usize>,
    rule: Rule,
) -> Output {
    let header = ipv6::header_len(new);
    let start = payload.start - header;
    ipv6::write(&mut buf[start..], new, payload.len());
    let range = start..payload.end;
    match most {
        None => Output { rule, range, split: None },
        Some(most) => {
            let split = Some(Split::new(header, most, new.fragment));
            Output { rule: Rule::To6Split, range, split }
        }
    }
}

/// Translates an ICMP error and the packet that it quotes (RFC 7915 §4.2, §4.3).
#[cold]
#[inline(never)]
fn error(
    t: &Translator,
    buf: &mut [u8],
    message: Range<usize>,
    head: Head,
    new: &Ip<u128>,
    hairpin: bool,
) -> Result<Output, Stop> {
    let body = message.start + HEADER..message.end;
    let (quote, extensions) = Shape::V4.split(buf, head, body);
    let inner = ipv4::parse_quoted(&buf[quote.clone()]).map_err(|_| Reason::QuotedPacket)?;
    if ipv4::is_martian(inner.src) || ipv4::is_martian(inner.dst) {
        return Err(Reason::QuotedAddress.into());
    }
    let payload = quote.start + inner.header_len..quote.end.min(quote.start + inner.len);
    let mut new_head = icmp::error_to_v6(head, inner.len, &t.config)?;

    // The quoted packet went in the other direction: its destination is on our IPv4 side.
    let src = t.addresses.v6_of(inner.src).map_err(|_| Reason::QuotedAddress)?;
    let dst = if hairpin {
        t.addresses.unmapped_v6_of(inner.dst)
    } else {
        t.addresses.own_v6_of(inner.dst)
    };
    let dst = dst.map_err(|_| Reason::QuotedAddress)?;
    let mut new_inner = readdressed(&inner, src, dst);
    let mut echo = None;
    if inner.protocol == protocol::ICMP {
        new_inner.protocol = protocol::ICMPV6;
        if let (false, Some(kind)) = (inner.is_later_fragment(), buf[payload.clone()].first()) {
            if v4::is_error(*kind) {
                return Err(Reason::NestedError.into());
            }
            echo = Some(icmp::echo_to_v6(*kind).ok_or(Reason::IcmpType)?);
        }
    }

    let was = Sum::of(&buf[message.clone()]);
    let quoted = &mut buf[payload.clone()];
    if let Some(kind) = echo {
        let pseudo = Sum::pseudo6(src, dst, inner.payload_len(), protocol::ICMPV6);
        icmp::retype_echo(quoted, kind, Sum::default(), pseudo);
    } else {
        let (old, new) = (Sum::addresses4(inner.src, inner.dst), Sum::addresses6(src, dst));
        transport::readdress(&inner, quoted, old, new);
    }

    let inner_header = ipv6::header_len(&new_inner);
    let start = payload.start - inner_header - HEADER;
    let end = Shape::V6.arrange(buf, &mut new_head, inner_header, payload, extensions, None);
    ipv6::write(&mut buf[start + HEADER..], &new_inner, inner.payload_len());
    new_head.write(&mut buf[start..end]);
    let sum =
        Sum::of(&buf[start..end]) + Sum::pseudo6(new.src, new.dst, end - start, protocol::ICMPV6);
    let field = icmp::equally_wrong(was, sum);
    buf[start + CHECKSUM..][..2].copy_from_slice(&field);
    Ok(finish(buf, start..end, new, None, Rule::To6Error))
}
