// SPDX-License-Identifier: Apache-2.0

//! `clatctl doctor`: what this machine lacks for a CLAT, with the commands that fix it.

mod checks;
mod probe;

use std::io::{self, Write};
use std::process::ExitCode;

use clat_controller::binder_adapter::Transport;
use comfy_table::{presets, ContentArrangement, Table};
use serde::Serialize;

use crate::{Failure, FAILED};

/// Result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Available.
    Ok,
    /// Missing, and required.
    Missing,
    /// Missing, but a CLAT works without it: slower, or with fewer features.
    Optional,
    /// Could not be checked.
    Unknown,
}

/// One check and its result.
#[derive(Debug, Serialize)]
struct Check {
    /// kernel, tools, sysctl, permissions or network.
    group: &'static str,
    name: &'static str,
    state: State,
    /// Whether a CLAT requires it.
    needed: bool,
    /// What was found, or what it is for.
    detail: String,
    /// The command that fixes it.
    fix: Option<String>,
}

/// Result of a check: what was found, or what is wrong and how to fix it.
type Answer = Result<String, Problem>;

/// Why something is missing.
#[derive(Debug)]
struct Problem {
    detail: String,
    fix: String,
    /// The check itself failed, for lack of permissions or of a tool.
    unknown: bool,
}

impl Problem {
    fn missing(detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { detail: detail.into(), fix: fix.into(), unknown: false }
    }

    fn unknown(detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { detail: detail.into(), fix: fix.into(), unknown: true }
    }
}

impl Check {
    fn new(group: &'static str, name: &'static str, needed: bool, answer: Answer) -> Self {
        let (state, detail, fix) = match answer {
            Ok(detail) => (State::Ok, detail, None),
            Err(Problem { detail, fix, unknown }) => {
                let state = match (unknown, needed) {
                    (true, _) => State::Unknown,
                    (false, true) => State::Missing,
                    (false, false) => State::Optional,
                };
                (state, detail, Some(fix))
            }
        };
        Self { group, name, state, needed, detail, fix }
    }
}

/// Whether everything required is known to be available.
fn healthy(checks: &[Check]) -> bool {
    checks.iter().all(|check| !check.needed || check.state == State::Ok)
}

/// Runs `clatctl doctor`.
pub(crate) fn run(
    transport: Option<&Transport>,
    json: bool,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let checks = checks::all(transport);
    let ok = healthy(&checks);
    if json {
        serde_json::to_writer_pretty(&mut *out, &serde_json::json!({"ok": ok, "checks": checks}))
            .map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", text(&checks))?;
    }
    out.flush()?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// The least width of terminals.
const COLUMNS: u16 = 80;

/// The table, and the commands in one block for copying.
fn text(checks: &[Check]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(COLUMNS);
    table.set_header(["", "what", "", "found"]);
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Missing => "missing",
            State::Optional => "optional",
            State::Unknown => "unknown",
        };
        table.add_row([check.group, check.name, state, &check.detail]);
    }
    let fixes: Vec<_> = checks
        .iter()
        .filter_map(|check| Some((check.fix.as_ref()?, check.needed, check.name)))
        .collect();
    let mut text = format!("{table}\n");
    for (title, wanted) in [("To mend what is needed:", true), ("To have what is optional:", false)]
    {
        let mut seen = Vec::new();
        for (fix, _, name) in fixes.iter().filter(|(_, needed, _)| *needed == wanted) {
            if seen.is_empty() {
                text += &format!("{title}\n");
            }
            if !seen.contains(fix) {
                text += &format!("  # {name}\n  {fix}\n");
                seen.push(fix);
            }
        }
    }
    if healthy(checks) {
        text += "All that a CLAT needs is there.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks() -> Vec<Check> {
        vec![
            Check::new("kernel", "TUN", true, Ok("/dev/net/tun".into())),
            Check::new(
                "kernel",
                "clsact",
                false,
                Err(Problem::missing("no", "modprobe sch_ingress")),
            ),
        ]
    }

    #[test]
    fn what_is_optional_is_no_failure() {
        let mut checks = checks();
        assert!(healthy(&checks));
        assert_eq!(checks[1].state, State::Optional);
        checks.push(Check::new(
            "tools",
            "clatd",
            true,
            Err(Problem::missing("not found", "make install")),
        ));
        assert!(!healthy(&checks));
        let text = text(&checks);
        assert!(text.contains("missing") && text.contains("  make install"), "{text}");
    }

    #[test]
    fn it_fits_a_terminal() {
        let detail = "something that takes more words to be said than one line has room for";
        let answer = || Err(Problem::missing(detail, "true"));
        let text =
            text(&[Check::new("permissions", "the right to open packet sockets", true, answer())]);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn what_is_needed_and_unknown_is_a_failure() {
        let check = Check::new(
            "kernel",
            "TUN",
            true,
            Err(Problem::unknown("not root", "sudo clatctl doctor")),
        );
        assert_eq!(check.state, State::Unknown);
        assert!(!healthy(&[check]));
    }

    #[test]
    fn json_names_are_stable() {
        assert_eq!(
            serde_json::to_value(checks()).unwrap(),
            serde_json::json!([
                {"group": "kernel", "name": "TUN", "state": "ok", "needed": true,
                 "detail": "/dev/net/tun", "fix": null},
                {"group": "kernel", "name": "clsact", "state": "optional", "needed": false,
                 "detail": "no", "fix": "modprobe sch_ingress"},
            ])
        );
    }
}
