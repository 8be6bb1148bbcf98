// SPDX-License-Identifier: Apache-2.0

//! Finds NAT64 prefixes by DNS (RFC 7050): for `ipv4only.arpa`, a DNS64 returns AAAA records that
//! embed well-known IPv4 addresses in its prefix.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use clat_xlat::Prefix;
use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

/// The name, and its IPv4 addresses (RFC 7050 §8).
const NAME: &str = "ipv4only.arpa.";
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
/// Prefix lengths (RFC 6052 §2.2), in bits.
const LENGTHS: [u8; 6] = [96, 64, 56, 48, 40, 32];

/// How long to wait for one resolver before the next one is also asked.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Time from a round without an answer to the next one, doubled each time.
const ROUND_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(600);
/// Limits of a prefix's TTL, and how long before its end the question is repeated (RFC 7050 §3).
const REFRESH_AHEAD: Duration = Duration::from_secs(10);
const TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(86_400);
/// Limits of the time for which a negative answer is believed.
const NEGATIVE_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(3600);
/// Limits on resolvers asked, on questions pending, and on prefixes kept.
const RESOLVERS: usize = 4;
const PENDING: usize = 8;
const PREFIXES: usize = 8;

/// Asks an uplink's resolvers, and keeps their answers.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    resolvers: Vec<SocketAddr>,
    /// When to ask the next resolver; `None` while paused.
    next: Option<Instant>,
    /// The next resolver, modulo their number, and how many were asked in this round.
    turn: usize,
    asked: usize,
    /// Rounds without an answer.
    silent: u32,
    /// The shortest lifetime of this round's negative answers.
    denied: Option<Duration>,
    /// Whether the last round had negative answers and no prefix.
    is_denied: bool,
    pending: Vec<(u16, SocketAddr)>,
    found: Option<Answer>,
}

#[derive(Debug)]
struct Answer {
    prefixes: Vec<Prefix>,
    resolver: SocketAddr,
    until: Instant,
}

impl Resolved {
    /// Sets the resolvers. New ones are asked at once; without any, nothing is asked, and the known
    /// prefixes stay until they expire.
    pub(crate) fn set_resolvers(&mut self, resolvers: &[SocketAddr], now: Instant) {
        let resolvers = resolvers.get(..RESOLVERS).unwrap_or(resolvers);
        if resolvers == self.resolvers && self.next.is_some() {
            return;
        }
        resolvers.clone_into(&mut self.resolvers);
        self.pending.clear();
        self.next = None;
        // The answer of a remaining resolver stays valid until it expires.
        self.found.take_if(|found| !resolvers.contains(&found.resolver));
        if !resolvers.is_empty() {
            let refresh =
                self.found.as_ref().and_then(|found| found.until.checked_sub(REFRESH_AHEAD));
            self.begin(refresh.map_or(now, |refresh| refresh.max(now)));
        }
    }

    /// Stops asking; the known prefixes stay until they expire.
    pub(crate) fn pause(&mut self) {
        self.next = None;
        self.pending.clear();
    }

    /// After a link loss, asks all resolvers again at once, and lets the known prefixes expire
    /// after `within` unless they are confirmed.
    pub(crate) fn require_renewal(&mut self, within: Duration, now: Instant) {
        if let Some(found) = &mut self.found {
            found.until = found.until.min(now + within);
        }
        if self.next.is_some() {
            self.begin(now);
        }
    }

    fn begin(&mut self, at: Instant) {
        self.next = Some(at);
        (self.asked, self.silent) = (0, 0);
        (self.denied, self.is_denied) = (None, false);
    }

