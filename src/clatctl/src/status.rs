// SPDX-License-Identifier: Apache-2.0

//! `clatctl status`: the controller and its CLATs as a table or as JSON, once or again and again
//! with rates.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clat_controller::status::{Clat, Offload, Rates, Status};
use comfy_table::{presets, Table};

use crate::client::Client;
use crate::Failure;

/// Arguments of `clatctl status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Show it again every so many seconds, with rates, until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = parse_seconds)]
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
            write!(out, "{}", text(&status, args.watch.is_some()))?;
        }
        out.flush()?;
        let Some(interval) = args.watch else { return Ok(()) };
        before = Some((now, status));
        std::thread::sleep(interval);
    }
}

/// Rates of the CLATs that ran `elapsed` ago already.
fn add_rates(status: &mut Status, before: &Status, elapsed: Duration) {
    for clat in &mut status.clats {
        // A CLAT that was stopped and started in between counts from zero again: no rate rather
        // than a wrong one.
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

/// The status for people.
fn text(status: &Status, watch: bool) -> String {
    let mode = if status.standalone { "standalone" } else { "with netd" };
    let head = format!("controller pid {}, eBPF {}, {mode}\n", status.pid, status.ebpf_mode);
    if status.clats.is_empty() {
        return head + "no CLAT runs\n";
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    // Two lines to a cell: one row of all this fits no terminal.
    table.set_header([
        "uplink\nIPv4 side",
        "IPv4\nIPv6",
        "NAT64 prefix\nmark",
        "clatd\nup",
        "sent",
        "received",
        "in the kernel\nout / in",
    ]);
    for clat in &status.clats {
        let clatd = match (clat.pid, clat.restarts) {
            (0, _) => "restarting".to_owned(),
            (pid, 0) => format!("pid {pid}"),
            (pid, restarts) => format!("pid {pid}, restarted {restarts}x"),
        };
        let both = |(packets, count)| format!("{packets} pkt\n{}", bytes(count));
        let (mut sent, mut received) = (both(clat.sent()), both(clat.received()));
        let ways = [&clat.egress, &clat.ingress].into_iter().flatten().map(offload);
        let offload = match (clat.offloaded, ways.collect::<Vec<_>>().join("\n")) {
            (true, counted) if counted.is_empty() => "yes".to_owned(),
            (true, counted) => counted,
            (false, _) => "no".to_owned(),
        };
        if watch {
            let rates = clat.rates.unwrap_or_default();
            sent += &rate(rates.tx_packets_per_second, rates.tx_bytes_per_second);
            received += &rate(rates.rx_packets_per_second, rates.rx_bytes_per_second);
        }
        table.add_row([
            format!("{}\n{}", clat.iface, clat.v4iface),
            format!("{}\n{}", clat.v4, clat.v6),
            format!("{}\n0x{:x}", clat.nat64_prefix, clat.fwmark),
            format!("{clatd}\n{}", uptime(clat.uptime_millis)),
            sent,
            received,
            offload,
        ]);
    }
    format!("{head}{table}\n")
}

/// What a program in the kernel has done.
fn offload(counters: &Offload) -> String {
    let mut text = format!("{} pkt, {}", counters.packets, bytes(counters.bytes));
    let more = [("GSO", counters.super_packets), ("lost", counters.lost)].into_iter();
    let passed = counters.passed.iter().map(|(reason, count)| (reason.as_str(), *count));
    for (name, count) in more.filter(|(_, count)| *count > 0).chain(passed) {
        text += &format!("\n{name}: {count}");
    }
    text
}

fn rate(packets: f64, bytes: f64) -> String {
    format!("\n{packets:.0} pkt/s\n{}bit/s", scaled(bytes * 8.0))
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
                rates: None,
            }],
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
                    "nat64Prefix": "64:ff9b::/96", "v4": "192.0.0.4", "v6": "2001:db8::1:2:3:4", "fwmark": 0xf0064,
                    "pid": 77, "restarts": 0, "uptimeMillis": 61500, "txPackets": 10, "txBytes": 1500,
                    "rxPackets": 20, "rxBytes": 2_500_000, "offloaded": true, "ingress": null,
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
        let text = text(&sample(), false);
        for part in [
            "eBPF Enabled",
            "standalone",
            "wlan0",
            "v4-wlan0",
            "0xf0064",
            "1m01s",
            "15 pkt",
            "2.0 kB",
            "5 pkt, 500 B",
            "GSO: 2",
            "size: 1",
            "2.5 MB",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(super::text(&Status { clats: vec![], ..sample() }, true).contains("no CLAT runs"));
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
        assert!(text(&now, true).contains("50 pkt/s"));

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
