// SPDX-License-Identifier: Apache-2.0

//! The command line of clat: starts, stops and shows CLATs through the controller's binder service,
//! checks what a machine lacks for a CLAT, and translates capture files.
//!
//! Exit codes are part of the interface (`docs/clatctl.md`): 0 done, 1 failed, 2 usage, 3
//! controller not reachable.
#![forbid(unsafe_code)]

mod client;
#[cfg(not(target_os = "android"))]
mod discover;
mod doctor;
mod status;
mod translate;

#[cfg(fuzzing)]
pub use translate::translate_bytes;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use clat_controller::binder_adapter::Transport;
use clat_sys::whole;
use clat_xlat::Prefix;
use client::Client;

/// The operation failed.
const FAILED: u8 = 1;
/// Invalid arguments; clap exits with the same code.
const USAGE: u8 = 2;
/// No controller answers on the socket.
const UNREACHABLE: u8 = 3;

/// Why a subcommand ends with an exit code other than 0.
#[derive(Debug)]
struct Failure {
    code: u8,
    /// One line for people; empty if there is nothing to say or no reader.
    message: String,
}

impl Failure {
    fn usage(message: impl fmt::Display) -> Self {
        Self { code: USAGE, message: message.to_string() }
    }

    fn unreachable(message: impl fmt::Display) -> Self {
        Self { code: UNREACHABLE, message: message.to_string() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(err: anyhow::Error) -> Self {
        // A closed pipe, as in `clatctl … | head`, is no error to report.
        let pipe = err
            .downcast_ref::<io::Error>()
            .is_some_and(|err| err.kind() == io::ErrorKind::BrokenPipe);
        let message = if pipe { String::new() } else { format!("{err:#}") };
        Self { code: FAILED, message }
    }
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        anyhow::Error::from(err).context("standard output").into()
    }
}

const EXAMPLES: &str = "\
Examples:
  clatctl discover                                 which NAT64 prefix this network has
  clatctl doctor                                   what this machine lacks for a CLAT
  clatctl start wlan0 --prefix 64:ff9b::/96        IPv4 on an IPv6-only network
  clatctl status --watch                           what runs, with rates
  clatctl translate --prefix 64:ff9b::/96 --explain in.pcap out.pcap

Exit status: 0 done, 1 failed, 2 wrong usage, 3 the controller cannot be reached.";

/// IPv4 over an IPv6-only network (464XLAT): controls and inspects CLATs.
#[derive(Parser)]
#[command(name = "clatctl", version, max_term_width = 120, after_help = EXAMPLES)]
struct Cli {
    /// Reach the controller on this Unix socket [default: by kernel binder where it is registered
    /// there, else on /run/clat/controller.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Reach the controller by kernel binder
    #[arg(long, global = true, conflicts_with = "socket")]
    binder: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a CLAT on an IPv6-only interface and print its IPv6 address
    #[command(after_help = "Example:\n  clatctl start wlan0 --prefix 64:ff9b::/96")]
    Start {
        /// The uplink, for example wlan0
        iface: String,
        /// The network's NAT64 prefix with its length, a /96
        #[arg(long, value_name = "PREFIX/96")]
        prefix: String,
        /// Seconds to wait for an uplink without IPv6 to get it, instead of failing at once
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        #[arg(value_parser = whole(0..=86_400_u32))]
        wait: u32,
    },
    /// Stop the CLAT of an interface
    Stop {
        /// The uplink that start was given
        iface: String,
    },
    /// Show the controller and the CLATs that run
    Status(status::Args),
    /// Print the controller's dump, as dumpsys does
    Dump {
        /// Arguments as for dumpsys behind the service's name: --json for the status as JSON
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Print events of CLATs as they happen, one per line
    Events {
        /// Print JSON, one object per line
        #[arg(long)]
        json: bool,
    },
    /// Check what this machine lacks for a CLAT, and print the commands that fix it
    #[command(
        after_help = "Exit status: 0 when all that is needed is there, else 1. Run it as root: \
                      some questions the kernel answers only then."
    )]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a network's NAT64 prefix, its source, and whether a CLAT is needed
    #[cfg(not(target_os = "android"))]
    Discover(discover::Args),
    /// Say whether a CLAT would work on an interface, even if that has IPv4: for DHCPv4 clients
    /// that may do without IPv4 (RFC 8925)
    #[cfg(not(target_os = "android"))]
    Ready(discover::Ready),
    /// Translate a capture file between IPv4 and IPv6 (RFC 7915), both directions at once
    Translate(Box<translate::Args>),
    /// Print the completion script for a shell
    #[command(hide = true)]
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

/// The command line, for manual pages.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the arguments of the process, runs the command and returns its exit code.
#[must_use]
pub fn run() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(Failure { code, message }) => {
            complain(&message);
            ExitCode::from(code)
        }
    }
}

/// Prints one line to stderr; a closed stderr is no reason to fail.
fn complain(message: &str) {
    if !message.is_empty() {
        let _ = writeln!(io::stderr(), "clatctl: {message}");
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    let transport = match cli.socket {
        Some(socket) => Some(Transport::Rpc(socket)),
        None => cli.binder.then_some(Transport::Binder),
    };
    let transport = transport.as_ref();
    match cli.command {
        Command::Start { iface, prefix, wait } => {
            if let Err(e) = prefix.parse::<Prefix>() {
                return Err(Failure::usage(format!("--prefix {prefix:?}: {e}")));
            }
            let client = Client::connect(transport)?;
            let v6 = client.start(&iface, &prefix, Duration::from_secs(wait.into()))?;
            writeln!(out, "{v6}")?;
            let clats = client.status()?.clats;
            let clat = clats.iter().find(|clat| clat.iface == iface);
            // The device does not have the expected name.
            if let Some(clat) = clat.filter(|clat| clat.v4iface != format!("v4-{iface}")) {
                complain(&format!("{iface}: its IPv4 device is called {}", clat.v4iface));
            }
        }
        Command::Stop { iface } => Client::connect(transport)?.stop(&iface)?,
        Command::Status(args) => status::run(&args, &Client::connect(transport)?, &mut out)?,
        Command::Dump { args } => {
            out.write_all(Client::connect(transport)?.dump(&args)?.as_bytes())?;
        }
        Command::Events { json } => Client::listen(transport, |event| {
            if json {
                writeln!(out, "{}", event.json)?;
            } else {
                writeln!(out, "{}", event.text)?;
            }
            out.flush()
        })?,
        Command::Doctor { json } => return doctor::run(transport, json, &mut out),
        #[cfg(not(target_os = "android"))]
        Command::Discover(args) => return discover::run(&args, &mut out),
        #[cfg(not(target_os = "android"))]
        Command::Ready(args) => discover::ready(&args, &mut out)?,
        Command::Translate(args) => return translate::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "clatctl", &mut script);
            out.write_all(&script)?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
