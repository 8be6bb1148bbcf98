// SPDX-License-Identifier: Apache-2.0
//! netd's side (android/netd), compiled against headers that AOSP's AIDL compiler makes of aidl/
//! and a substitute for libbinder's (tests/netd/include), and run with a service that records its
//! calls.

use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Result};
use clat_tests::can_run;

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn the_glue_tells_the_service() -> Result<()> {
    if !can_run(&["aidl", "g++", "clang++"]) {
        return Ok(());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = tempfile::tempdir()?;
    let made = folder.path();
    run(Command::new("sh")
        .args([
            "-ec",
            "aidl --structured --lang=cpp -I . -o $0 -h $0 $(find android -name '*.aidl')",
        ])
        .arg(made)
        .current_dir(root.join("aidl")))?;
    let compile = |compiler: &str, standard: &str| {
        let mut command = Command::new(compiler);
        command.current_dir(&root).args([standard, "-Wall", "-Wextra", "-Werror"]);
        command.args(["-I", "tests/netd/include", "-I", "android/netd", "-I"]).arg(made);
        command.arg("android/netd/ClatService.cpp");
        command
    };
    run(compile("clang++", "-std=c++17").arg("-fsyntax-only"))?;
    let program = made.join("glue_test");
    run(compile("g++", "-std=c++20").arg("tests/netd/glue_test.cpp").arg("-o").arg(&program))?;
    run(&mut Command::new(program))
}
