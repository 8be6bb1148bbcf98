// SPDX-License-Identifier: Apache-2.0

//! Helpers for checks: programs, packages, and a temporary network namespace for experiments.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{unshare, CloneFlags};

use super::{Answer, Problem};

/// Where programs are searched after $PATH: services and sudo have more folders than a user's
/// shell.
const FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The path of a program.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| is_program(file))
}

/// Whether this user may run that file.
pub(super) fn is_program(file: &Path) -> bool {
    file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// A program that must be installed, with its package under the names of apt, dnf, pacman and apk.
pub(super) fn program(program: &str, packages: [&str; 4]) -> Answer {
    match find(program) {
        Some(path) => Ok(path.display().to_string()),
        None => Err(Problem::missing("not found", install(packages))),
    }
}

/// The command that installs a package here.
pub(super) fn install([apt, dnf, pacman, apk]: [&str; 4]) -> String {
    if find("dnf").is_some() {
        format!("dnf install -y {dnf}")
    } else if find("pacman").is_some() {
        format!("pacman -S --noconfirm {pacman}")
    } else if find("apk").is_some() {
        format!("apk add {apk}")
    } else {
        format!("apt-get install -y {apt}")
    }
}

/// The value of a sysctl, with `/` for dots in its name.
pub(super) fn sysctl(name: &str) -> Option<String> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Runs `question` in a temporary network namespace.
pub(super) fn in_namespace<T: Send>(question: impl FnOnce() -> T + Send) -> nix::Result<T> {
    std::thread::scope(|scope| {
        // Only this thread and its children change the namespace.
        let thread = scope.spawn(|| unshare(CloneFlags::CLONE_NEWNET).map(|()| question()));
        thread.join().unwrap_or(Err(nix::Error::EIO))
    })
}

/// Runs a program; if it fails, returns the first line of its output.
pub(super) fn attempt(program: &Path, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", FOLDERS.join(":"))
        .stdin(Stdio::null())
        .output()
        .map_err(|err| format!("{}: {err}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("failed without a word");
    Err(line.trim().to_owned())
}
