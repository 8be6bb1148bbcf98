// SPDX-License-Identifier: Apache-2.0

//! Parts of the virtual device from Debian or crates.io: fetched once, kept in `target`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{ensure, Context, Result};

use crate::image::source;

/// Where it is kept.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm")
}

/// Runs a command in a folder; returns its output.
pub(crate) fn sh(folder: &Path, command: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", command]).current_dir(folder).output()?;
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    ensure!(output.status.success(), "{command}: {out}{err}");
    Ok(out.into_owned())
}

/// Makes `folder` by `make`, unless it exists completely.
fn once(folder: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let unfinished = folder.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished)?;
    make(&unfinished)?;
    Ok(fs::rename(&unfinished, folder)?)
}

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// The folder with `boot` and `lib/modules`.
    pub(crate) root: PathBuf,
    /// Its release, `6.1.0-56-amd64`.
    pub(crate) release: String,
}

static ONE: Mutex<()> = Mutex::new(());

/// Debian's present stock kernel, by its meta package.
pub(crate) fn kernel() -> Result<Kernel> {
    let newest = "apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \
        \\(linux-image-[0-9].*\\)/\\1/p'";
    let mut package = sh(Path::new("/"), newest)?.trim().to_owned();
    if package.is_empty() {
        sh(Path::new("/"), "apt-get update -qq")?;
        sh(Path::new("/"), newest)?.trim().clone_into(&mut package);
    }
    let release = package.strip_prefix("linux-image-").context("no linux-image-amd64")?.to_owned();
    // Concurrent tests fetch the same.
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let root = cache().join(&package);
    once(&root, |root| {
        let script = source("fetch_kernel.sh");
        sh(root, &format!("{} {package} {release}", script.display())).map(drop)
    })?;
    Ok(Kernel { root, release })
}

/// The stock kernel of another of Debian's suites.
pub(crate) fn kernel_of(suite: &str) -> Result<Kernel> {
    let root = cache().join(format!("kernel-{suite}"));
    let script = source("fetch_suite_kernel.sh");
    once(&root, |root| sh(root, &format!("{} {suite}", script.display())).map(drop))?;
    let release = sh(&root, "ls lib/modules")?.trim().to_owned();
    Ok(Kernel { root, release })
}

/// A disk with Debian 12 and systemd, which nobody writes to.
pub(crate) fn debian() -> Result<PathBuf> {
    let root = cache().join("debian");
    once(&root, |root| sh(root, &source("fetch_debian.sh").to_string_lossy()).map(drop))?;
    Ok(root.join("disk.ext4"))
}

/// A service manager for kernel binder and a dumpsys: the folder of `rsb_hub` and `rsb_service`, as
/// new as our rsbinder.
pub(crate) fn tools() -> Result<PathBuf> {
    let root = cache().join("rsbinder-tools-0.12.0");
    once(&root, |root| {
        let command = format!(
            "CARGO_TARGET_DIR={} {} install --quiet --locked --version 0.12.0 --root . \
                rsbinder-tools",
            cache().join("build").display(),
            env!("CARGO"),
        );
        sh(root, &command).map(drop)
    })?;
    Ok(root.join("bin"))
}

/// A root with Debian sid's libgbinder and all that it needs (it is not in Debian 12), and our
/// program `foreign` in it.
pub(crate) fn foreign(program: &Path) -> Result<PathBuf> {
    let root = cache().join("sid");
    once(&root, |root| sh(root, &source("fetch_sid.sh").to_string_lossy()).map(drop))?;
    sh(&root, &format!("{} {}", source("build_foreign.sh").display(), program.display()))?;
    Ok(root)
}
