// SPDX-License-Identifier: Apache-2.0

//! The DHCPv6 server (RFC 8415): other configuration for guests that configure addresses
//! themselves, and an address (IA_NA) for those that ask for one.
//!
//! It keeps no state: the address is a hash of the client. Messages are parsed here, since dhcproto
//! (0.14) panics on some, and recurses into nested options without limit.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::Ipv6Addr;

use super::wire::same_64;
use crate::frame::Mac;
use crate::settings::Settings;

/// The port of servers and relays, and their group.
pub(super) const SERVER_PORT: u16 = 547;
pub(super) const CLIENT_PORT: u16 = 546;
pub(super) const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Seconds.
const VALID: u32 = 7200;
const PREFERRED: u32 = 3600;
const T1: u32 = 1800;
const T2: u32 = 2880;
const REFRESH: u32 = 3600;

/// Most identity associations, and addresses in one, that are read.
const MAX_IAS: usize = 8;
/// The lengths of a DUID (RFC 8415 §11.1), with its type.
const DUID: std::ops::RangeInclusive<usize> = 3..=130;

/// Message types (RFC 8415 §7.3).
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

/// Option codes (RFC 8415 §21, RFC 3646 §3).
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_TA: u16 = 4;
const IA_ADDR: u16 = 5;
const ORO: u16 = 6;
const PREFERENCE: u16 = 7;
const STATUS_CODE: u16 = 13;
const RAPID_COMMIT: u16 = 14;
const DNS_SERVERS: u16 = 23;
const DOMAIN_LIST: u16 = 24;
const IA_PD: u16 = 25;
const REFRESH_TIME: u16 = 32;

/// Status codes (RFC 8415 §21.13).
const SUCCESS: u16 = 0;
const NO_ADDRS_AVAIL: u16 = 2;
const NOT_ON_LINK: u16 = 4;
const NO_PREFIX_AVAIL: u16 = 6;

/// An option's code and value.
type DhcpOption<'a> = (u16, &'a [u8]);

/// The answer to a client's message, if any.
pub(super) fn answer(bytes: &[u8], settings: &Settings) -> Option<Vec<u8>> {
    let (&[kind, ref xid @ ..], rest) = bytes.split_first_chunk::<4>()?;
    let asked = options(rest)?;
    let client = find(&asked, CLIENT_ID);
    if client.is_some_and(|duid| !DUID.contains(&duid.len())) {
        return None;
    }
    let us = duid(settings.mac);
    let to_us = match find(&asked, SERVER_ID) {
        Some(duid) if duid != us => return None,
        server => server.is_some(),
    };
    // RFC 8415 §16: which messages need which identifiers.
    match kind {
        SOLICIT | CONFIRM | REBIND if client.is_some() && !to_us => {}
        REQUEST | RENEW | RELEASE | DECLINE if client.is_some() && to_us => {}
        INFORMATION_REQUEST if !asked.iter().any(|(code, _)| is_ia(*code)) => {}
        _ => return None,
    }
    let rapid = kind == SOLICIT && find(&asked, RAPID_COMMIT).is_some();
    let mut reply = vec![if kind == SOLICIT && !rapid { ADVERTISE } else { REPLY }];
    reply.extend_from_slice(xid);
    if let Some(client) = client {
        add(&mut reply, CLIENT_ID, client);
    }
    add(&mut reply, SERVER_ID, &us);
    match kind {
        SOLICIT | REQUEST | RENEW | REBIND => {
            for ia in asked.iter().filter(|(code, _)| is_ia(*code)).take(MAX_IAS) {
                let old = matches!(kind, RENEW | REBIND);
                assign(*ia, client?, old, settings, &mut reply)?;
            }
            if rapid {
                add(&mut reply, RAPID_COMMIT, &[]);
            } else if kind == SOLICIT {
                // The client need not wait for other servers (RFC 8415 §18.2.1).
                add(&mut reply, PREFERENCE, &[255]);
            }
        }
        CONFIRM => {
            let ias = asked.iter().filter(|(code, _)| *code == IA_NA);
            let mut addrs = ias.flat_map(|(_, ia)| addresses(ia)).peekable();
            // Without an address there is no answer (RFC 8415 §18.3.3).
            addrs.peek()?;
            let on_link = addrs.all(|addr| same_64(addr, settings.prefix));
            add(&mut reply, STATUS_CODE, &status(if on_link { SUCCESS } else { NOT_ON_LINK }));
        }
        RELEASE | DECLINE => add(&mut reply, STATUS_CODE, &status(SUCCESS)),
        _ => add(&mut reply, REFRESH_TIME, &REFRESH.to_be_bytes()),
    }
    let wants = |wanted: u16| {
        find(&asked, ORO)
            .is_some_and(|codes| codes.chunks_exact(2).any(|code| code == wanted.to_be_bytes()))
    };
    if !matches!(kind, CONFIRM | RELEASE | DECLINE) {
        if settings.dns && wants(DNS_SERVERS) {
            add(&mut reply, DNS_SERVERS, &settings.dns().octets());
        }
        if !settings.search.is_empty() && wants(DOMAIN_LIST) {
            add(&mut reply, DOMAIN_LIST, &settings.search_list());
        }
    }
    Some(reply)
}

