// SPDX-License-Identifier: Apache-2.0

//! DNS64 (RFC 6147): a DNS server that passes questions on to resolvers, and synthesizes AAAA
//! records in the NAT64 prefix for names without IPv6 address.
//!
//! Answers without synthesis are passed on byte for byte, apart from their identification.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clat_xlat::Prefix;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::wire::Link;
use super::Query;
use crate::fairness::Shares;
use crate::frame::Mac;
use crate::settings::Settings;

/// Most questions waiting for a resolver. Beyond that, the oldest one of the guest with most is
/// dropped.
const MAX_PENDING: usize = 1024;
/// Bytes of the longest question that is read.
pub const MAX_QUESTION: usize = 1500;
/// Timeout of a resolver, and number of tries. If nobody answers a question for AAAA, the one for A
/// is asked before most programs give up, after five seconds.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 3;
const AAAA_ATTEMPTS: usize = 2;
/// Most bytes of an answer over UDP without EDNS (RFC 1035 §2.3.4), and with it.
const CLASSIC: u16 = 512;
const MAX_PAYLOAD: u16 = 4096;
const HEADER: usize = 12;
/// DNAME (RFC 6672), which the library lacks.
const DNAME: u16 = 39;
/// The upper bits of the extended code of an answer to an unknown EDNS version (16, BADVERS; RFC
/// 6891 §6.1.3).
const BADVERS: u8 = 1;

/// Most seconds of TTL of a synthesized answer if no SOA gives the negative TTL of AAAA (RFC 6147
/// §5.1.7).
const MAX_TTL: u32 = 600;

/// The well-known addresses of `ipv4only.arpa` (RFC 7050 §8), and their TTL, which RFC 8880 §7.1
/// leaves open.
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
const WELL_KNOWN_NAME: &str = "ipv4only.arpa.";
const WELL_KNOWN_TTL: u32 = 3600;
/// TTL in seconds of `--host` names: the next network may have another.
const HOST_TTL: u32 = 60;

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// A guest at `from`, which expects the answer from `at`.
    Udp { link: Link, from: SocketAddr, at: SocketAddr },
    /// A guest, by the connection with this number.
    Tcp { connection: u32, guest: Mac },
}

impl Client {
    fn guest(&self) -> Mac {
        match self {
            Self::Udp { link, .. } => link.guest,
            Self::Tcp { guest, .. } => *guest,
        }
    }
}

/// An answer and its client.
pub(super) type Answered = (Client, Vec<u8>);

/// The server's state.
#[derive(Debug, Default)]
pub(super) struct Dns64 {
    /// By growing token: the first is the oldest.
    pending: BTreeMap<u64, Pending>,
    next: u64,
    /// The same by guest.
    shares: Shares<u64, ()>,
    /// Clients and the questions that they wait for.
    waiting: HashSet<(Client, Rc<[u8]>)>,
    /// The resolver to ask first: the one that has answered last. So a dead resolver costs one
    /// question its timeout, not each.
    preferred: usize,
}

#[derive(Debug)]
struct Pending {
    client: Client,
    /// The guest's question as received.
    asked: Rc<[u8]>,
    /// What was sent to the resolver.
    sent: Vec<u8>,
    stage: Stage,
    /// Most bytes of the answer.
    limit: usize,
    attempts: usize,
    /// Index of the resolver asked.
    resolver: usize,
    tcp: bool,
    deadline: Instant,
}

#[derive(Debug)]
enum Stage {
    /// Pass the answer on unchanged.
    Pass,
    /// AAAA was asked; if there is none, A is next.
    Aaaa,
    /// A was asked, after this answer to AAAA, if there was one; `ttl` limits the TTL of
    /// synthesized records in seconds.
    A { aaaa: Option<Vec<u8>>, ttl: u32 },
    /// PTR in `in-addr.arpa` was asked for an address in the prefix (RFC 6147 §5.3.1).
    Ptr { alias: Name },
}

