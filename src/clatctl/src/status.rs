// SPDX-License-Identifier: Apache-2.0

//! `clatctl status`: the controller and its CLATs as a table or as JSON, once or repeatedly with
//! rates.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clat_controller::status::{Clat, Offload, Rates, Status, Uplink};

use crate::client::Client;
use crate::Failure;

/// Arguments of `clatctl status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    /// Show more: processes, modes, and which packets the kernel has left to clatd and why
    #[arg(long, short, conflicts_with = "json")]
    verbose: bool,
    /// Repeat every so many seconds, with rates, until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
    #[arg(value_parser = parse_seconds)]
    watch: Option<Duration>,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.1..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "write seconds between 0.1 and 86400".into())
}

/// Runs `clatctl status`.
pub(crate) fn run(args: &Args, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let mut before: Option<(Instant, Status)> = None;
    loop {
        let (now, mut status) = (Instant::now(), client.status()?);
        if let Some((then, before)) = &before {
            add_rates(&mut status, before, now.duration_since(*then));
        }
        if args.json {
            writeln!(out, "{}", status.json())?;
        } else {
            if args.watch.is_some() && io::stdout().is_terminal() {
                write!(out, "\x1b[H\x1b[2J")?;
            }
            write!(out, "{}", text(&status, args.watch.is_some(), args.verbose))?;
        }
        out.flush()?;
        let Some(interval) = args.watch else { return Ok(()) };
        before = Some((now, status));
        std::thread::sleep(interval);
    }
}

/// Adds rates to the CLATs that already ran `elapsed` ago.
fn add_rates(status: &mut Status, before: &Status, elapsed: Duration) {
    for clat in &mut status.clats {
        // A CLAT that was restarted in between counts from zero: show no rate rather than a wrong
        // one.
        let same = |old: &&Clat| {
            old.iface == clat.iface && old.v6 == clat.v6 && old.uptime_millis <= clat.uptime_millis
        };
        let Some(old) = before.clats.iter().find(same) else { continue };
        #[allow(clippy::cast_precision_loss)] // a rate to three digits
        let rate = |new: i64, old: i64| {
            let rate = new.saturating_sub(old).max(0) as f64 / elapsed.as_secs_f64().max(1e-3);
            (rate * 10.0).round() / 10.0
        };
        let (tx, old_tx) = (clat.sent(), old.sent());
        let (rx, old_rx) = (clat.received(), old.received());
        clat.rates = Some(Rates {
            tx_packets_per_second: rate(tx.0, old_tx.0),
            tx_bytes_per_second: rate(tx.1, old_tx.1),
            rx_packets_per_second: rate(rx.0, old_rx.0),
            rx_bytes_per_second: rate(rx.1, old_rx.1),
        });
    }
}

