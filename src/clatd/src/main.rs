// SPDX-License-Identifier: Apache-2.0

//! `clatd`: parses the command line, runs the daemon, says in one line what went wrong.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use clatd::args::{named, Args};
use clatd::daemon;
use clatd::neighbour::Duplicate;

/// The exit code when another node has the CLAT's IPv6 address: only another address helps.
const DUPLICATE: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse_from(named(std::env::args_os()));
    let name = format!("clatd-{}", args.interface);
    init_log(&name);
    match daemon::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            daemon::say(&format!("{name}: {error:#}"));
            ExitCode::from(if error.is::<Duplicate>() { DUPLICATE } else { 1 })
        }
    }
}

/// Logs to Android's log, since nobody reads stderr there, under the tag of AOSP's clatd.
#[cfg(target_os = "android")]
fn init_log(_: &str) {
    let config =
        android_logger::Config::default().with_tag("clatd").with_max_level(log::LevelFilter::Info);
    android_logger::init_once(config);
}

#[cfg(not(target_os = "android"))]
fn init_log(name: &str) {
    use std::io::Write;

    let name = name.to_owned();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format(move |out, record| writeln!(out, "{name}: {}", record.args()))
        .init();
}
