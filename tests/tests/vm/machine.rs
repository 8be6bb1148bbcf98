// SPDX-License-Identifier: Apache-2.0

//! A machine emulated by QEMU.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Result};
use clat_tests::can_run;

use crate::fetch::Kernel;
use crate::image::{source, PROGRAMS};

/// Timeout of booting and all steps; the longest takes two minutes on two idle cores.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Where a machine is built and boots.
const NEEDS: &[&str] =
    &["qemu-system-x86_64", "busybox", "cpio", "modprobe", "xz", "apt-get", "strip"];

/// Whether that is possible here, and its requirements and `more` exist.
pub(crate) fn can_boot(more: &[&[&str]]) -> bool {
    can_run(&[&[NEEDS, PROGRAMS][..], more].concat().concat())
}

/// A machine that runs; killed on drop.
pub(crate) struct Machine {
    qemu: Child,
    folder: PathBuf,
    begin: Instant,
}

impl Machine {
    /// Boots one that writes into `folder`, with more of QEMU's options.
    pub(crate) fn boot(
        kernel: &Kernel,
        initramfs: &Path,
        folder: &Path,
        options: &[&str],
    ) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let log = File::create(folder.join("console"))?;
        let qemu = Command::new("qemu-system-x86_64")
            // With one thread: code patched by the kernel on one processor may be seen too late by
            // the other if both run at once, which then dies of the temporary int3 (seen on Linux
            // 6.12).
            .args(["-accel", "tcg,thread=single", "-cpu", "max", "-M", "q35", "-smp", "2"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel.root.join("boot").join(format!("vmlinuz-{}", kernel.release)))
            .arg("-initrd")
            .arg(initramfs)
            // On a busy host, an emulated timer may be too late for the test that no_timer_check
            // skips.
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 oops=panic mitigations=off random.trust_cpu=on \
                 no_timer_check",
            ])
            .args(["-serial", "stdio"])
            .args(["-serial", &format!("file:{}", folder.join("report").display())])
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { qemu, folder: folder.to_owned(), begin: Instant::now() })
    }

    /// Its report so far.
    pub(crate) fn report(&self) -> String {
        let report = fs::read_to_string(self.folder.join("report")).unwrap_or_default();
        report.replace('\r', "")
    }

    /// Waits until it has reported `text`, or has ended.
    pub(crate) fn wait_for(&mut self, text: &str) -> Result<()> {
        while !self.report().contains(text) {
            if self.qemu.try_wait()?.is_some() || self.begin.elapsed() > PATIENCE {
                bail!(
                    "the machine never reported {text:?}, but:\n{}{}",
                    self.report(),
                    self.console()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Waits for its end; returns its report.
    pub(crate) fn end(mut self) -> Result<String> {
        self.wait_for("end\n")?;
        while self.qemu.try_wait()?.is_none() {
            ensure!(self.begin.elapsed() < PATIENCE, "the machine does not power off");
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("{}{}{} s", self.console(), self.report(), self.begin.elapsed().as_secs());
        Ok(self.report())
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(())
    }

    fn console(&self) -> String {
        let console = fs::read(self.folder.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Whether all steps of `script` succeeded.
pub(crate) fn all_ok(report: &str, script: &str) -> Result<()> {
    let failed: Vec<_> = report.lines().filter(|line| line.starts_with("FAILED")).collect();
    ensure!(failed.is_empty(), "{failed:#?}");
    // As many as in the script, so that none is silently missing.
    let tries = fs::read_to_string(source(script))?;
    let tries = tries.lines().filter(|line| line.trim_start().starts_with("try ")).count();
    let ok = report.lines().filter(|line| line.starts_with("OK ")).count();
    ensure!(ok == tries, "{ok} of {tries} tries");
    Ok(())
}
