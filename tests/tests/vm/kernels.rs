// SPDX-License-Identifier: Apache-2.0

//! The BPF programs on the oldest supported kernel and on a newer one, against the translator:
//! Debian's of 11 and 13. That of Debian 12 is in the virtual device.

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::device::add_rulebook;
use crate::fetch;
use crate::image::Image;
use crate::machine::{all_ok, can_boot, Machine};

/// In the machine, besides what every one has.
const PROGRAMS: &[&str] = &["ethtool"];
const MODULES: &[&str] = &["veth", "cls_u32"];

fn rulebook_on(suite: &str) -> Result<()> {
    if !can_boot(&[PROGRAMS, &["clang"]]) {
        return Ok(());
    }
    let kernel = fetch::kernel_of(suite)?;
    let folder = TempDir::new()?;
    let mut image = Image::new(folder.path().join("root"), PROGRAMS)?;
    add_rulebook(&mut image, folder.path())?;
    image.script("kernels.sh")?;
    image.modules(&kernel, MODULES)?;
    let initramfs = folder.path().join("initramfs");
    image.pack(&initramfs)?;
    let run = folder.path().join("run");
    let report = Machine::boot(&kernel, &initramfs, &run, &["-m", "1024"])?.end()?;
    all_ok(&report, "kernels.sh").context(kernel.release)
}

#[test]
fn the_rulebook_on_linux_5_10() -> Result<()> {
    rulebook_on("bullseye")
}

#[test]
fn the_rulebook_on_linux_6_12() -> Result<()> {
    rulebook_on("trixie")
}
