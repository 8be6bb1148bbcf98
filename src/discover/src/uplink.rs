// SPDX-License-Identifier: Apache-2.0

//! The state of one uplink's network, and the decision whether to run a CLAT on it.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use clat_xlat::Prefix;

use crate::advertised::Advertised;
use crate::dhcpv4::ipv6_only_wait;
use crate::resolved::Resolved;

/// Intervals of router solicitations (RFC 7559 §2: IRT, MRT).
const SOLICIT_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(4)..=Duration::from_secs(3600);
/// How long to wait for answers to a solicitation before DNS is asked (RFC 9872 §4.1: PREF64 has
/// precedence; RFC 4861 §6.2.6: routers answer within half a second).
const ROUTERS_WAIT: Duration = Duration::from_millis(600);
/// How long a running DHCPv4 client may take before native IPv4 is taken to be absent.
const DHCPV4_WAIT: Duration = Duration::from_secs(2);
/// How long knowledge from before a link loss is kept unless it is confirmed. Routers may answer a
/// solicitation as late as after 3.5 seconds (RFC 4861 §6.2.6).
const RENEWAL_WAIT: Duration = Duration::from_secs(10);
/// How long a CLAT is kept without IPv6: a link may bounce, or a router restart.
const LINGER: Duration = Duration::from_secs(10);
/// Time between attempts to start a CLAT.
const RETRY_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60);

/// The host's state on an uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Whether it is up and has a carrier.
    pub has_link: bool,
    /// Whether it has a link-local address, to solicit from.
    pub has_link_local: bool,
    /// Whether it has an IPv6 default route, and an IPv6 address from which a CLAT's can be
    /// derived.
    pub has_ipv6: bool,
    /// Whether DHCPv6 assigned each of its addresses individually on a link with neighbours: a CLAT
    /// may not then make up an address of its own.
    pub has_single_address: bool,
    /// Whether it has native IPv4: an address outside 169.254/16, and a default route.
    pub has_ipv4: bool,
    /// Whether a DHCPv4 client runs on it.
    pub has_dhcpv4: bool,
    /// Whether another program's CLAT is on this host.
    pub has_other_clat: bool,
    /// The resolvers configured for it, best first, without those that routers advertise.
    pub resolvers: Vec<SocketAddr>,
}

/// The source of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration.
    Configured,
    /// A router's advertisement.
    Advertised(Ipv6Addr),
    /// A resolver.
    Resolved(SocketAddr),
    /// A CLAT that runs already, until the network confirms its prefix or has had the time to.
    Remembered,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("the configuration"),
            Self::Advertised(router) => write!(f, "PREF64 of router {router}"),
            Self::Resolved(resolver) => write!(f, "DNS64 at {}", resolver.ip()),
            Self::Remembered => f.write_str("the CLAT that runs already"),
        }
    }
}

/// A prefix and its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The NAT64 prefix.
    pub prefix: Prefix,
    /// Its source.
    pub source: Source,
}

/// Whether a CLAT is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs, with this prefix.
    Run(Found),
    /// The uplink has native IPv4.
    HasIpv4,
    /// Another program's CLAT provides IPv4 on this host.
    HasOtherClat,
    /// There is no IPv6 to run it over.
    NoIpv6,
    /// There is IPv6, but no address that a CLAT may use.
    NoOwnAddress,
    /// No prefix is known yet.
    NoPrefix,
    /// The resolvers say that there is no NAT64, and no router advertises one.
    NoNat64,
    /// A DHCPv4 client may still get native IPv4.
    AwaitsDhcpv4,
    /// It could not be started, and will be retried.
    Failed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(found) => write!(f, "a CLAT with {}, by {}", found.prefix, found.source),
            Self::HasIpv4 => f.write_str("native IPv4 is there"),
            Self::HasOtherClat => {
                f.write_str("another program has a CLAT (ip -4 address show to 192.0.0.0/29)")
            }
            Self::NoIpv6 => f.write_str("no global IPv6 address with a default route"),
            Self::NoOwnAddress => {
                f.write_str("DHCPv6 gives one address alone (/128); a CLAT needs another, of SLAAC")
            }
            Self::NoPrefix => f.write_str("no NAT64 prefix is known yet"),
            Self::NoNat64 => f.write_str("this network has no NAT64"),
            Self::AwaitsDhcpv4 => f.write_str("a DHCPv4 client is at work"),
            Self::Failed => f.write_str("a CLAT could not be started"),
        }
    }
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A router solicitation, to all routers.
    Solicitation,
    /// A DNS message to a resolver, through the uplink.
    Question(SocketAddr, Vec<u8>),
}

