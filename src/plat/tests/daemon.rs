// SPDX-License-Identifier: Apache-2.0

//! The process `platd`, by one of its sockets.
#![allow(clippy::unwrap_used)] // helpers are tests too

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// A platd with its own socket; killed when dropped.
struct Platd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Platd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_platd"))
            .args(["--dns", "192.0.2.53", "--socket"])
            .arg(dir.path().join("plat"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It logs when it listens.
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("waiting for a guest"), "{line}");
        Self { child, dir }
    }

    fn guest(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("plat")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

impl Drop for Platd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next frame; `None` if platd has closed the connection.
fn frame(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut frame).unwrap();
    Some(frame)
}

/// The router lifetime of a router advertisement to all nodes, in seconds.
fn router_lifetime(frame: &[u8]) -> Option<u16> {
    let to_all = frame[38..54] == *b"\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\x01";
    (to_all && frame[54] == 134).then(|| u16::from_be_bytes([frame[60], frame[61]]))
}

/// RFC 4861 §6.2.5: a router that stops sends a final advertisement; else guests would use it for
/// another half hour.
#[test]
fn the_last_advertisement_says_that_there_is_no_router() {
    let platd = Platd::start();
    let mut guest = platd.guest();
    let mut lifetimes = Vec::new();
    std::io::Write::write_all(&mut guest, &solicitation()).unwrap();
    while lifetimes.is_empty() {
        lifetimes.extend(router_lifetime(&frame(&mut guest).unwrap()));
    }
    assert_eq!(lifetimes, [1800]);
    kill(Pid::from_raw(i32::try_from(platd.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    while let Some(frame) = frame(&mut guest) {
        lifetimes.extend(router_lifetime(&frame));
    }
    assert_eq!(lifetimes.last(), Some(&0), "{lifetimes:?}");
}

/// Its files are removed at its end, although it has no permission to remove them itself.
#[test]
fn no_file_is_left_however_it_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut platd = Platd::start();
        let name = platd.dir.path().join("plat");
        assert!(name.exists());
        kill(Pid::from_raw(i32::try_from(platd.child.id()).unwrap()), signal).unwrap();
        platd.child.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while name.exists() {
            assert!(Instant::now() < deadline, "{signal}: {} is left", name.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A router solicitation from the unspecified address, which is answered to all nodes, after its
/// length.
fn solicitation() -> Vec<u8> {
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 2, 2, 0, 0, 0, 0, 9, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 8, 58, 255]);
    frame.extend([0; 16]);
    frame.extend(*b"\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\x02");
    frame.extend([133, 0, 0, 0, 0, 0, 0, 0]);
    // The sum of the pseudo-header: ff02, 2, length 8, protocol 58; and of the message.
    let sum = 0xff02_u32 + 2 + 8 + 58 + 133 * 256;
    let check = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[56..58].copy_from_slice(&check.to_be_bytes());
    let mut message = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
    message.extend(frame);
    message
}

/// Runs a shell script by `platd run`: its exit code and its output.
fn run(script: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_platd"))
        .args(["run", "--dns", "192.0.2.53", "--", "sh", "-c", script])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Without user namespaces or /dev/net/tun there is no `run`.
fn can_run() -> bool {
    let (code, said) = run("exit 7");
    if code != Some(7) {
        eprintln!("SKIPPED: platd run does not work here: {said}");
        assert!(std::env::var_os("CI").is_none(), "{said}");
    }
    code == Some(7)
}

/// A command has the signals and descriptors that it would have without platd.
#[test]
fn a_command_inherits_nothing_of_platd() {
    if !can_run() {
        return;
    }
    assert_eq!(run("kill -TERM $$"), (Some(128 + 15), String::new()));
    // This test may have been started with it ignored, as by shells in the background.
    let kill = "kill -INT $$";
    let status = Command::new("sh").args(["-c", kill]).status().unwrap();
    assert_eq!(run(kill).0, status.code().or(status.signal().map(|signal| 128 + signal)));
    let blocked = |text: &str| text.lines().any(|line| line.ends_with("0000000000000000"));
    let (_, mask) = run("grep SigBlk /proc/self/status");
    assert!(blocked(&mask), "{mask}");
    let list = "ls /proc/self/fd";
    let without = Command::new("sh").args(["-c", list]).output().unwrap().stdout;
    assert_eq!(run(list).1, String::from_utf8(without).unwrap());
}

/// As shells report it.
#[test]
fn a_command_that_is_missing_or_no_program_has_its_own_codes() {
    if !can_run() {
        return;
    }
    for (program, code) in [("/nonexistent", 127), ("/etc/passwd", 126)] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_platd")).args(["run", "--", program]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(program), "{output:?}");
    }
}

/// Background processes end with the command, though nobody waits for them.
#[test]
fn nothing_outlives_the_command() {
    if !can_run() {
        return;
    }
    // A unique argument.
    let seconds = format!("1000.{}", std::process::id());
    let is_there = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok()).any(
            |line| {
                line.starts_with(b"sleep")
                    && line.split(|b| *b == 0).any(|w| w == seconds.as_bytes())
            },
        )
    };
    let script = format!("setsid sleep {seconds} >/dev/null 2>&1 & sleep 0.1; exit 9");
    let (code, said) = run(&script);
    assert_eq!(code, Some(9), "{said}");
    assert!(!is_there(), "a process was left: {said}");
    // It has its own process ids, and sees only its own processes.
    let (_, first) = run("tr '\\0' ' ' < /proc/1/cmdline");
    assert!(first.contains("__init"), "{first}");
}
