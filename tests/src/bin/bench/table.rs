// SPDX-License-Identifier: Apache-2.0

//! Common parts of benches: rounds, cells of tables, and documents.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const END: &str = "<!-- end -->\n";

/// Number and duration of rounds.
#[derive(clap::Args)]
pub(crate) struct Rounds {
    /// How often each figure is taken; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) rounds: u8,
    /// For how long, each time
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) seconds: u8,
}

/// Median, least and most.
pub(crate) fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    ((low + high) / 2.0, sorted[0], sorted[sorted.len() - 1])
}

/// The same as text.
pub(crate) fn cell(values: &[f64], digits: usize) -> String {
    let (median, least, most) = spread(values);
    if values.len() == 1 {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
}

/// A sensible number of digits.
pub(crate) fn digits(values: &[f64]) -> usize {
    match spread(values).0 {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    }
}

/// Writes `text` between the markers of the bench `name` in a file of `docs`.
pub(crate) fn put(file: &str, name: &str, text: &str) -> Result<()> {
    let begin =
        format!("<!-- made by: cargo run --release -p clat_tests --bin {name} -- --write -->\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    let old = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, rest) =
        old.split_once(&begin).with_context(|| format!("no marker in {path:?}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no end marker in {path:?}"))?;
    fs::write(&path, format!("{before}{begin}\n{text}\n{END}{after}"))
        .with_context(|| path.display().to_string())
}
