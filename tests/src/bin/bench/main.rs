// SPDX-License-Identifier: Apache-2.0

//! In one run: native IPv6, our CLAT with BPF programs, on the uplink itself and on a device of its
//! own, and with clatd only, programs of constants, tayga, and AOSP's programs and clatd and
//! NetworkManager's programs if their paths are given; on an Ethernet and on a raw-IP uplink.
//! Rounds are interleaved, figure by figure, so that disturbances of the machine affect all
//! alike.

mod figure;
mod host;
#[allow(dead_code)] // of the other bench, which has other figures
mod load;
mod modem;
mod report;
mod subject;
mod table;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clap::Parser;
use clat_tests::{can_run, Lab, Offloads, Uplink};

use figure::{Figure, FIGURES};
use subject::{Kind, Peers, Subject};
use table::Rounds;

/// Benches the CLAT beside native IPv6 and other translators, on the lab's network. Needs root,
/// iperf3 and tayga, and our programs as built by `cargo build --release --bins`.
///
/// A quick look takes a minute or so:
/// `cargo run --release -p clat_tests --bin bench -- --rounds 1 --only offload,ethernet,tcp`.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    often: Rounds,
    /// Leave out what is not named: subjects (direct, offload, constants, daemon, tayga, aosp,
    /// aosp-programs, networkmanager; native always stays), uplinks (ethernet, rawip), figures
    /// (tcp, tcp1, tcp4, udp, udp64, udpmixed, udp1200, segment, latency, idle; up and down). Of a
    /// kind of which nothing is named, everything is there
    #[arg(long, value_name = "WORD,…", value_delimiter = ',', value_parser = words())]
    only: Vec<String>,
    #[command(flatten)]
    peers: Peers,
    /// With checksums and segments left to no hardware: every packet as on a wire
    #[arg(long)]
    no_hardware: bool,
    /// Write the tables to docs/benchmarks.md, along with those of `cargo bench -p clat_xlat`
    #[arg(long, conflicts_with_all = ["only", "no_hardware"])]
    write: bool,
}

/// The words of `--only`, by kind.
const UPLINKS: [(&str, Uplink); 2] = [("ethernet", Uplink::Ethernet), ("rawip", Uplink::RawIp)];

fn words() -> clap::builder::PossibleValuesParser {
    let mut words: Vec<&str> = UPLINKS.iter().map(|(word, _)| *word).collect();
    words.extend(Kind::ALL.iter().map(|kind| kind.word()));
    words.extend(figure::WORDS);
    words.into()
}

impl Args {
    /// The wanted ones of `all`: those named by a given word, or all if no given word is about this
    /// kind.
    fn pick<T: Copy>(&self, all: &[T], has: impl Fn(T, &str) -> bool) -> Vec<T> {
        let about = |word: &&String| all.iter().any(|item| has(*item, word));
        let about: Vec<&String> = self.only.iter().filter(about).collect();
        let wanted = |item: &T| about.is_empty() || about.iter().any(|word| has(*item, word));
        all.iter().copied().filter(wanted).collect()
    }

    fn kinds(&self) -> Vec<Kind> {
        let mut kinds = self.pick(&Kind::ALL, |kind, word| kind.word() == word);
        kinds.retain(|kind| self.peers.have(*kind));
        if !kinds.contains(&Kind::Native) {
            kinds.insert(0, Kind::Native);
        }
        kinds
    }

    /// A figure can be named by its kind and by its direction.
    fn figures(&self) -> Vec<Figure> {
        let of = self.pick(&FIGURES, Figure::is_of);
        let way = self.pick(&FIGURES, Figure::goes);
        FIGURES.into_iter().filter(|figure| of.contains(figure) && way.contains(figure)).collect()
    }
}

/// Values by uplink, row and subject: one per round.
type Results = BTreeMap<(Uplink, &'static str, Kind), Vec<f64>>;

fn main() -> Result<()> {
    let args = Args::parse();
    let (kinds, figures) = (args.kinds(), args.figures());
    ensure!(!figures.is_empty(), "--only leaves no figure");
    let mut needs = vec!["ip", "ethtool", "ping", "ip6tables", "iperf3", "tc", "clang"];
    if kinds.contains(&Kind::Tayga) {
        needs.push("tayga");
    }
    if kinds.iter().any(|kind| kind.is_foreign_programs()) {
        needs.push("bpftool");
    }
    if !can_run(&needs) {
        return Ok(());
    }
    let offloads = if args.no_hardware { Offloads::Off } else { Offloads::Default };
    let uplinks = args.pick(&UPLINKS, |(name, _), word| name == word);
    let uplinks: Vec<Uplink> = uplinks.into_iter().map(|(_, uplink)| uplink).collect();
    let cases = uplinks.iter().flat_map(|uplink| kinds.iter().map(|kind| (*uplink, *kind)));
    // Behind NetworkManager's programs no other filter is asked, so what carries a raw-IP uplink's
    // packets in the kernel would not have them.
    let is_fair = |case: &(_, _)| *case != (Uplink::RawIp, Kind::NetworkManager);
    let cases: Vec<_> = cases.filter(is_fair).collect();
    let labs = cases.iter().map(|(uplink, _)| Lab::on(*uplink, offloads));
    let labs: Vec<Lab> = labs.collect::<Result<_>>()?;
    for lab in labs.iter().filter(|lab| lab.uplink() == Uplink::RawIp) {
        modem::carry_in_kernel(lab)?;
    }
    let mut subjects = Vec::new();
    for (lab, (uplink, kind)) in labs.iter().zip(&cases) {
        let subject = Subject::new(lab, *kind, &args.peers);
        subjects.push(subject.with_context(|| format!("{} on {uplink:?}", kind.name()))?);
    }

    let time = Duration::from_secs(args.often.seconds.into());
    let mut results = Results::new();
    for round in 1..=args.often.rounds {
        for uplink in &uplinks {
            for figure in &figures {
                for subject in subjects.iter().filter(|s| s.lab.uplink() == *uplink) {
                    let what = || format!("{figure:?}, {} on {uplink:?}", subject.kind.name());
                    let values = figure.take(subject, time).with_context(what)?;
                    let rows = figure.rows().iter().zip(values);
                    for (row, value) in rows {
                        let row = row.name;
                        eprintln!(
                            "round {round}: {uplink:?}: {row}: {}: {value:.2}",
                            subject.kind.name()
                        );
                        results.entry((*uplink, row, subject.kind)).or_default().push(value);
                    }
                }
            }
        }
    }
    let text = report::text(&args, &results, &uplinks, &figures, &kinds);
    std::io::stdout().write_all(text.as_bytes())?;
    if args.write {
        report::write(&text)?;
    }
    Ok(())
}
