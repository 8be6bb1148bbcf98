// SPDX-License-Identifier: Apache-2.0

//! `clatd`: parses the command line, runs the daemon, and prints its error in one line.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clat_sys::{adopt, ERROR_FD};
use clatd::args::{named, Args};
use clatd::neighbour::Duplicate;
use clatd::{daemon, logging};

/// The exit code if another node has the CLAT's IPv6 address: the CLAT needs another one.
const DUPLICATE: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse_from(named(std::env::args_os()));
    let name = format!("clatd-{}", args.interface);
    logging::init(&name);
    let listener = listener();
    match daemon::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::say(&format!("{name}: {error:#}"));
            // A controller may have ended before.
            let _ = listener.map(|mut listener| writeln!(listener, "{error:#}"));
            ExitCode::from(if error.is::<Duplicate>() { DUPLICATE } else { 1 })
        }
    }
}

/// Who has started this process, where that listens.
fn listener() -> Option<File> {
    let number = std::env::var(ERROR_FD).ok()?.parse().ok()?;
    adopt(number).ok().map(File::from)
}
