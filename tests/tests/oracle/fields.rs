// SPDX-License-Identifier: Apache-2.0

//! A packet as named fields, so that two of them can be compared.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use clat_tests::packet::{proto, word, Seen};

/// Name to value; names of the quoted packet of an ICMP error begin with `quoted.`.
pub(crate) type Fields = BTreeMap<String, String>;

/// Parses a packet from its IP header on.
pub(crate) fn fields(packet: &[u8]) -> Fields {
    let mut out = Fields::new();
    ip(&mut out, "", packet);
    if let Some(seen) = Seen::read(packet) {
        if !seen.fragment {
            out.insert(
                "checksum".into(),
                if seen.checksum_ok() { "right" } else { "wrong" }.into(),
            );
        }
    }
    out
}

/// The names of the fields in which two packets differ, with both values.
pub(crate) fn differences(ours: &Fields, theirs: &Fields) -> BTreeMap<String, String> {
    let names = ours.keys().chain(theirs.keys());
    let value = |fields: &Fields, name: &str| fields.get(name).map_or("-".into(), String::clone);
    names
        .map(|name| (name, value(ours, name), value(theirs, name)))
        .filter(|(_, a, b)| a != b)
        .map(|(name, a, b)| (name.clone(), format!("ours {a}, tayga's {b}")))
        .collect()
}

fn ip(out: &mut Fields, prefix: &str, p: &[u8]) {
    let mut put = |name: &str, value: String| {
        out.insert(format!("{prefix}{name}"), value);
    };
    let byte = |at: usize| p.get(at).copied().unwrap_or(0);
    let (proto, at, first) = match byte(0) >> 4 {
        4 if p.len() >= 20 => {
            let header = usize::from(byte(0) & 15) * 4;
            put("version", "4".into());
            put("options", hex(p.get(20..header).unwrap_or(&[])));
            put("tos", format!("{:#04x}", byte(1)));
            put("length", word(p, 2).to_string());
            put("id", word(p, 4).to_string());
            put("df", (word(p, 6) >> 14 & 1).to_string());
            put("mf", (word(p, 6) >> 13 & 1).to_string());
            put("offset", ((word(p, 6) & 0x1fff) * 8).to_string());
            put("ttl", byte(8).to_string());
            put("protocol", byte(9).to_string());
            let words = (0..header).step_by(2).map(|at| u32::from(word(p, at)));
            let sum: u32 = words.sum();
            put("header-checksum", if sum % 0xffff == 0 { "right" } else { "wrong" }.into());
            put("source", Ipv4Addr::new(p[12], p[13], p[14], p[15]).to_string());
            put("destination", Ipv4Addr::new(p[16], p[17], p[18], p[19]).to_string());
            (byte(9), header, word(p, 6) & 0x1fff == 0)
        }
        6 if p.len() >= 40 => {
            let address = |at: usize| <[u8; 16]>::try_from(&p[at..at + 16]).map(Ipv6Addr::from);
            put("version", "6".into());
            put("tos", format!("{:#04x}", word(p, 0) >> 4 & 0xff));
            put("flow", format!("{:#x}", u32::from(byte(1) & 15) << 16 | u32::from(word(p, 2))));
            put("length", word(p, 4).to_string());
            put("ttl", byte(7).to_string());
            put("source", address(8).map_or(String::new(), |a| a.to_string()));
            put("destination", address(24).map_or(String::new(), |a| a.to_string()));
            if byte(6) == proto::FRAGMENT {
                put("mf", (word(p, 42) & 1).to_string());
                put("offset", (word(p, 42) & !7).to_string());
                put("id", format!("{}", u32::from(word(p, 44)) << 16 | u32::from(word(p, 46))));
                put("protocol", byte(40).to_string());
                (byte(40), 48, word(p, 42) & !7 == 0)
            } else {
                put("protocol", byte(6).to_string());
                (byte(6), 40, true)
            }
        }
        _ => return put("bytes", hex(p)),
    };
    let payload = p.get(at..).unwrap_or(&[]);
    match proto {
        proto::ICMP | proto::ICMPV6 if first && payload.len() >= 8 => {
            icmp(out, prefix, proto, payload);
        }
        proto::UDP if first && payload.len() >= 8 => {
            put("udp.checksum", format!("{:#06x}", word(payload, 6)));
            put("udp.ports-and-length", hex(&payload[..6]));
            put("payload", hex(&payload[8..]));
        }
        proto::TCP if first && payload.len() >= 20 => {
            put("tcp.checksum", format!("{:#06x}", word(payload, 16)));
            put("tcp.header", hex(&payload[..16]));
            put("payload", hex(&payload[18..]));
        }
        _ => put("payload", hex(payload)),
    }
}

fn icmp(out: &mut Fields, prefix: &str, proto: u8, p: &[u8]) {
    let mut put = |name: &str, value: String| {
        out.insert(format!("{prefix}icmp.{name}"), value);
    };
    put("type", p[0].to_string());
    put("code", p[1].to_string());
    if !prefix.is_empty() {
        put("checksum", format!("{:#06x}", word(p, 2)));
    }
    let error = if proto == proto::ICMP { matches!(p[0], 3..=5 | 11 | 12) } else { p[0] < 128 };
    if !error || !prefix.is_empty() {
        put("word", hex(&p[4..8]));
        put("data", hex(&p[8..]));
        return;
    }
    // The position of RFC 4884's length of the quote, in words of 4 (ICMP) or 8 bytes (ICMPv6).
    let (at, unit) = if proto == proto::ICMP { (5, 4) } else { (4, 8) };
    let extended = proto == proto::ICMP && matches!(p[0], 3 | 11 | 12)
        || proto == proto::ICMPV6 && matches!(p[0], 1 | 3);
    let quote_length = if extended { usize::from(p[at]) * unit } else { 0 };
    put("word", hex(&p[4..8]));
    put("length", p.len().to_string());
    let (quote, extension) = match quote_length {
        0 => (&p[8..], &[][..]),
        n => p[8..].split_at(n.min(p.len() - 8)),
    };
    put("extension", hex(extension));
    ip(out, "quoted.", quote);
}

fn hex(bytes: &[u8]) -> String {
    let shown: String = bytes.iter().take(40).map(|b| format!("{b:02x}")).collect();
    match bytes.len() {
        0..=40 => shown,
        n => {
            // Enough of the rest to distinguish it.
            let rest =
                bytes[40..].iter().fold(0_u64, |h, b| h.wrapping_mul(31).wrapping_add((*b).into()));
            format!("{shown}... {n} bytes #{rest:x}")
        }
    }
}