/// The status as text in 80 columns; with `verbose`, in detail.
fn text(status: &Status, watch: bool, verbose: bool) -> String {
    let mut text = String::new();
    if verbose {
        let mode = if status.standalone { "standalone" } else { "with netd" };
        let Status { pid, ebpf_mode, .. } = status;
        text += &format!("controller pid {pid}, eBPF {ebpf_mode}, {mode}\n");
    }
    if status.clats.is_empty() && status.uplinks.is_empty() {
        text += "no CLAT runs\n";
    }
    for clat in &status.clats {
        text += &match clat.pid {
            0 => format!("{}: clatd has ended and is being started again\n", clat.iface),
            _ => format!("{}: IPv4 for {}\n", clat.iface, uptime(clat.uptime_millis)),
        };
        let mut row = |name: &str, value: &str| text += &format!("  {name:13}{value}\n");
        row("IPv4", &format!("{} on {}", clat.v4, clat.v4iface));
        row("IPv6", &clat.v6);
        row("NAT64 prefix", &clat.nat64_prefix);
        let known = status.uplinks.iter().find(|uplink| uplink.iface == clat.iface);
        if let Some(source) = known.and_then(|uplink| uplink.source.as_deref()) {
            row("from", source);
        }
        match clat.working.as_str() {
            "yes" => row("works", "yes, the host that was asked answers"),
            "no" => row("works", "no, the host that was asked does not answer"),
            _ => {}
        }
        let rates = clat.rates.filter(|_| watch);
        let of = |rates: Rates| (rates.tx_packets_per_second, rates.tx_bytes_per_second);
        let sent = ("sent", clat.sent(), rates.map(of));
        let of = |rates: Rates| (rates.rx_packets_per_second, rates.rx_bytes_per_second);
        let received = ("received", clat.received(), rates.map(of));
        for (name, (packets, count), rate) in [sent, received] {
            row(name, &format!("{packets} packets, {}", bytes(count)));
            if let Some((packets, bytes)) = rate {
                row("", &format!("{packets:.0} packets/s, {}bit/s", scaled(bytes * 8.0)));
            }
        }
        let lost = [&clat.egress, &clat.ingress].into_iter().flatten().map(|way| way.lost);
        let lost: i64 = lost.sum();
        if lost > 0 {
            row("lost", &format!("{lost} packets"));
        }
        if !verbose {
            continue;
        }
        let restarts = match clat.restarts {
            0 => String::new(),
            restarts => format!(", restarted {restarts}x"),
        };
        row("clatd", &format!("pid {}{restarts}", clat.pid));
        row("mark", &format!("0x{:x}", clat.fwmark));
        row("path", path(clat));
        for hindrance in &clat.hindrances {
            row("  hindrance", hindrance);
        }
        for (name, way) in [("  out", &clat.egress), ("  in", &clat.ingress)] {
            for (at, line) in way.iter().flat_map(offload).enumerate() {
                row(if at == 0 { name } else { "" }, &line);
            }
        }
    }
    let runs = |uplink: &&Uplink| status.clats.iter().any(|clat| clat.iface == uplink.iface);
    for uplink in status.uplinks.iter().filter(|uplink| !runs(uplink)) {
        text += &format!("{}: {}\n", uplink.iface, uplink.verdict);
    }
    text
}

/// The path of its packets, for people.
fn path(clat: &Clat) -> &'static str {
    match clat.path.as_str() {
        "direct" => "by the uplink itself, translated in the kernel",
        "device" => "by the IPv4 device, translated in the kernel",
        _ => "by the IPv4 device, translated by clatd",
    }
}

/// The counters of a BPF program, in lines.
fn offload(counters: &Offload) -> Vec<String> {
    let mut lines = vec![format!("{} packets, {}", counters.packets, bytes(counters.bytes))];
    let more = [("GSO", counters.super_packets)].into_iter();
    let passed = counters.passed.iter().map(|(reason, count)| (reason.as_str(), *count));
    let passed = more.filter(|(_, count)| *count > 0).chain(passed);
    lines.extend(passed.map(|(name, count)| format!("{name}: {count}")));
    lines
}

#[allow(clippy::cast_precision_loss)] // shown with one digit
fn bytes(count: i64) -> String {
    format!("{}B", scaled(count as f64))
}

