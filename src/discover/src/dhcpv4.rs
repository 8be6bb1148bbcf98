// SPDX-License-Identifier: Apache-2.0

//! The DHCPv4 option IPv6-Only Preferred (RFC 8925).

use std::time::Duration;

use clat_packet::{ipv4, protocol};

/// Lengths of a UDP header, and of a DHCP message before the magic cookie and the options (RFC 2131
/// §2), in bytes.
const UDP: usize = 8;
const HEADER: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Source port of servers and destination port of clients.
const PORTS: [u8; 4] = [0, 67, 0, 68];
/// Option codes: pad, end, message type, IPv6-Only Preferred.
const PAD: u8 = 0;
const END: u8 = 255;
const MESSAGE_TYPE: u8 = 53;
const IPV6_ONLY: u8 = 108;
/// Message types: OFFER, ACK.
const OFFERS: [u8; 2] = [2, 5];
/// The shortest time that a client does without IPv4 (RFC 8925 §3.4).
const MIN_V6ONLY_WAIT: Duration = Duration::from_secs(300);

/// How long the client with Ethernet address `address` does without IPv4 according to this IPv4
/// packet; `None` if it says nothing about that. Servers send the option only to clients that
/// request it (RFC 8925 §3.3).
#[must_use]
pub(crate) fn ipv6_only_wait(packet: &[u8], address: [u8; 6]) -> Option<Duration> {
    let ip = ipv4::parse(packet).ok()?;
    let payload = packet.get(ip.header_len..ip.len)?;
    if ip.protocol != protocol::UDP || ip.fragment.is_some() || payload.get(..4)? != PORTS {
        return None;
    }
    let (header, rest) = payload.get(UDP..)?.split_at_checked(HEADER)?;
    if header.get(28..34)? != address {
        return None;
    }
    let (mut offers, mut wait) = (false, None);
    for (kind, value) in options(rest.strip_prefix(&COOKIE)?) {
        match (kind, value) {
            (MESSAGE_TYPE, [kind]) => offers = OFFERS.contains(kind),
            (IPV6_ONLY, value) => {
                let seconds = u32::from_be_bytes(value.try_into().ok()?);
                wait = Some(Duration::from_secs(seconds.into()).max(MIN_V6ONLY_WAIT));
            }
            _ => {}
        }
    }
    wait.filter(|_| offers)
}

fn options(mut rest: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || loop {
        let (&kind, behind) = rest.split_first()?;
        if kind == END {
            return None;
        }
        rest = behind;
        if kind != PAD {
            let (&len, behind) = rest.split_first()?;
            let (value, behind) = behind.split_at_checked(len.into())?;
            rest = behind;
            return Some((kind, value));
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn packet(options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER];
        message[28..34].copy_from_slice(&CLIENT);
        message.extend(COOKIE);
        message.extend(options);
        let length = u16::try_from(ipv4::HEADER + UDP + message.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend([192, 0, 2, 1, 255, 255, 255, 255]);
        let sum = clat_packet::checksum::Sum::of(&packet).field();
        packet[10..12].copy_from_slice(&sum);
        packet.extend(PORTS);
        packet.extend([0; 4]);
        packet.extend(message);
        packet
    }

    #[test]
    fn rfc_8925_3_1_the_option() {
        for kind in OFFERS {
            for (wait, seconds) in [(1800u32, 1800), (0, 300)] {
                let mut options = vec![0, 53, 1, kind, 108, 4];
                options.extend(wait.to_be_bytes());
                let told = ipv6_only_wait(&packet(&options), CLIENT);
                assert_eq!(told, Some(Duration::from_secs(seconds)));
            }
        }
        let other = [2, 0, 0, 0, 0, 8];
        let good = [53, 1, 2, 108, 4, 0, 0, 7, 8, 255];
        assert!(ipv6_only_wait(&packet(&good), CLIENT).is_some());
        assert_eq!(ipv6_only_wait(&packet(&good), other), None, "of another client");
        for options in [
            &[53, 1, 2, 255, 108, 4, 0, 0, 7, 8][..],
            &[53, 1, 6, 108, 4, 0, 0, 7, 8],
            &[53, 1, 2, 108, 3, 0, 0, 7],
            &[53, 1, 2, 108, 4, 0, 0],
            &[53, 1, 2],
            &[],
        ] {
            assert_eq!(ipv6_only_wait(&packet(options), CLIENT), None, "{options:?}");
        }
    }

    proptest! {
        #[test]
        fn noise(options in proptest::collection::vec(any::<u8>(), 0..100), cut in 0usize..400) {
            let packet = packet(&options);
            let _ = ipv6_only_wait(&packet[..cut.min(packet.len())], CLIENT);
        }
    }
}
