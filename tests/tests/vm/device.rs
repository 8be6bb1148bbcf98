// SPDX-License-Identifier: Apache-2.0

//! The virtual device: a stock kernel with the binder driver. The service is called over
//! `/dev/binder`, by our clients and by a foreign one, with real TUN, tc and BPF; `device.sh` has
//! the steps.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};
use clat_tests::{compile_bpf, BPF_OBJECTS};
use serde_json::Value;
use tempfile::TempDir;

use crate::fetch::{self, sh, Kernel};
use crate::image::{source, Image};
use crate::machine::{all_ok, can_boot, Machine};

/// Programs in the device, beside those of every machine.
const PROGRAMS: &[&str] = &["bash", "setpriv", "ethtool"];
const MODULES: &[&str] = &["binder_linux", "veth", "cls_u32"];

/// The workspace's test programs that run in the device, copied to `folder`: the contract of the
/// service, and the rulebook. Without debug information, which is most of them: the device has its
/// files in memory.
fn tests(folder: &Path) -> Result<[PathBuf; 2]> {
    // Built for the whole workspace; else other features of crates would need another build.
    let output = Command::new(env!("CARGO"))
        .args(["test", "--workspace", "--locked", "--no-run", "--message-format=json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "cargo test --no-run: {}", output.status);
    let messages: Vec<Value> = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let find = |root: &str, name: &str| -> Result<PathBuf> {
        let built = messages.iter().find(|message| {
            let source = message["target"]["src_path"].as_str().unwrap_or_default();
            source.ends_with(root) && message["executable"].is_string()
        });
        let built =
            built.and_then(|built| built["executable"].as_str()).context(root.to_owned())?;
        sh(folder, &format!("strip --strip-debug -o {name} {built}"))?;
        Ok(folder.join(name))
    };
    let service = find("src/controller/tests/service/main.rs", "service")?;
    Ok([service, find("tests/tests/rulebook.rs", "rulebook")?])
}

/// Adds the rulebook and the programs, compiled in `folder`; returns the contract of the service,
/// which is built with it.
pub(crate) fn add_rulebook(image: &mut Image, folder: &Path) -> Result<PathBuf> {
    let [service, rulebook] = tests(folder)?;
    image.program(&rulebook, "/usr/local/bin/rulebook")?;
    for (name, options) in BPF_OBJECTS {
        let object = folder.join(name);
        compile_bpf("bpf_progs/clatd.c".as_ref(), options, &object)?;
        image.put(&object, &format!("/{name}"))?;
    }
    Ok(service)
}

fn image(kernel: &Kernel, folder: &Path) -> Result<PathBuf> {
    let mut image = Image::new(folder.join("root"), PROGRAMS)?;
    image.clat()?;
    let tools = fetch::tools()?;
    for name in ["rsb_hub", "rsb_service"] {
        image.program(&tools.join(name), &format!("/usr/local/bin/{name}"))?;
    }
    let service = add_rulebook(&mut image, folder)?;
    image.program(&service, "/usr/local/bin/service")?;
    image.folder(&fetch::foreign(&source("foreign.c"))?, "/sid")?;
    image.script("device.sh")?;
    image.modules(kernel, MODULES)?;
    let archive = folder.join("initramfs");
    image.pack(&archive)?;
    Ok(archive)
}

#[test]
fn the_virtual_device() -> Result<()> {
    if !can_boot(&[PROGRAMS, &["gcc", "pkg-config", "clang"]]) {
        return Ok(());
    }
    let kernel = fetch::kernel()?;
    let folder = TempDir::new()?;
    let initramfs = image(&kernel, folder.path())?;
    let report =
        Machine::boot(&kernel, &initramfs, &folder.path().join("run"), &["-m", "1024"])?.end()?;
    all_ok(&report, "device.sh").context(kernel.release)
}
