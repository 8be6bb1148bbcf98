// SPDX-License-Identifier: Apache-2.0

//! DNS64, with a resolver of given answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use clat_plat::network::Handled;
use clat_plat::settings::Settings;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use smoltcp::wire::IpProtocol;

use crate::guest::{packet, udp4, udp6, Lab, DNS, GLOBAL, GUEST4, MAC, ROUTER4};

const V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
const SYNTHESIZED: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc633, 0x6401);

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new();
    message.set_id(0x1234).set_recursion_desired(true);
    message.add_query(Query::query(name(text), kind));
    message
}

fn lab() -> Lab {
    let resolvers =
        ["192.0.2.1:53", "[2001:db8:5::1]:53"].iter().map(|addr| addr.parse().unwrap()).collect();
    Lab::new(Settings { resolvers, ..Settings::default() })
}

fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name(owner), ttl, data)
}

fn a(owner: &str, ttl: u32, addr: Ipv4Addr) -> Record {
    record(owner, ttl, RData::A(A(addr)))
}

fn aaaa(owner: &str, addr: Ipv6Addr) -> Record {
    record(owner, 300, RData::AAAA(AAAA(addr)))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let soa = SOA::new(name("example."), name("admin.example."), 1, 2, 3, 4, minimum);
    record("example.", ttl, RData::SOA(soa))
}

/// A resolver's answer to a question.
fn reply(asked: &[u8], code: ResponseCode, answers: &[Record], authority: &[Record]) -> Vec<u8> {
    let mut message = Message::from_vec(asked).unwrap();
    message.set_message_type(MessageType::Response).set_response_code(code);
    message.set_recursion_available(true);
    message.add_answers(answers.iter().cloned());
    message.add_name_servers(authority.iter().cloned());
    message.to_vec().unwrap()
}

fn decode(bytes: &[u8]) -> Message {
    let message = Message::from_vec(bytes).unwrap();
    assert_eq!((message.id(), message.message_type()), (0x1234, MessageType::Response));
    message
}

/// Asks for AAAA, answers with `first`, then the question for A with `second`.
fn exchange(
    lab: &mut Lab,
    asked: &Message,
    first: (ResponseCode, &[Record], &[Record]),
    second: (ResponseCode, &[Record], &[Record]),
) -> Message {
    assert_eq!(lab.dns(&asked.to_vec().unwrap()), None);
    let query = lab.query();
    let answer = reply(&query.message, first.0, first.1, first.2);
    assert_eq!(lab.resolved(query.token, &answer), None);
    let query = lab.query();
    let sent = Message::from_vec(&query.message).unwrap();
    assert_eq!(sent.query().unwrap().query_type(), RecordType::A);
    assert_eq!(sent.query().unwrap().name(), asked.query().unwrap().name());
    let answer = reply(&query.message, second.0, second.1, second.2);
    decode(&lab.resolved(query.token, &answer).unwrap())
}

/// Asks, and answers once.
fn pass(lab: &mut Lab, asked: &Message, code: ResponseCode, answers: &[Record]) -> Message {
    assert_eq!(lab.dns(&asked.to_vec().unwrap()), None);
    let query = lab.query();
    let answer = reply(&query.message, code, answers, &[]);
    decode(&lab.resolved(query.token, &answer).unwrap())
}

const EMPTY: (ResponseCode, &[Record], &[Record]) = (ResponseCode::NoError, &[], &[]);

#[test]
fn a_name_with_ipv4_alone() {
    let asked = question("v4.example.", RecordType::AAAA);
    let answers = [a("v4.example.", 3600, V4), a("v4.example.", 100, [203, 0, 113, 9].into())];
    let got = exchange(&mut lab(), &asked, EMPTY, (ResponseCode::NoError, &answers, &[]));
    assert_eq!(got.response_code(), ResponseCode::NoError);
    assert_eq!(got.queries(), asked.queries());
    assert!(got.recursion_available() && got.recursion_desired());
    assert!(!got.authoritative() && !got.authentic_data());
    let expected: Vec<(u32, Ipv6Addr)> =
        vec![(600, SYNTHESIZED), (100, Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xcb00, 0x7109))];
    let records = got.answers().iter().map(|record| match record.data() {
        RData::AAAA(AAAA(addr)) => (record.ttl(), *addr),
        other => panic!("{other:?}"),
    });
    assert_eq!(records.collect::<Vec<_>>(), expected);
}

