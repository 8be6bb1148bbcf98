// SPDX-License-Identifier: Apache-2.0

//! Tables, for people and for `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Result};
use clat_tests::Uplink;

use crate::figure::{Figure, Row, Target};
use crate::subject::Kind;
use crate::table::{cell, digits, put, spread};
use crate::{host, Args, Results};

/// The report as Markdown.
pub(crate) fn text(
    args: &Args,
    results: &Results,
    uplinks: &[Uplink],
    figures: &[Figure],
    kinds: &[Kind],
) -> String {
    let hardware = if args.no_hardware { "without offloads" } else { "with default offloads" };
    let mut out = format!(
        "{}; {} interleaved rounds of {} s a figure: median (least–most). Ratios are those of each \
         round. Links {hardware}, MTU 1500, a router between. TCP is iperf3's, cubic; UDP is \
         datagrams a second at less than 0.1 % loss; CPU seconds are the whole machine's, both \
         ends and the link included.\n",
        host::describe(),
        args.often.rounds,
        args.often.seconds
    );
    if kinds.contains(&Kind::AospPrograms) {
        out.push_str(
            "What AOSP's programs leave to a daemon, uploads on Ethernet, ours does beside them.\n",
        );
    }
    for uplink in uplinks {
        let title = match uplink {
            Uplink::Ethernet => "Ethernet uplink: a veth",
            Uplink::RawIp => "Raw-IP uplink: a TUN device, its packets carried on by the kernel",
        };
        let of = |row: &Row, kind: Kind| results.get(&(*uplink, row.name, kind)).map(Vec::as_slice);
        let rows = figures.iter().flat_map(|figure| figure.rows());
        let rows: Vec<&Row> = rows.collect();
        let figures = |row: &Row, kind| of(row, kind).map(|values| cell(values, digits(values)));
        let _ = write!(out, "\n### {title}\n\n{}", table(kinds, &rows, figures));
        let ratios = |row: &Row, kind: Kind| {
            let (values, native) = (of(row, kind)?, of(row, Kind::Native));
            // Without a native figure, show the figure itself.
            let ratios: Vec<f64> = match native {
                Some(native) => values.iter().zip(native).map(|(a, b)| a / b).collect(),
                None => values.to_vec(),
            };
            let verdict = row.target(kind).map(|target| verdict(target, spread(&ratios).0));
            Some(cell(&ratios, 2) + &verdict.unwrap_or_default())
        };
        let others: Vec<Kind> = kinds.iter().copied().filter(|k| *k != Kind::Native).collect();
        if others.is_empty() {
            continue;
        }
        let _ = write!(out, "\nBeside native IPv6:\n\n{}", table(&others, &rows, ratios));
    }
    out
}

/// A line for each row, a column for each subject.
fn table(kinds: &[Kind], rows: &[&Row], cell: impl Fn(&Row, Kind) -> Option<String>) -> String {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    let mut out = format!("| | {} |\n| --- |{}\n", names.join(" | "), " --- |".repeat(kinds.len()));
    for row in rows {
        let cells = kinds.iter().map(|kind| cell(row, *kind).unwrap_or_else(|| "–".to_owned()));
        let _ = writeln!(out, "| {} | {} |", row.name, cells.collect::<Vec<_>>().join(" | "));
    }
    out
}

fn verdict(target: Target, value: f64) -> String {
    let bound = match target {
        Target::AtLeast(bound) => format!("≥ {bound}"),
        Target::AtMost(bound) => format!("≤ {bound}"),
    };
    if target.is_met(value) {
        format!(", {bound}")
    } else {
        format!(", **misses {bound}**")
    }
}

/// Writes `text` into `docs/benchmarks.md`, with the output of `cargo bench -p clat_xlat`.
pub(crate) fn write(text: &str) -> Result<()> {
    let per_packet = per_packet()?;
    let text = format!(
        "{text}\n### `clat_xlat`\n\nPer packet (criterion: low, estimate, \
            high):\n\n```text\n{per_packet}```\n"
    );
    put("benchmarks.md", "bench", &text)
}

/// The lines with times of `cargo bench -p clat_xlat`.
fn per_packet() -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output =
        Command::new(cargo).args(["bench", "-p", "clat_xlat"]).current_dir(root).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "cargo bench: {}", String::from_utf8_lossy(&output.stderr));
    // A long name is on its own line, its times on the next.
    let mut lines = String::new();
    let mut name = "";
    for line in text.lines() {
        if let Some((before, times)) = line.split_once("time:") {
            let name = if before.trim().is_empty() { name } else { before.trim() };
            let _ = writeln!(lines, "{name:<40} {}", times.trim());
        }
        name = line.trim();
    }
    Ok(lines)
}
