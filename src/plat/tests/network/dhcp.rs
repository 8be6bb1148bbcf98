// SPDX-License-Identifier: Apache-2.0

//! DHCPv6, and DHCP with `--dual-stack`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use clat_plat::frame::Mac;
use clat_plat::settings::{DualStack, Settings};
use dhcproto::v4;
use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, Message, MessageType, OptionCode, Status, StatusCode, IANA,
    IAPD, IATA, ORO,
};
use dhcproto::{Decodable, Decoder, Encodable};

use crate::guest::{udp4, udp6, Lab, DNS, GUEST4, LINK_LOCAL, MAC, ROUTER, ROUTER4};

const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const XID: [u8; 3] = [1, 2, 3];

fn client_id() -> DhcpOption {
    DhcpOption::ClientId([&[0, 3, 0, 1], &MAC.0[..]].concat())
}

fn server_id() -> DhcpOption {
    DhcpOption::ServerId([&[0, 3, 0, 1], &Settings::default().mac.0[..]].concat())
}

fn iana(id: u32, addrs: &[Ipv6Addr]) -> DhcpOption {
    let mut opts = DhcpOptions::new();
    for addr in addrs {
        let (preferred_life, valid_life) = (0, 0);
        opts.insert(DhcpOption::IAAddr(IAAddr {
            addr: *addr,
            preferred_life,
            valid_life,
            opts: DhcpOptions::new(),
        }));
    }
    DhcpOption::IANA(IANA { id, t1: 0, t2: 0, opts })
}

fn message(kind: MessageType, options: &[DhcpOption]) -> Message {
    let mut message = Message::new_with_id(kind, XID);
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

fn ask(lab: &mut Lab, kind: MessageType, options: &[DhcpOption]) -> Option<Message> {
    let bytes = message(kind, options).to_vec().unwrap();
    let got = lab.ask(&udp6((LINK_LOCAL, 546), (SERVERS, 547), &bytes))?;
    assert_eq!((got.src, got.dst, got.to), (ROUTER.into(), LINK_LOCAL.into(), MAC));
    assert_eq!(got.payload[..4], [0x02, 0x23, 0x02, 0x22]);
    let reply = Message::decode(&mut Decoder::new(&got.payload[8..])).unwrap();
    assert_eq!(reply.xid(), XID);
    assert_eq!(reply.opts().get(OptionCode::ServerId), Some(&server_id()));
    Some(reply)
}

/// The addresses of the first IA_NA, with their lifetimes.
fn leases(reply: &Message) -> Vec<(Ipv6Addr, u32)> {
    let Some(DhcpOption::IANA(ia)) = reply.opts().get(OptionCode::IANA) else { return vec![] };
    let addrs = ia.opts.iter().map(|option| match option {
        DhcpOption::IAAddr(addr) => (addr.addr, addr.valid_life),
        other => panic!("{other:?}"),
    });
    addrs.collect()
}

#[test]
fn stateless() {
    let mut lab = Lab::new(Settings::default());
    let wants = |code| DhcpOption::ORO(ORO { opts: vec![code] });
    // An information request may come without an identifier.
    let kind = MessageType::InformationRequest;
    let reply = ask(&mut lab, kind, &[wants(OptionCode::DomainNameServers)]).unwrap();
    assert_eq!(reply.msg_type(), MessageType::Reply);
    let expected = DhcpOption::DomainNameServers(vec![DNS]);
    assert_eq!(reply.opts().get(OptionCode::DomainNameServers), Some(&expected));
    assert!(reply.opts().get(OptionCode::InformationRefreshTime).is_some());
    let reply = ask(&mut lab, kind, &[wants(OptionCode::NtpServer), client_id()]).unwrap();
    assert_eq!(reply.opts().get(OptionCode::DomainNameServers), None);
    assert_eq!(reply.opts().get(OptionCode::ClientId), Some(&client_id()));
}

/// A search list by either protocol (RFC 3646 §4, RFC 3397), and no DNS server.
#[test]
fn a_search_list_and_no_dns_server() {
    let search = vec!["corp.example.".parse().unwrap()];
    let dual_stack = Some(DualStack::default());
    let mut lab = Lab::new(Settings { dns: false, search, dual_stack, ..Settings::default() });
    let codes = vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList];
    let wanted = DhcpOption::ORO(ORO { opts: codes });
    let reply = ask(&mut lab, MessageType::InformationRequest, &[wanted]).unwrap();
    assert_eq!(reply.opts().get(OptionCode::DomainNameServers), None);
    let names = b"\x04corp\x07example\0";
    let has = |bytes: &[u8], option: &[u8]| bytes.windows(option.len()).any(|at| at == option);
    assert!(has(&reply.to_vec().unwrap(), &[&[0, 24, 0, 14], &names[..]].concat()));
    let (offer, _) = ask4(&mut lab, &discover(v4::MessageType::Discover, &[])).unwrap();
    let bytes = offer.to_vec().unwrap();
    assert!(has(&bytes, &[&[119, 14], &names[..]].concat()));
    assert!(!has(&bytes, &[6, 4, 192, 168, 64, 1]));
}