#[test]
fn it_lives_as_long_as_there_is_no_aaaa() {
    for (soa, ttl) in [(soa(50, 9000), 50), (soa(9000, 70), 70), (soa(9000, 9000), 3600)] {
        let asked = question("v4.example.", RecordType::AAAA);
        let first = (ResponseCode::NoError, &[][..], &[soa][..]);
        let second = (ResponseCode::NoError, &[a("v4.example.", 3600, V4)][..], &[][..]);
        let got = exchange(&mut lab(), &asked, first, second);
        assert_eq!(got.answers()[0].ttl(), ttl);
    }
}

#[test]
fn every_prefix_length() {
    for (prefix, addr) in [
        ("64:ff9b::/96", "64:ff9b::c633:6401"),
        ("2001:db8:64::/64", "2001:db8:64:0:c6:3364:100::"),
        ("2001:db8:64::/56", "2001:db8:64:c6:33:6401::"),
        ("2001:db8:64::/48", "2001:db8:64:c633:64:100::"),
        ("2001:db8::/40", "2001:db8:c6:3364:1::"),
        ("2001:db8::/32", "2001:db8:c633:6401::"),
    ] {
        let mut lab = lab();
        let resolvers = lab.network.settings().resolvers.clone();
        let settings =
            Settings { prefix64: prefix.parse().unwrap(), resolvers, ..Settings::default() };
        lab = Lab::new(settings);
        let asked = question("v4.example.", RecordType::AAAA);
        let second = (ResponseCode::NoError, &[a("v4.example.", 1, V4)][..], &[][..]);
        let got = exchange(&mut lab, &asked, EMPTY, second);
        let expected = RData::AAAA(AAAA(addr.parse().unwrap()));
        assert_eq!(got.answers()[0].data(), &expected, "{prefix}");
        // Its reverse name leads back.
        let reverse = Name::from(addr.parse::<Ipv6Addr>().unwrap());
        assert_eq!(
            lab.dns(&question(&reverse.to_ascii(), RecordType::PTR).to_vec().unwrap()),
            None
        );
        let sent = Message::from_vec(&lab.query().message).unwrap();
        assert_eq!(sent.query().unwrap().name(), &name("1.100.51.198.in-addr.arpa."), "{prefix}");
    }
}

#[test]
fn a_name_with_ipv6_keeps_it() {
    let asked = question("v6.example.", RecordType::AAAA);
    let record = aaaa("v6.example.", V6);
    let got = pass(&mut lab(), &asked, ResponseCode::NoError, std::slice::from_ref(&record));
    assert_eq!(got.answers(), [record]);
}

#[test]
fn no_such_name_is_no_such_name() {
    let asked = question("no.example.", RecordType::AAAA);
    let got = pass(&mut lab(), &asked, ResponseCode::NXDomain, &[]);
    assert_eq!(got.response_code(), ResponseCode::NXDomain);
}

#[test]
fn another_error_about_aaaa_is_no_answer() {
    let asked = question("v4.example.", RecordType::AAAA);
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        let second = (ResponseCode::NoError, &[a("v4.example.", 3600, V4)][..], &[][..]);
        let got = exchange(&mut lab(), &asked, (code, &[], &[]), second);
        assert_eq!(got.response_code(), ResponseCode::NoError);
        assert_eq!(got.answers().len(), 1);
        // If A fails, too, the answer to AAAA holds.
        let got =
            exchange(&mut lab(), &asked, (code, &[], &[]), (ResponseCode::NXDomain, &[], &[]));
        assert_eq!(got.response_code(), code);
    }
}

#[test]
fn neither_address() {
    let asked = question("none.example.", RecordType::AAAA);
    let soa = [soa(50, 60)];
    let got = exchange(&mut lab(), &asked, (ResponseCode::NoError, &[], &soa), EMPTY);
    assert_eq!((got.response_code(), got.answers().len()), (ResponseCode::NoError, 0));
    assert_eq!(got.name_servers(), soa);
    assert_eq!(got.query().unwrap().query_type(), RecordType::AAAA);
}