impl Dns64 {
    /// When [`Dns64::poll`] is due.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        // All have the same timeout.
        self.pending.first_key_value().map(|(_, pending)| pending.deadline)
    }

    /// There are other resolvers from now on: the first of them is asked first.
    pub(super) fn forget_preferred(&mut self) {
        self.preferred = 0;
    }

    /// Whether the answer to the question with this token is waited for.
    pub(super) fn waits_for(&self, token: u64) -> bool {
        self.pending.contains_key(&token)
    }

    /// Handles a guest's question; returns the answer if it needs no resolver.
    pub(super) fn ask(
        &mut self,
        client: Client,
        asked: &[u8],
        settings: &Settings,
        now: Instant,
        queries: &mut Vec<Query>,
    ) -> Option<Vec<u8>> {
        if !is_question(asked) {
            return None;
        }
        let Ok(message) = Message::from_vec(asked) else {
            return Some(refusal(asked, ResponseCode::FormErr));
        };
        if message.op_code() != OpCode::Query {
            return Some(refusal(asked, ResponseCode::NotImp));
        }
        if message.extensions().as_ref().is_some_and(|edns| edns.version() > 0) {
            return Some(answer_without_records(asked, ResponseCode::NoError, BADVERS));
        }
        let ([question], Some(_)) = (message.queries(), question_end(asked)) else {
            return Some(refusal(asked, ResponseCode::FormErr));
        };
        let limit = match client {
            Client::Udp { .. } => limit(&message, settings),
            Client::Tcp { .. } => u16::MAX.into(),
        };
        let known = own_name(&message, question, settings);
        if let Some(known) = known.or_else(|| well_known(&message, question, settings)) {
            return finish(known, limit);
        }
        if settings.resolvers.is_empty() {
            return Some(refusal(asked, ResponseCode::ServFail));
        }
        // A repeated question over UDP is already open. (Over TCP nothing is lost, so it wants
        // another answer.)
        let (stage, sent) = first_stage(&message, question, asked, settings)?;
        let asked: Rc<[u8]> = asked.into();
        let again = self.waiting.contains(&(client, Rc::clone(&asked)));
        if again && matches!(client, Client::Udp { .. }) {
            return None;
        }
        if self.pending.len() >= MAX_PENDING {
            if let Some((_, oldest, ())) = self.shares.to_evict() {
                self.remove(oldest);
            }
        }
        let pending = Pending {
            client,
            asked,
            sent,
            stage,
            limit,
            attempts: 0,
            resolver: self.preferred,
            tcp: false,
            deadline: now,
        };
        self.send(pending, settings, now, queries);
        None
    }

    /// Handles a resolver's answer; returns the guest's, if that is complete.
    pub(super) fn answer(
        &mut self,
        token: u64,
        answer: &[u8],
        settings: &Settings,
        now: Instant,
        queries: &mut Vec<Query>,
    ) -> Option<Answered> {
        if !is_answer(answer, &self.pending.get(&token)?.sent) {
            return None;
        }
        let mut pending = self.remove(token)?;
        self.preferred = pending.resolver;
        let truncated = answer[2] & 0x02 != 0;
        let client = pending.client;
        let answered = match &mut pending.stage {
            // A guest that has asked by TCP gets the whole answer.
            _ if truncated && !pending.tcp && matches!(client, Client::Tcp { .. }) => {
                pending.tcp = true;
                self.send(pending, settings, now, queries);
                return None;
            }
            Stage::Pass => Some(pending.pass(answer)),
            Stage::A { .. } | Stage::Ptr { .. } if truncated && !pending.tcp => {
                pending.tcp = true;
                self.send(pending, settings, now, queries);
                return None;
            }
            // An answer that does not parse is passed on unchanged.
            Stage::Aaaa => match Message::from_vec(answer) {
                Ok(message) if needs_a(&message) || settings.dns64_always => {
                    if truncated && !pending.tcp {
                        pending.tcp = true;
                    } else {
                        pending.ask_for_a(Some(answer), negative_ttl(&message));
                    }
                    self.send(pending, settings, now, queries);
                    return None;
                }
                Ok(mut message) if message.answers().iter().any(is_excluded) => {
                    message.answers_mut().retain(|record| !is_excluded(record));
                    message.set_id(identification(&pending.asked));
                    finish(message, pending.limit)
                }
                _ => Some(pending.pass(answer)),
            },
            Stage::A { aaaa, ttl } => {
                let (aaaa, ttl) = (std::mem::take(aaaa), *ttl);
                let a = Message::from_vec(answer).ok().filter(is_final);
                // A failure must not become "no such record", which would be cached.
                a.and_then(|a| {
                    synthesize(&pending.asked, &a, settings.prefix64, ttl)
                        .and_then(|message| finish(message, pending.limit))
                        // There is neither: the answer to AAAA holds (RFC 6147 §5.1.6).
                        .or_else(|| aaaa.map(|aaaa| pending.pass(&aaaa)))
                })
            }
            Stage::Ptr { alias } => Message::from_vec(answer)
                .ok()
                .and_then(|answer| reverse(&pending.asked, alias, &answer))
                .and_then(|message| finish(message, pending.limit)),
        };
        let servfail = || refusal(&pending.asked, ResponseCode::ServFail);
        Some((client, answered.unwrap_or_else(servfail)))
    }

    /// Repeats questions that have timed out.
    pub(super) fn poll(
        &mut self,
        settings: &Settings,
        now: Instant,
        queries: &mut Vec<Query>,
    ) -> Vec<Answered> {
        let mut answered = Vec::new();
        while let Some((&token, _)) =
            self.pending.first_key_value().filter(|(_, p)| p.deadline <= now)
        {
            answered.extend(self.failed(token, settings, now, queries));
        }
        answered
    }

    /// The question with this token has timed out, or its resolver cannot be reached: asks again,
    /// or answers SERVFAIL after the last try.
    pub(super) fn failed(
        &mut self,
        token: u64,
        settings: &Settings,
        now: Instant,
        queries: &mut Vec<Query>,
    ) -> Option<Answered> {
        let mut pending = self.remove(token)?;
        let next = (pending.resolver + 1) % settings.resolvers.len().max(1);
        if self.preferred == pending.resolver {
            self.preferred = next;
        }
        pending.resolver = next;
        if pending.attempts >= AAAA_ATTEMPTS && matches!(pending.stage, Stage::Aaaa) {
            // As if it had failed (RFC 6147 §5.1.3).
            pending.ask_for_a(None, MAX_TTL);
        }
        if pending.attempts >= ATTEMPTS || settings.resolvers.is_empty() {
            return Some((pending.client, refusal(&pending.asked, ResponseCode::ServFail)));
        }
        self.send(pending, settings, now, queries);
        None
    }

    /// Sends a question, with a new token and a new identification each time.
    fn send(
        &mut self,
        mut pending: Pending,
        settings: &Settings,
        now: Instant,
        queries: &mut Vec<Query>,
    ) {
        // Who was asked may be none of them any more.
        pending.resolver %= settings.resolvers.len();
        let resolver = settings.resolvers[pending.resolver];
        pending.sent[..2].copy_from_slice(&rand::random::<[u8; 2]>());
        pending.attempts += 1;
        pending.deadline = now + TIMEOUT;
        let (token, message) = (self.next, pending.sent.clone());
        let guest = pending.client.guest();
        queries.push(Query { resolver, token, guest, message, tcp: pending.tcp });
        self.next += 1;
        self.shares.insert(guest, token, ());
        self.waiting.insert((pending.client, Rc::clone(&pending.asked)));
        self.pending.insert(token, pending);
    }

    fn remove(&mut self, token: u64) -> Option<Pending> {
        let pending = self.pending.remove(&token)?;
        self.shares.remove(pending.client.guest(), token);
        self.waiting.remove(&(pending.client, Rc::clone(&pending.asked)));
        Some(pending)
    }
}

