// SPDX-License-Identifier: Apache-2.0

//! Compiles the tc programs, and generates what loads them.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use libbpf_cargo::SkeletonBuilder;

const PROGRAMS: &str = "../../bpf_progs";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed={PROGRAMS}");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    // Where Debian keeps asm/, which clang does not look for when it compiles for BPF.
    let headers = format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH);
    // The builder insists on a name that Soong would not take.
    let source = out.join("clatd.bpf.c");
    fs::write(&source, "#include \"clatd.c\"\n")?;
    let programs = format!("-I{}", fs::canonicalize(PROGRAMS).context(PROGRAMS)?.display());
    SkeletonBuilder::new()
        .source(source)
        .obj(out.join("clatd.bpf.o"))
        .clang_args([programs.as_str(), &headers, "-Wall", "-Werror"])
        .build_and_generate(out.join("clatd.skel.rs"))
        .context("cannot compile bpf_progs/clatd.c (on Debian: apt-get install clang libelf-dev zlib1g-dev)")
}