#[test]
fn an_alias_is_followed_and_shown() {
    let alias = record("www.example.", 200, RData::CNAME(CNAME(name("v4.example."))));
    let asked = question("www.example.", RecordType::AAAA);
    let first = (ResponseCode::NoError, &[alias.clone()][..], &[][..]);
    let answers = [alias.clone(), a("v4.example.", 100, V4)];
    let got = exchange(&mut lab(), &asked, first, (ResponseCode::NoError, &answers, &[]));
    assert_eq!(got.answers()[0], alias);
    assert_eq!(got.answers()[1], record("v4.example.", 100, RData::AAAA(AAAA(SYNTHESIZED))));
}

#[test]
fn mapped_addresses_are_no_ipv6() {
    let mapped = aaaa("odd.example.", "::ffff:198.51.100.7".parse().unwrap());
    let asked = question("odd.example.", RecordType::AAAA);
    let first = (ResponseCode::NoError, &[mapped.clone()][..], &[][..]);
    let second = (ResponseCode::NoError, &[a("odd.example.", 100, V4)][..], &[][..]);
    let got = exchange(&mut lab(), &asked, first, second);
    assert_eq!(got.answers()[0].data(), &RData::AAAA(AAAA(SYNTHESIZED)));
    // Beside a valid one it is left out.
    let good = aaaa("odd.example.", V6);
    let got = pass(&mut lab(), &asked, ResponseCode::NoError, &[mapped, good.clone()]);
    assert_eq!(got.answers(), [good]);
}

#[test]
fn this_host_and_groups_are_not_synthesized() {
    let asked = question("block.example.", RecordType::AAAA);
    let addrs = [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]];
    let answers = addrs.map(|addr| a("block.example.", 1, addr.into()));
    let got = exchange(&mut lab(), &asked, EMPTY, (ResponseCode::NoError, &answers, &[]));
    assert_eq!(got.answers(), []);
}

#[test]
fn who_validates_is_left_alone() {
    let mut asked = question("v4.example.", RecordType::AAAA);
    asked.set_checking_disabled(true);
    let mut edns = Edns::new();
    edns.set_dnssec_ok(true);
    asked.set_edns(edns);
    let got = pass(&mut lab(), &asked, ResponseCode::NoError, &[]);
    assert_eq!(got.answers(), []);
}

#[test]
fn other_questions_pass_as_they_are() {
    let mut lab = lab();
    let asked = question("v4.example.", RecordType::A).to_vec().unwrap();
    assert_eq!(lab.dns(&asked), None);
    let query = lab.query();
    assert_eq!(query.message[2..], asked[2..]);
    let answer = reply(&query.message, ResponseCode::NoError, &[a("v4.example.", 1, V4)], &[]);
    let got = lab.resolved(query.token, &answer).unwrap();
    assert_eq!((&got[..2], &got[2..]), (&asked[..2], &answer[2..]));
    for kind in [RecordType::MX, RecordType::ANY, RecordType::HTTPS, RecordType::PTR] {
        pass(&mut lab, &question("v4.example.", kind), ResponseCode::NoError, &[]);
    }
}

#[test]
fn without_dns64_everything_passes() {
    let resolvers = lab().network.settings().resolvers.clone();
    let mut lab = Lab::new(Settings { dns64: false, resolvers, ..Settings::default() });
    for text in ["v4.example.", "ipv4only.arpa."] {
        let got = pass(&mut lab, &question(text, RecordType::AAAA), ResponseCode::NoError, &[]);
        assert_eq!(got.answers(), []);
    }
}

