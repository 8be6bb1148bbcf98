// SPDX-License-Identifier: Apache-2.0

//! `clatd`: parses the command line, runs the daemon, says in one line what went wrong.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clatd::args::Args;
use clatd::daemon;
use clatd::neighbour::Duplicate;

/// The exit code when another node has the CLAT's IPv6 address: only another address helps.
const DUPLICATE: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse();
    let name = format!("clatd-{}", args.interface);
    let prefix = name.clone();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format(move |out, record| writeln!(out, "{prefix}: {}", record.args()))
        .init();
    match daemon::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed stderr must not make it worse.
            let _ = writeln!(std::io::stderr(), "{name}: {error:#}");
            ExitCode::from(if error.is::<Duplicate>() { DUPLICATE } else { 1 })
        }
    }
}
