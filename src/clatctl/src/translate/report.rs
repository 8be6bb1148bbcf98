// SPDX-License-Identifier: Apache-2.0

//! The report: what happened to each packet, as text or JSON, and counts at the end.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use clat_packet::{addresses, ipv4, ipv6, protocol, Ip};
use clat_xlat::{Reason, Rule};
use serde::Serialize;
use serde_json::json;

/// Names of common protocols (IANA, "Assigned Internet Protocol Numbers").
const PROTOCOLS: [(u8, &str); 12] = [
    (protocol::ICMP, "ICMP"),
    (protocol::IGMP, "IGMP"),
    (4, "IPv4"),
    (protocol::TCP, "TCP"),
    (protocol::UDP, "UDP"),
    (protocol::DCCP, "DCCP"),
    (47, "GRE"),
    (50, "ESP"),
    (protocol::AUTHENTICATION, "AH"),
    (protocol::ICMPV6, "IPv6-ICMP"),
    (132, "SCTP"),
    (protocol::UDP_LITE, "UDPLite"),
];

/// Why a captured frame was not given to the translator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    /// The capture lacks some of its bytes.
    CutShort,
    /// Shorter than its link header.
    ShortFrame,
    /// An EtherType other than IP's.
    NotIp(u16),
    /// An address family other than IP's.
    OtherFamily(u32),
}

impl Skip {
    const fn name(self) -> &'static str {
        match self {
            Self::CutShort => "cut-short",
            Self::ShortFrame => "short-frame",
            Self::NotIp(_) | Self::OtherFamily(_) => "not-ip-frame",
        }
    }

    fn what(self) -> String {
        match self {
            Self::CutShort => "the capture does not have all of it".into(),
            Self::ShortFrame => "shorter than its link header".into(),
            Self::NotIp(ethertype) => format!("EtherType 0x{ethertype:04x} is not IP"),
            Self::OtherFamily(number) => format!("address family {number} is not IP"),
        }
    }

    const fn rfc(self) -> &'static str {
        match self {
            Self::CutShort => "RFC 1812 §5.2.2",
            Self::ShortFrame | Self::NotIp(_) => "RFC 894, RFC 2464 §3",
            Self::OtherFamily(_) => "LINKTYPE_NULL, LINKTYPE_LOOP",
        }
    }
}

/// What was done with a packet. Lengths are bytes of IP packets.
pub(super) enum Outcome<'o> {
    Forwarded(Rule, &'o [usize]),
    Replied(Reason, usize),
    /// Dropped; the ICMP error about it is not sent.
    Unanswered(Reason),
    Dropped(Reason),
    Skipped(Skip),
}

impl Outcome<'_> {
    const fn action(&self) -> &'static str {
        match self {
            Self::Forwarded(..) => "forwarded",
            Self::Replied(..) => "replied",
            Self::Unanswered(_) | Self::Dropped(_) => "dropped",
            Self::Skipped(_) => "skipped",
        }
    }

    /// Stable name, phrase and document.
    fn cause(&self) -> (&'static str, String, &'static str) {
        match *self {
            Self::Forwarded(rule, _) => (rule.name(), rule.what().into(), rule.rfc()),
            Self::Replied(reason, _) | Self::Unanswered(reason) | Self::Dropped(reason) => {
                (reason.name(), reason.what().into(), reason.rfc())
            }
            Self::Skipped(skip) => (skip.name(), skip.what(), skip.rfc()),
        }
    }

    fn lengths(&self) -> &[usize] {
        match self {
            Self::Forwarded(_, lengths) => lengths,
            Self::Replied(_, length) => std::slice::from_ref(length),
            Self::Unanswered(_) | Self::Dropped(_) | Self::Skipped(_) => &[],
        }
    }

    fn text(&self) -> String {
        let action = match self {
            Self::Forwarded(_, [length]) => format!("forwarded as 1 packet of {length} bytes"),
            Self::Forwarded(_, lengths) => {
                let each: Vec<_> = lengths.iter().map(usize::to_string).collect();
                format!("forwarded as {} packets of {} bytes", lengths.len(), each.join(", "))
            }
            Self::Replied(_, length) => format!("replied with an ICMP error of {length} bytes"),
            Self::Unanswered(_) => "dropped without an ICMP error".into(),
            Self::Dropped(_) | Self::Skipped(_) => self.action().into(),
        };
        let (name, what, rfc) = self.cause();
        format!("{action}: {name}, {what} ({rfc})")
    }
}

