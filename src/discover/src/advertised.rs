// SPDX-License-Identifier: Apache-2.0

//! The NAT64 prefixes (RFC 8781) and DNS servers (RFC 8106) that a link's routers advertise.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use clat_packet::nd::{option, options, Message};
use clat_packet::ra::{preference, read_pref64, read_rdnss};
use clat_xlat::Prefix;

/// Limits on routers, and on prefixes and servers of each: anybody on the link may send
/// advertisements, and must not fill the memory.
const ROUTERS: usize = 16;
const PER_ROUTER: usize = 8;

/// The state of a link's routers.
#[derive(Debug, Default)]
pub(crate) struct Advertised(Vec<Router>);

#[derive(Debug)]
struct Router {
    address: Ipv6Addr,
    preference: i8,
    /// End of its lifetime as default router.
    until: Instant,
    /// Whether it was heard since the link last came back.
    is_here: bool,
    prefixes: Vec<Timed<Prefix>>,
    servers: Vec<Timed<Ipv6Addr>>,
}

#[derive(Debug)]
struct Timed<T> {
    value: T,
    until: Instant,
}

/// Sets a value's lifetime; a zero one removes the value.
fn note<T: PartialEq>(list: &mut Vec<Timed<T>>, value: T, lifetime: Duration, now: Instant) {
    let known = list.iter().position(|timed| timed.value == value);
    match (known, now.checked_add(lifetime).filter(|_| !lifetime.is_zero())) {
        (Some(at), Some(until)) => list[at].until = until,
        (Some(at), None) => drop(list.remove(at)),
        (None, Some(until)) if list.len() < PER_ROUTER => list.push(Timed { value, until }),
        (None, _) => {}
    }
}

impl Advertised {
    /// Handles an ICMPv6 message from `from` with this hop limit, whose checksum has been verified.
    /// Returns false if it is no valid router advertisement (RFC 4861 §6.1.2).
    pub(crate) fn handle(
        &mut self,
        from: Ipv6Addr,
        hop_limit: u8,
        message: &[u8],
        now: Instant,
    ) -> bool {
        let Some(Message::RouterAdvertisement { flags, lifetime, options: rest }) =
            Message::read(message, hop_limit)
        else {
            return false;
        };
        if !from.is_unicast_link_local() {
            return false;
        }
        self.expire(now);
        let Some(router) = self.router(from, now) else { return true };
        router.preference = preference(flags);
        router.until = now + Duration::from_secs(lifetime.into());
        router.is_here = true;
        for (kind, value) in options(rest) {
            match kind {
                option::PREF64 => {
                    let Some((prefix, lifetime)) = prefix_of(value) else { continue };
                    note(&mut router.prefixes, prefix, lifetime, now);
                }
                option::RDNSS => {
                    let Some((lifetime, servers)) = read_rdnss(value) else { continue };
                    let lifetime = Duration::from_secs(lifetime.into());
                    for server in servers.filter(|server| !server.is_multicast()) {
                        note(&mut router.servers, server, lifetime, now);
                    }
                }
                _ => {}
            }
        }
        true
    }

    fn router(&mut self, address: Ipv6Addr, now: Instant) -> Option<&mut Router> {
        let known = self.0.iter().position(|router| router.address == address);
        let at = match known {
            Some(at) => at,
            None if self.0.len() < ROUTERS => {
                self.0.push(Router {
                    address,
                    preference: 0,
                    until: now,
                    is_here: true,
                    prefixes: Vec::new(),
                    servers: Vec::new(),
                });
                self.0.len() - 1
            }
            None => return None,
        };
        self.0.get_mut(at)
    }

    /// The prefix to use, and its router. Preferred in this order: a router heard since the link
    /// came back, a default router, a higher preference (RFC 4191), the `current` prefix, the
    /// router heard first.
    #[must_use]
    pub(crate) fn prefix(
        &self,
        current: Option<Prefix>,
        now: Instant,
    ) -> Option<(Prefix, Ipv6Addr)> {
        let mut best = None;
        for router in &self.0 {
            for prefix in router.prefixes.iter().filter(|prefix| prefix.until > now) {
                let is_current = current == Some(prefix.value);
                let rank = (router.is_here, router.until > now, router.preference, is_current);
                if best.is_none_or(|(highest, _)| rank > highest) {
                    best = Some((rank, (prefix.value, router.address)));
                }
            }
        }
        best.map(|(_, found)| found)
    }

    /// The DNS servers, those of preferred routers first.
    #[must_use]
    pub(crate) fn servers(&self, now: Instant) -> Vec<Ipv6Addr> {
        let mut routers: Vec<_> = self.0.iter().collect();
        routers.sort_by_key(|router| std::cmp::Reverse((router.is_here, router.preference)));
        let servers = routers.into_iter().flat_map(|router| &router.servers);
        servers.filter(|server| server.until > now).map(|server| server.value).collect()
    }