/// One uplink.
#[derive(Debug)]
pub struct Uplink {
    configured: Option<Prefix>,
    host: Host,
    advertised: Advertised,
    resolved: Resolved,
    /// The prefix of a CLAT found running at the start, and until when it is used unconfirmed.
    remembered: Option<(Prefix, Instant)>,
    /// When to solicit, and the interval after that; `None` once a router was heard.
    solicit: Option<(Instant, Duration)>,
    /// DNS may be asked from then on, even without an advertisement.
    dns_from: Instant,
    /// Until when the DHCPv4 client does without an address (RFC 8925).
    ipv6_only_until: Option<Instant>,
    /// Since when only the result of DHCPv4 is missing.
    ready_since: Option<Instant>,
    /// While a CLAT is to run: its prefix, and, once IPv6 is missing, its deadline.
    running: Option<(Found, Option<Instant>)>,
    /// The earliest next attempt, and the interval after that.
    retry: Option<(Instant, Duration)>,
}

impl Uplink {
    /// An uplink of which nothing is known yet. A `configured` prefix overrides the network's.
    #[must_use]
    pub fn new(configured: Option<Prefix>, now: Instant) -> Self {
        Self {
            configured,
            host: Host::default(),
            advertised: Advertised::default(),
            resolved: Resolved::default(),
            remembered: None,
            solicit: None,
            dns_from: now,
            ipv6_only_until: None,
            ready_since: None,
            running: None,
            retry: None,
        }
    }

    /// Sets the prefix that overrides the network's; `None` uses the network's.
    pub fn configure(&mut self, prefix: Option<Prefix>, now: Instant) {
        self.configured = prefix;
        self.update(now);
    }

    /// Notes that a CLAT with this prefix runs already.
    pub fn remember(&mut self, prefix: Prefix, now: Instant) {
        self.remembered = Some((prefix, now + RENEWAL_WAIT));
        let found = Found { prefix, source: Source::Remembered };
        self.running = Some((found, Some(now + LINGER)));
    }

    /// Handles a new state of the host.
    pub fn handle_host(&mut self, host: Host, now: Instant) {
        let before = std::mem::replace(&mut self.host, host);
        if before == self.host {
            return;
        }
        if self.host.has_link && !before.has_link {
            self.advertised.require_renewal(RENEWAL_WAIT, now);
            self.resolved.require_renewal(RENEWAL_WAIT, now);
            self.ipv6_only_until = None;
        }
        if self.can_solicit() && !(before.has_link && before.has_link_local) {
            self.begin_soliciting(now);
        }
        self.retry = None;
        self.update(now);
    }

    /// Handles an ICMPv6 message from the uplink whose checksum has been verified.
    pub fn handle_icmp(&mut self, from: Ipv6Addr, hop_limit: u8, message: &[u8], now: Instant) {
        if self.advertised.handle(from, hop_limit, message, now) {
            self.solicit = None;
            self.dns_from = now;
            self.update(now);
        }
    }

    /// Handles an IPv4 packet from the uplink, whose Ethernet address is `address`.
    pub fn handle_ipv4(&mut self, packet: &[u8], address: [u8; 6], now: Instant) {
        if let Some(wait) = ipv6_only_wait(packet, address) {
            self.ipv6_only_until = Some(now + wait);
            self.update(now);
        }
    }

