// SPDX-License-Identifier: Apache-2.0

//! Packets that were once translated wrongly, with the right results: `cases/packets.jsonl`, one
//! per line.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use clat_xlat::{Addresses, Config, Eam, HopPolicy, Local, Translator};
use common::*;
use serde_json::Value;

const CASES: &str = include_str!("cases/packets.jsonl");

/// Cases that are not followed, and why.
const NOT_DONE: [&str; 1] = [
    // A MAY, and RFC 7757 is against it: §3.2 translates each address by itself unless §4 says
    // otherwise, and §4.2.2 is about IPv6 packets to an address in a prefix. A CLAT's packet to
    // itself comes back to it: `a_neutral_clat_that_sends_to_itself`.
    "hold.hairpin.clat-to-itself",
];

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

fn translator(config: &Value) -> Translator {
    let text = |name: &str| config[name].as_str();
    let number = |name: &str| u32::try_from(config[name].as_u64().unwrap()).unwrap();
    assert_eq!(text("udp_zero"), Some("calc"));
    let eam = |eam: &Value| eam.as_str().unwrap().replace(' ', "=").parse::<Eam>().unwrap();
    let addresses = Addresses {
        local: text("local_v4").map(|v4| Local {
            v4: v4.parse().unwrap(),
            v6: text("local_v6").unwrap().parse().unwrap(),
        }),
        eams: config["eam"]
            .as_array()
            .map(|eams| eams.iter().map(eam).collect())
            .unwrap_or_default(),
        prefixes: text("plat").iter().map(|prefix| prefix.parse().unwrap()).collect(),
        strict_wkp: false,
    };
    let hop = if text("ttl") == Some("copy") { HopPolicy::Copy } else { HopPolicy::Decrement };
    let config = Config {
        mtu4: number("v4_mtu"),
        mtu6: number("v6_mtu"),
        lowest_ipv6_mtu: number("lowest_ipv6_mtu"),
        hop,
        ..common::config()
    };
    translator_of(config, addresses, 1)
}

/// Whether a packet is the expected one, apart from bits that may differ.
fn is_wanted(packet: &[u8], wanted: &Value) -> bool {
    let want = hex(&wanted["hex"]);
    let mut may_differ = vec![0; want.len()];
    for pair in wanted["ignore"].as_array().unwrap() {
        let number = |i: usize| usize::try_from(pair[i].as_u64().unwrap()).unwrap();
        may_differ[number(0)] |= u8::try_from(number(1)).unwrap();
    }
    packet.len() == want.len()
        && packet.iter().zip(&want).zip(&may_differ).all(|((a, b), mask)| (a ^ b) & !mask == 0)
}

fn is_expected(out: &Out, expect: &Value) -> bool {
    let is_error = |typed: bool| {
        let Out::Reply(_, error) = out else { return false };
        let header = if error[0] >> 4 == 4 { 20 } else { 40 };
        error[0] >> 4 == expect["ver"]
            && (!typed || error[header] == expect["type"] && error[header + 1] == expect["code"])
    };
    match expect["kind"].as_str().unwrap() {
        "packets" => {
            let (Out::Forward(_, frames), Some(all)) = (out, expect["packets"].as_array()) else {
                return false;
            };
            frames.len() == all.len() && frames.iter().zip(all).all(|(a, b)| is_wanted(a, b))
        }
        "drop" => matches!(out, Out::Drop(_)),
        "icmp_error" => is_error(true),
        "icmp_error_any" => is_error(false),
        "any_of" => expect["of"].as_array().unwrap().iter().any(|one| is_expected(out, one)),
        other => panic!("kind {other}"),
    }
}

#[test]
fn packets_that_went_wrong() {
    let mut wrong = Vec::new();
    for line in CASES.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let id = case["id"].as_str().unwrap();
        let out = run(&mut translator(&case["config"]), &hex(&case["input"]));
        let done = !NOT_DONE.contains(&id);
        if is_expected(&out, &case["expect"]) != done {
            let what = if done { case["title"].as_str().unwrap() } else { "is right now" };
            wrong.push(format!("{id}: {what}: {out:02x?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