/// `1234567.0` as `1.2 M`.
fn scaled(mut value: f64) -> String {
    for unit in ["", "k", "M", "G"] {
        if value < 1000.0 {
            return if unit.is_empty() {
                format!("{value:.0} ")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} T")
}

fn uptime(millis: i64) -> String {
    let seconds = millis.max(0) / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, _, _) => format!("{d}d{h:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Status {
        Status {
            pid: 42,
            ebpf_mode: "Enabled".into(),
            standalone: true,
            clats: vec![Clat {
                iface: "wlan0".into(),
                if_index: 21,
                v4iface: "v4-wlan0".into(),
                v4if_index: 34,
                nat64_prefix: "64:ff9b::/96".into(),
                v4: "192.0.0.4".into(),
                v6: "2001:db8::1:2:3:4".into(),
                fwmark: 0xf0064,
                pid: 77,
                restarts: 0,
                working: "yes".into(),
                uptime_millis: 61_500,
                tx_packets: 10,
                tx_bytes: 1500,
                rx_packets: 20,
                rx_bytes: 2_500_000,
                offloaded: true,
                egress: Some(Offload {
                    packets: 5,
                    bytes: 500,
                    super_packets: 2,
                    neighbour: 3,
                    lost: 0,
                    passed: [("size".to_owned(), 1)].into(),
                }),
                ingress: None,
                hindrances: vec!["ingress of wlan0: packets meet a u32 filter first".into()],
                path: "device".into(),
                rates: None,
            }],
            uplinks: Vec::new(),
        }
    }

    #[test]
    fn json_has_the_names_of_the_aidl() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "pid": 42, "ebpfMode": "Enabled", "standalone": true,
                "clats": [{
                    "iface": "wlan0", "ifIndex": 21, "v4iface": "v4-wlan0", "v4ifIndex": 34,
                    "nat64Prefix": "64:ff9b::/96", "v4": "192.0.0.4", "v6": "2001:db8::1:2:3:4",
                    "fwmark": 0xf0064, "pid": 77, "restarts": 0, "uptimeMillis": 61500,
                    "txPackets": 10, "txBytes": 1500, "rxPackets": 20, "rxBytes": 2_500_000,
                    "offloaded": true, "path": "device", "working": "yes", "ingress": null,
                    "hindrances": ["ingress of wlan0: packets meet a u32 filter first"],
                    "egress": {
                        "packets": 5, "bytes": 500, "superPackets": 2, "neighbour": 3, "lost": 0,
                        "passed": { "size": 1 }
                    }
                }]
            })
        );
    }

    #[test]
    fn text_shows_each_clat() {
        let (brief, verbose) = (text(&sample(), false, false), text(&sample(), false, true));
        for part in [
            "wlan0: IPv4 for 1m01s",
            "works        yes",
            "v4-wlan0",
            "64:ff9b::/96",
            "15 packets, 2.0 kB",
        ] {
            assert!(brief.contains(part) && verbose.contains(part), "{part} in\n{brief}");
        }
        for part in ["eBPF Enabled", "standalone", "0xf0064", "pid 77", "GSO: 2", "size: 1", "u32"]
        {
            assert!(verbose.contains(part) && !brief.contains(part), "{part} in\n{verbose}");
        }
        let uplink = |iface: &str, verdict: &str| Uplink {
            iface: iface.to_owned(),
            nat64_prefix: None,
            source: Some("DNS64 at 2001:db8::53".to_owned()),
            verdict: verdict.to_owned(),
        };
        let uplinks = vec![uplink("wlan0", "a CLAT"), uplink("eth0", "native IPv4 is there")];
        let text = super::text(&Status { uplinks, ..sample() }, false, false);
        assert!(text.contains("DNS64 at 2001:db8::53\n"), "{text}");
        assert!(text.ends_with("\neth0: native IPv4 is there\n"), "{text}");
        let none = Status { clats: vec![], ..sample() };
        assert_eq!(super::text(&none, true, false), "no CLAT runs\n");
    }

    #[test]
    fn it_fits_a_terminal() {
        let mut status = sample();
        let clat = &mut status.clats[0];
        "wlp0s20f3u12".clone_into(&mut clat.iface);
        "v4-wlp0s20f3u12".clone_into(&mut clat.v4iface);
        "2001:db8:1111:2222:3333:4444:5555:6666".clone_into(&mut clat.v6);
        "2001:db8:1111:2222:0033:4444::/96".clone_into(&mut clat.nat64_prefix);
        (clat.tx_packets, clat.tx_bytes) = (i64::MAX / 2, i64::MAX / 2);
        (clat.restarts, clat.pid) = (i32::MAX, i32::MAX);
        let many = Rates { tx_packets_per_second: 12_345_678.0, ..Rates::default() };
        clat.rates = Some(Rates { tx_bytes_per_second: 1.2e10, ..many });
        for line in text(&status, true, true).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn rates_are_per_second_and_never_of_another_life() {
        let before = sample();
        let mut now = sample();
        now.clats[0].uptime_millis += 2000;
        now.clats[0].tx_packets += 100;
        now.clats[0].rx_bytes += 5000;
        add_rates(&mut now, &before, Duration::from_secs(2));
        let rates = now.clats[0].rates.unwrap();
        assert_eq!((rates.tx_packets_per_second, rates.rx_bytes_per_second), (50.0, 2500.0));
        assert!(text(&now, true, false).contains("50 packets/s"));

        let mut reborn = sample();
        reborn.clats[0].uptime_millis = 10;
        add_rates(&mut reborn, &before, Duration::from_secs(2));
        assert_eq!(reborn.clats[0].rates, None);
    }

    #[test]
    fn intervals_are_checked() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "x", "nan", "inf", "1e9"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