#[test]
fn the_well_known_name() {
    // Without any resolver.
    let mut lab = Lab::new(Settings::default());
    let mut ask =
        |text: &str, kind| decode(&lab.dns(&question(text, kind).to_vec().unwrap()).unwrap());
    let addrs = |message: &Message| -> Vec<String> {
        message.answers().iter().map(|record| record.data().to_string()).collect()
    };
    let got = ask("ipv4only.arpa.", RecordType::AAAA);
    assert_eq!(addrs(&got), ["64:ff9b::c000:aa", "64:ff9b::c000:ab"]);
    let got = ask("IPv4Only.ARPA.", RecordType::A);
    assert_eq!(addrs(&got), ["192.0.0.170", "192.0.0.171"]);
    assert_eq!(got.answers()[0].name().to_ascii(), "IPv4Only.ARPA.");
    let got = ask("ipv4only.arpa.", RecordType::MX);
    assert_eq!((got.response_code(), addrs(&got).len()), (ResponseCode::NoError, 0));
    assert_eq!(got.name_servers().len(), 1);
    let got = ask("sub.ipv4only.arpa.", RecordType::AAAA);
    assert_eq!(got.response_code(), ResponseCode::NXDomain);
    let reverse = Name::from("64:ff9b::c000:aa".parse::<Ipv6Addr>().unwrap()).to_ascii();
    let got = ask(&reverse, RecordType::PTR);
    assert_eq!(addrs(&got), ["ipv4only.arpa."]);
    let got = ask("v4.example.", RecordType::AAAA);
    assert_eq!(got.response_code(), ResponseCode::ServFail);
}

#[test]
fn reverse_names_lead_to_ipv4s() {
    let mut lab = lab();
    let reverse = Name::from(SYNTHESIZED).to_ascii();
    let asked = question(&reverse, RecordType::PTR);
    assert_eq!(lab.dns(&asked.to_vec().unwrap()), None);
    let query = lab.query();
    let arpa = "1.100.51.198.in-addr.arpa.";
    let ptr = record(arpa, 100, RData::PTR(PTR(name("v4.example."))));
    let answer = reply(&query.message, ResponseCode::NoError, std::slice::from_ref(&ptr), &[]);
    let got = decode(&lab.resolved(query.token, &answer).unwrap());
    assert_eq!(got.answers()[0].data(), &RData::CNAME(CNAME(name(arpa))));
    assert_eq!(got.answers()[0].name(), &name(&reverse));
    assert_eq!(got.answers()[1], ptr);
    // An address outside the prefix is passed on.
    let other = Name::from(V6).to_ascii();
    assert_eq!(lab.dns(&question(&other, RecordType::PTR).to_vec().unwrap()), None);
    let sent = Message::from_vec(&lab.query().message).unwrap();
    assert_eq!(sent.query().unwrap().name(), &name(&other));
}

#[test]
fn resolvers_take_turns_and_then_it_fails() {
    let mut lab = lab();
    lab.sleep(Duration::ZERO);
    let asked = question("v4.example.", RecordType::A).to_vec().unwrap();
    assert_eq!(lab.dns(&asked), None);
    assert_eq!(lab.dns(&asked), None, "a repetition");
    let mut resolvers = Vec::new();
    let mut ids = std::collections::HashSet::new();
    for _ in 0..3 {
        let query = lab.query();
        resolvers.push(query.resolver.to_string());
        ids.insert([query.message[0], query.message[1]]);
        let due = lab.network.next_timer().unwrap();
        assert_eq!(due - lab.now, Duration::from_secs(2));
        let got = lab.sleep(due - lab.now);
        let dns: Vec<_> = got.iter().filter(|got| got.hops == 64).collect();
        if resolvers.len() < 3 {
            assert!(dns.is_empty());
        } else {
            let got = decode(&dns[0].payload[8..]);
            assert_eq!(got.response_code(), ResponseCode::ServFail);
        }
        // Too late.
        let late = reply(&query.message, ResponseCode::NoError, &[], &[]);
        assert_eq!(lab.resolved(query.token, &late), None);
    }
    assert_eq!(resolvers, ["192.0.2.1:53", "[2001:db8:5::1]:53", "192.0.2.1:53"]);
    assert!(ids.len() > 1, "identifications can be guessed");
}

/// RFC 6147 §5.1.3: without an answer about AAAA, A is asked, in time for programs that wait five
/// seconds.
#[test]
fn who_is_silent_about_aaaa_is_asked_for_a() {
    let mut lab = lab();
    lab.sleep(Duration::ZERO);
    let asked = question("v4.example.", RecordType::AAAA).to_vec().unwrap();
    assert_eq!(lab.dns(&asked), None);
    let mut kinds = Vec::new();
    while lab.network.next_timer().unwrap() < lab.now + Duration::from_secs(5) {
        let query = lab.query();
        let kind = Message::from_vec(&query.message).unwrap().query().unwrap().query_type();
        kinds.push(kind);
        if kind == RecordType::A {
            let answer =
                reply(&query.message, ResponseCode::NoError, &[a("v4.example.", 9, V4)], &[]);
            let got = decode(&lab.resolved(query.token, &answer).unwrap());
            let synthesized = record("v4.example.", 9, RData::AAAA(AAAA(SYNTHESIZED)));
            assert_eq!(got.answers(), [synthesized]);
            break;
        }
        lab.sleep(lab.network.next_timer().unwrap() - lab.now);
    }
    assert_eq!(kinds, [RecordType::AAAA, RecordType::AAAA, RecordType::A]);
}

