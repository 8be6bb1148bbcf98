// SPDX-License-Identifier: Apache-2.0

//! What the network's DNS makes of `ipv4only.arpa` (RFC 7050): a DNS64 gives the name AAAA records,
//! which have its NAT64 prefix around addresses that are known.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use clat_xlat::Prefix;
use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

/// The name, and the addresses that it has (RFC 7050 §8).
const NAME: &str = "ipv4only.arpa.";
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
/// The lengths of RFC 6052 §2.2, in bits.
const LENGTHS: [u8; 6] = [96, 64, 56, 48, 40, 32];

/// How long one resolver is waited for before the next one is asked, too.
const ATTEMPT: Duration = Duration::from_secs(1);
/// After a round without an answer, the next one: twice as long each time.
const ROUNDS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(600);
/// A prefix is asked for again so long before its time to live is over (RFC 7050 §3), and lives no
/// shorter and no longer than this.
const EARLY: Duration = Duration::from_secs(10);
const LIFE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(86_400);
/// That there is none is believed for so long.
const NONE_LIFE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(3600);
/// Resolvers that are asked; questions that may be answered; prefixes that are kept.
const RESOLVERS: usize = 4;
const PENDING: usize = 8;
const PREFIXES: usize = 8;

/// Asks an uplink's resolvers, and keeps what they say.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    resolvers: Vec<SocketAddr>,
    /// When to ask the next one; `None` while nothing is to be asked.
    next: Option<Instant>,
    /// Which one, and how many of this round have been.
    turn: usize,
    asked: usize,
    /// Rounds without an answer.
    silent: u32,
    /// Somebody says in this round that there is none.
    denied: Option<Duration>,
    /// Whether there is none, as all of them say.
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
    /// Has these resolvers asked from now on, at once where they are others than before; none of
    /// them: nobody is, and what is known goes with its time.
    pub(crate) fn set_resolvers(&mut self, resolvers: &[SocketAddr], now: Instant) {
        let resolvers = resolvers.get(..RESOLVERS).unwrap_or(resolvers);
        if resolvers == self.resolvers && self.next.is_some() {
            return;
        }
        resolvers.clone_into(&mut self.resolvers);
        self.pending.clear();
        self.next = None;
        // What one of them has said counts until it is over.
        self.found.take_if(|found| !resolvers.contains(&found.resolver));
        if !resolvers.is_empty() {
            let refresh = self.found.as_ref().and_then(|found| found.until.checked_sub(EARLY));
            self.begin(refresh.map_or(now, |refresh| refresh.max(now)));
        }
    }

    /// Asks nobody any more; what is known goes with its time.
    pub(crate) fn pause(&mut self) {
        self.next = None;
        self.pending.clear();
    }

    /// Asks all of them again at once; what is known is over after `patience` unless they say so
    /// again: the link was away.
    pub(crate) fn doubt(&mut self, patience: Duration, now: Instant) {
        if let Some(found) = &mut self.found {
            found.until = found.until.min(now + patience);
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

    /// The next question, if one is due, and whom to ask.
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

    /// All of them have been asked.
    fn end_round(&mut self, now: Instant) {
        self.asked = 0;
        if let Some(life) = self.denied.take() {
            (self.found, self.is_denied, self.silent) = (None, true, 0);
            self.next = Some(now + life);
            return;
        }
        let (least, most) = (*ROUNDS.start(), *ROUNDS.end());
        self.next = Some(now + (least * 2u32.saturating_pow(self.silent.min(16))).min(most));
        self.silent = self.silent.saturating_add(1);
    }

    /// Takes in a message of a resolver. What is no answer to a question of ours does nothing.
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
            ResponseCode::NXDomain => (Vec::new(), negative_life(&message)),
            // It does not know: the next one.
            _ => return self.hurry(now),
        };
        if prefixes.is_empty() {
            let life = life.clamp(*NONE_LIFE.start(), *NONE_LIFE.end());
            self.denied = Some(self.denied.map_or(life, |other| other.min(life)));
            return self.hurry(now);
        }
        let until = now + life.clamp(*LIFE.start(), *LIFE.end());
        self.begin(until - EARLY);
        // The one that has answered is asked the next time, too.
        self.turn = self.resolvers.iter().position(|one| *one == from).unwrap_or(0);
        self.pending.clear();
        self.found = Some(Answer { prefixes, resolver: from, until });
    }

    /// The one that was asked last is not waited for any longer.
    fn hurry(&mut self, now: Instant) {
        if self.pending.is_empty() {
            self.next = self.next.map(|next| next.min(now));
            if self.asked >= self.resolvers.len() {
                self.end_round(now);
            }
        }
    }

    /// The prefix to use, and who said so; the `current` one where it is among several.
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

    /// Whether all resolvers have said that there is none.
    #[must_use]
    pub(crate) fn is_denied(&self) -> bool {
        self.is_denied
    }

    /// When [`Self::poll_transmit`] has something, or a prefix is over.
    #[must_use]
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let next = self.next.filter(|_| !self.resolvers.is_empty());
        self.found.as_ref().map(|found| found.until).into_iter().chain(next).min()
    }

    /// Forgets what is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.found.take_if(|found| found.until <= now);
    }
}

/// The question: with CD clear, or nothing would be synthesized (RFC 7050 §3).
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

/// The prefixes of an answer, and how long they, or that there is none, may be kept.
fn read(message: &Message) -> (Vec<Prefix>, Duration) {
    // An alias of the name is followed by the resolver; the shortest life of the chain counts.
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
        return (prefixes, negative_life(message));
    }
    (prefixes, Duration::from_secs(life.into()))
}

/// RFC 2308 §5.
fn negative_life(message: &Message) -> Duration {
    let soa = message.name_servers().iter().find_map(|record| match record.data() {
        RData::SOA(soa) => Some(record.ttl().min(soa.minimum())),
        _ => None,
    });
    Duration::from_secs(soa.unwrap_or(0).into())
}

/// The NAT64 prefixes that these addresses of `ipv4only.arpa` were made with (RFC 7050 §3), in the
/// order of the addresses. Where one could be of several, both of the known addresses have to be
/// there in the same one.
#[must_use]
pub(crate) fn pref64s(addresses: &[Ipv6Addr]) -> Vec<Prefix> {
    let of = |address: Ipv6Addr| {
        LENGTHS.into_iter().filter_map(move |bits| {
            let network = address.to_bits() >> (128 - bits) << (128 - bits);
            let prefix = Prefix::new(network.into(), bits).ok()?;
            // Exactly, but for the suffix: what stands around it must be zero (RFC 6052 §2.2).
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

    /// The answer to a question with these addresses.
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
        // Its prefix has one of the known addresses by itself.
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
        // Of somebody else, or to another question.
        resolved.handle(server(2), &good, now);
        let mut wrong = good.clone();
        wrong[0] ^= 1;
        resolved.handle(server(1), &wrong, now);
        assert_eq!(resolved.prefix(None, now), None);
        resolved.handle(server(1), &good, now);
        let found = Some((Prefix::WELL_KNOWN, server(1)));
        assert_eq!(resolved.prefix(None, now), found);
        assert_eq!(resolved.poll_timeout(), Some(now + seconds(290)));
        // Nobody answers any more.
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
        // Others know better.
        resolved.set_resolvers(&[server(3)], now);
        assert!(!resolved.is_denied() && resolved.poll_transmit(now).is_some());
    }

    #[test]
    fn silence_is_met_with_patience() {
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