    /// The next question that is due, and its resolver.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        if self.next.is_none_or(|next| next > now) || self.resolvers.is_empty() {
            return None;
        }
        if self.asked >= self.resolvers.len() {
            self.end_round(now);
            return None;
        }
        let resolver = *self.resolvers.get(self.turn % self.resolvers.len())?;
        self.turn = self.turn.wrapping_add(1);
        self.asked += 1;
        self.next = Some(now + ATTEMPT);
        let id = rand::random();
        if self.pending.len() >= PENDING {
            self.pending.remove(0);
        }
        self.pending.push((id, resolver));
        Some((resolver, question(id)?))
    }

    /// Called when all resolvers have been asked.
    fn end_round(&mut self, now: Instant) {
        self.asked = 0;
        if let Some(life) = self.denied.take() {
            (self.found, self.is_denied, self.silent) = (None, true, 0);
            self.next = Some(now + life);
            return;
        }
        let (least, most) = (*ROUND_INTERVAL.start(), *ROUND_INTERVAL.end());
        self.next = Some(now + (least * 2u32.saturating_pow(self.silent.min(16))).min(most));
        self.silent = self.silent.saturating_add(1);
    }

    /// Handles a message from a resolver; anything but an answer to a pending question is ignored.
    pub(crate) fn handle(&mut self, from: SocketAddr, message: &[u8], now: Instant) {
        let Ok(message) = Message::from_vec(message) else { return };
        let is_this = |pending: &(u16, SocketAddr)| *pending == (message.id(), from);
        let Some(at) = self.pending.iter().position(is_this) else { return };
        if message.message_type() != MessageType::Response || !answers_ours(&message) {
            return;
        }
        self.pending.remove(at);
        let (prefixes, life) = match message.response_code() {
            ResponseCode::NoError => read(&message),
            ResponseCode::NXDomain => (Vec::new(), negative_ttl(&message)),
            // An error: ask the next one.
            _ => return self.ask_next(now),
        };
        if prefixes.is_empty() {
            let life = life.clamp(*NEGATIVE_TTL.start(), *NEGATIVE_TTL.end());
            self.denied = Some(self.denied.map_or(life, |other| other.min(life)));
            return self.ask_next(now);
        }
        let until = now + life.clamp(*TTL.start(), *TTL.end());
        self.begin(until - REFRESH_AHEAD);
        // The resolver that answered is asked first the next time.
        self.turn = self.resolvers.iter().position(|one| *one == from).unwrap_or(0);
        self.pending.clear();
        self.found = Some(Answer { prefixes, resolver: from, until });
    }

    /// Asks the next resolver without waiting, if no question is pending.
    fn ask_next(&mut self, now: Instant) {
        if self.pending.is_empty() {
            self.next = self.next.map(|next| next.min(now));
            if self.asked >= self.resolvers.len() {
                self.end_round(now);
            }
        }
    }

    /// The prefix to use, and its resolver; the `current` prefix if it is among several.
    #[must_use]
    pub(crate) fn prefix(
        &self,
        current: Option<Prefix>,
        now: Instant,
    ) -> Option<(Prefix, SocketAddr)> {
        let found = self.found.as_ref().filter(|found| found.until > now)?;
        let current = current.filter(|current| found.prefixes.contains(current));
        Some((current.or(found.prefixes.first().copied())?, found.resolver))
    }

    /// Whether the resolvers that answered have said that there is no prefix.
    #[must_use]
    pub(crate) fn is_denied(&self) -> bool {
        self.is_denied
    }

    /// When [`Self::poll_transmit`] has a question, or a prefix expires.
    #[must_use]
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let next = self.next.filter(|_| !self.resolvers.is_empty());
        self.found.as_ref().map(|found| found.until).into_iter().chain(next).min()
    }

    /// Removes expired prefixes.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.found.take_if(|found| found.until <= now);
    }
}

/// The question, with CD clear, or a DNS64 would not synthesize records (RFC 7050 §3).
fn question(id: u16) -> Option<Vec<u8>> {
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    let mut message = Message::new();
    message.set_id(id).set_recursion_desired(true).set_edns(edns);
    message.add_query(Query::query(Name::from_ascii(NAME).ok()?, RecordType::AAAA));
    message.to_vec().ok()
}

fn answers_ours(message: &Message) -> bool {
    let [query] = message.queries() else { return false };
    query.query_type() == RecordType::AAAA
        && query.query_class() == DNSClass::IN
        && Name::from_ascii(NAME).is_ok_and(|name| *query.name() == name)
}

/// The prefixes of an answer, and how long they, or their absence, may be kept.
fn read(message: &Message) -> (Vec<Prefix>, Duration) {
    // The resolver follows aliases; the shortest TTL of the chain counts.
    let mut life = u32::MAX;
    let mut addresses = Vec::new();
    for record in message.answers() {
        if let RData::AAAA(address) = record.data() {
            addresses.push(address.0);
        }
        life = life.min(record.ttl());
    }
    let mut prefixes = pref64s(&addresses);
    prefixes.truncate(PREFIXES);
    if prefixes.is_empty() {
        return (prefixes, negative_ttl(message));
    }
    (prefixes, Duration::from_secs(life.into()))
}

/// The lifetime of a negative answer (RFC 2308 §5).
fn negative_ttl(message: &Message) -> Duration {
    let soa = message.name_servers().iter().find_map(|record| match record.data() {
        RData::SOA(soa) => Some(record.ttl().min(soa.minimum())),
        _ => None,
    });
    Duration::from_secs(soa.unwrap_or(0).into())
}

