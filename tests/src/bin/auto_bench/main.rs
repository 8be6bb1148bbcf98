// SPDX-License-Identifier: Apache-2.0

//! How automatic CLATs follow their network: ours, and NetworkManager's beside them in the same
//! run.

#[allow(dead_code)] // of the benches, which have more figures
#[path = "../bench/table.rs"]
mod table;
#[path = "../outages/traffic.rs"]
mod traffic;

mod check;
mod host;
mod row;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroU8;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use clat_tests::{can_run, program};

use check::CHECKS;
use host::Subject;
use row::ROWS;
use traffic::Never;

/// Takes the times in which a CLAT follows what its network does. Needs root, and our programs as
/// built by `cargo build --release --bins`.
#[derive(Parser)]
struct Args {
    /// How often each change is made; median and worst count
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroU8,
    /// Only rows whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// NetworkManager's beside ours: Debian sid's, in this directory, made by debootstrap unless
    /// it exists
    #[arg(long, value_name = "DIR")]
    network_manager: Option<PathBuf>,
    /// Write the tables to docs/auto.md
    #[arg(long, requires = "network_manager", conflicts_with = "only")]
    write: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !can_run(&["ip", "ethtool", "ping", "sysctl", "unshare", "dnsmasq", "dhcpcd"]) {
        return Ok(());
    }
    let root = args.network_manager.as_deref();
    let version = root.map(host::sid).transpose()?;
    let subjects = &Subject::ALL[..if root.is_some() { 3 } else { 2 }];

    let mut times = BTreeMap::<_, Vec<f64>>::new();
    let rows = || ROWS.iter().filter(|row| row.name.contains(&args.only));
    for round in 1..=args.rounds.get() {
        for row in rows() {
            for subject in subjects {
                let what = format!("{}: {}", row.name, subject.name());
                let time = match row.take(*subject, root) {
                    Err(e) if e.is::<Never>() => f64::INFINITY,
                    time => time.with_context(|| what.clone())?.as_secs_f64() * 1e3,
                };
                eprintln!("round {round}: {what}: {time:.1} ms");
                times.entry((row.name, subject)).or_default().push(time);
            }
        }
    }
    let mut lines = Vec::new();
    for row in rows() {
        let cells = subjects.iter().map(|subject| cell(&times[&(row.name, subject)]));
        lines.push((row.name, cells.collect::<Vec<_>>()));
    }
    for check in CHECKS.iter().filter(|check| check.name.contains(&args.only)) {
        let cells = subjects.iter().map(|subject| {
            let what = || format!("{}: {}", check.name, subject.name());
            let said = check.ask(*subject, root).with_context(what)?;
            eprintln!("{}: {said}", what());
            Ok(said)
        });
        lines.push((check.name, cells.collect::<Result<_>>()?));
    }
    let text = text(args.rounds.get(), version.as_deref(), subjects, &lines)?;
    std::io::stdout().write_all(text.as_bytes())?;
    if args.write {
        table::put("auto.md", "auto_bench", &text)?;
    }
    Ok(())
}

/// Median and worst, in ms.
fn cell(values: &[f64]) -> String {
    let text = |value: f64| {
        if value.is_infinite() {
            "never".to_owned()
        } else {
            format!("{value:.0}")
        }
    };
    let (median, _, worst) = table::spread(values);
    format!("{} ({})", text(median), text(worst))
}

fn text(
    rounds: u8,
    version: Option<&str>,
    subjects: &[Subject],
    lines: &[(&str, Vec<String>)],
) -> Result<String> {
    let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let cpus = std::thread::available_parallelism()?;
    let built = match program("clatd")?.parent().and_then(std::path::Path::file_name) {
        Some(profile) if profile == "debug" => "; ours built without optimisation",
        _ => "",
    };
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or("?");
    let beside = version.map(|version| format!("; NetworkManager {version}")).unwrap_or_default();
    let mut text = format!(
        "{cpus} CPUs, Linux {kernel}{beside}{built}; {rounds} interleaved rounds, load average \
         {load} at the end: median (worst), in ms.\n\n| |"
    );
    for subject in subjects {
        write!(text, " {} |", subject.name())?;
    }
    text += "\n| ---";
    text += &" | ---".repeat(subjects.len());
    text += " |\n";
    for (name, cells) in lines {
        writeln!(text, "| {name} | {} |", cells.join(" | "))?;
    }
    Ok(text)
}
