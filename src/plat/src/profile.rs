// SPDX-License-Identifier: Apache-2.0

//! `--profile`: a name, or a file, for several options.

use std::ffi::OsString;
use std::fs;

use anyhow::Context;

/// Networks that programs meet, by their options. In a mobile network round trips take some 50 ms.
const PROFILES: [(&str, &[&str]); 5] = [
    ("mobile", &["--mtu", "1428", "--delay", "25"]),
    ("no-pref64", &["--no-pref64"]),
    ("lossy", &["--loss", "2", "--delay", "10"]),
    ("renumbering", &["--prefix-churn", "30"]),
    ("tiny-mtu", &["--mtu", "1280"]),
];

/// Command-line arguments with the options of each `--profile` in its place, up to `--`.
///
/// # Errors
/// When there is no such profile.
pub fn expand(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<Vec<OsString>> {
    let mut arguments = arguments.into_iter();
    let mut all = Vec::new();
    while let Some(argument) = arguments.next() {
        let name = match argument.to_str() {
            Some("--") => {
                all.push(argument);
                break;
            }
            Some("--profile") => arguments.next().context("--profile: which one?")?,
            Some(text) => match text.strip_prefix("--profile=") {
                Some(name) => name.into(),
                None => {
                    all.push(argument);
                    continue;
                }
            },
            None => {
                all.push(argument);
                continue;
            }
        };
        all.extend(options(&name)?);
    }
    all.extend(arguments);
    Ok(all)
}

/// The options of a profile, or the words of a file, of which lines that begin with `#` are none.
fn options(name: &OsString) -> anyhow::Result<Vec<OsString>> {
    if let Some((_, options)) = PROFILES.iter().find(|(profile, _)| name == *profile) {
        return Ok(options.iter().map(OsString::from).collect());
    }
    let names = PROFILES.map(|(profile, _)| profile).join(", ");
    let text = fs::read_to_string(name).with_context(|| {
        format!("--profile {}: none of {names}, nor a file", name.to_string_lossy())
    })?;
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    Ok(lines.flat_map(str::split_whitespace).map(OsString::from).collect())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(arguments: &[&str]) -> anyhow::Result<Cli> {
        let arguments = expand(arguments.iter().map(OsString::from))?;
        Ok(Cli::try_parse_from(arguments)?)
    }

    #[test]
    fn profiles_are_options() {
        for (name, _) in PROFILES {
            parse(&["platd", "--profile", name, "--fd", "3"]).unwrap();
        }
        let cli = parse(&["platd", "run", "--profile=tiny-mtu", "--", "sh", "--profile"]).unwrap();
        let Some(Command::Run { net, command, .. }) = cli.command else { panic!() };
        assert_eq!((net.mtu, &command[..]), (1280, &["sh".to_owned(), "--profile".to_owned()][..]));
        for wrong in [&["platd", "--profile"][..], &["platd", "--profile", "/nowhere/x"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        // It is in the help, too.
        let help = Cli::command().render_long_help().to_string();
        assert!(PROFILES.iter().all(|(name, _)| help.contains(name)), "{help}");
    }

    #[test]
    fn a_file_has_options() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# a slow one\n--delay 300\n  --no-pref64\n").unwrap();
        let path = file.path().to_str().unwrap();
        let cli = parse(&["platd", "--profile", path, "--fd", "3"]).unwrap();
        assert_eq!((cli.net.delay, cli.net.no_pref64), (300, true));
    }
}