#[test]
fn an_address_from_solicit_to_release() {
    let mut lab = Lab::new(Settings::default());
    let advertise = ask(&mut lab, MessageType::Solicit, &[client_id(), iana(7, &[])]).unwrap();
    assert_eq!(advertise.msg_type(), MessageType::Advertise);
    let offered = leases(&advertise);
    assert_eq!(offered.len(), 1);
    let addr = offered[0].0;
    let prefix = Settings::default().prefix;
    assert_eq!(addr.segments()[..4], prefix.segments()[..4]);
    for kind in [MessageType::Request, MessageType::Renew] {
        let reply = ask(&mut lab, kind, &[client_id(), server_id(), iana(7, &[addr])]).unwrap();
        assert_eq!((reply.msg_type(), leases(&reply)), (MessageType::Reply, vec![(addr, 7200)]));
    }
    let reply = ask(&mut lab, MessageType::Rebind, &[client_id(), iana(7, &[addr])]).unwrap();
    assert_eq!(leases(&reply), [(addr, 7200)]);
    for kind in [MessageType::Release, MessageType::Decline] {
        let reply = ask(&mut lab, kind, &[client_id(), server_id(), iana(7, &[addr])]).unwrap();
        let success =
            DhcpOption::StatusCode(StatusCode { status: Status::Success, msg: String::new() });
        assert_eq!(reply.opts().get(OptionCode::StatusCode), Some(&success));
    }
    // Another association, another address.
    let other = ask(&mut lab, MessageType::Solicit, &[client_id(), iana(8, &[])]).unwrap();
    assert_ne!(leases(&other)[0].0, addr);
}

#[test]
fn rapid_commit() {
    let mut lab = Lab::new(Settings::default());
    let options = [client_id(), iana(7, &[]), DhcpOption::RapidCommit];
    let reply = ask(&mut lab, MessageType::Solicit, &options).unwrap();
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(leases(&reply).len(), 1);
}

