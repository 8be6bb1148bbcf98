// SPDX-License-Identifier: Apache-2.0

//! What a process may still do in the sandbox, tried by this program run once more.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use clat_sandbox::attempt;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};
use nix::unistd::{getppid, read, setsid};

use super::*;

const INSIDE: &str = "sandbox::tests::attempts_from_inside";

/// Runs the test below in a child process, in the sandbox, to try something.
fn attempt(what: &str) -> ExitStatus {
    attempt::attempt(INSIDE, what).unwrap().status
}

/// The same at a terminal, where somebody types.
fn attempt_at_a_terminal(what: &str) -> ExitStatus {
    let test = std::env::current_exe().unwrap();
    let test = format!("{} --exact {INSIDE} --nocapture", test.display());
    let mut script = Command::new("script");
    script.args(["-qec", &test, "/dev/null"]).env(attempt::NAME, what).stdout(Stdio::null());
    let mut script = script.stdin(Stdio::piped()).spawn().unwrap();
    script.stdin.as_mut().unwrap().write_all(b"typed\n").unwrap();
    script.wait().unwrap()
}

/// The other half of the tests below, in a process of its own.
#[test]
fn attempts_from_inside() {
    let Some(what) = attempt::attempted() else { return };
    let parent = getppid();
    enter(None).unwrap();
    let packet = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None);
    let done = match what.as_str() {
        // What is allowed.
        "nothing" => true,
        "non-blocking" => UnixStream::pair().unwrap().0.set_nonblocking(true).is_ok(),
        "listen-local" => TcpListener::bind("127.0.0.1:0").is_ok(),
        "copy" => UnixStream::pair().unwrap().0.try_clone().is_ok(),
        "log" => writeln!(std::io::stderr(), "words").is_ok(),
        // What is nothing.
        "read-terminal" => read(libc::STDERR_FILENO, &mut [0; 8]).is_ok(),
        "read-input" => read(libc::STDIN_FILENO, &mut [0; 8]) != Ok(0),
        // What is not.
        "ioctl" => std::io::stderr().is_terminal(),
        "open" => File::open("/etc/hostname").is_ok(),
        "create" => File::create("/tmp/platd-was-here").is_ok(),
        "unlink" => std::fs::remove_file("/tmp/platd-was-here").is_ok(),
        "run" => Command::new("true").status().is_ok(),
        "kill" => kill(parent, Signal::SIGUSR1).is_ok(),
        "packet-socket" => packet().is_ok(),
        "netlink-socket" => {
            let kind = SockType::Raw;
            socket(AddressFamily::Netlink, kind, SockFlag::empty(), None).is_ok()
        }
        "unix-socket" => UnixStream::connect("/run/dbus/system_bus_socket").is_ok(),
        // From a pair that is not connected for good.
        "unix-datagram" => {
            let (ours, _theirs) = UnixDatagram::pair().unwrap();
            ours.send_to(b"words", "/run/systemd/notify").is_ok()
        }
        // What is typed then ends the terminal's foreground processes.
        "signals-of-input" => fcntl(libc::STDERR_FILENO, FcntlArg::F_SETFL(OFlag::O_ASYNC)).is_ok(),
        "session" => setsid().is_ok(),
        "root" => nix::unistd::setuid(Uid::from_raw(0)).is_ok(),
        "namespace" => nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok(),
        other => panic!("{other}"),
    };
    // Without any more of the test program.
    std::process::exit(if done { 0 } else { 3 });
}

#[test]
fn what_carrying_packets_needs_is_left() {
    for what in ["nothing", "non-blocking", "copy", "log"] {
        assert!(attempt(what).success(), "{what}: {:?}", attempt(what));
    }
}

/// What is typed at the terminal that it was started from.
#[test]
fn nothing_is_read_of_who_started_it() {
    for what in ["read-terminal", "read-input"] {
        assert_eq!(attempt_at_a_terminal(what).code(), Some(3), "{what}");
    }
}

/// Each ends the process before it is done.
#[test]
fn what_is_forbidden_ends_the_process() {
    for what in [
        "ioctl",
        "listen-local",
        "open",
        "create",
        "unlink",
        "run",
        "kill",
        "packet-socket",
        "netlink-socket",
        "unix-socket",
        "unix-datagram",
        "signals-of-input",
        "session",
        "root",
        "namespace",
    ] {
        let status = attempt(what);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{what}: {status:?}");
    }
}