/// The NAT64 prefixes in these addresses of `ipv4only.arpa` (RFC 7050 §3), in the order of the
/// addresses. If an address matches several lengths, a prefix counts only if it is the one that
/// occurs with both well-known addresses.
#[must_use]
pub(crate) fn pref64s(addresses: &[Ipv6Addr]) -> Vec<Prefix> {
    let of = |address: Ipv6Addr| {
        LENGTHS.into_iter().filter_map(move |bits| {
            let network = address.to_bits() >> (128 - bits) << (128 - bits);
            let prefix = Prefix::new(network.into(), bits).ok()?;
            // The u-octet must be zero (RFC 6052 §2.2); the suffix is ignored.
            let v4 = prefix.extract(address).filter(|v4| ADDRESSES.contains(v4))?;
            (address.to_bits() >> 56 & 0xff == 0).then_some((prefix, v4))
        })
    };
    let all: Vec<_> = addresses.iter().flat_map(|address| of(*address)).collect();
    let is_whole = |prefix: Prefix| ADDRESSES.iter().all(|v4| all.contains(&(prefix, *v4)));
    let mut found: Vec<Prefix> = Vec::new();
    for address in addresses {
        let candidates: Vec<_> = of(*address).map(|(prefix, _)| prefix).collect();
        let clear = match candidates[..] {
            [only] => Some(only),
            _ => {
                let mut whole = candidates.iter().filter(|prefix| is_whole(**prefix));
                whole.next().copied().filter(|_| whole.next().is_none())
            }
        };
        found.extend(clear.filter(|prefix| !found.contains(prefix)));
    }
    found
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{AAAA, SOA};
    use hickory_proto::rr::Record;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn server(last: u16) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into(), 53)
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// The answer to a question, with these addresses.
    fn answer(question: &[u8], code: ResponseCode, ttl: u32, addresses: &[Ipv6Addr]) -> Vec<u8> {
        let asked = Message::from_vec(question).unwrap();
        let mut message = Message::new();
        message.set_id(asked.id()).set_message_type(MessageType::Response).set_response_code(code);
        message.add_queries(asked.queries().to_vec());
        let name = Name::from_ascii(NAME).unwrap();
        for address in addresses {
            let data = RData::AAAA(AAAA(*address));
            message.add_answer(Record::from_rdata(name.clone(), ttl, data));
        }
        if addresses.is_empty() {
            let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, ttl);
            message.add_name_server(Record::from_rdata(name, ttl, RData::SOA(soa)));
        }
        message.to_vec().unwrap()
    }

    fn of(prefix: Prefix) -> Vec<Ipv6Addr> {
        ADDRESSES.iter().map(|v4| prefix.embed(*v4)).collect()
    }

    #[test]
    fn rfc_7050_3_every_length() {
        for text in [
            "2001:db8::/32",
            "2001:db8:6400::/40",
            "2001:db8:64::/48",
            "2001:db8:64:ff00::/56",
            "2001:db8:64:1::/64",
            "64:ff9b::/96",
        ] {
            let prefix = prefix(text);
            assert_eq!(pref64s(&of(prefix)), [prefix], "{text}");
            assert_eq!(pref64s(&of(prefix)[1..]), [prefix], "{text}, one of them");
        }
        let both = [of(prefix("2001:db8::/96")), of(prefix("64:ff9b::/96"))].concat();
        assert_eq!(pref64s(&both), [prefix("2001:db8::/96"), prefix("64:ff9b::/96")]);
    }

    #[test]
    fn rfc_7050_3_an_address_that_is_there_twice() {
        // The prefix itself contains a well-known address.
        let long = prefix("2001:db8:c000:aa::/96");
        let short = prefix("2001:db8::/32");
        let (first, second) = (long.embed(ADDRESSES[0]), long.embed(ADDRESSES[1]));
        assert!(short.extract(first) == Some(ADDRESSES[0]) && long.extract(first).is_some());
        assert_eq!(pref64s(&[first]), [], "it may be either");
        assert_eq!(pref64s(&[first, second]), [long]);
    }

    #[test]
    fn addresses_of_others() {
        let lies: Vec<Ipv6Addr> =
            ["2001:db8::1", "::", "64:ff9b::c000:ac", "::ffff:192.0.0.1", "ff02::1"]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect();
        assert_eq!(pref64s(&lies), []);
    }

    #[test]
    fn asked_answered_and_asked_again() {
        let (mut resolved, now) = (Resolved::default(), Instant::now());
        resolved.set_resolvers(&[server(1)], now);
        assert_eq!(resolved.poll_timeout(), Some(now));
        let (whom, question) = resolved.poll_transmit(now).unwrap();
        assert_eq!((whom, resolved.poll_transmit(now)), (server(1), None));
        let asked = Message::from_vec(&question).unwrap();
        assert!(asked.recursion_desired() && !asked.checking_disabled());
        let good = answer(&question, ResponseCode::NoError, 300, &of(Prefix::WELL_KNOWN));
        // From another resolver, or to another question.
        resolved.handle(server(2), &good, now);
        let mut wrong = good.clone();
        wrong[0] ^= 1;
        resolved.handle(server(1), &wrong, now);
        assert_eq!(resolved.prefix(None, now), None);
        resolved.handle(server(1), &good, now);
        let found = Some((Prefix::WELL_KNOWN, server(1)));
        assert_eq!(resolved.prefix(None, now), found);
        assert_eq!(resolved.poll_timeout(), Some(now + seconds(290)));
        // No resolver answers from now on.
        let later = now + seconds(290);
        assert!(resolved.poll_transmit(later).is_some());
        assert_eq!(resolved.prefix(None, now + seconds(299)), found);
        assert_eq!(resolved.prefix(None, now + seconds(300)), None);
        resolved.expire(now + seconds(300));
        assert!(resolved.poll_timeout() > Some(later));
    }

    #[test]
    fn the_next_one_where_one_is_silent_or_does_not_know() {
        let (mut resolved, mut now) = (Resolved::default(), Instant::now());
        resolved.set_resolvers(&[server(1), server(2), server(3)], now);
        resolved.poll_transmit(now).unwrap();
        now += ATTEMPT;
        let (whom, question) = resolved.poll_transmit(now).unwrap();
        assert_eq!(whom, server(2));
        resolved.handle(whom, &answer(&question, ResponseCode::ServFail, 0, &[]), now);
        // The first may still answer.
        now += ATTEMPT;
        let (whom, question) = resolved.poll_transmit(now).unwrap();
        assert_eq!(whom, server(3));
        let addresses = of(prefix("2001:db8:64::/48"));
        resolved.handle(whom, &answer(&question, ResponseCode::NoError, 0, &addresses), now);
        assert_eq!(resolved.prefix(None, now), Some((prefix("2001:db8:64::/48"), server(3))));
        now = resolved.poll_timeout().unwrap();
        assert_eq!(resolved.poll_transmit(now).unwrap().0, server(3), "who has answered");
    }

    #[test]
    fn what_one_denies_another_may_know() {
        let (mut resolved, now) = (Resolved::default(), Instant::now());
        resolved.set_resolvers(&[server(1), server(2)], now);
        let (whom, question) = resolved.poll_transmit(now).unwrap();
        resolved.handle(whom, &answer(&question, ResponseCode::NoError, 900, &[]), now);
        assert!(!resolved.is_denied());
        let (whom, question) = resolved.poll_transmit(now).unwrap();
        let nothing = answer(&question, ResponseCode::NXDomain, 900, &[]);
        resolved.handle(whom, &nothing, now);
        assert!(resolved.is_denied());
        assert_eq!(resolved.poll_transmit(now), None);
        assert_eq!(resolved.poll_timeout(), Some(now + seconds(900)));
        // Other resolvers may have a prefix.
        resolved.set_resolvers(&[server(3)], now);
        assert!(!resolved.is_denied() && resolved.poll_transmit(now).is_some());
    }

    #[test]
    fn without_answers_questions_become_rare() {
        let (mut resolved, start) = (Resolved::default(), Instant::now());
        resolved.set_resolvers(&[server(1), server(2)], start);
        let mut asked = 0;
        let mut now = start;
        while now < start + seconds(3600) {
            asked += usize::from(resolved.poll_transmit(now).is_some());
            assert!(resolved.poll_timeout() > Some(now), "a busy loop");
            now = resolved.poll_timeout().unwrap();
        }
        assert!((10..60).contains(&asked), "{asked} questions in an hour");
    }

    proptest! {
        #[test]
        fn any_prefix_is_found(net in any::<u128>(), at in 0usize..6, order in any::<bool>()) {
            let bits = LENGTHS[at];
            let net = net >> (128 - bits) << (128 - bits) & !(0xff << 56);
            let prefix = Prefix::new(net.into(), bits).unwrap();
            let mut addresses = of(prefix);
            if order {
                addresses.reverse();
            }
            let found = pref64s(&addresses);
            prop_assert!(found == [prefix] || found.is_empty(), "{found:?}");
        }

        #[test]
        fn noise(
            addresses in vec(any::<[u8; 16]>(), 0..20),
            message in vec(any::<u8>(), 0..200),
        ) {
            let addresses: Vec<_> = addresses.into_iter().map(Ipv6Addr::from).collect();
            for prefix in pref64s(&addresses) {
                let is_of = |v4: Option<Ipv4Addr>| v4.is_some_and(|v4| ADDRESSES.contains(&v4));
                prop_assert!(addresses.iter().any(|address| is_of(prefix.extract(*address))));
            }
            let (mut resolved, now) = (Resolved::default(), Instant::now());
            resolved.set_resolvers(&[server(1)], now);
            let (whom, question) = resolved.poll_transmit(now).unwrap();
            let noise = [&question[..2], &message].concat();
            resolved.handle(whom, &noise, now);
        }
    }
}