impl Pending {
    /// Continues with a question for A, after this answer to the one for AAAA.
    fn ask_for_a(&mut self, aaaa: Option<&[u8]>, ttl: u32) {
        if let Some(sent) = retyped(&self.asked, RecordType::A) {
            self.sent = sent;
            self.stage = Stage::A { aaaa: aaaa.map(<[u8]>::to_vec), ttl };
        }
        self.tcp = false;
        self.attempts = 0;
    }

    /// A resolver's answer with the guest's identification and question, cut to what the guest can
    /// take.
    fn pass(&self, answer: &[u8]) -> Vec<u8> {
        if answer.len() > self.limit {
            let mut short = refusal(&self.asked, ResponseCode::NoError);
            short[2] |= 0x02;
            short[3] |= answer[3] & 0x0f;
            return short;
        }
        let mut answer = answer.to_vec();
        answer[..2].copy_from_slice(&self.asked[..2]);
        answer
    }
}

/// The first question to ask. `None` if it cannot be built.
fn first_stage(
    message: &Message,
    question: &Question,
    asked: &[u8],
    settings: &Settings,
) -> Option<(Stage, Vec<u8>)> {
    let pass = Some((Stage::Pass, asked.to_vec()));
    if !settings.dns64 || question.query_class() != DNSClass::IN {
        return pass;
    }
    match question.query_type() {
        // A guest that validates would reject synthesized records (RFC 6147 §5.5).
        RecordType::AAAA if message.checking_disabled() && dnssec_ok(message) => pass,
        RecordType::AAAA => Some((Stage::Aaaa, asked.to_vec())),
        RecordType::PTR => match reverse_of(question.name(), settings.prefix64) {
            Some(v4) => {
                let alias = Name::from(v4);
                let mut query = Message::new();
                query.set_recursion_desired(message.recursion_desired());
                query.add_query(Question::query(alias.clone(), RecordType::PTR));
                Some((Stage::Ptr { alias }, query.to_vec().ok()?))
            }
            None => pass,
        },
        _ => pass,
    }
}