/// Answers an identity association: with an address for IA_NA, without for others. `None` for one
/// that is cut off.
fn assign(
    (code, ia): DhcpOption<'_>,
    client: &[u8],
    renewed: bool,
    settings: &Settings,
    reply: &mut Vec<u8>,
) -> Option<()> {
    let (id, _) = ia.split_first_chunk::<4>()?;
    let mut answer = id.to_vec();
    match code {
        IA_TA => add(&mut answer, STATUS_CODE, &status(NO_ADDRS_AVAIL)),
        IA_PD => {
            answer.extend_from_slice(&[0; 8]);
            add(&mut answer, STATUS_CODE, &status(NO_PREFIX_AVAIL));
        }
        _ => {
            answer.extend_from_slice(&T1.to_be_bytes());
            answer.extend_from_slice(&T2.to_be_bytes());
            let addr = address(client, *id, settings.prefix);
            add(&mut answer, IA_ADDR, &lease(addr, PREFERRED, VALID));
            // Addresses from before the network was renumbered have ended.
            let before = addresses(ia).filter(|before| renewed && *before != addr);
            for before in before.take(MAX_IAS) {
                add(&mut answer, IA_ADDR, &lease(before, 0, 0));
            }
        }
    }
    add(reply, code, &answer);
    Some(())
}

/// Always the same for a client: `prefix:d:…` and 48 bits of hash.
fn address(client: &[u8], iaid: [u8; 4], prefix: Ipv6Addr) -> Ipv6Addr {
    let mut hash = DefaultHasher::new();
    (client, iaid).hash(&mut hash);
    let iid = (0xd << 48) | (hash.finish() >> 16);
    (prefix.to_bits() | u128::from(iid)).into()
}

/// A DUID-LL (RFC 8415 §11.4).
fn duid(mac: Mac) -> Vec<u8> {
    [&[0, 3, 0, 1], &mac.0[..]].concat()
}

fn is_ia(code: u16) -> bool {
    matches!(code, IA_NA | IA_TA | IA_PD)
}

/// The addresses in an IA_NA, behind its identifier and times.
fn addresses(ia: &[u8]) -> impl Iterator<Item = Ipv6Addr> + '_ {
    let options = ia.get(12..).and_then(options).unwrap_or_default();
    options
        .into_iter()
        .filter(|(code, _)| *code == IA_ADDR)
        .filter_map(|(_, option)| option.first_chunk::<16>().map(|addr| Ipv6Addr::from(*addr)))
}

fn lease(addr: Ipv6Addr, preferred: u32, valid: u32) -> Vec<u8> {
    [&addr.octets()[..], &preferred.to_be_bytes(), &valid.to_be_bytes()].concat()
}

fn status(code: u16) -> [u8; 2] {
    code.to_be_bytes()
}

/// Parses options; `None` if the last one is cut off.
fn options(mut bytes: &[u8]) -> Option<Vec<DhcpOption<'_>>> {
    let mut options = Vec::new();
    while !bytes.is_empty() {
        let (&[a, b, c, d], rest) = bytes.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(u16::from_be_bytes([c, d]).into())?;
        options.push((u16::from_be_bytes([a, b]), value));
        bytes = rest;
    }
    Some(options)
}

fn find<'a>(options: &[DhcpOption<'a>], code: u16) -> Option<&'a [u8]> {
    options.iter().find(|option| option.0 == code).map(|option| option.1)
}

/// Writes an option; none is longer than a few hundred bytes.
fn add(to: &mut Vec<u8>, code: u16, value: &[u8]) {
    to.extend_from_slice(&code.to_be_bytes());
    to.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
    to.extend_from_slice(value);
}
