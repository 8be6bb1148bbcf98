// SPDX-License-Identifier: Apache-2.0

//! platd, pasta and slirp4netns in one run: the same namespaces, the same server, MTU 1500 and
//! 65520. Rounds are interleaved, figure by figure, so that disturbances of the machine affect all
//! alike.

#[allow(dead_code)] // of the other bench, which has more figures
#[path = "../bench/host.rs"]
mod host;
#[allow(dead_code)]
#[path = "../bench/load.rs"]
mod load;
#[path = "../bench/table.rs"]
mod table;

mod figure;
mod subject;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use clat_tests::can_run;
use nix::sys::resource::{getrlimit, setrlimit, Resource};

use figure::{Figure, FIGURES};
use subject::{Hosts, Kind, Subject};
use table::Rounds;

const MTUS: [u16; 2] = [1500, 65520];

/// Benches platd beside pasta and slirp4netns. Needs root, iperf3, passt and slirp4netns, and our
/// programs as built by `cargo build --release --bins`.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    often: Rounds,
    /// Only figures whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Only this MTU
    #[arg(long)]
    mtu: Option<u16>,
    /// Write the tables to docs/platd-benchmarks.md
    #[arg(long, conflicts_with_all = ["only", "mtu"])]
    write: bool,
    /// (Internal) be a server that keeps connections
    #[arg(long, hide = true)]
    keep: bool,
}

/// Values by MTU, row and subject: one per round.
type Results = BTreeMap<(u16, &'static str, Kind), Vec<f64>>;

fn main() -> Result<()> {
    let args = Args::parse();
    // Many flows need many descriptors, here and in child processes.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    if args.keep {
        return figure::keep();
    }
    if !can_run(&["ip", "iperf3", "pasta", "slirp4netns"]) {
        return Ok(());
    }
    let dir = std::env::temp_dir().join(format!("clatlab-{}-carriers", std::process::id()));
    fs::create_dir_all(&dir)?;
    let results = bench(&args, &dir);
    let _ = fs::remove_dir_all(&dir);
    let text = text(&args, &results?);
    std::io::stdout().write_all(text.as_bytes())?;
    if args.write {
        table::put("platd-benchmarks.md", "carrier_bench", &text)?;
    }
    Ok(())
}

fn bench(args: &Args, dir: &Path) -> Result<Results> {
    let hosts = Hosts::new(dir)?;
    let mut subjects = Vec::new();
    for mtu in MTUS.into_iter().filter(|mtu| args.mtu.is_none_or(|only| only == *mtu)) {
        for kind in Kind::ALL {
            subjects.push(Subject::new(&hosts, kind, mtu, dir)?);
        }
    }
    let time = Duration::from_secs(args.often.seconds.into());
    let mut results = Results::new();
    let wanted = |figure: &Figure| figure.rows().iter().any(|(name, _)| name.contains(&args.only));
    for round in 1..=args.often.rounds {
        for figure in FIGURES.into_iter().filter(wanted) {
            // The remains of so many flows would disturb the next round.
            if figure == Figure::Memory && round < args.often.rounds {
                continue;
            }
            for subject in &subjects {
                let (kind, mtu) = (subject.kind, subject.mtu);
                let what = || format!("{figure:?}: {} at MTU {mtu}", kind.name());
                let values = match figure.take(subject, time).with_context(what) {
                    Ok(values) => values,
                    // A peer's failure is a result, too.
                    Err(error) if kind != Kind::Platd => {
                        eprintln!("{error:#}");
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                for ((row, _), value) in figure.rows().iter().zip(values) {
                    eprintln!("round {round}: MTU {mtu}: {row}: {}: {value:.3}", kind.name());
                    results.entry((mtu, row, kind)).or_default().push(value);
                }
                sleep(Duration::from_millis(50));
            }
        }
    }
    Ok(results)
}

/// The report as Markdown.
fn text(args: &Args, results: &Results) -> String {
    let mut out = format!(
        "{}; {} interleaved rounds of {} s a figure: median (least–most). Ratios are those of each \
         round, better above 1. The guest's namespace, whose device queues 20,000 packets, the \
         carrier in another, a veth with default offloads, the server in a third; sockets may have \
         buffers of 16 MiB. TCP is iperf3's, cubic; UDP is datagrams a second at \
         less than 0.1 % loss; CPU seconds are the carrier's own, and the whole machine's, both \
         ends included; memory is Pss, for 10,000 flows \
         where the limit of descriptors allowed a few less.\n",
        host::describe(),
        args.often.rounds,
        args.often.seconds
    );
    for mtu in MTUS {
        let rows: Vec<_> = FIGURES.iter().flat_map(|figure| figure.rows()).collect();
        let rows =
            rows.into_iter().filter(|(row, _)| results.contains_key(&(mtu, *row, Kind::Platd)));
        let rows: Vec<_> = rows.collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(
            out,
            "\n### MTU {mtu}\n\n| | platd | pasta | slirp4netns | platd ÷ pasta | platd ÷ \
                slirp4netns |\n\
             | --- | --- | --- | --- | --- | --- |\n"
        );
        for (row, more_is_better) in rows {
            let of = |kind| results.get(&(mtu, *row, kind)).map(Vec::as_slice);
            let mut cells: Vec<String> = Kind::ALL.iter().map(|kind| cell(of(*kind))).collect();
            for peer in [Kind::Pasta, Kind::Slirp] {
                let ratios = of(Kind::Platd).zip(of(peer)).map(|(ours, theirs)| {
                    let both = ours.iter().zip(theirs);
                    let ratio = |(a, b): (&f64, &f64)| if *more_is_better { a / b } else { b / a };
                    both.map(ratio).collect::<Vec<f64>>()
                });
                cells.push(cell(ratios.as_deref()));
            }
            let _ = writeln!(out, "| {row} | {} |", cells.join(" | "));
        }
    }
    out
}

fn cell(values: Option<&[f64]>) -> String {
    let values = values.filter(|values| !values.is_empty());
    values.map_or_else(|| "–".to_owned(), |values| table::cell(values, table::digits(values)))
}