/// Answers questions for the names of `--host` and of nodes. An address of the other family is
/// synthesized, or does not exist.
fn own_name(asked: &Message, question: &Question, settings: &Settings) -> Option<Message> {
    let name = question.name();
    let addresses = settings.addresses_of(name);
    if question.query_class() != DNSClass::IN || addresses.is_empty() {
        return None;
    }
    let has_ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    let mut reply = reply_to(asked);
    for address in addresses {
        let data = match (question.query_type(), address) {
            (RecordType::A, IpAddr::V4(v4)) => RData::A(A(v4)),
            (RecordType::AAAA, IpAddr::V6(v6)) => RData::AAAA(AAAA(v6)),
            (RecordType::AAAA, IpAddr::V4(v4)) if settings.dns64 && !has_ipv6 => {
                RData::AAAA(AAAA(settings.prefix64.embed(v4)))
            }
            _ => continue,
        };
        reply.add_answer(Record::from_rdata(name.clone(), HOST_TTL, data));
    }
    if reply.answers().is_empty() {
        reply.add_name_server(authority(name.clone(), HOST_TTL)?);
    }
    Some(reply)
}

/// Answers questions without a resolver: `ipv4only.arpa` (RFC 7050, RFC 8880 §7.1), names below it,
/// and PTR for its addresses.
fn well_known(asked: &Message, question: &Question, settings: &Settings) -> Option<Message> {
    if !settings.dns64 || question.query_class() != DNSClass::IN {
        return None;
    }
    let name = Name::from_ascii(WELL_KNOWN_NAME).ok()?;
    let mut reply = reply_to(asked);
    let mut add = |data| {
        reply.add_answer(Record::from_rdata(question.name().clone(), WELL_KNOWN_TTL, data));
    };
    if *question.name() == name {
        for v4 in WELL_KNOWN {
            match question.query_type() {
                RecordType::AAAA => add(RData::AAAA(AAAA(settings.prefix64.embed(v4)))),
                RecordType::A => add(RData::A(A(v4))),
                _ => {}
            }
        }
        if reply.answers().is_empty() {
            reply.add_name_server(authority(name, WELL_KNOWN_TTL)?);
        }
    } else if name.zone_of(question.name()) {
        reply.set_response_code(ResponseCode::NXDomain);
        reply.add_name_server(authority(name, WELL_KNOWN_TTL)?);
    } else {
        let v4 = reverse_of(question.name(), settings.prefix64)?;
        if question.query_type() != RecordType::PTR || !WELL_KNOWN.contains(&v4) {
            return None;
        }
        add(RData::PTR(PTR(name)));
    }
    Some(reply)
}

/// The SOA with the negative TTL (RFC 2308 §3).
fn authority(zone: Name, ttl: u32) -> Option<Record> {
    let admin = Name::from_ascii("nobody.invalid.").ok()?;
    let seconds = i32::try_from(ttl).ok()?;
    let soa = SOA::new(zone.clone(), admin, 1, seconds, seconds, seconds, ttl);
    Some(Record::from_rdata(zone, ttl, RData::SOA(soa)))
}