    /// After a link loss, limits all lifetimes to `within`: what is not advertised again by then
    /// belongs to another network.
    pub(crate) fn require_renewal(&mut self, within: Duration, now: Instant) {
        let latest = now + within;
        for router in &mut self.0 {
            router.is_here = false;
            router.until = router.until.min(latest);
            router.prefixes.iter_mut().for_each(|prefix| prefix.until = prefix.until.min(latest));
            router.servers.iter_mut().for_each(|server| server.until = server.until.min(latest));
        }
    }

    /// Removes what has expired; true if a prefix has.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let mut lost = false;
        for router in &mut self.0 {
            let before = router.prefixes.len();
            router.prefixes.retain(|prefix| prefix.until > now);
            router.servers.retain(|server| server.until > now);
            lost |= router.prefixes.len() < before;
        }
        self.0.retain(|router| {
            router.until > now || !router.prefixes.is_empty() || !router.servers.is_empty()
        });
        lost
    }

    /// The next expiry.
    #[must_use]
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let of = |router: &Router| {
            let prefixes = router.prefixes.iter().map(|prefix| prefix.until);
            let servers = router.servers.iter().map(|server| server.until);
            prefixes.chain(servers).chain([router.until]).min()
        };
        self.0.iter().filter_map(of).min()
    }
}

/// The prefix and lifetime of a PREF64 option; `None` for a prefix that no NAT64 can have. Bits
/// after the prefix length are ignored (RFC 8781 §4: the option carries them anyway).
fn prefix_of(value: &[u8]) -> Option<(Prefix, Duration)> {
    let (address, bits, lifetime) = read_pref64(value)?;
    let address = Ipv6Addr::from_bits(address.to_bits() >> (128 - bits) << (128 - bits));
    let is_unicast = !(address.is_multicast()
        || address.is_unicast_link_local()
        || address.to_bits() >> 32 == 0
        || address.to_bits() >> 32 == 0xffff);
    let prefix = Prefix::new(address, bits).ok().filter(|_| is_unicast)?;
    Some((prefix, Duration::from_secs(lifetime.into())))
}