/// A failure must not become "no such record", which would be cached.
#[test]
fn a_failure_about_a_is_no_absence() {
    let asked = question("v4.example.", RecordType::AAAA);
    let got = exchange(&mut lab(), &asked, EMPTY, (ResponseCode::ServFail, &[], &[]));
    assert_eq!(got.response_code(), ResponseCode::ServFail);
}

/// A dead resolver costs one question its timeout, not each.
#[test]
fn who_answers_is_asked_first_from_then_on() {
    let mut lab = lab();
    lab.sleep(Duration::ZERO);
    let ask = |lab: &mut Lab, name: &str| {
        assert_eq!(lab.dns(&question(name, RecordType::A).to_vec().unwrap()), None);
        lab.query()
    };
    let first = ask(&mut lab, "a.example.");
    assert_eq!(first.resolver.to_string(), "192.0.2.1:53");
    lab.sleep(Duration::from_secs(2));
    let second = lab.query();
    assert_eq!(second.resolver.to_string(), "[2001:db8:5::1]:53");
    let answer = reply(&second.message, ResponseCode::NoError, &[], &[]);
    assert!(lab.resolved(second.token, &answer).is_some());
    for name in ["b.example.", "c.example."] {
        let query = ask(&mut lab, name);
        assert_eq!(query.resolver, second.resolver);
        let answer = reply(&query.message, ResponseCode::NoError, &[], &[]);
        assert!(lab.resolved(query.token, &answer).is_some());
    }
    // An unreachable one is skipped at once.
    let query = ask(&mut lab, "d.example.");
    let mut out = clat_plat::frame::Out::default();
    lab.network.dns_failed(query.token, lab.now, &mut out);
    assert_eq!(lab.query().resolver, first.resolver);
}

/// The host has gone to another network, which has fewer resolvers: what was asked of one that is
/// none of them any more is asked of these.
#[test]
fn other_resolvers_are_asked_when_the_host_has_others() {
    let mut lab = lab();
    lab.sleep(Duration::ZERO);
    let ask = |lab: &mut Lab, name: &str| {
        assert_eq!(lab.dns(&question(name, RecordType::A).to_vec().unwrap()), None);
        lab.query().resolver.to_string()
    };
    assert_eq!(ask(&mut lab, "a.example."), "192.0.2.1:53");
    lab.network.set_resolvers(vec!["198.51.100.53:53".parse().unwrap()]);
    assert_eq!(ask(&mut lab, "b.example."), "198.51.100.53:53");
    lab.sleep(Duration::from_secs(2));
    let asked: Vec<_> = lab.network.take_queries().iter().map(|q| q.resolver.to_string()).collect();
    assert_eq!(asked, ["198.51.100.53:53"; 2]);
}

/// RFC 6891 §6.1.1 and §6.1.3.
#[test]
fn who_speaks_edns_is_answered_in_it() {
    let mut lab = Lab::new(Settings::default());
    let mut asked = question("v4.example.", RecordType::A);
    let got = decode(&lab.dns(&asked.to_vec().unwrap()).unwrap());
    assert!(got.response_code() == ResponseCode::ServFail && got.extensions().is_none());
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_dnssec_ok(true);
    asked.set_edns(edns.clone());
    let got = decode(&lab.dns(&asked.to_vec().unwrap()).unwrap());
    assert_eq!(got.response_code(), ResponseCode::ServFail);
    let ours = got.extensions().as_ref().unwrap();
    assert!(ours.flags().dnssec_ok && ours.max_payload() >= 1232);
    edns.set_version(1);
    asked.set_edns(edns);
    let got = lab.dns(&asked.to_vec().unwrap()).unwrap();
    // 16, of which the last four bits are in the header.
    assert_eq!((got[3] & 0x0f, got[got.len() - 6], got[got.len() - 5]), (0, 1, 0));
}

