// SPDX-License-Identifier: Apache-2.0

//! `platd`: parses the command line, runs the command, and reports errors in one line.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use clat_plat::cli::{Cli, Command, ForwardAction, NetAction};
use clat_plat::forward::{Forward, Port};
use clat_plat::{control, daemon, net, profile, status};

fn main() -> ExitCode {
    let cli = match profile::expand(std::env::args_os()) {
        Ok(arguments) => Cli::parse_from(arguments),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "platd: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    // Keeps the output of the command itself visible.
    let quiet = matches!(
        cli.command,
        Some(
            Command::Run { .. }
                | Command::Forward { .. }
                | Command::Net { .. }
                | Command::NetnsHelper(_)
                | Command::Init(_)
        )
    );
    let level = if quiet { "warn" } else { "info" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format(|out, record| writeln!(out, "platd: {}", record.args()))
        .init();
    let result = match &cli.command {
        None => daemon::serve(&cli.link, &cli.process, &cli.net),
        Some(Command::Run { net, no_pid_ns, command }) => {
            daemon::run_command(net, command, !no_pid_ns)
        }
        Some(Command::Status { socket, json }) => show(socket, *json),
        Some(Command::Forward { action }) => forward(action),
        Some(Command::Net { action }) => match action {
            NetAction::Up { network, net, ready_fd } => daemon::net_up(network, net, *ready_fd),
            NetAction::Join { network, name, no_pid_ns, netns, command } => {
                net::join(network, name.as_ref(), netns.as_deref(), (command, !no_pid_ns))
            }
            NetAction::Down { network } => net::down(network),
            NetAction::List => net::list().and_then(|text| print(&text)),
        },
        Some(Command::Man) => manual(),
        Some(Command::NetnsHelper(helper)) => helper.run(),
        Some(Command::HostHelper(helper)) => helper.run(),
        Some(Command::Init(init)) => init.run(),
    };
    result.unwrap_or_else(|error| {
        // stderr may be closed.
        let _ = writeln!(std::io::stderr(), "platd: {error:#}");
        ExitCode::FAILURE
    })
}

fn show(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let status = status::ask(socket)?;
    print(&if json { serde_json::to_string_pretty(&status)? + "\n" } else { status.to_text() })
}

fn forward(action: &ForwardAction) -> anyhow::Result<ExitCode> {
    let each = |socket: &Path, forwards: &[Forward], act: fn(&Path, &Forward) -> _| {
        let done = forwards.iter().map(|forward| act(socket, forward));
        anyhow::Ok(done.collect::<anyhow::Result<Vec<Vec<Port>>>>()?.concat())
    };
    let ports = match action {
        ForwardAction::Add { socket, ports } => each(socket, ports, control::add)?,
        ForwardAction::Remove { socket, ports } => each(socket, ports, control::remove)?,
        ForwardAction::List { socket } => control::list(socket)?,
    };
    print(&ports.iter().map(|port| format!("{port}\n")).collect::<String>())
}

/// The command and its subcommands on one page.
fn manual() -> anyhow::Result<ExitCode> {
    let mut command = Cli::command();
    // Gives subcommands their full names.
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    subcommands(&command, &mut page)?;
    print(&String::from_utf8(page)?)
}

fn subcommands(command: &clap::Command, page: &mut Vec<u8>) -> anyhow::Result<()> {
    let all = command.get_subcommands();
    for subcommand in all.filter(|command| !command.is_hide_set() && command.get_name() != "help") {
        let section = clap_mangen::Man::new(subcommand.clone());
        section.render_synopsis_section(page)?;
        section.render_description_section(page)?;
        section.render_options_section(page)?;
        subcommands(subcommand, page)?;
    }
    Ok(())
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader, such as `head`, has read enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
        written => written.context("cannot write")?,
    }
    Ok(ExitCode::SUCCESS)
}
