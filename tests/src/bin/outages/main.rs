// SPDX-License-Identifier: Apache-2.0

//! Length of outages when the network changes under a CLAT, with BPF programs and with clatd only,
//! beside native IPv6 in the same run.

#[allow(dead_code)] // of the benches, which have more figures
#[path = "../bench/table.rs"]
mod table;

mod row;
mod traffic;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroU8;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Parser;
use clat_tests::{can_run, program, Mode};

use row::{Row, Subject, ROWS};

/// Changes a network under a CLAT and takes the time until packets arrive again. Needs root, and
/// our programs as built by `cargo build --release --bins`.
#[derive(Parser)]
struct Args {
    /// How often each change is made; median and worst count
    #[arg(long, value_name = "N", default_value = "10")]
    rounds: NonZeroU8,
    /// Only rows whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Write the table to docs/outages.md
    #[arg(long, conflicts_with = "only")]
    write: bool,
}

/// Milliseconds by row and subject: one a round.
type Results = BTreeMap<(usize, Subject), Vec<f64>>;

fn main() -> Result<()> {
    let args = Args::parse();
    if !can_run(&["ip", "ethtool", "ip6tables", "tc"]) {
        return Ok(());
    }
    let mut results = Results::new();
    for round in 1..=args.rounds.get() {
        for (at, row) in ROWS.iter().enumerate().filter(|(_, row)| row.name.contains(&args.only)) {
            for subject in Subject::ALL.into_iter().filter(|subject| row.is_of(*subject)) {
                let what = || format!("{}: {}", row.name, subject.name());
                let outage = row.take(subject).with_context(what)?.as_secs_f64() * 1e3;
                eprintln!("round {round}: {}: {outage:.0} ms", what());
                results.entry((at, subject)).or_default().push(outage);
            }
        }
    }
    let mut text = text(args.rounds.get(), &results)?;
    if args.only.is_empty() {
        for (what, mode) in [("offload", Mode::Offload), ("clatd alone", Mode::Daemon)] {
            let [controller, clatd] =
                row::memory(mode)?.map(|bytes| bytes as f64 / f64::from(1 << 20));
            writeln!(
                text,
                "\nIn memory with one CLAT, {what}: {controller:.1} MiB of clat_controller, \
                 {clatd:.1} MiB of clatd."
            )?;
        }
    }
    std::io::stdout().write_all(text.as_bytes())?;
    if args.write {
        table::put("outages.md", "outages", &text)?;
    }
    Ok(())
}

fn text(rounds: u8, results: &Results) -> Result<String> {
    let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let cpus = std::thread::available_parallelism()?;
    let built = match program("clatd")?.parent().and_then(Path::file_name) {
        Some(profile) if profile == "debug" => "; programs built without optimisation",
        _ => "",
    };
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or("?");
    let mut text = format!(
        "{cpus} CPUs, Linux {kernel}{built}; {rounds} interleaved rounds, load average {load} at \
         the end: median (worst), in ms.\n\n\
         | |"
    );
    for subject in Subject::ALL {
        write!(text, " {} |", subject.name())?;
    }
    text += "\n| --- | --- | --- | --- |\n";
    let taken = |at| Subject::ALL.iter().any(|subject| results.contains_key(&(at, *subject)));
    for (at, Row { name, .. }) in ROWS.iter().enumerate().filter(|(at, _)| taken(*at)) {
        write!(text, "| {name} |")?;
        for subject in Subject::ALL {
            match results.get(&(at, subject)) {
                Some(values) => {
                    let (median, _, worst) = table::spread(values);
                    write!(text, " {median:.0} ({worst:.0}) |")?;
                }
                None => text += " – |",
            }
        }
        text += "\n";
    }
    Ok(text)
}
