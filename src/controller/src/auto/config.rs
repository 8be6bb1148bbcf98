// SPDX-License-Identifier: Apache-2.0

//! The configuration file: command-line options by their long names. The command line overrides the
//! file, except for options that may be given more than once: there both count.
//!
//! A file is converted to a command line and parsed as such, so the options and their meanings are
//! defined only once.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Command};
use toml::de::{DeTable, DeValue};

/// An error in a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The content is wrong.
    #[error("{file}:{line}:{column}: {what}")]
    Content {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// The error, and what is expected.
        what: String,
    },
    /// The file and the command line contradict each other.
    #[error("{file}, with the command line: {what}")]
    Options {
        /// The file.
        file: PathBuf,
        /// The error.
        what: String,
    },
}

impl Error {
    /// clap's error about a command line with a file's options.
    pub(crate) fn options(file: &Path, error: &clap::Error) -> Self {
        Self::Options { file: file.to_owned(), what: first_line(&error.to_string()) }
    }
}

/// The command line `line` of `command`, with the options of `file` inserted.
///
/// # Errors
/// Those of the file. Errors of the command line end the process, as clap does.
pub fn merge(command: &Command, line: &[OsString], file: &Path) -> Result<Vec<OsString>, Error> {
    let text =
        fs::read_to_string(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
    let given = command.clone().get_matches_from(line);
    let is_given = |arg: &Arg| {
        let id = arg.get_id().as_str();
        given.value_source(id) == Some(ValueSource::CommandLine)
            && !matches!(arg.get_action(), ArgAction::Append)
    };
    let (program, rest) = line.split_at(1.min(line.len()));
    let said = options(command, &text, is_given).map_err(|(span, what)| {
        let (line, column) = place(&text, span.start);
        Error::Content { file: file.to_owned(), line, column, what }
    })?;
    Ok(program.iter().chain(&said).chain(rest).cloned().collect())
}

/// An error, and its position in bytes.
type Wrong = (Range<usize>, String);

/// The options that a text sets, without those to be `left_out`.
fn options(
    command: &Command,
    text: &str,
    left_out: impl Fn(&Arg) -> bool,
) -> Result<Vec<OsString>, Wrong> {
    let table = DeTable::parse(text)
        .map_err(|e| (e.span().unwrap_or_default(), first_line(e.message())))?;
    let mut options = Vec::new();
    for (key, value) in table.into_inner() {
        let name = key.get_ref().as_ref();
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name));
        let known = arg.filter(|arg| !NOT_IN_FILES.contains(&name) && !arg.is_hide_set());
        let Some(arg) = known else {
            return Err((key.span(), unknown(command, name)));
        };
        let span = value.span();
        let mut said = Vec::new();
        match (value.into_inner(), arg.get_action()) {
            (DeValue::Boolean(true), ArgAction::SetTrue) => said.push(format!("--{name}")),
            (DeValue::Boolean(false), ArgAction::SetTrue) => {
                let other = format!("no-{name}");
                if command.get_arguments().any(|arg| arg.get_long() == Some(&other)) {
                    said.push(format!("--{other}"));
                }
            }
            (_, ArgAction::SetTrue) => {
                return Err((span, format!("{name} is true or false")));
            }
            (DeValue::Array(values), ArgAction::Append) => {
                for value in values {
                    let span = value.span();
                    said.push(option(command, name, value.get_ref()).map_err(|what| (span, what))?);
                }
            }
            (DeValue::Array(_), _) => return Err((span, format!("{name} takes one value"))),
            (value, _) => said.push(option(command, name, &value).map_err(|what| (span, what))?),
        }
        if !left_out(arg) {
            options.extend(said.into_iter().map(OsString::from));
        }
    }
    Ok(options)
}

/// Options that make no sense in a file.
const NOT_IN_FILES: [&str; 5] = ["check", "config", "help", "sweep", "version"];

