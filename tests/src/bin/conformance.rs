// SPDX-License-Identifier: Apache-2.0

//! Makes `docs/conformance.md`.

use std::fs;
use std::io::Write as _;

use anyhow::{Context, Result};
use clap::Parser;

/// Prints the page on conformance
#[derive(Parser)]
struct Args {
    /// Write it to docs/conformance.md instead
    #[arg(long)]
    write: bool,
}

fn main() -> Result<()> {
    let page = clat_tests::conformance::page()?;
    if Args::parse().write {
        let path = clat_tests::conformance::path();
        return fs::write(&path, page).with_context(|| path.display().to_string());
    }
    Ok(std::io::stdout().write_all(page.as_bytes())?)
}
