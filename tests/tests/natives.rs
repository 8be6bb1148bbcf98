// SPDX-License-Identifier: Apache-2.0
//! The natives by their C ABI: a C program (tests/natives) linked with the static library, as
//! AOSP's C++ is.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, program, Lab, Offloads};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The static library that Cargo has built for this test: the newest of its name.
fn library() -> Result<PathBuf> {
    let folder = std::env::current_exe()?;
    let folder = folder.parent().context("no folder")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("libclat_natives") && name.ends_with(".a") {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    Ok(found.into_iter().max().context("no libclat_natives.a")?.1)
}

/// Compiles the program against the header, strictly, and links it.
fn compile(to: &Path) -> Result<()> {
    let output = Command::new("gcc")
        .current_dir(repository())
        .args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .args(["-I", "src/natives/include", "tests/natives/natives_test.c"])
        .arg(library()?)
        .args(["-lm", "-lpthread", "-ldl", "-o"])
        .arg(to)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_c_program_calls_them_all() -> Result<()> {
    if !can_run(&["gcc", "ip"]) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let test = lab.dir().join("natives_test");
    compile(&test)?;
    let output = lab.phone.command(&[&test]).env("CLATD", program("clatd")?).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// system_server and the module have neither libbpf nor a second binder library.
#[test]
fn it_has_neither_libbpf_nor_binder() -> Result<()> {
    if !can_run(&["nm"]) {
        return Ok(());
    }
    let output = Command::new("nm").arg("--quiet").arg(library()?).output()?;
    let symbols = String::from_utf8_lossy(&output.stdout);
    ensure!(symbols.contains(" T clat_start_clatd"), "no natives in it");
    for foreign in ["bpf_object__open", "libbpf", "rsbinder", "serde_json"] {
        ensure!(!symbols.contains(foreign), "{foreign} is in it");
    }
    Ok(())
}

/// The header is also valid C++, as for AOSP.
#[test]
fn the_header_is_cpp() -> Result<()> {
    if !can_run(&["g++"]) {
        return Ok(());
    }
    let output = Command::new("g++")
        .current_dir(repository())
        .args(["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++"])
        .args(["-include", "src/natives/include/clat_natives.h", "/dev/null"])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