/// A DNAME (RFC 6672) appears with the alias that results.
#[test]
fn a_subtree_elsewhere_is_shown() {
    let target = [&[3][..], b"new", &[7], b"example", &[0]].concat();
    let dname = RData::Unknown {
        code: RecordType::Unknown(39),
        rdata: hickory_proto::rr::rdata::NULL::with(target),
    };
    let dname = record("old.example.", 200, dname);
    let alias = record("www.old.example.", 0, RData::CNAME(CNAME(name("www.new.example."))));
    let answers = [dname.clone(), alias.clone(), a("www.new.example.", 100, V4)];
    let asked = question("www.old.example.", RecordType::AAAA);
    let got = exchange(&mut lab(), &asked, EMPTY, (ResponseCode::NoError, &answers, &[]));
    assert_eq!(got.answers()[..2], [dname, alias]);
    assert_eq!(got.answers().len(), 3);
}

/// For a host without IPv6.
#[test]
fn synthesized_although_there_is_an_address() {
    let resolvers = vec!["192.0.2.1:53".parse().unwrap()];
    let settings = Settings { resolvers, dns64_always: true, ..Settings::default() };
    let asked = question("both.example.", RecordType::AAAA);
    let own = [aaaa("both.example.", V6)];
    let first = (ResponseCode::NoError, &own[..], &[][..]);
    let second = (ResponseCode::NoError, &[a("both.example.", 100, V4)][..], &[][..]);
    let got = exchange(&mut Lab::new(settings.clone()), &asked, first, second);
    let synthesized = record("both.example.", 100, RData::AAAA(AAAA(SYNTHESIZED)));
    assert_eq!(got.answers(), [synthesized]);
    // Names without IPv4 address are not changed.
    let got = exchange(&mut Lab::new(settings), &asked, first, EMPTY);
    assert_eq!(got.answers(), own);
}

#[test]
fn names_of_the_owners() {
    let hosts =
        [("v4.test.", "192.0.2.7"), ("both.test.", "192.0.2.8"), ("both.test.", "2001:db8::8")];
    let hosts = hosts.iter().map(|(host, ip)| (name(host), ip.parse().unwrap())).collect();
    let mut lab = Lab::new(Settings { hosts, ..Settings::default() });
    let mut ask = |text: &str, kind| {
        let got = decode(&lab.dns(&question(text, kind).to_vec().unwrap()).unwrap());
        let texts = got.answers().iter().map(|record| record.data().to_string());
        (got.response_code(), texts.collect::<Vec<_>>())
    };
    let found = |text: &str| (ResponseCode::NoError, vec![text.to_owned()]);
    assert_eq!(ask("v4.test.", RecordType::A), found("192.0.2.7"));
    assert_eq!(ask("V4.Test.", RecordType::AAAA), found("64:ff9b::c000:207"));
    assert_eq!(ask("both.test.", RecordType::AAAA), found("2001:db8::8"));
    assert_eq!(ask("both.test.", RecordType::MX), (ResponseCode::NoError, vec![]));
    assert_eq!(ask("other.test.", RecordType::A).0, ResponseCode::ServFail);
}

#[test]
fn answers_to_other_questions_are_not_believed() {
    let mut lab = lab();
    assert_eq!(lab.dns(&question("a.example.", RecordType::A).to_vec().unwrap()), None);
    let query = lab.query();
    let good = reply(&query.message, ResponseCode::NoError, &[a("a.example.", 1, V4)], &[]);
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    let mut a_query = good.clone();
    a_query[2] &= 0x7f;
    let mut other_name = good.clone();
    other_name[13] = b'b';
    let mut other_type = good.clone();
    other_type[12 + 11 + 1] = 28;
    for bad in [&other_id[..], &a_query, &other_name, &other_type, &good[..11], &[]] {
        assert_eq!(lab.resolved(query.token, bad), None);
    }
    assert_eq!(lab.resolved(query.token + 1, &good), None);
    // In another case it is the same name.
    let mut upper = good;
    upper[13] = b'A';
    assert!(lab.resolved(query.token, &upper).is_some());
    assert_eq!(lab.resolved(query.token, &upper), None, "only once");
}