#[test]
fn after_renumbering() {
    let mut lab = Lab::new(Settings::default());
    let old =
        leases(&ask(&mut lab, MessageType::Solicit, &[client_id(), iana(7, &[])]).unwrap())[0].0;
    let confirm = |lab: &mut Lab| {
        let reply = ask(lab, MessageType::Confirm, &[client_id(), iana(7, &[old])]).unwrap();
        match reply.opts().get(OptionCode::StatusCode) {
            Some(DhcpOption::StatusCode(code)) => code.status,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(confirm(&mut lab), Status::Success);
    let mut out = clat_plat::frame::Out::default();
    lab.network.renumber("2001:db8:464:1::".parse().unwrap(), lab.now, &mut out);
    assert_eq!(confirm(&mut lab), Status::NotOnLink);
    let reply =
        ask(&mut lab, MessageType::Renew, &[client_id(), server_id(), iana(7, &[old])]).unwrap();
    let leases = leases(&reply);
    assert_eq!(leases.len(), 2);
    assert!(leases.contains(&(old, 0)));
    assert!(leases.iter().any(|(addr, life)| *addr != old && *life == 7200));
}

#[test]
fn neither_temporary_addresses_nor_prefixes() {
    let mut lab = Lab::new(Settings::default());
    let iata = DhcpOption::IATA(IATA { id: 1, opts: DhcpOptions::new() });
    let iapd = DhcpOption::IAPD(IAPD { id: 2, t1: 0, t2: 0, opts: DhcpOptions::new() });
    let reply = ask(&mut lab, MessageType::Solicit, &[client_id(), iata, iapd]).unwrap();
    let status = |options: &DhcpOptions| match options.get(OptionCode::StatusCode) {
        Some(DhcpOption::StatusCode(code)) => code.status,
        other => panic!("{other:?}"),
    };
    match reply.opts().get(OptionCode::IATA) {
        Some(DhcpOption::IATA(ia)) => assert_eq!(status(&ia.opts), Status::NoAddrsAvail),
        other => panic!("{other:?}"),
    }
    match reply.opts().get(OptionCode::IAPD) {
        Some(DhcpOption::IAPD(ia)) => assert_eq!(status(&ia.opts), Status::NoPrefixAvail),
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_that_break_the_rules() {
    let mut lab = Lab::new(Settings::default());
    let stranger = DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    for (kind, options) in [
        (MessageType::Solicit, vec![iana(1, &[])]),
        (MessageType::Solicit, vec![client_id(), server_id(), iana(1, &[])]),
        (MessageType::Solicit, vec![DhcpOption::ClientId(vec![0; 200]), iana(1, &[])]),
        (MessageType::Request, vec![client_id(), iana(1, &[])]),
        (MessageType::Request, vec![client_id(), stranger, iana(1, &[])]),
        (MessageType::Rebind, vec![client_id(), server_id(), iana(1, &[])]),
        (MessageType::Confirm, vec![client_id(), iana(1, &[])]),
        (MessageType::InformationRequest, vec![client_id(), iana(1, &[])]),
        (MessageType::Advertise, vec![client_id(), server_id()]),
        (MessageType::Reply, vec![client_id(), server_id()]),
        (MessageType::Reconfigure, vec![client_id(), server_id()]),
    ] {
        assert!(ask(&mut lab, kind, &options).is_none(), "{kind:?} {options:?}");
    }
    for bytes in [&[][..], &[1], &[1, 0, 0, 0, 0], &[12; 60], &[1; 1400]] {
        assert_eq!(lab.ask(&udp6((LINK_LOCAL, 546), (SERVERS, 547), bytes)), None);
    }
    // Options in options in options.
    let mut nested = Vec::new();
    for _ in 0..90 {
        let len = u16::try_from(12 + nested.len()).unwrap().to_be_bytes();
        nested = [&[0, 3, len[0], len[1]][..], &[0; 12], &nested].concat();
    }
    let nested = [&[1, 1, 2, 3][..], &nested].concat();
    assert_eq!(lab.ask(&udp6((LINK_LOCAL, 546), (SERVERS, 547), &nested)), None);
}

fn discover(kind: v4::MessageType, options: &[v4::DhcpOption]) -> v4::Message {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = v4::Message::new_with_id(42, zero, zero, zero, zero, &MAC.0);
    message.opts_mut().insert(v4::DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

fn ask4(lab: &mut Lab, message: &v4::Message) -> Option<(v4::Message, (Ipv4Addr, Mac))> {
    ask4_as(lab, MAC, message)
}

/// The same from another station, which sends the same hardware address.
fn ask4_as(
    lab: &mut Lab,
    from: Mac,
    message: &v4::Message,
) -> Option<(v4::Message, (Ipv4Addr, Mac))> {
    let bytes = message.to_vec().unwrap();
    let mut frame = udp4((message.ciaddr(), 68), (Ipv4Addr::BROADCAST, 67), &bytes);
    frame[6..12].copy_from_slice(&from.0);
    let got = lab.ask(&frame)?;
    assert_eq!(got.src, ROUTER4);
    assert_eq!(got.payload[..4], [0, 67, 0, 68]);
    let reply = v4::Message::decode(&mut Decoder::new(&got.payload[8..])).unwrap();
    assert_eq!(
        (reply.opcode(), reply.xid(), reply.chaddr()),
        (v4::Opcode::BootReply, 42, &MAC.0[..])
    );
    let std::net::IpAddr::V4(dst) = got.dst else { panic!() };
    Some((reply, (dst, got.to)))
}

fn kind(reply: &v4::Message) -> v4::MessageType {
    reply.opts().msg_type().unwrap()
}

#[test]
fn an_ipv4_address() {
    let mut lab = Lab::dual_stack();
    let list = |codes: &[u8]| {
        v4::DhcpOption::ParameterRequestList(
            codes.iter().map(|c| v4::OptionCode::from(*c)).collect(),
        )
    };
    let (offer, to) =
        ask4(&mut lab, &discover(v4::MessageType::Discover, &[list(&[1, 3, 6])])).unwrap();
    assert_eq!((kind(&offer), offer.yiaddr(), to), (v4::MessageType::Offer, GUEST4, (GUEST4, MAC)));
    let bytes = offer.to_vec().unwrap();
    let has = |option: &[u8]| bytes[240..].windows(option.len()).any(|at| at == option);
    assert!(has(&[1, 4, 255, 255, 255, 0]) && has(&[3, 4, 192, 168, 64, 1]));
    assert!(
        has(&[6, 4, 192, 168, 64, 1])
            && has(&[26, 2, 0x05, 0xdc])
            && has(&[54, 4, 192, 168, 64, 1])
    );
    assert!(has(&[51, 4, 0, 0, 0x0e, 0x10]));
    assert!(!has(&[108, 4]), "nobody asked for option 108");

    let wanted = v4::DhcpOption::RequestedIpAddress(GUEST4);
    let us = v4::DhcpOption::ServerIdentifier(ROUTER4);
    let request = discover(v4::MessageType::Request, &[wanted.clone(), us]);
    let (ack, _) = ask4(&mut lab, &request).unwrap();
    assert_eq!((kind(&ack), ack.yiaddr()), (v4::MessageType::Ack, GUEST4));
    // The same for a repeated request, in any state.
    let mut renew = discover(v4::MessageType::Request, &[]);
    renew.set_ciaddr(GUEST4);
    let (ack, to) = ask4(&mut lab, &renew).unwrap();
    assert_eq!((kind(&ack), ack.yiaddr(), to), (v4::MessageType::Ack, GUEST4, (GUEST4, MAC)));
    let mut broadcast = discover(v4::MessageType::Discover, &[]);
    broadcast.set_flags(v4::Flags::default().set_broadcast());
    let (offer, to) = ask4(&mut lab, &broadcast).unwrap();
    assert_eq!((offer.yiaddr(), to), (GUEST4, (Ipv4Addr::BROADCAST, Mac::BROADCAST)));

    // Another client gets another address; a request for an unavailable one is refused.
    let other = v4::DhcpOption::ClientIdentifier(vec![1, 2, 3]);
    let options = [other.clone(), wanted];
    let (offer, _) = ask4(&mut lab, &discover(v4::MessageType::Discover, &options)).unwrap();
    assert_eq!(offer.yiaddr(), Ipv4Addr::new(192, 168, 64, 3));
    let (nak, to) = ask4(&mut lab, &discover(v4::MessageType::Request, &options)).unwrap();
    assert_eq!((kind(&nak), to.1), (v4::MessageType::Nak, Mac::BROADCAST));
}

#[test]
fn ipv6_only_preferred_is_for_who_asks() {
    let mut lab = Lab::dual_stack();
    let list = v4::DhcpOption::ParameterRequestList(vec![v4::OptionCode::from(108)]);
    let (offer, _) = ask4(&mut lab, &discover(v4::MessageType::Discover, &[list])).unwrap();
    let bytes = offer.to_vec().unwrap();
    assert!(bytes.windows(6).any(|at| at == [108, 4, 0, 0, 0x07, 0x08]), "{offer:?}");
}

#[test]
fn released_declined_and_of_another_server() {
    let mut lab = Lab::dual_stack();
    let discover_as = |lab: &mut Lab, id: u8| {
        let id = v4::DhcpOption::ClientIdentifier(vec![id]);
        let (offer, _) = ask4(lab, &discover(v4::MessageType::Discover, &[id])).unwrap();
        offer.yiaddr()
    };
    assert_eq!(discover_as(&mut lab, 1), GUEST4);
    let id = v4::DhcpOption::ClientIdentifier(vec![1]);
    assert!(ask4(&mut lab, &discover(v4::MessageType::Release, &[id])).is_none());
    assert_eq!(discover_as(&mut lab, 2), GUEST4);
    let other_server = [
        v4::DhcpOption::ClientIdentifier(vec![2]),
        v4::DhcpOption::ServerIdentifier(Ipv4Addr::new(192, 168, 64, 250)),
    ];
    assert!(ask4(&mut lab, &discover(v4::MessageType::Request, &other_server)).is_none());
    assert_eq!(discover_as(&mut lab, 3), GUEST4);
    let decline =
        [v4::DhcpOption::ClientIdentifier(vec![3]), v4::DhcpOption::RequestedIpAddress(GUEST4)];
    assert!(ask4(&mut lab, &discover(v4::MessageType::Decline, &decline)).is_none());
    assert_ne!(discover_as(&mut lab, 3), GUEST4, "somebody has it");
    lab.now += Duration::from_secs(3600);
    assert_eq!(discover_as(&mut lab, 4), GUEST4, "not for ever");
}

#[test]
fn a_crowd_is_bounded() {
    let mut lab = Lab::dual_stack();
    let offers = (0..2000_u32).filter_map(|n| {
        let id = v4::DhcpOption::ClientIdentifier(n.to_be_bytes().to_vec());
        ask4(&mut lab, &discover(v4::MessageType::Discover, &[id]))
    });
    let addrs: std::collections::HashSet<_> = offers.map(|(offer, _)| offer.yiaddr()).collect();
    // .2 to .254
    assert_eq!(addrs.len(), 253);
    assert!(!addrs.contains(&ROUTER4));
}

/// A station with many identifiers has all addresses that no other wants.
#[test]
fn a_crowd_leaves_others_their_addresses() {
    let mut lab = Lab::dual_stack();
    let (modest, late) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let mut lease = |from, id: u32| {
        let id = v4::DhcpOption::ClientIdentifier(id.to_be_bytes().to_vec());
        let answer = ask4_as(&mut lab, from, &discover(v4::MessageType::Discover, &[id]));
        answer.map(|(offer, _)| offer.yiaddr())
    };
    let first = lease(modest, 5000).unwrap();
    for n in 0..1000 {
        assert_ne!(lease(MAC, n).unwrap(), first);
    }
    let second = lease(late, 6000).unwrap();
    assert!(second != first && (1000..2000).all(|n| lease(MAC, n) != Some(second)));
    assert_eq!((lease(modest, 5000), lease(late, 6000)), (Some(first), Some(second)));
}

/// A station that asks in the name of absent stations takes no address from present ones, and the
/// next present one gets one.
#[test]
fn made_up_stations_do_not_empty_the_pool() {
    let mut lab = Lab::dual_stack();
    let lease = |lab: &mut Lab, from, address: Option<Ipv4Addr>| {
        let (kind, options) = match address {
            Some(address) => {
                (v4::MessageType::Request, vec![v4::DhcpOption::RequestedIpAddress(address)])
            }
            None => (v4::MessageType::Discover, vec![]),
        };
        let (reply, _) = ask4_as(lab, from, &discover(kind, &options)).unwrap();
        reply.yiaddr()
    };
    let (first, second) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let mut own = Vec::new();
    for station in [first, second] {
        let address = lease(&mut lab, station, None);
        assert_eq!(lease(&mut lab, station, Some(address)), address);
        // It is present: it sends a datagram to the router.
        let mut frame = udp4((address, 5000), (ROUTER4, 9), b"");
        frame[6..12].copy_from_slice(&station.0);
        lab.ask(&frame);
        own.push(address);
    }
    for n in 0..1000_u16 {
        let [a, b] = n.to_be_bytes();
        let address = lease(&mut lab, Mac([2, 0, 0, 1, a, b]), None);
        assert!(!own.contains(&address), "{n}");
        assert_eq!(lease(&mut lab, Mac([2, 0, 0, 1, a, b]), Some(address)), address, "{n}");
    }
    let late = Mac([2, 0, 0, 0, 0, 3]);
    let address = lease(&mut lab, late, None);
    assert_eq!(lease(&mut lab, late, Some(address)), address);
    for (station, address) in [first, second].into_iter().zip(own) {
        assert_eq!(lease(&mut lab, station, Some(address)), address);
    }
}

/// A station's lease cannot be released by another one, by any identifier.
#[test]
fn a_lease_is_of_its_station() {
    let mut lab = Lab::dual_stack();
    let other = Mac([2, 0, 0, 0, 0, 1]);
    let (offer, _) = ask4(&mut lab, &discover(v4::MessageType::Discover, &[])).unwrap();
    assert_eq!(offer.yiaddr(), GUEST4);
    let release = discover(v4::MessageType::Release, &[]);
    assert!(ask4_as(&mut lab, other, &release).is_none());
    let discovered = ask4_as(&mut lab, other, &discover(v4::MessageType::Discover, &[]));
    assert_ne!(discovered.unwrap().0.yiaddr(), GUEST4);
}

#[test]
fn ipv4_messages_that_break_the_rules() {
    let mut lab = Lab::dual_stack();
    let good = discover(v4::MessageType::Discover, &[]).to_vec().unwrap();
    let send = |lab: &mut Lab, bytes: &[u8]| {
        lab.ask(&udp4((Ipv4Addr::UNSPECIFIED, 68), (Ipv4Addr::BROADCAST, 67), bytes))
    };
    assert!(send(&mut lab, &good).is_some());
    for (at, byte) in [(0, 2), (1, 6), (2, 17), (2, 255), (2, 0), (24, 10)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert_eq!(send(&mut lab, &bad), None, "{at}");
    }
    for len in 0..240 {
        assert_eq!(send(&mut lab, &good[..len]), None, "{len}");
    }
    // An answer never leaves the network, whatever address the client gives.
    let mut renew = discover(v4::MessageType::Inform, &[]);
    renew.set_ciaddr([198, 51, 100, 1]);
    assert!(ask4(&mut lab, &renew).is_none());
}
