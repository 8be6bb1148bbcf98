// SPDX-License-Identifier: Apache-2.0

//! ICMP errors: passes on, as a router would, what the host's kernel has learned about a
//! destination.

use std::net::Ipv6Addr;

use clat_packet::checksum::Sum;
use clat_packet::icmp::{v4, v6};

use super::target::Refused;
use super::wire::{self, Addresses, ICMP6, IPV6, UDP};
use super::{Context, Sink};
use crate::fairness::Buckets;
use crate::frame::Mac;
use crate::icmp_error::IcmpError;
use crate::settings::LEAST_MTU;

impl From<Refused> for IcmpError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Forbidden => Self::Prohibited,
            Refused::NoRoute => Self::AddressUnreachable,
        }
    }
}

/// Whether a packet of `len` bytes from this guest is fragmented at a hop with a smaller MTU: an
/// IPv6 sender cannot be told an MTU below 1280 (RFC 7915 §5.1).
pub fn is_cut_anyway(guest: Ipv6Addr, len: usize) -> bool {
    guest.to_ipv4_mapped().is_none() && len <= usize::from(LEAST_MTU)
}

/// Sends an ICMP error about `packet`, an IP packet from the guest with `mac`, from a router on the
/// path (`from`) or from ours. Nothing is sent about an error, or to an address that cannot be a
/// host's (RFC 4443 §2.4(e)).
pub fn send(
    cx: Context<'_>,
    sink: &mut dyn Sink,
    buckets: &Buckets,
    error: IcmpError,
    packet: &[u8],
    mac: Mac,
    from: Option<Ipv6Addr>,
) -> bool {
    let Some(parsed) = wire::parse(packet) else { return false };
    let ipv4 = parsed.src.to_ipv4_mapped().is_some();
    let is_error = match parsed.protocol {
        ICMP6 => parsed.payload.first().is_none_or(|kind| v6::is_error(*kind)),
        wire::ICMP4 => {
            parsed.payload.first().is_none_or(|kind| *kind != v4::ECHO && *kind != v4::ECHO_REPLY)
        }
        _ => false,
    };
    let to_many =
        parsed.dst.is_multicast() || parsed.src.is_multicast() || parsed.src.is_unspecified();
    if is_error || to_many || parsed.fragment.is_some_and(|f| f.offset > 0) {
        return false;
    }
    if !buckets.take(mac, cx.now) {
        return false;
    }
    let own = match cx.settings.dual_stack {
        Some(dual) if ipv4 => dual.router.to_ipv6_mapped(),
        _ => cx.settings.router_global(),
    };
    // A router without address in the guest's family becomes ours.
    let src = from.filter(|from| from.to_ipv4_mapped().is_some() == ipv4).unwrap_or(own);
    let (kind, code, info) = if ipv4 { error.icmp4() } else { error.icmp6() };
    let most = if ipv4 { 576 - 28 } else { usize::from(LEAST_MTU) - IPV6 - 8 };
    let mut message = vec![kind, code, 0, 0];
    message.extend(info.to_be_bytes());
    message.extend(&parsed.whole[..parsed.whole.len().min(most)]);
    let addresses =
        Addresses { guest_mac: mac, mac: cx.settings.mac, src, dst: parsed.src, class: 0 };
    wire::send_icmp(sink, &addresses, &mut message, 64, 1 << 16);
    true
}

/// Rebuilds the packet that a guest has sent, as far as known, for an error to quote.
pub fn rebuild(
    guest: (Ipv6Addr, u16),
    remote: (Ipv6Addr, u16),
    protocol: u8,
    l4: &[u8],
) -> Vec<u8> {
    let mut body = Vec::new();
    if protocol == UDP {
        body.extend(guest.1.to_be_bytes());
        body.extend(remote.1.to_be_bytes());
        body.extend(u16::try_from(l4.len() + 8).unwrap_or(u16::MAX).to_be_bytes());
        body.extend([0; 2]);
    }
    body.extend(l4);
    let check_at = match protocol {
        wire::TCP => 16,
        UDP => 6,
        _ => 2,
    };
    let mapped = guest.0.to_ipv4_mapped().zip(remote.0.to_ipv4_mapped());
    let pseudo = match (protocol, mapped) {
        (ICMP6, Some(_)) => Sum::default(),
        _ => wire::pseudo(guest.0, remote.0, protocol, body.len()),
    };
    let sum = pseudo + Sum::of(&body);
    let check = if protocol == UDP { sum.nonzero_field() } else { sum.field() };
    if let Some(field) = body.get_mut(check_at..check_at + 2) {
        field.copy_from_slice(&check);
    }
    let mut packet = Vec::new();
    if let Some((src, dst)) = mapped {
        let protocol = if protocol == ICMP6 { wire::ICMP4 } else { protocol };
        packet.extend([0x45, 0]);
        packet.extend(u16::try_from(20 + body.len()).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 1, protocol, 0, 0]);
        packet.extend(src.octets());
        packet.extend(dst.octets());
        let check = Sum::of(&packet).field();
        packet[10..12].copy_from_slice(&check);
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend([protocol, 1]);
        packet.extend(guest.0.octets());
        packet.extend(remote.0.octets());
    }
    packet.extend(body);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also if the sum is zero, which would mean no checksum.
    #[test]
    fn a_quoted_datagram_has_its_checksum() {
        for port in 0..=u16::MAX {
            let packet =
                rebuild((Ipv6Addr::LOCALHOST, 1), (Ipv6Addr::LOCALHOST, port), UDP, b"data");
            assert!(wire::verifies(&wire::parse(&packet).unwrap()), "port {port}");
        }
    }
}
