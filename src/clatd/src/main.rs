// SPDX-License-Identifier: Apache-2.0

//! `clatd`: parses the command line, runs the daemon, says in one line what went wrong.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use clatd::args::{named, Args};
use clatd::neighbour::Duplicate;
use clatd::{daemon, logging};

/// The exit code when another node has the CLAT's IPv6 address: only another address helps.
const DUPLICATE: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse_from(named(std::env::args_os()));
    let name = format!("clatd-{}", args.interface);
    logging::init(&name);
    match daemon::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::say(&format!("{name}: {error:#}"));
            ExitCode::from(if error.is::<Duplicate>() { DUPLICATE } else { 1 })
        }
    }
}
