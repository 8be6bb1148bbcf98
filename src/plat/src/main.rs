// SPDX-License-Identifier: Apache-2.0

//! `platd`: parses the command line, does what it says, says in one line what went wrong.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clat_plat::cli::{Cli, Command};
use clat_plat::{daemon, status};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A command's own words should stand out.
    let quiet = matches!(
        cli.command,
        Some(Command::Run { .. } | Command::NetnsHelper(_) | Command::Init(_))
    );
    let level = if quiet { "warn" } else { "info" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format(|out, record| writeln!(out, "platd: {}", record.args()))
        .init();
    let result = match &cli.command {
        None => daemon::serve(&cli.link, &cli.net),
        Some(Command::Run { net, no_pid_ns, command }) => {
            daemon::run_command(net, command, !no_pid_ns)
        }
        Some(Command::Status { socket, json }) => show(socket, *json),
        Some(Command::NetnsHelper(helper)) => helper.run(),
        Some(Command::Init(init)) => init.run(),
    };
    result.unwrap_or_else(|error| {
        // A closed stderr must not make it worse.
        let _ = writeln!(std::io::stderr(), "platd: {error:#}");
        ExitCode::FAILURE
    })
}

fn show(socket: &std::path::Path, json: bool) -> anyhow::Result<ExitCode> {
    let status = status::ask(socket)?;
    let text = if json { serde_json::to_string_pretty(&status)? + "\n" } else { status.to_text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
