// SPDX-License-Identifier: Apache-2.0

//! Helpers for tests of the real program.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::unistd::geteuid;

/// Whether these tests can run; prints a note if not.
pub(crate) fn is_root() -> bool {
    if geteuid().is_root() {
        return true;
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
    eprintln!("SKIPPED: needs root for network namespaces");
    false
}

pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}: {out}{err}");
    out.into_owned()
}

/// Writes an executable script, by another process: a child that another thread forks meanwhile
/// would inherit a writable descriptor of ours until its exec, and a file open for writing cannot
/// be executed (ETXTBSY of execve(2)).
pub(crate) fn write_script(path: &Path, text: &str) {
    let path = path.display();
    sh(&format!("cat >{path} <<'END'\n{text}END\nchmod 755 {path}"));
}

/// Starts a controller, waits until it is ready, and forwards its further log to stderr.
pub(crate) fn start(command: &mut Command) -> Child {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("clat_controller starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut said = String::new();
    while !said.contains("ready on ") {
        let got = stderr.read_line(&mut said).expect("readable");
        assert_ne!(got, 0, "not ready: {said}");
    }
    thread::spawn(move || {
        stderr.lines().map_while(Result::ok).for_each(|line| eprintln!("    {line}"));
    });
    child
}