/// Addresses and ports, as far as the packet has them.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Flow {
    direction: Option<&'static str>,
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
}

impl Flow {
    fn new(packet: &[u8]) -> Self {
        let direction = match packet.first().map(|byte| byte >> 4) {
            Some(4) => Some("4to6"),
            Some(6) => Some("6to4"),
            _ => None,
        };
        let (source, destination) = addresses(packet).unzip();
        let mut flow = Self { direction, source, destination, ..Self::default() };
        if let Ok(ip) = ipv4::parse_quoted(packet) {
            flow.set_protocol(packet, &ip);
        } else if let Ok(parsed) = ipv6::parse_quoted(packet) {
            flow.set_protocol(packet, &parsed.ip);
        }
        flow
    }

    fn set_protocol<A>(&mut self, packet: &[u8], ip: &Ip<A>) {
        self.protocol = Some(ip.protocol);
        let payload = packet.get(ip.header_len..).filter(|_| !ip.is_later_fragment());
        match (ip.protocol, payload.unwrap_or_default()) {
            (protocol::TCP | protocol::UDP, &[a, b, c, d, ..]) => {
                self.source_port = Some(u16::from_be_bytes([a, b]));
                self.destination_port = Some(u16::from_be_bytes([c, d]));
            }
            (protocol::ICMP | protocol::ICMPV6, &[kind, code, ..]) => {
                (self.icmp_type, self.icmp_code) = (Some(kind), Some(code));
            }
            _ => {}
        }
    }

    fn text(&self) -> String {
        let end = |addr: &Option<IpAddr>, port: Option<u16>| match (addr, port) {
            (None, _) => "?".to_owned(),
            (Some(addr), None) => addr.to_string(),
            (Some(IpAddr::V4(addr)), Some(port)) => format!("{addr}:{port}"),
            (Some(IpAddr::V6(addr)), Some(port)) => format!("[{addr}]:{port}"),
        };
        let protocol = match (self.protocol, self.icmp_type.zip(self.icmp_code)) {
            (None, _) => String::new(),
            (Some(number), icmp) => {
                let known = PROTOCOLS.iter().find(|(known, _)| *known == number);
                let name = known
                    .map_or_else(|| format!("protocol {number}"), |(_, name)| (*name).to_owned());
                name + &icmp.map_or(String::new(), |(type_, code)| format!(" {type_}/{code}")) + " "
            }
        };
        let direction = match self.direction {
            Some("4to6") => "4>6 ",
            Some(_) => "6>4 ",
            None => return "not IP".into(),
        };
        let (source, destination) =
            (end(&self.source, self.source_port), end(&self.destination, self.destination_port));
        format!("{direction}{protocol}{source} > {destination}")
    }
}

/// Number of packets with one outcome and reason.
#[derive(Default)]
struct Count {
    packets: u64,
    by_cause: BTreeMap<&'static str, u64>,
}

impl Count {
    fn add(&mut self, cause: &'static str) {
        self.packets += 1;
        *self.by_cause.entry(cause).or_default() += 1;
    }

    fn text(&self, action: &str) -> String {
        if self.packets == 0 {
            return format!("0 {action}");
        }
        let causes: Vec<_> =
            self.by_cause.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("{} {action} ({})", self.packets, causes.join(", "))
    }

