// SPDX-License-Identifier: Apache-2.0
//! `docs/conformance.md` names existing tests, and is up to date with its tables.
#![allow(missing_docs)]

use anyhow::{ensure, Result};
use clat_tests::conformance;

#[test]
fn the_tests_are_there() -> Result<()> {
    let missing = conformance::missing()?;
    ensure!(missing.is_empty(), "named in tests/src/conformance, and no test: {missing:#?}");
    Ok(())
}

#[test]
fn the_page_is_current() -> Result<()> {
    let page = std::fs::read_to_string(conformance::path())?;
    ensure!(
        page == conformance::page()?,
        "docs/conformance.md is old: cargo run -p clat_tests --bin conformance -- --write"
    );
    Ok(())
}
