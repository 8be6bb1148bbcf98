// SPDX-License-Identifier: Apache-2.0

//! Router advertisements (RFC 4861 §6.2), with MTU, prefix (RFC 4862), RDNSS (RFC 8106) and PREF64
//! (RFC 8781).

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use clat_packet::ra;
use rand::Rng;

use super::wire::HOP_LIMIT;
use crate::settings::Settings;

/// Seconds that the router, its DNS server and PREF64 are good for without another advertisement:
/// three times the longest interval (RFC 8781 §5.1, RFC 8106 §5.1).
const LIFETIME: u16 = 1800;
/// Seconds that a prefix is valid and preferred (RFC 4861 §6.2.1 has 30 and 7 days, which no
/// carrier does).
const VALID: u32 = 86400;
const PREFERRED: u32 = 14400;
/// Seconds between unsolicited ones (MinRtrAdvInterval, MaxRtrAdvInterval).
const INTERVAL: std::ops::RangeInclusive<u64> = 200..=600;
/// The first few come faster (MAX_INITIAL_RTR_ADVERTISEMENTS, MAX_INITIAL_RTR_ADVERT_INTERVAL).
const INITIAL: u8 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// Seconds between two of them to everybody (MIN_DELAY_BETWEEN_RAS).
const LEAST_INTERVAL: Duration = Duration::from_secs(3);
/// Prefixes of before that are still served.
const OLD: usize = 4;

/// When the next advertisement is due, and what was advertised before.
#[derive(Debug)]
pub(super) struct Advertiser {
    next: Instant,
    /// When the last one was sent to everybody.
    last: Option<Instant>,
    initial: u8,
    /// What was advertised before, newest first: announced as over, and still served.
    old: Vec<Ipv6Addr>,
}

impl Advertiser {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, last: None, initial: INITIAL, old: Vec::new() }
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
        self.last = Some(now);
        self.initial = self.initial.saturating_sub(1);
        self.next = now
            + if self.initial > 0 {
                INITIAL_INTERVAL
            } else {
                Duration::from_secs(rand::rng().random_range(INTERVAL))
            };
        true
    }

    /// A guest that has no address yet asks for one, which goes to everybody. Whether that is the
    /// caller's to send now; else it is due as soon as it may be (RFC 4861 §6.2.6).
    pub(super) fn solicited(&mut self, now: Instant) -> bool {
        match self.last.map(|last| last + LEAST_INTERVAL).filter(|soonest| now < *soonest) {
            Some(soonest) => {
                self.next = self.next.min(soonest);
                false
            }
            None => {
                self.last = Some(now);
                true
            }
        }
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

    /// The message, without its checksum: other configuration by DHCPv6, but addresses by
    /// autoconfiguration.
    pub(super) fn message(&self, settings: &Settings) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(ra::header(HOP_LIMIT, ra::OTHER, LIFETIME));
        message.extend(ra::source_address(settings.mac.0));
        message.extend(ra::mtu(settings.mtu.into()));
        message.extend(prefix(settings.prefix, VALID, PREFERRED));
        message.extend(ra::rdnss(settings.dns(), LIFETIME.into()));
        for old in &self.old {
            message.extend(prefix(*old, 0, 0));
            let dns = Settings { prefix: *old, ..settings.clone() }.dns();
            message.extend(ra::rdnss(dns, 0));
        }
        message.extend(pref64(settings, LIFETIME));
        message
    }

    /// The last one: no router any more (RFC 4861 §6.2.5), no DNS server (RFC 8106 §5.1) and no
    /// NAT64 (RFC 8781 §4).
    pub(super) fn farewell(settings: &Settings) -> Vec<u8> {
        let mut message = ra::header(HOP_LIMIT, ra::OTHER, 0).to_vec();
        message.extend(ra::source_address(settings.mac.0));
        message.extend(ra::rdnss(settings.dns(), 0));
        message.extend(pref64(settings, 0));
        message
    }
}

/// Nothing where it is not to be advertised.
fn pref64(settings: &Settings, lifetime: u16) -> Vec<u8> {
    let prefix = settings.prefix64;
    let option = ra::pref64(prefix.addr(), prefix.bits(), lifetime).filter(|_| settings.pref64);
    option.into_iter().flatten().collect()
}

/// Without the on-link flag: all that is not the guest's own is the router's, as on a mobile
/// network.
fn prefix(prefix: Ipv6Addr, valid: u32, preferred: u32) -> [u8; 32] {
    ra::prefix_information(prefix, 64, ra::AUTONOMOUS, valid, preferred)
}