    /// Handles a message from a resolver.
    pub fn handle_dns(&mut self, from: SocketAddr, message: &[u8], now: Instant) {
        self.resolved.handle(from, message, now);
        self.update(now);
    }

    /// Notes that a CLAT could not be started, or has ended by itself.
    pub fn handle_failed(&mut self, now: Instant) {
        let wait = self.retry.map_or(*RETRY_INTERVAL.start(), |(_, wait)| wait);
        self.retry = Some((now + wait, (wait * 2).min(*RETRY_INTERVAL.end())));
        self.running = None;
    }

    /// Notes that a CLAT was started.
    pub fn handle_started(&mut self) {
        self.retry = None;
    }

    /// Handles the time of [`Self::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.advertised.expire(now) && self.can_solicit() && self.solicit.is_none() {
            // Routers renew a prefix in time unless they have been silent for long.
            self.begin_soliciting(now);
        }
        self.resolved.expire(now);
        self.update(now);
    }

    /// The next message to send, if there is one.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Message> {
        if let Some((_, wait)) = self.solicit.filter(|(at, _)| *at <= now) {
            self.solicit = Some((now + wait, (wait * 2).min(*SOLICIT_INTERVAL.end())));
            if self.can_solicit() {
                return Some(Message::Solicitation);
            }
        }
        let (resolver, question) = self.resolved.poll_transmit(now)?;
        Some(Message::Question(resolver, question))
    }

    /// When to call [`Self::handle_timeout`], then [`Self::poll_transmit`] and [`Self::verdict`],
    /// even if no message arrives.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let after = |at: Instant| Some(at).filter(|at| *at > now);
        [
            self.advertised.poll_timeout(),
            self.resolved.poll_timeout(),
            self.solicit.filter(|_| self.can_solicit()).map(|(at, _)| at),
            after(self.dns_from),
            self.ready_since.and_then(|since| after(since + DHCPV4_WAIT)),
            self.running.and_then(|(_, until)| until),
            self.retry.and_then(|(at, _)| after(at)),
            self.remembered.and_then(|(_, until)| after(until)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether a CLAT is to run.
    #[must_use]
    pub fn verdict(&self, now: Instant) -> Verdict {
        if self.host.has_ipv4 {
            return Verdict::HasIpv4;
        }
        if self.host.has_other_clat {
            return Verdict::HasOtherClat;
        }
        if self.retry.is_some_and(|(at, _)| at > now) {
            return Verdict::Failed;
        }
        let current = self.running.map(|(found, _)| found.prefix);
        let Some(found) = self.found(current, now) else {
            return match self.host.has_ipv6 {
                true if self.resolved.is_denied() => Verdict::NoNat64,
                true => Verdict::NoPrefix,
                false => Verdict::NoIpv6,
            };
        };
        if self.host.has_ipv6 && self.host.has_single_address {
            return Verdict::NoOwnAddress;
        }
        if let Some((_, until)) = self.running {
            let lingers = self.host.has_ipv6 || until.is_none_or(|until| until > now);
            return if lingers { Verdict::Run(found) } else { Verdict::NoIpv6 };
        }
        if !self.host.has_ipv6 {
            return Verdict::NoIpv6;
        }
        let waited = self.ready_since.is_some_and(|since| since + DHCPV4_WAIT <= now);
        let declined = self.ipv6_only_until.is_some_and(|until| until > now);
        if self.host.has_dhcpv4 && !declined && !waited {
            return Verdict::AwaitsDhcpv4;
        }
        Verdict::Run(found)
    }

    /// The network's prefix, whether or not it is used.
    #[must_use]
    pub fn found(&self, current: Option<Prefix>, now: Instant) -> Option<Found> {
        let configured = self.configured.map(|prefix| (prefix, Source::Configured));
        let found = configured
            .or_else(|| {
                let (prefix, router) = self.advertised.prefix(current, now)?;
                Some((prefix, Source::Advertised(router)))
            })
            .or_else(|| {
                let (prefix, resolver) = self.resolved.prefix(current, now)?;
                Some((prefix, Source::Resolved(resolver)))
            });
        let found = found.or_else(|| {
            let (prefix, _) = self.remembered.filter(|(_, until)| *until > now)?;
            Some((prefix, Source::Remembered))
        });
        found.map(|(prefix, source)| Found { prefix, source })
    }

    /// The host's last state.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    fn can_solicit(&self) -> bool {
        self.host.has_link && self.host.has_link_local
    }

    fn begin_soliciting(&mut self, now: Instant) {
        self.solicit = Some((now, *SOLICIT_INTERVAL.start()));
        self.dns_from = now + ROUTERS_WAIT;
    }

    /// Recomputes the derived state.
    fn update(&mut self, now: Instant) {
        let advertised = self.advertised.prefix(None, now).is_some();
        let is_missing = self.configured.is_none() && !advertised;
        let has_ipv6_only = self.host.has_ipv6 && !self.host.has_ipv4;
        if is_missing && has_ipv6_only && now >= self.dns_from {
            let resolvers = self.resolvers(now);
            self.resolved.set_resolvers(&resolvers, now);
        } else {
            self.resolved.pause();
        }
        let is_ready = has_ipv6_only && self.found(None, now).is_some();
        self.ready_since = is_ready.then(|| self.ready_since.unwrap_or(now));
        self.running = match self.verdict(now) {
            Verdict::Run(found) => {
                let known = self.running.and_then(|(_, until)| until);
                let until = known.unwrap_or(now + LINGER);
                Some((found, (!self.host.has_ipv6).then_some(until)))
            }
            _ => None,
        };
    }

    /// Advertised ones first: others, such as a VPN, cannot have set those.
    fn resolvers(&self, now: Instant) -> Vec<SocketAddr> {
        const PORT: u16 = 53;
        let mut resolvers: Vec<SocketAddr> = Vec::new();
        let advertised = self.advertised.servers(now).into_iter();
        let advertised = advertised.map(|server| SocketAddr::new(server.into(), PORT));
        for resolver in advertised.chain(self.host.resolvers.iter().copied()) {
            if !resolvers.contains(&resolver) {
                resolvers.push(resolver);
            }
        }
        resolvers
    }
}

