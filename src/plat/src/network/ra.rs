// SPDX-License-Identifier: Apache-2.0

//! Router advertisements (RFC 4861 §6.2), with MTU, prefix (RFC 4862), RDNSS (RFC 8106) and PREF64
//! (RFC 8781).

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use clat_packet::ra;
use rand::Rng;

use super::wire::HOP_LIMIT;
use crate::settings::Settings;

/// Lifetime in seconds of router, DNS server and PREF64: three times the longest interval (RFC 8781
/// §5.1, RFC 8106 §5.1).
const LIFETIME: u16 = 1800;
/// Valid and preferred lifetime of a prefix in seconds. (RFC 4861 §6.2.1 has 30 and 7 days, which
/// no carrier uses.)
const VALID: u32 = 86400;
const PREFERRED: u32 = 14400;
/// Seconds between unsolicited advertisements (MinRtrAdvInterval, MaxRtrAdvInterval).
const INTERVAL: std::ops::RangeInclusive<u64> = 200..=600;
/// The first few are sent faster (MAX_INITIAL_RTR_ADVERTISEMENTS, MAX_INITIAL_RTR_ADVERT_INTERVAL).
const INITIAL: u8 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// Least time between two multicast advertisements (MIN_DELAY_BETWEEN_RAS).
const LEAST_INTERVAL: Duration = Duration::from_secs(3);
/// Most previous prefixes that are still served.
const OLD: usize = 4;

/// When the next advertisement is due, and the previous prefixes.
#[derive(Debug)]
pub(super) struct Advertiser {
    next: Instant,
    /// When the last multicast one was sent.
    last: Option<Instant>,
    initial: u8,
    /// Previous prefixes, newest first: advertised with lifetime zero, and still served.
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

    /// Whether one is due; then the caller has to send it.
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

    /// Handles the solicitation of a guest without address, which is answered by multicast. Returns
    /// whether to send it now; else it is due as soon as allowed (RFC 4861 §6.2.6).
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

    /// Advertises another prefix from now on, at once and soon again.
    pub(super) fn renumber(&mut self, old: Ipv6Addr, new: Ipv6Addr, now: Instant) {
        self.old.retain(|prefix| *prefix != new && *prefix != old);
        self.old.insert(0, old);
        self.old.truncate(OLD);
        self.initial = INITIAL + 1;
        self.next = now;
    }

    /// The prefixes that are served but no longer advertised.
    pub(super) fn old(&self) -> &[Ipv6Addr] {
        &self.old
    }

    /// The message, without its checksum. Its flags: addresses by autoconfiguration, other
    /// configuration by DHCPv6.
    pub(super) fn message(&self, settings: &Settings) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(ra::header(HOP_LIMIT, ra::OTHER, LIFETIME));
        message.extend(ra::source_address(settings.mac.0));
        message.extend(ra::mtu(settings.mtu.into()));
        message.extend(prefix(settings.prefix, VALID, PREFERRED));
        if settings.dns {
            message.extend(ra::rdnss(settings.dns(), LIFETIME.into()));
        }
        message.extend(dnssl(settings, LIFETIME.into()));
        for old in &self.old {
            message.extend(prefix(*old, 0, 0));
            if settings.dns {
                let dns = Settings { prefix: *old, ..settings.clone() }.dns();
                message.extend(ra::rdnss(dns, 0));
            }
        }
        message.extend(pref64(settings, LIFETIME));
        message
    }

    /// The final one: all lifetimes are zero, of the router (RFC 4861 §6.2.5), the DNS server (RFC
    /// 8106 §5.1) and the NAT64 prefix (RFC 8781 §4).
    pub(super) fn farewell(settings: &Settings) -> Vec<u8> {
        let mut message = ra::header(HOP_LIMIT, ra::OTHER, 0).to_vec();
        message.extend(ra::source_address(settings.mac.0));
        if settings.dns {
            message.extend(ra::rdnss(settings.dns(), 0));
        }
        message.extend(dnssl(settings, 0));
        message.extend(pref64(settings, 0));
        message
    }
}

/// The search list (RFC 8106 §5.2); empty if there is none.
fn dnssl(settings: &Settings, lifetime: u32) -> Vec<u8> {
    const KIND: u8 = 31;
    let mut list = settings.search_list();
    if list.is_empty() {
        return list;
    }
    // Multiples of 8 bytes with the 8 in front of it.
    list.resize(list.len().next_multiple_of(8), 0);
    let units = u8::try_from(list.len() / 8 + 1).unwrap_or(u8::MAX);
    [&[KIND, units, 0, 0][..], &lifetime.to_be_bytes(), &list].concat()
}

/// The PREF64 option; empty if it is not advertised.
fn pref64(settings: &Settings, lifetime: u16) -> Vec<u8> {
    let prefix = settings.prefix64;
    let option = ra::pref64(prefix.addr(), prefix.bits(), lifetime).filter(|_| settings.pref64);
    option.into_iter().flatten().collect()
}

/// Without the on-link flag, as on a mobile network: guests send everything to the router.
fn prefix(prefix: Ipv6Addr, valid: u32, preferred: u32) -> [u8; 32] {
    ra::prefix_information(prefix, 64, ra::AUTONOMOUS, valid, preferred)
}
