// SPDX-License-Identifier: Apache-2.0

//! Tests across crates: the network lab, with namespaces and veths ([`Lab`]), real programs in
//! them, and handmade and captured packets ([`packet`], [`wire`]).
//!
//! ```text
//!   phone (IPv6 only)        router (IPv6 only)                internet
//!   up0 2001:db8:1::2/64 --- ph0 ::1 · in0 2001:db8:ff::1 --- net0 ::2, owns every address
//!   up1 2001:db8:2::2/64 --- ph1 ::1                                    in the prefixes
//! ```
//!
//! The internet namespace has the IPv6 addresses inside the prefixes itself, so that no NAT64 is
//! needed: for any IPv4 literal that the phone uses, a socket of the internet namespace answers.

pub mod change;
mod clat;
pub mod conformance;
mod lab;
mod link;
mod netns;
pub mod packet;
mod router;
pub mod wire;

pub use clat::{install, program, Clat, Controller, Mode};
pub use lab::{Lab, Uplink, PREFIX, PREFIX2, SERVER4, SERVER6, UPLINK6};
pub use link::Offloads;
pub use netns::{Daemon, Netns};
pub use router::Router;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clap::CommandFactory;

/// What unprivileged networks need of the kernel, for [`can_run`]; a plain chroot has none.
pub const USER_NAMESPACES: &str = "user namespaces";

/// Whether this machine has a program or another requirement.
fn has(need: &str) -> bool {
    if need == USER_NAMESPACES {
        let tried = Command::new("unshare").args(["--user", "true"]).output();
        return tried.is_ok_and(|output| output.status.success());
    }
    netns::which(need).is_some()
}

/// Whether the lab can run here. If not, says so on stderr despite the test runner's capture; under
/// `CI=true` that is a failure.
///
/// # Panics
/// Under `CI=true` if the lab cannot run.
#[must_use]
pub fn can_run(needs: &[&str]) -> bool {
    let missing = if nix::unistd::geteuid().is_root() {
        needs.iter().copied().find(|need| !has(need))
    } else {
        Some("root")
    };
    let Some(missing) = missing else { return true };
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Not eprintln!, which the test runner captures for tests that pass.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: needs {missing}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} needs {missing}");
    false
}

/// Waits until it is so, and prints how long that took: 20 s at most, far longer than any step
/// takes.
///
/// # Errors
/// Those of `is_so`, and if it does not become so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
    eprintln!("{what}: after {:?}", begun.elapsed());
    Ok(())
}

/// The objects made of bpf_progs/clatd.c for tests, with clang's options: ours, and one for libbpf
/// whose entries have the counters of clatrs.o.
pub const BPF_OBJECTS: [(&str, &[&str]); 2] =
    [("clatd.o", &["-Wextra"]), ("counting.o", &["-Wextra", "-DCLAT_COUNT_IN_ENTRY"])];

/// Compiles BPF programs with additional options. Paths begin at the repository.
///
/// # Errors
/// The error of clang.
pub fn compile_bpf(source: &Path, options: &[&str], object: &Path) -> Result<()> {
    // Debian has asm/ in a folder of the architecture, which clang does not search for the bpf
    // target.
    let include = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let output = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-Wall", "-Werror", &include])
        .args(options)
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(object)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .context("clang")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The command lines of all programs, with the sections of their manual pages.
#[must_use]
pub fn command_lines() -> [(clap::Command, &'static str); 4] {
    [
        (clatctl::command(), "1"),
        (clat_plat::cli::Cli::command(), "1"),
        (clat_controller::args::Args::command(), "8"),
        (clatd::args::Args::command(), "8"),
    ]
}
