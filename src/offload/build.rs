// SPDX-License-Identifier: Apache-2.0

//! Compiles the tc programs.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Context, Result};

const PROGRAMS: &str = "../../bpf_progs";
const HELP: &str = "cannot compile bpf_progs/clatd.c (on Debian: apt-get install clang libbpf-dev)";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed={PROGRAMS}");
    let out = env::var_os("OUT_DIR").context("OUT_DIR is not set")?;
    let source = fs::canonicalize(PROGRAMS).context(PROGRAMS)?.join("clatd.c");
    // Debian's directory of asm/, which clang does not search when it compiles for BPF.
    let headers = format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH);
    let compiled = Command::new("clang")
        .args(["-target", "bpf", "-g", "-O2", "-Wall", "-Werror", headers.as_str(), "-c"])
        .arg(source)
        .arg("-o")
        .arg(Path::new(&out).join("clatd.o"))
        .status()
        .context(HELP)?;
    ensure!(compiled.success(), HELP);
    Ok(())
}