/// The IPv4 address in the IPv6 address whose reverse name this is, if that is in the prefix.
fn reverse_of(name: &Name, prefix: Prefix) -> Option<Ipv4Addr> {
    const LABELS: u8 = 34;
    if name.num_labels() != LABELS {
        return None;
    }
    match name.parse_arpa_name().ok()?.addr() {
        IpAddr::V6(addr) => prefix.extract(addr),
        IpAddr::V4(_) => None,
    }
}

/// Whether A has to be asked after this answer to AAAA: no address, or an error other than NXDOMAIN
/// (RFC 6147 §5.1.1, §5.1.2, §5.1.4).
fn needs_a(answer: &Message) -> bool {
    match answer.response_code() {
        ResponseCode::NXDomain => false,
        ResponseCode::NoError => {
            !answer.answers().iter().any(|r| r.record_type() == RecordType::AAAA && !is_excluded(r))
        }
        _ => true,
    }
}

/// Whether an answer is NOERROR or NXDOMAIN.
fn is_final(answer: &Message) -> bool {
    matches!(answer.response_code(), ResponseCode::NoError | ResponseCode::NXDomain)
}

/// Whether an address is to be ignored: IPv4-mapped ones (RFC 6147 §5.1.4).
fn is_excluded(record: &Record) -> bool {
    matches!(record.data(), RData::AAAA(AAAA(addr)) if addr.to_ipv4_mapped().is_some())
}

/// The negative TTL of AAAA by the zone's SOA (RFC 6147 §5.1.7).
fn negative_ttl(answer: &Message) -> u32 {
    let soas = answer.name_servers().iter().filter_map(|record| match record.data() {
        RData::SOA(soa) => Some(record.ttl().min(soa.minimum())),
        _ => None,
    });
    soas.min().unwrap_or(MAX_TTL)
}

/// Synthesizes the answer to AAAA from that to A; `None` if there are no addresses.
fn synthesize(asked: &[u8], a: &Message, prefix: Prefix, ttl: u32) -> Option<Message> {
    let mut reply = reply_to(&Message::from_vec(asked).ok()?);
    if a.response_code() != ResponseCode::NoError {
        return None;
    }
    let mut any = false;
    for record in a.answers() {
        let (data, ttl) = match record.data() {
            RData::A(A(v4)) if is_reachable(*v4) => {
                any = true;
                (RData::AAAA(AAAA(prefix.embed(*v4))), record.ttl().min(ttl))
            }
            // The chain of aliases (RFC 6147 §5.1.5).
            RData::CNAME(name) => (RData::CNAME(name.clone()), record.ttl()),
            RData::Unknown { code, .. } if u16::from(*code) == DNAME => {
                (record.data().clone(), record.ttl())
            }
            _ => continue,
        };
        reply.add_answer(Record::from_rdata(record.name().clone(), ttl, data));
    }
    any.then_some(reply)
}

/// Whether a NAT64 can reach an address: not this host's, nor a group's.
fn is_reachable(v4: Ipv4Addr) -> bool {
    !(v4.octets()[0] == 0 || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast())
}

/// The PTR answer for an address in the prefix: an alias for the name in `in-addr.arpa`, and its
/// records.
fn reverse(asked: &[u8], alias: &Name, answer: &Message) -> Option<Message> {
    let asked = Message::from_vec(asked).ok()?;
    let mut reply = reply_to(&asked);
    reply.set_response_code(answer.response_code());
    let name = asked.query()?.name().clone();
    reply.add_answer(Record::from_rdata(name, MAX_TTL, RData::CNAME(CNAME(alias.clone()))));
    reply.add_answers(answer.answers().iter().cloned());
    reply.add_name_servers(answer.name_servers().iter().cloned());
    Some(reply)
}