/// One option with its value, validated.
fn option(command: &Command, name: &str, value: &DeValue<'_>) -> Result<String, String> {
    let value = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        _ => return Err(format!("{name} takes a text or a number")),
    };
    let option = format!("--{name}={value}");
    // Conflicts and requirements are checked once all options are known.
    let alone = command.clone().try_get_matches_from(["", &option]);
    let is_wrong = |kind| matches!(kind, ErrorKind::InvalidValue | ErrorKind::ValueValidation);
    match alone {
        Err(e) if is_wrong(e.kind()) => Err(first_line(&e.to_string())),
        _ => Ok(option),
    }
}

/// The error for an unknown option, with the most similar one.
fn unknown(command: &Command, name: &str) -> String {
    let asked = command.clone().try_get_matches_from(["", &format!("--{name}")]).err();
    let near = match asked.as_ref().and_then(|e| e.get(ContextKind::SuggestedArg)) {
        Some(ContextValue::String(near)) => near.trim_start_matches("--"),
        _ => return format!("{name} is no option"),
    };
    format!("{name} is no option; {near} is")
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// The line and column of a byte, both from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser, PartialEq)]
    struct Args {
        #[arg(long)]
        auto: bool,
        #[arg(long, overrides_with = "no_offload")]
        offload: bool,
        #[arg(long, overrides_with = "offload")]
        no_offload: bool,
        #[arg(long)]
        uplink: Vec<String>,
        #[arg(long, default_value_t = 7)]
        level: u8,
        #[arg(long)]
        config: Option<PathBuf>,
        #[arg(long, hide = true)]
        secret: bool,
    }

    fn parse(text: &str, line: &[&str]) -> Result<Args, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("clat.toml");
        fs::write(&file, text).expect("written");
        let line: Vec<_> = ["clat"].iter().chain(line).map(OsString::from).collect();
        let merged = merge(&<Args as clap::CommandFactory>::command(), &line, &file);
        let merged =
            merged.map_err(|e| e.to_string().replace(&file.display().to_string(), "clat.toml"))?;
        Args::try_parse_from(merged).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_and_a_command_line() {
        let text = "auto = true\noffload = false\nuplink = [\"a\", \"b\"]\nlevel = 3\n";
        let args = parse(text, &[]).expect("parsed");
        assert!(args.auto && args.no_offload && !args.offload);
        assert_eq!((args.level, args.uplink), (3, vec!["a".to_owned(), "b".to_owned()]));
        let args = parse(text, &["--level", "4", "--uplink", "c", "--offload"]).expect("parsed");
        assert!(args.offload && !args.no_offload);
        assert_eq!((args.level, args.uplink.len()), (4, 3));
        let args = parse("", &[]).expect("parsed");
        assert_eq!((args.level, args.auto), (7, false));
        assert_eq!(parse("uplink = \"a\"\nauto = true", &[]).expect("parsed").uplink, ["a"]);
    }

    #[test]
    fn what_is_wrong_and_where() {
        for (text, said) in [
            ("auto = true\n  uplnk = [\"a\"]\n", "clat.toml:2:3: uplnk is no option; uplink is"),
            ("nonsense = 1", "clat.toml:1:1: nonsense is no option"),
            ("secret = true", "clat.toml:1:1: secret is no option"),
            ("config = \"x\"", "clat.toml:1:1: config is no option"),
            ("auto = 1", "clat.toml:1:8: auto is true or false"),
            ("level = true", "clat.toml:1:9: level takes a text or a number"),
            ("level = [1]", "clat.toml:1:9: level takes one value"),
            (
                "level = 300",
                "clat.toml:1:9: invalid value '300' for '--level <LEVEL>': 300 is not in 0..=255",
            ),
            ("[auto]\nx = 1", "clat.toml:1:1: auto is true or false"),
        ] {
            let e = parse(text, &[]).expect_err(text);
            assert_eq!(e, said, "{text}");
        }
        for text in ["auto = ", "auto = true\nauto = true", "= 1", "\u{0}"] {
            let e = parse(text, &[]).expect_err(text);
            assert!(e.starts_with("clat.toml:") && !e.contains('\n'), "{e}");
        }
    }
}