#[cfg(test)]
mod tests {
    use clat_packet::ra;
    use proptest::prelude::*;

    use super::*;

    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const WELL_KNOWN: Prefix = Prefix::WELL_KNOWN;

    fn advertisement(pref64: Option<u16>) -> Vec<u8> {
        let mut message = ra::header(64, 0, 1800).to_vec();
        message.extend(ra::rdnss("2001:db8::53".parse().unwrap(), 1800));
        let option = pref64.and_then(|life| ra::pref64(WELL_KNOWN.addr(), 96, life));
        message.extend(option.into_iter().flatten());
        message
    }

    fn ipv6_only() -> Host {
        Host { has_link: true, has_link_local: true, has_ipv6: true, ..Host::default() }
    }

    /// An uplink, its time, and whether a CLAT runs.
    struct Lab {
        uplink: Uplink,
        now: Instant,
        sent: Vec<Message>,
    }

    impl Lab {
        fn new() -> Self {
            let now = Instant::now();
            Self { uplink: Uplink::new(None, now), now, sent: Vec::new() }
        }

        fn host(&mut self, host: Host) {
            self.uplink.handle_host(host, self.now);
            self.transmit();
        }

        fn advertise(&mut self, pref64: Option<u16>) {
            self.uplink.handle_icmp(ROUTER, 255, &advertisement(pref64), self.now);
            self.transmit();
        }

        fn transmit(&mut self) {
            self.sent.extend(std::iter::from_fn(|| self.uplink.poll_transmit(self.now)));
        }

        /// Lets time pass.
        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while let Some(next) = self.uplink.poll_timeout(self.now).filter(|next| *next <= end) {
                self.now = self.now.max(next);
                self.uplink.handle_timeout(self.now);
                self.transmit();
            }
            self.now = end;
        }