/// An empty answer.
fn reply_to(asked: &Message) -> Message {
    let mut reply = Message::new();
    reply
        .set_id(asked.id())
        .set_message_type(MessageType::Response)
        .set_recursion_desired(asked.recursion_desired())
        .set_recursion_available(true)
        .set_checking_disabled(asked.checking_disabled())
        .add_queries(asked.queries().iter().cloned());
    if let Some(edns) = asked.extensions() {
        let mut ours = Edns::new();
        ours.set_max_payload(MAX_PAYLOAD).set_dnssec_ok(edns.flags().dnssec_ok);
        reply.set_edns(ours);
    }
    reply
}

/// Encodes an answer: as many records as fit, and TC if there are more (RFC 2181 §9: not for
/// additional ones).
fn finish(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    loop {
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        let extra = message.take_name_servers().len() + message.take_additionals().len();
        if extra == 0 {
            message.set_truncated(true);
            let half = message.answers().len() / 2;
            message.answers_mut().drain(half..).next()?;
        }
    }
}

/// An answer without records, made of the question's bytes: its header, and the question if it
/// parses.
fn refusal(asked: &[u8], code: ResponseCode) -> Vec<u8> {
    answer_without_records(asked, code, 0)
}

/// The same with the upper bits of an extended code. A client with EDNS is answered with EDNS (RFC
/// 6891 §6.1.1).
fn answer_without_records(asked: &[u8], code: ResponseCode, extended: u8) -> Vec<u8> {
    let question = question_end(asked).filter(|_| asked[4..6] == [0, 1]);
    let mut answer = asked[..question.unwrap_or(HEADER)].to_vec();
    // Sets QR and RA; keeps opcode, RD and CD.
    answer[2] = 0x80 | asked[2] & 0x79;
    answer[3] = 0x80 | asked[3] & 0x10 | code.low();
    answer[4..HEADER].fill(0);
    answer[5] = u8::from(question.is_some());
    let message = Message::from_vec(asked).ok();
    if let Some(edns) = message.as_ref().and_then(|message| message.extensions().as_ref()) {
        // Root name, OPT, payload size, extended code, version, DO, no options.
        let [a, b] = MAX_PAYLOAD.to_be_bytes();
        let dnssec_ok = u8::from(edns.flags().dnssec_ok) << 7;
        answer.extend([0, 0, 41, a, b, extended, 0, dnssec_ok, 0, 0, 0]);
        answer[11] = 1;
    }
    answer
}

/// Whether this has a question's length and is no response, which might cause a loop.
pub fn is_question(message: &[u8]) -> bool {
    (HEADER..=MAX_QUESTION).contains(&message.len()) && message[2] & 0x80 == 0
}

/// Offset of the end of the first question. (There is nothing that compression could point to.)
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            len if len < 64 => at += 1 + usize::from(len),
            _ => return None,
        }
    }
    Some(at + 5).filter(|end| *end <= message.len())
}

/// The same question for another type.
fn retyped(asked: &[u8], kind: RecordType) -> Option<Vec<u8>> {
    let end = question_end(asked)?;
    let mut message = asked.to_vec();
    message[end - 4..end - 2].copy_from_slice(&u16::from(kind).to_be_bytes());
    Some(message)
}

/// Whether this answers that: a response with its identification to its question, ignoring case.
fn is_answer(answer: &[u8], sent: &[u8]) -> bool {
    if answer.len() < HEADER || answer[..2] != sent[..2] || answer[2] & 0x80 == 0 {
        return false;
    }
    let Some(end) = question_end(sent) else { return false };
    // An error may lack the question.
    if answer[4..6] == [0, 0] {
        return answer[3] & 0x0f != 0;
    }
    answer[4..6] == [0, 1]
        && answer.get(HEADER..end).is_some_and(|q| q.eq_ignore_ascii_case(&sent[HEADER..end]))
}

fn identification(message: &[u8]) -> u16 {
    message.first_chunk().map_or(0, |id| u16::from_be_bytes(*id))
}

fn dnssec_ok(message: &Message) -> bool {
    message.extensions().as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
}

/// Most bytes of an answer over UDP: what the guest accepts, in one packet.
fn limit(asked: &Message, settings: &Settings) -> usize {
    let room = settings.mtu.saturating_sub(48).min(MAX_PAYLOAD);
    let wanted = asked.extensions().as_ref().map_or(CLASSIC, Edns::max_payload);
    wanted.max(CLASSIC).min(room).into()
}
