// SPDX-License-Identifier: Apache-2.0

//! The same packets through Debian's tayga and through `clat_xlat`, compared field by field. Each
//! difference is in [`known::KNOWN`] with its reason; an unlisted one fails, and so does a listed
//! one that no longer exists.

mod cases;
mod fields;
mod known;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use cases::{Case, LOCAL4, LOCAL6};
use clat_tests::packet::{proto, V4};
use clat_tests::wire::{send_raw, Sniffer};
use clat_tests::{can_run, Daemon, Netns, PREFIX};
use clat_xlat::{
    Addresses, Config, HopPolicy, Local, Packet, Translator, Verdict, HEADROOM, TAILROOM,
};
use fields::{differences, fields, Fields};

/// tayga's own addresses, which are what its errors come from.
const TAYGA4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
const TAYGA6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xc1a8);

/// tayga on a TUN device, alone in a namespace.
struct Oracle {
    sniffer: Sniffer,
    ns: Netns,
    _tayga: Daemon,
}

impl Oracle {
    fn new(dir: &std::path::Path) -> Result<Self> {
        let ns = Netns::new(u32::MAX, "oracle")?;
        let conf = dir.join("tayga.conf");
        let text = format!(
            "tun-device nat64\nipv4-addr {TAYGA4}\nipv6-addr {TAYGA6}\nprefix {PREFIX}\n\
             map {LOCAL4} {LOCAL6}\ndata-dir {}\n",
            dir.display()
        );
        std::fs::write(&conf, text)?;
        let conf = conf.display().to_string();
        ns.run(&format!("tayga -c {conf} --mktun"))?;
        for line in [
            "ip link set nat64 addrgenmode none",
            "ip link set nat64 mtu 1500 up",
            // An address for route lookups; packets come with headers.
            "ip addr add 198.18.0.1/32 dev lo",
            "ip addr add 2001:db8:9::1/128 dev lo nodad",
            "ip route add default dev nat64",
            "ip -6 route add default dev nat64",
        ] {
            ns.run(line)?;
        }
        let sniffer = Sniffer::new(&ns, "nat64")?;
        let tayga = ns.spawn(&["tayga", "-c", &conf, "-d"], &dir.join("tayga.log"))?;
        let oracle = Self { sniffer, ns, _tayga: tayga };
        let began = (0..50).any(|_| oracle.mark().is_ok());
        ensure!(began, "tayga does not translate: {}", oracle._tayga.log());
        Ok(oracle)
    }

    /// Sends a unique packet, and returns what comes out before its translation.
    fn mark(&self) -> Result<Vec<Vec<u8>>> {
        let to = Ipv4Addr::new(192, 0, 2, 254);
        let marker = V4 { id: 1, ..V4::new(LOCAL4, to, proto::GRE) }.packet(b"mark");
        send_raw(&self.ns, &marker)?;
        let mut seen = Vec::new();
        loop {
            let packet =
                self.sniffer.next(Duration::from_secs(2))?.context("the marker is lost")?;
            if packet == marker {
                continue;
            }
            if packet[0] >> 4 == 6 && packet.ends_with(b"mark") {
                return Ok(seen);
            }
            seen.push(packet);
        }
    }

    /// tayga's translation of a packet.
    fn translate(&self, packet: &[u8]) -> Result<Vec<Vec<u8>>> {
        send_raw(&self.ns, packet)?;
        let mut seen = self.mark()?;
        // It is also captured on its way into the device.
        let own =
            seen.iter().position(|p| p == packet).context("the packet did not go in as it is")?;
        seen.remove(own);
        Ok(seen)
    }
}

/// The translation by `clat_xlat`, as a router like tayga.
fn ours(translator: &mut Translator, packet: &[u8]) -> (String, Vec<Vec<u8>>) {
    let mut buf = vec![0; HEADROOM + packet.len() + TAILROOM];
    let range = HEADROOM..HEADROOM + packet.len();
    buf[range.clone()].copy_from_slice(packet);
    let mut packet = Packet::new(&mut buf, range).expect("room is there");
    match translator.translate(&mut packet) {
        Verdict::Forward { rule, mut frames } => {
            let mut out = Vec::new();
            while let Some(frame) = frames.next() {
                out.push(frame.bytes.to_vec());
            }
            (rule.name().into(), out)
        }
        Verdict::Reply { reason, error } => {
            (format!("reply {}", reason.name()), vec![error.to_vec()])
        }
        Verdict::Drop(reason) => (format!("drop {}", reason.name()), Vec::new()),
    }
}

/// The differences of one case: field, with `2.` and so on in front for later packets, and both
/// values.
fn compare(ours: &[Vec<u8>], theirs: &[Vec<u8>]) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    if ours.len() != theirs.len() {
        let sizes = |p: &[Vec<u8>]| p.iter().map(Vec::len).collect::<Vec<_>>();
        out.insert(
            "packets".into(),
            format!("ours {:?}, tayga's {:?}", sizes(ours), sizes(theirs)),
        );
        return out;
    }
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        // One is forwarded, the other is an error: fields cannot be compared.
        let way = |packet: &[u8]| if packet[0] >> 4 == 4 { "IPv4" } else { "IPv6" };
        if way(a) != way(b) {
            out.insert("family".into(), format!("ours {}, tayga's {}", way(a), way(b)));
            continue;
        }
        let (a, b): (Fields, Fields) = (fields(a), fields(b));
        let number = if i == 0 { String::new() } else { format!("{}.", i + 1) };
        out.extend(differences(&a, &b).into_iter().map(|(k, v)| (number.clone() + &k, v)));
    }
    out
}

#[test]
fn tayga_and_we_agree_but_for_what_is_known() -> Result<()> {
    if !can_run(&["ip", "tayga"]) {
        return Ok(());
    }
    let dir = std::env::temp_dir().join(format!("clatlab-{}-oracle", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let oracle = Oracle::new(&dir)?;
    let prefixes = vec![PREFIX.parse().expect("a prefix")];
    let addresses = Addresses {
        local: Some(Local { v4: LOCAL4, v6: LOCAL6 }),
        prefixes,
        ..Addresses::default()
    };
    let config = Config {
        hop: HopPolicy::Decrement,
        router4: TAYGA4.into(),
        router6: TAYGA6,
        ..Config::default()
    };
    let mut translator = Translator::new(config, addresses, 7)?;

    let mut unlisted = Vec::new();
    let mut used = BTreeSet::new();
    for Case { name, packet } in cases::all() {
        let theirs = oracle.translate(&packet).with_context(|| name.clone())?;
        let (verdict, ours) = ours(&mut translator, &packet);
        for (field, values) in compare(&ours, &theirs) {
            match known::find(&name, &field) {
                Some(index) => drop(used.insert(index)),
                None => unlisted.push(format!("{name} ({verdict}): {field}: {values}")),
            }
        }
    }
    std::fs::remove_dir_all(&dir)?;
    assert!(unlisted.is_empty(), "differences that are not in the table:\n{}", unlisted.join("\n"));
    let gone: Vec<_> = (0..known::KNOWN.len()).filter(|i| !used.contains(i)).collect();
    let gone: Vec<_> = gone.into_iter().map(|i| known::KNOWN[i]).collect();
    assert!(gone.is_empty(), "in the table, but no longer so: {gone:#?}");
    Ok(())
}