        fn verdict(&self) -> Verdict {
            self.uplink.verdict(self.now)
        }

        fn runs(&self) -> bool {
            matches!(self.verdict(), Verdict::Run(_))
        }

        fn questions(&self) -> usize {
            self.sent.iter().filter(|sent| matches!(sent, Message::Question(..))).count()
        }
    }

    const MILLIS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn rfc_9872_advertisements_before_dns() {
        let mut lab = Lab::new();
        lab.host(ipv6_only());
        assert_eq!(lab.sent, [Message::Solicitation]);
        lab.advertise(Some(600));
        let found = Found { prefix: WELL_KNOWN, source: Source::Advertised(ROUTER) };
        assert_eq!(lab.verdict(), Verdict::Run(found));
        lab.pass(MILLIS(599_000));
        assert_eq!(lab.questions(), 0);
        // The prefix has expired, and is not advertised again.
        lab.pass(MILLIS(1_000));
        assert_eq!(lab.verdict(), Verdict::NoPrefix);
        assert_eq!(lab.sent.last(), Some(&Message::Solicitation));
    }

    #[test]
    fn rfc_7050_where_no_router_has_a_prefix() {
        for heard in [true, false] {
            let mut lab = Lab::new();
            let resolvers = vec!["[2001:db8::54]:53".parse().unwrap()];
            lab.host(Host { resolvers, ..ipv6_only() });
            if heard {
                lab.advertise(None);
            } else {
                assert_eq!(lab.questions(), 0, "routers go first");
                lab.pass(ROUTERS_WAIT);
            }
            let asked = lab.sent.iter().find_map(|sent| match sent {
                Message::Question(whom, _) => Some(whom.to_string()),
                Message::Solicitation => None,
            });
            let (advertised, configured) = ("[2001:db8::53]:53", "[2001:db8::54]:53");
            assert_eq!(asked.as_deref(), Some(if heard { advertised } else { configured }));
        }
    }

    #[test]
    fn a_router_withdraws() {
        let mut lab = Lab::new();
        lab.host(ipv6_only());
        lab.advertise(Some(600));
        assert!(lab.runs());
        lab.advertise(Some(0));
        assert_eq!(lab.verdict(), Verdict::NoPrefix);
    }

    #[test]
    fn native_ipv4_comes_and_goes() {
        let mut lab = Lab::new();
        lab.advertise(Some(600));
        assert_eq!(lab.verdict(), Verdict::NoIpv6);
        lab.host(Host { has_ipv4: true, ..ipv6_only() });
        assert_eq!(lab.verdict(), Verdict::HasIpv4);
        lab.host(ipv6_only());
        assert!(lab.runs());
        lab.host(Host { has_ipv4: true, ..ipv6_only() });
        assert_eq!(lab.verdict(), Verdict::HasIpv4);
    }

    #[test]
    fn rfc_8925_a_dhcpv4_client() {
        let mut lab = Lab::new();
        lab.host(Host { has_dhcpv4: true, ..ipv6_only() });
        // The time before a prefix is known does not count.
        lab.pass(MILLIS(5_000));
        lab.advertise(Some(600));
        assert_eq!(lab.verdict(), Verdict::AwaitsDhcpv4);
        lab.pass(MILLIS(1_999));
        assert_eq!(lab.verdict(), Verdict::AwaitsDhcpv4);
        lab.pass(MILLIS(1));
        assert!(lab.runs());
        let mut lab = Lab::new();
        lab.host(Host { has_dhcpv4: true, ..ipv6_only() });
        lab.advertise(Some(600));
        lab.uplink.ipv6_only_until = Some(lab.now + MILLIS(1));
        assert!(lab.runs());
    }

    #[test]
    fn a_link_that_bounces_and_one_that_is_another() {
        let mut lab = Lab::new();
        lab.host(ipv6_only());
        lab.advertise(Some(600));
        lab.host(Host::default());
        assert!(lab.runs(), "it is not given up at once");
        lab.pass(MILLIS(500));
        lab.host(ipv6_only());
        assert_eq!(lab.sent.last(), Some(&Message::Solicitation));
        lab.advertise(Some(600));
        lab.pass(MILLIS(30_000));
        assert!(lab.runs());
        // The prefix is not advertised again.
        lab.host(Host::default());
        lab.host(ipv6_only());
        lab.pass(RENEWAL_WAIT);
        assert_eq!(lab.verdict(), Verdict::NoPrefix);
        // IPv6 stays away.
        lab.advertise(Some(600));
        assert!(lab.runs());
        lab.host(Host::default());
        lab.pass(LINGER);
        assert_eq!(lab.verdict(), Verdict::NoIpv6);
    }

    #[test]
    fn a_start_that_fails_is_tried_again_ever_later() {
        let mut lab = Lab::new();
        lab.host(ipv6_only());
        lab.advertise(Some(65_000));
        let (mut tries, begun) = (0, lab.now);
        while lab.now < begun + MILLIS(600_000) {
            tries += u32::from(lab.runs());
            if lab.runs() {
                lab.uplink.handle_failed(lab.now);
                assert_eq!(lab.verdict(), Verdict::Failed);
            }
            lab.pass(MILLIS(500));
        }
        assert!((10..20).contains(&tries), "{tries}");
        lab.host(Host { resolvers: vec!["[2001:db8::1]:53".parse().unwrap()], ..ipv6_only() });
        assert!(lab.runs(), "something has changed");
    }

    #[test]
    fn a_clat_found_running_goes_on() {
        for advertises in [true, false] {
            let mut lab = Lab::new();
            lab.uplink.remember(WELL_KNOWN, lab.now);
            assert!(lab.runs(), "before anything is known");
            lab.host(ipv6_only());
            lab.pass(RENEWAL_WAIT - MILLIS(1));
            assert!(lab.runs());
            if advertises {
                lab.advertise(Some(600));
            }
            lab.pass(MILLIS(1));
            assert_eq!(lab.runs(), advertises);
        }
    }

    #[test]
    fn what_is_configured_counts() {
        let (now, prefix) = (Instant::now(), "2001:db8:64::/96".parse().unwrap());
        let mut uplink = Uplink::new(Some(prefix), now);
        uplink.handle_host(ipv6_only(), now);
        uplink.handle_icmp(ROUTER, 255, &advertisement(Some(600)), now);
        let found = Found { prefix, source: Source::Configured };
        assert_eq!(uplink.verdict(now), Verdict::Run(found));
    }

    proptest! {
        /// In any state: no CLAT beside native IPv4 nor without a prefix, and no busy loop.
        #[test]
        fn anything(events in proptest::collection::vec((0u8..6, any::<u8>()), 0..80)) {
            let mut lab = Lab::new();
            for (event, value) in events {
                match event {
                    0 => lab.host(Host {
                        has_link: value & 1 != 0,
                        has_link_local: value & 2 != 0,
                        has_ipv6: value & 4 != 0,
                        has_single_address: value & 32 != 0,
                        has_other_clat: value & 64 != 0,
                        has_ipv4: value & 8 != 0,
                        has_dhcpv4: value & 16 != 0,
                        resolvers: Vec::new(),
                    }),
                    1 => lab.advertise(None),
                    2 => lab.advertise(Some(u16::from(value))),
                    3 => lab.uplink.handle_failed(lab.now),
                    _ => lab.pass(MILLIS(u64::from(value) * 100)),
                }
                lab.uplink.handle_timeout(lab.now);
                lab.transmit();
                let next = lab.uplink.poll_timeout(lab.now);
                prop_assert!(next.is_none_or(|next| next > lab.now), "{next:?}");
                if lab.runs() {
                    let host = lab.uplink.host();
                    let single = host.has_ipv6 && host.has_single_address;
                    prop_assert!(!(host.has_ipv4 || single || host.has_other_clat));
                    prop_assert!(lab.uplink.found(None, lab.now).is_some());
                }
            }
        }
    }
}