#[test]
fn what_does_not_fit_is_truncated() {
    let many: Vec<Record> =
        (0..100).map(|n| a("many.example.", 60, [198, 51, 100, n].into())).collect();
    let mut asked = question("many.example.", RecordType::AAAA);
    for (payload, limit) in [(None, 512), (Some(400), 512), (Some(1000), 1000), (Some(9000), 1452)]
    {
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            asked.set_edns(edns);
        }
        let mut lab = lab();
        assert_eq!(lab.dns(&asked.to_vec().unwrap()), None);
        let query = lab.query();
        let empty = reply(&query.message, ResponseCode::NoError, &[], &[]);
        assert_eq!(lab.resolved(query.token, &empty), None);
        let query = lab.query();
        let answer = reply(&query.message, ResponseCode::NoError, &many, &[]);
        let got = lab.resolved(query.token, &answer).unwrap();
        assert!(got.len() <= limit && got.len() > limit / 3, "{payload:?}: {}", got.len());
        assert!(decode(&got).truncated());
        // An answer larger than the guest can take.
        let asked = question("many.example.", RecordType::A);
        let got = pass(&mut lab, &asked, ResponseCode::NoError, &many);
        assert!(got.truncated() && got.answers().is_empty());
    }
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp() {
    let mut lab = lab();
    assert_eq!(lab.dns(&question("v4.example.", RecordType::AAAA).to_vec().unwrap()), None);
    let query = lab.query();
    assert!(!query.tcp);
    assert_eq!(
        lab.resolved(query.token, &reply(&query.message, ResponseCode::NoError, &[], &[])),
        None
    );
    let query = lab.query();
    let mut truncated = reply(&query.message, ResponseCode::NoError, &[], &[]);
    truncated[2] |= 2;
    assert_eq!(lab.resolved(query.token, &truncated), None);
    let query = lab.query();
    assert!(query.tcp);
    let answer = reply(&query.message, ResponseCode::NoError, &[a("v4.example.", 1, V4)], &[]);
    assert_eq!(decode(&lab.resolved(query.token, &answer).unwrap()).answers().len(), 1);
}

#[test]
fn questions_that_cannot_be_answered() {
    let mut lab = lab();
    let good = question("v4.example.", RecordType::AAAA);
    let code = |bytes: Option<Vec<u8>>| decode(&bytes.unwrap()).response_code();
    let mut update = good.clone();
    update.set_op_code(OpCode::Update);
    assert_eq!(code(lab.dns(&update.to_vec().unwrap())), ResponseCode::NotImp);
    let mut two = good.clone();
    two.add_query(Query::query(name("b.example."), RecordType::A));
    assert_eq!(code(lab.dns(&two.to_vec().unwrap())), ResponseCode::FormErr);
    let bytes = good.to_vec().unwrap();
    assert_eq!(code(lab.dns(&bytes[..20])), ResponseCode::FormErr);
    for nothing in [&bytes[..11], &[]] {
        assert_eq!(lab.dns(nothing), None);
    }
    let mut response = bytes;
    response[2] |= 0x80;
    assert_eq!(lab.dns(&response), None, "there is no loop");
    assert!(lab.network.take_queries().is_empty());
}

#[test]
fn a_flood_is_bounded() {
    let mut lab = lab();
    for n in 0..5000 {
        let bytes = question(&format!("n{n}.example."), RecordType::A).to_vec().unwrap();
        assert_eq!(lab.dns(&bytes), None);
    }
    let queries = lab.network.take_queries();
    let answers = queries.iter().filter_map(|query| {
        lab.resolved(query.token, &reply(&query.message, ResponseCode::NoError, &[], &[]))
    });
    assert_eq!(answers.count(), 1024, "the youngest");
}