#[cfg(test)]
mod tests {
    use clat_packet::ra;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const ONE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const TWO: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    /// An advertisement with these flags, this router lifetime, and prefixes with lifetimes, in
    /// seconds.
    fn advertisement(flags: u8, lifetime: u16, prefixes: &[(&str, u16)]) -> Vec<u8> {
        let mut message = ra::header(64, flags, lifetime).to_vec();
        for (text, lifetime) in prefixes {
            let prefix = prefix(text);
            message.extend(ra::pref64(prefix.addr(), prefix.bits(), *lifetime).unwrap());
        }
        message
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn rfc_8781_4_all_lengths_and_their_lifetimes() {
        for text in [
            "2001:db8::/32",
            "2001:db8:6400::/40",
            "2001:db8:64::/48",
            "2001:db8:64:ff00::/56",
            "2001:db8:64:1::/64",
            "64:ff9b::/96",
        ] {
            let (mut advertised, now) = (Advertised::default(), Instant::now());
            // In units of 8 seconds: 607 becomes 600.
            let message = advertisement(0, 1800, &[(text, 607)]);
            assert!(advertised.handle(ONE, 255, &message, now));
            let found = Some((prefix(text), ONE));
            assert_eq!(advertised.prefix(None, now + seconds(599)), found);
            assert_eq!(advertised.poll_timeout(), Some(now + seconds(600)));
            assert_eq!(advertised.prefix(None, now + seconds(600)), None);
            assert!(advertised.expire(now + seconds(600)));
            // Withdrawn.
            advertised.handle(ONE, 255, &message, now);
            advertised.handle(ONE, 255, &advertisement(0, 1800, &[(text, 0)]), now);
            assert_eq!(advertised.prefix(None, now), None);
        }
    }

    #[test]
    fn what_is_no_advertisement_of_the_link() {
        let (mut advertised, now) = (Advertised::default(), Instant::now());
        let message = advertisement(0, 1800, &[("64:ff9b::/96", 600)]);
        assert!(!advertised.handle(ONE, 254, &message, now), "from afar");
        let global = "2001:db8::1".parse().unwrap();
        assert!(!advertised.handle(global, 255, &message, now), "of no router of the link");
        assert!(!advertised.handle(ONE, 255, &message[..20], now), "cut off");
        assert_eq!(advertised.prefix(None, now), None);
    }

    #[test]
    fn what_no_nat64_has() {
        for text in ["fe80::/96", "ff00::/32", "::/96", "::ffff:0:0/96", "2001:db8::ff00:0:0/96"] {
            let (address, bits) = text.split_once('/').unwrap();
            let bits = bits.parse().unwrap();
            let option = ra::pref64(address.parse().unwrap(), bits, 600).unwrap();
            let prefix = prefix_of(&option[2..]);
            // The last one is valid: its u-octet is zero (RFC 6052 §2.2).
            assert_eq!(prefix.is_some(), text.starts_with("2001"), "{text}");
        }
        let option = ra::pref64("2001:db8:64:ff:ff00::".parse().unwrap(), 96, 600).unwrap();
        assert_eq!(prefix_of(&option[2..]), None, "the u-octet");
        let option = ra::pref64("2001:db8:64:ff::".parse().unwrap(), 48, 600).unwrap();
        assert_eq!(prefix_of(&option[2..]), Some((prefix("2001:db8:64::/48"), seconds(600))));
    }

    #[test]
    fn of_several_the_better_routers() {
        let (mut advertised, now) = (Advertised::default(), Instant::now());
        let (a, b) = ("2001:db8:a::/96", "2001:db8:b::/96");
        let said = |advertised: &mut Advertised, from, flags, lifetime, text| {
            advertised.handle(from, 255, &advertisement(flags, lifetime, &[(text, 600)]), now);
            advertised.prefix(None, now)
        };
        assert_eq!(said(&mut advertised, ONE, 0, 1800, a), Some((prefix(a), ONE)));
        assert_eq!(said(&mut advertised, TWO, 0, 1800, b), Some((prefix(a), ONE)), "the first");
        assert_eq!(advertised.prefix(Some(prefix(b)), now), Some((prefix(b), TWO)), "current");
        assert_eq!(said(&mut advertised, TWO, 0x08, 1800, b), Some((prefix(b), TWO)), "high");
        assert_eq!(said(&mut advertised, TWO, 0x18, 1800, b), Some((prefix(a), ONE)), "low");
        assert_eq!(said(&mut advertised, ONE, 0, 0, a), Some((prefix(b), TWO)), "no router");
        // Both advertise the same prefix, and one withdraws it.
        said(&mut advertised, ONE, 0, 1800, b);
        advertised.handle(TWO, 255, &advertisement(0, 0, &[(b, 0)]), now);
        advertised.handle(ONE, 255, &advertisement(0, 1800, &[(a, 0)]), now);
        assert_eq!(advertised.prefix(None, now), Some((prefix(b), ONE)));
    }

    #[test]
    fn a_link_that_was_away() {
        let (mut advertised, now) = (Advertised::default(), Instant::now());
        let (a, b) = ("2001:db8:a::/96", "2001:db8:b::/96");
        let message = advertisement(0x08, 1800, &[(a, 600)]);
        advertised.handle(ONE, 255, &message, now);
        advertised.require_renewal(seconds(3), now);
        assert_eq!(advertised.prefix(None, now), Some((prefix(a), ONE)));
        advertised.handle(TWO, 255, &advertisement(0, 1800, &[(b, 600)]), now);
        assert_eq!(advertised.prefix(Some(prefix(a)), now), Some((prefix(b), TWO)), "heard");
        advertised.handle(TWO, 255, &advertisement(0, 1800, &[(b, 0)]), now);
        assert_eq!(advertised.prefix(None, now + seconds(3)), None, "of another network");
        advertised.handle(ONE, 255, &message, now);
        assert_eq!(advertised.prefix(None, now + seconds(599)), Some((prefix(a), ONE)), "the same");
    }

    #[test]
    fn dns_servers() {
        let (mut advertised, now) = (Advertised::default(), Instant::now());
        let server: Ipv6Addr = "2001:db8::53".parse().unwrap();
        let mut message = advertisement(0, 1800, &[]);
        message.extend(ra::rdnss(server, 60));
        advertised.handle(ONE, 255, &message, now);
        assert_eq!(advertised.servers(now + seconds(59)), [server]);
        assert!(advertised.servers(now + seconds(60)).is_empty());
    }

    proptest! {
        #[test]
        fn noise_is_bounded(
            messages in vec((any::<u16>(), vec(any::<u8>(), 0..200)), 0..60)
        ) {
            let (mut advertised, now) = (Advertised::default(), Instant::now());
            for (from, mut message) in messages {
                if let [kind, code, ..] = &mut message[..] {
                    (*kind, *code) = (134, 0);
                }
                let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, from);
                advertised.handle(from, 255, &message, now);
            }
            prop_assert!(advertised.0.len() <= ROUTERS);
            for router in &advertised.0 {
                prop_assert!(router.prefixes.len() <= PER_ROUTER);
                prop_assert!(router.servers.len() <= PER_ROUTER);
            }
            let _ = advertised.prefix(None, now);
        }

        /// The last advertised lifetime of a prefix counts.
        #[test]
        fn the_last_lifetime_counts(lifetimes in vec((0u8..3, 0u16..3), 1..20)) {
            let (mut advertised, now) = (Advertised::default(), Instant::now());
            let text = |n: u8| format!("2001:db8:{n:x}::/96");
            let mut last = std::collections::BTreeMap::new();
            for (which, units) in lifetimes {
                let message = advertisement(0, 1800, &[(&text(which), units * 8)]);
                advertised.handle(ONE, 255, &message, now);
                last.insert(which, units);
            }
            let live = last.iter().filter(|(_, units)| **units > 0);
            let live: Vec<_> = live.map(|(n, _)| prefix(&text(*n))).collect();
            let found = advertised.prefix(None, now).map(|(prefix, _)| prefix);
            prop_assert_eq!(found.is_some(), !live.is_empty());
            prop_assert!(found.is_none_or(|found| live.contains(&found)));
        }
    }
}
