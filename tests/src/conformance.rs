// SPDX-License-Identifier: Apache-2.0

//! What RFCs ask of a translator, with the tests that show it, or why there is none:
//! `docs/conformance.md`, which `cargo run -p clat_tests --bin conformance -- --write` makes of the
//! tables here.

mod addressing;
mod rfc4884;
mod rfc7915;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};

/// What one RFC asks for.
struct Document {
    number: u16,
    title: &'static str,
    note: &'static str,
    requirements: &'static [Requirement],
}

/// Section, word (RFC 2119), what is asked for, `FILE::TEST` of the tests that show it, and what is
/// to be said beside that: where no test is given, why not.
struct Requirement(&'static str, &'static str, &'static str, &'static [&'static str], &'static str);

const DOCUMENTS: &[&Document] = &[
    &rfc7915::DOCUMENT,
    &addressing::RFC6052,
    &addressing::RFC7757,
    &addressing::RFC6791,
    &rfc4884::DOCUMENT,
];

/// Where the tests are.
const FILES: &[(&str, &str)] = &[
    ("addresses", "src/xlat/tests/addresses.rs"),
    ("answers", "src/clatctl/src/translate/answers.rs"),
    ("clatd", "src/clatd/tests/daemon.rs"),
    ("files", "src/clatctl/tests/translate/files.rs"),
    ("gso", "src/xlat/tests/gso.rs"),
    ("properties", "src/xlat/tests/properties.rs"),
    ("queues", "src/clatd/tests/queues.rs"),
    ("rfc7915", "src/xlat/tests/rfc7915.rs"),
    ("rulebook_flows", "tests/tests/rulebook/flows.rs"),
    ("siit", "src/clatctl/tests/translate/siit.rs"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where the page is.
#[must_use]
pub fn path() -> PathBuf {
    root().join("docs/conformance.md")
}

/// The file of a test, from the root, and the test's own name.
fn locate(test: &str) -> Result<(&'static str, &str)> {
    let (file, name) = test.split_once("::").with_context(|| format!("{test}: no FILE::TEST"))?;
    let known = FILES.iter().find(|(key, _)| *key == file);
    let (_, path) = known.with_context(|| format!("{test}: no such file in the list"))?;
    Ok((path, name))
}

/// The page.
///
/// # Errors
/// A test that cannot be named, or a requirement with neither test nor reason.
pub fn page() -> Result<String> {
    let mut page = String::from(
        "<!-- Made by `cargo run -p clat_tests --bin conformance -- --write`. -->\n\
         # Conformance\n\n\
         Every MUST and SHOULD of the RFCs that say what a translator does, in their order, with \
         the tests that show it,\nor why there is none. `--test conformance` sees to it that the \
         tests are there and that this page is current.\n",
    );
    for document in DOCUMENTS {
        let Document { number, title, note, requirements } = document;
        write!(page, "\n## RFC {number}: {title}\n\n{note}\n\n")?;
        page.push_str("| section | | what | shown by | beside that |\n");
        page.push_str("| --- | --- | --- | --- | --- |\n");
        for Requirement(section, word, what, tests, remark) in *requirements {
            ensure!(
                !tests.is_empty() || !remark.is_empty(),
                "RFC {number} {section}: neither shown nor explained: {what}"
            );
            let links = tests.iter().map(|test| {
                let (path, name) = locate(test)?;
                Ok(format!("[`{name}`](../{path})"))
            });
            let links = links.collect::<Result<Vec<_>>>()?.join(" ");
            writeln!(page, "| {section} | {word} | {what} | {links} | {remark} |")?;
        }
    }
    Ok(page)
}

/// The tests that are named and not there.
///
/// # Errors
/// A file that cannot be read.
pub fn missing() -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for test in DOCUMENTS.iter().flat_map(|document| document.requirements).flat_map(|r| r.3) {
        let (path, name) = locate(test)?;
        let source = fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
        if !is_test(&source, name) {
            missing.push(*test);
        }
    }
    Ok(missing)
}

/// Whether a source has a function of this name that is marked as a test.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let declared = format!("fn {name}(");
    lines.iter().enumerate().any(|(at, line)| {
        let above = lines[..at].iter().rev().take_while(|line| line.starts_with('#'));
        line.starts_with(&declared) && above.into_iter().any(|line| *line == "#[test]")
    })
}

#[cfg(test)]
mod tests {
    use super::is_test;

    #[test]
    fn only_tests_count() {
        let source =
            "fn a() {}\n\n#[test]\n#[ignore]\nfn b() {}\n\n    #[test]\n    fn c(n: u8) {}\n";
        assert_eq!(
            ["a", "b", "c", "d"].map(|name| is_test(source, name)),
            [false, true, true, false]
        );
    }
}
