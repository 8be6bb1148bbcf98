// SPDX-License-Identifier: Apache-2.0

//! Router advertisements (RFC 4861 §6.2), with MTU, prefix (RFC 4862), RDNSS (RFC 8106) and PREF64 (RFC 8781).

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use clat_xlat::Prefix;
use rand::Rng;

use super::wire::HOP_LIMIT;
use crate::frame::Mac;
use crate::settings::Settings;

/// The number of the PREF64 option (RFC 8781 §4).
const PREF64: u8 = 38;
/// Seconds that the router, its DNS server and PREF64 are good for without another advertisement: three times the
/// longest interval (RFC 8781 §5.1, RFC 8106 §5.1).
const LIFETIME: u16 = 1800;
/// Seconds that a prefix is valid and preferred (RFC 4861 §6.2.1 has 30 and 7 days, which no carrier does).
const VALID: u32 = 86400;
const PREFERRED: u32 = 14400;
/// Seconds between unsolicited ones (MinRtrAdvInterval, MaxRtrAdvInterval).
const INTERVAL: std::ops::RangeInclusive<u64> = 200..=600;
/// The first few come faster (MAX_INITIAL_RTR_ADVERTISEMENTS, MAX_INITIAL_RTR_ADVERT_INTERVAL).
const INITIAL: u8 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// Prefixes of before that are still served.
const OLD: usize = 4;

/// Who advertises, and when.
#[derive(Debug)]
pub(super) struct Advertiser {
    next: Instant,
    initial: u8,
    /// What was advertised before, newest first: announced as over, and still served.
    old: Vec<Ipv6Addr>,
}

impl Advertiser {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, initial: INITIAL, old: Vec::new() }
    }

    /// When the next unsolicited one is due.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Whether one is due; then it is the caller's to send.
    pub(super) fn poll(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.initial = self.initial.saturating_sub(1);
        self.next = now
            + if self.initial > 0 {
                INITIAL_INTERVAL
            } else {
                Duration::from_secs(rand::rng().random_range(INTERVAL))
            };
        true
    }

    /// Another prefix is advertised from now on, at once and some more times soon.
    pub(super) fn renumber(&mut self, old: Ipv6Addr, new: Ipv6Addr, now: Instant) {
        self.old.retain(|prefix| *prefix != new && *prefix != old);
        self.old.insert(0, old);
        self.old.truncate(OLD);
        self.initial = INITIAL + 1;
        self.next = now;
    }

    /// The prefixes that are served, and no longer advertised.
    pub(super) fn old(&self) -> &[Ipv6Addr] {
        &self.old
    }

    /// The message, without its checksum.
    pub(super) fn message(&self, settings: &Settings) -> Vec<u8> {
        let mut message = header(LIFETIME);
        source_address(&mut message, settings.mac);
        // MTU (RFC 4861 §4.6.4)
        message.extend_from_slice(&[5, 1, 0, 0]);
        message.extend_from_slice(&u32::from(settings.mtu).to_be_bytes());
        prefix_information(&mut message, settings.prefix, VALID, PREFERRED);
        rdnss(&mut message, settings.dns(), LIFETIME.into());
        for old in &self.old {
            prefix_information(&mut message, *old, 0, 0);
            let dns = Settings { prefix: *old, ..settings.clone() }.dns();
            rdnss(&mut message, dns, 0);
        }
        if settings.pref64 {
            pref64(&mut message, settings.prefix64, LIFETIME);
        }
        message
    }

    /// The last one (RFC 4861 §6.2.5): no router any more.
    pub(super) fn farewell(settings: &Settings) -> Vec<u8> {
        let mut message = header(0);
        source_address(&mut message, settings.mac);
        message
    }
}

/// RFC 4861 §4.2: other configuration by DHCPv6, but addresses by autoconfiguration.
fn header(lifetime: u16) -> Vec<u8> {
    let [high, low] = lifetime.to_be_bytes();
    let mut message = vec![134, 0, 0, 0, HOP_LIMIT, 0x40, high, low];
    // Reachable time and retransmission timer: unspecified.
    message.extend_from_slice(&[0; 8]);
    message
}

fn source_address(message: &mut Vec<u8>, mac: Mac) {
    message.extend_from_slice(&[1, 1]);
    message.extend_from_slice(&mac.0);
}

/// RFC 4861 §4.6.2, without the on-link flag: all that is not the guest's own is the router's, as on a mobile network.
fn prefix_information(message: &mut Vec<u8>, prefix: Ipv6Addr, valid: u32, preferred: u32) {
    const AUTONOMOUS: u8 = 0x40;
    message.extend_from_slice(&[3, 4, 64, AUTONOMOUS]);
    message.extend_from_slice(&valid.to_be_bytes());
    message.extend_from_slice(&preferred.to_be_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&prefix.octets());
}

/// RFC 8106 §5.1.
fn rdnss(message: &mut Vec<u8>, server: Ipv6Addr, lifetime: u32) {
    message.extend_from_slice(&[25, 3, 0, 0]);
    message.extend_from_slice(&lifetime.to_be_bytes());
    message.extend_from_slice(&server.octets());
}

/// RFC 8781 §4: a lifetime in units of 8 seconds, a code for the prefix length, and the prefix's first 96 bits.
fn pref64(message: &mut Vec<u8>, prefix: Prefix, lifetime: u16) {
    let code = match prefix.bits() {
        96 => 0,
        64 => 1,
        56 => 2,
        48 => 3,
        40 => 4,
        _ => 5,
    };
    message.extend_from_slice(&[PREF64, 2]);
    message.extend_from_slice(&(lifetime & !7 | code).to_be_bytes());
    message.extend_from_slice(&prefix.addr().octets()[..12]);
}