#[test]
fn over_ipv4_too() {
    let mut lab = Lab::dual_stack();
    let asked = question("ipv4only.arpa.", RecordType::AAAA).to_vec().unwrap();
    let got = lab.ask(&udp4((GUEST4, 4000), (ROUTER4, 53), &asked)).unwrap();
    assert_eq!((got.src, got.dst), (ROUTER4.into(), GUEST4.into()));
    assert_eq!(decode(&got.payload[8..]).answers().len(), 2);
    let mut spoiled = udp6((GLOBAL, 4000), (DNS, 53), &asked);
    *spoiled.last_mut().unwrap() ^= 1;
    assert_eq!(lab.ask(&spoiled), None, "wrong checksum");
    // A partial checksum is not wrong.
    let partial = clat_tun::VirtioHeader { needs_csum: true, ..Default::default() };
    let mut out = clat_plat::frame::Out::default();
    let frame = udp6((GLOBAL, 4000), (DNS, 53), &asked);
    spoiled = [&frame[..14 + 40 + 6], &[0, 1], &frame[14 + 40 + 8..]].concat();
    lab.network.input(&spoiled, &partial, lab.now, &mut out);
    assert_eq!(out.len(), 1);
}

/// RFC 7766: a connection has a number, and all of an answer.
#[test]
fn over_tcp() {
    for dst in [DNS.into(), ROUTER4.into()] {
        let src = if matches!(dst, IpAddr::V4(_)) { GUEST4.into() } else { GLOBAL.into() };
        let mut lab = Lab::dual_stack();
        let mut segment = vec![0; 20];
        segment[12] = 0x50;
        segment[3] = 53;
        let frame = packet(src, dst, 64, IpProtocol::Tcp, &segment);
        assert_eq!(lab.send(&frame), (Handled::Dns, vec![]));
        segment[3] = 54;
        let frame = packet(src, dst, 64, IpProtocol::Tcp, &segment);
        assert_eq!(lab.ask(&frame).map(|got| got.protocol), Some(IpProtocol::Tcp), "reset");
    }

    let mut lab = lab();
    let now = lab.now;
    let answers = |lab: &mut Lab| lab.network.take_dns_answers();
    let known = question("ipv4only.arpa.", RecordType::A).to_vec().unwrap();
    lab.network.dns_question(7, MAC, &known, now);
    let [(7, answer)] = &answers(&mut lab)[..] else { panic!("none") };
    assert_eq!(decode(answer).answers().len(), 2);

    // A truncated answer is asked for again, for any question.
    let many: Vec<_> = (0..200).map(|n| a("v4.example.", 60, [203, 0, 113, n].into())).collect();
    for kind in [RecordType::A, RecordType::AAAA] {
        lab.network.dns_question(8, MAC, &question("v4.example.", kind).to_vec().unwrap(), now);
        if kind == RecordType::AAAA {
            let query = lab.query();
            let none = reply(&query.message, ResponseCode::NoError, &[], &[]);
            assert_eq!(lab.resolved(query.token, &none), None);
        }
        let query = lab.query();
        assert!(!query.tcp);
        let mut short = reply(&query.message, ResponseCode::NoError, &[], &[]);
        short[2] |= 0x02;
        assert_eq!(lab.resolved(query.token, &short), None);
        let query = lab.query();
        assert!(query.tcp && answers(&mut lab).is_empty());
        let whole = reply(&query.message, ResponseCode::NoError, &many, &[]);
        assert_eq!(lab.resolved(query.token, &whole), None);
        let [(8, answer)] = &answers(&mut lab)[..] else { panic!("none") };
        let answer = decode(answer);
        assert!(answer.answers().len() == 200 && !answer.truncated());
    }
}

/// A guest with too many open questions does not lose others' answers.
#[test]
fn a_guest_has_its_questions_beside_another() {
    let mut lab = lab();
    let asked = question("v4.example.", RecordType::TXT);
    assert_eq!(lab.dns(&asked.to_vec().unwrap()), None);
    let query = lab.query();
    assert_eq!(query.guest, MAC);
    let mut first = None;
    for port in 1000..5000 {
        let message = asked.to_vec().unwrap();
        let other = Ipv6Addr::from_bits(GLOBAL.to_bits() + 1);
        let mut frame = udp6((other, port), (DNS, 53), &message);
        frame[11] ^= 4;
        lab.ask(&frame);
        first.get_or_insert(lab.query().token);
    }
    assert!(!lab.network.waits_for(first.unwrap()));
    let answer = reply(&query.message, ResponseCode::NoError, &[], &[]);
    assert!(lab.resolved(query.token, &answer).is_some());
}