    fn json(&self) -> serde_json::Value {
        json!({"packets": self.packets, "byReason": self.by_cause})
    }
}

/// Writes the report and keeps the counts.
pub(super) struct Report<'w> {
    explain: bool,
    json: bool,
    out: &'w mut dyn Write,
    packets: u64,
    frames: u64,
    forwarded: Count,
    replied: Count,
    dropped: Count,
    skipped: Count,
}

impl<'w> Report<'w> {
    /// A report to `out`: a line for each packet with `explain`, everything as JSON with `json`.
    pub(super) fn new(explain: bool, json: bool, out: &'w mut dyn Write) -> Self {
        let (forwarded, replied, dropped, skipped) = <(Count, Count, Count, Count)>::default();
        Self { explain, json, out, packets: 0, frames: 0, forwarded, replied, dropped, skipped }
    }

    /// Number of packets read.
    pub(super) const fn packets(&self) -> u64 {
        self.packets
    }

    /// Number of packets skipped for `skip`.
    pub(super) fn skipped(&self, skip: Skip) -> u64 {
        self.skipped.by_cause.get(skip.name()).copied().unwrap_or(0)
    }

    /// Reports the next packet. `ip` is the packet behind its link header.
    pub(super) fn packet(&mut self, ip: &[u8], outcome: &Outcome<'_>) -> io::Result<()> {
        self.packets += 1;
        let (name, what, rfc) = outcome.cause();
        match outcome {
            Outcome::Forwarded(_, lengths) => {
                self.frames += lengths.len() as u64;
                self.forwarded.add(name);
            }
            Outcome::Replied(..) => self.replied.add(name),
            Outcome::Unanswered(_) | Outcome::Dropped(_) => self.dropped.add(name),
            Outcome::Skipped(_) => self.skipped.add(name),
        }
        if !self.explain {
            return Ok(());
        }
        let skipped = matches!(outcome, Outcome::Skipped(_));
        let flow = if skipped { Flow::default() } else { Flow::new(ip) };
        if self.json {
            #[derive(Serialize)]
            struct Line<'l> {
                #[serde(rename = "type")]
                kind: &'static str,
                packet: u64,
                #[serde(flatten)]
                flow: Flow,
                length: usize,
                action: &'static str,
                name: &'static str,
                what: String,
                rfc: &'static str,
                frames: &'l [usize],
            }
            let line = Line {
                kind: "packet",
                packet: self.packets,
                flow,
                length: ip.len(),
                action: outcome.action(),
                name,
                what,
                rfc,
                frames: outcome.lengths(),
            };
            serde_json::to_writer(&mut *self.out, &line)?;
            writeln!(self.out)
        } else if skipped {
            writeln!(self.out, "{}: {}", self.packets, outcome.text())
        } else {
            writeln!(
                self.out,
                "{}: {}, {} bytes: {}",
                self.packets,
                flow.text(),
                ip.len(),
                outcome.text()
            )
        }
    }

    /// Reports the counts.
    pub(super) fn finish(&mut self, input: &Path, output: &Path) -> io::Result<()> {
        if self.json {
            let summary = json!({
                "type": "summary",
                "input": input.to_string_lossy(),
                "output": output.to_string_lossy(),
                "packets": self.packets,
                "forwarded": {
                    "packets": self.forwarded.packets,
                    "frames": self.frames,
                    "byRule": self.forwarded.by_cause,
                },
                "replied": self.replied.json(),
                "dropped": self.dropped.json(),
                "skipped": self.skipped.json(),
            });
            writeln!(self.out, "{summary}")?;
        } else {
            writeln!(
                self.out,
                "{} packets: {}, {}, {}, {}; {} packets written",
                self.packets,
                self.forwarded.text("forwarded"),
                self.replied.text("replied"),
                self.dropped.text("dropped"),
                self.skipped.text("skipped"),
                self.frames + self.replied.packets
            )?;
        }
        self.out.flush()
    }
}
