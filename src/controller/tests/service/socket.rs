// SPDX-License-Identifier: Apache-2.0

//! What only the RPC socket has.

mod attacks;

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use clat_controller::binder_adapter::{new_listener, IClatdController, Transport};
use clat_controller::client;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::{is_root, sh};
use crate::errno_of;
use crate::events::Recorder;
use crate::fixture::{wait_until, Fixture};

#[test]
fn garbage_on_the_socket() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    let _silent = UnixStream::connect(fixture.socket()).expect("connects");
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 4096], &[0xff; 100_000]] {
        let mut stream = UnixStream::connect(fixture.socket()).expect("connects");
        // The controller may close the connection before all is written.
        let _ = stream.write_all(bytes);
    }
    assert!(service.getStatus().expect("still there").clats.is_empty());
    assert!(controller.connect().dumpText(&[]).expect("still there").contains("ClatdController"));
    controller.end();
}

#[test]
fn one_controller_a_socket_and_a_namespace() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let first = fixture.controller(&[]);
    let refused = |mut command: Command| {
        let output = command.output().expect("runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(fixture.command(&Transport::Rpc(fixture.socket()), &[]));
    assert!(said.contains("another clat_controller runs in this network namespace"), "{said}");

    let other = Fixture::new();
    let said = refused(other.command(&Transport::Rpc(fixture.socket()), &[]));
    assert!(said.contains("another controller answers on"), "{said}");
    first.connect().getStatus().expect("the first still answers");

    let file = other.dir.join("file");
    fs::write(&file, "precious").expect("written");
    let said = refused(other.command(&Transport::Rpc(file.clone()), &[]));
    assert!(said.contains("is no socket"), "{said}");
    assert_eq!(fs::read_to_string(&file).expect("still there"), "precious");
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut controller = fixture.controller(&[]);
    controller.signal(Signal::SIGKILL);
    controller.child.wait().expect("waits");
    assert!(fixture.socket().exists(), "a stale socket");
    let error = client::connect(Some(&Transport::Rpc(fixture.socket())), false).expect_err("gone");
    assert!(error.to_string().contains("is gone; start clat_controller"), "{error}");
    fixture.controller(&[]).connect().getStatus().expect("answers");
}

#[test]
fn without_a_connection_to_call_back_by_there_are_no_events() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let listener = new_listener(Recorder::default());
    let refused = controller.connect().registerEventListener(&listener);
    assert_eq!(errno_of(refused), Some(Errno::ENOTCONN));
}

#[test]
fn nothing_wakes_it_when_idle() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    service.clatdStart("up0", "64:ff9b::/96").expect("starts");
    let switches =
        || sh(&format!("grep ctxt_switches /proc/{}/task/*/status", controller.child.id()));
    wait_until("a quiet second", || {
        let before = switches();
        thread::sleep(Duration::from_secs(1));
        switches() == before
    });
    // New connections still work, and it still ends, even if its socket file was removed.
    controller.connect().getStatus().expect("answers");
    fs::remove_file(fixture.socket()).expect("there");
    controller.end();
}

#[test]
fn without_a_controller_the_client_says_what_helps() {
    let nowhere = Transport::Rpc(PathBuf::from("/nonexistent/controller.sock"));
    let error = client::connect(Some(&nowhere), false).expect_err("nobody there");
    assert!(error.to_string().contains("start clat_controller as root"), "{error}");
}

#[test]
fn the_socket_is_not_for_all() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let _controller = fixture.controller(&[]);
    let socket = fs::metadata(fixture.socket()).expect("there");
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);
    assert!(socket.file_type().is_socket());
    assert_eq!(fs::metadata("/run/clat").expect("there").permissions().mode() & 0o007, 0);
}

/// Its owner could replace the lock, the socket and the records.
#[test]
fn a_directory_of_somebody_else_is_refused() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    for (made, said) in [
        ("mkdir /run/clat && chown 4321 /run/clat", "cannot use /run/clat: it belongs to uid 4321"),
        ("mkdir /run/clat && chmod 777 /run/clat", "others may write to it (mode 777)"),
        ("ln -s /tmp /run/clat", "it is no directory"),
    ] {
        let command = fixture.command(&Transport::Rpc(fixture.socket()), &[]);
        // With its own /run: `ip netns exec` has made a mount namespace.
        let script = format!("mount -t tmpfs none /run && {made} && exec \"$@\"");
        let mut wrapped = Command::new("ip");
        wrapped.args(command.get_args().take(3)).args(["sh", "-c", &script, "-"]);
        let output = wrapped.args(command.get_args().skip(3)).output().expect("runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}

/// It rereads its configuration and continues.
#[test]
fn a_hangup_ends_nothing() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    service.clatdStart("up0", "64:ff9b::/96").expect("starts");
    controller.signal(Signal::SIGHUP);
    assert_eq!(service.getStatus().expect("still there").clats.len(), 1);
    assert!(controller.connect().getStatus().is_ok());
    controller.end();
    assert_eq!(fixture.clat_state(), "");
}

/// Bits of linux/capability.h: KILL, SETGID, SETUID, SETPCAP, NET_ADMIN, NET_RAW, BPF.
const NEEDED: u64 = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 13 | 1 << 39;

#[test]
fn what_only_the_start_needs_is_given_up() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    // With the threads and the clatd of a CLAT.
    service.clatdStart("up0", "64:ff9b::/96").expect("starts");
    let pids = [i32::try_from(controller.child.id()).expect("a pid"), fixture.clatds()[0]];
    for pid in pids {
        let sets = sh(&format!("grep -h ^Cap /proc/{pid}/task/*/status"));
        assert!(sets.lines().count() >= 5, "{sets}");
        for line in sets.lines() {
            let (_, set) = line.split_once(':').expect("a name and a number");
            let set = u64::from_str_radix(set.trim(), 16).expect("a number");
            assert_eq!(set & !NEEDED, 0, "pid {pid}: {line}");
        }
    }
    // It can still do all its work.
    kill(Pid::from_raw(pids[1]), Signal::SIGKILL).expect("it runs");
    wait_until("the restart", || {
        service.getStatus().expect("status").clats.iter().any(|clat| clat.restarts == 1)
    });
    service.clatdStop("up0").expect("stops");
    assert_eq!(fixture.clat_state(), "");
}

#[test]
fn whoever_does_not_read_the_log_holds_up_nobody() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    // A pipe that is full after the first lines, and that is no longer read.
    let mut command = fixture.command(&Transport::Rpc(fixture.socket()), &[]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
    let stderr = child.stderr.take().expect("piped");
    fcntl(stderr.as_raw_fd(), FcntlArg::F_SETPIPE_SZ(4096)).expect("a small pipe");
    wait_until("the socket", || UnixStream::connect(fixture.socket()).is_ok());
    let service =
        client::connect(Some(&Transport::Rpc(fixture.socket())), false).expect("connects");
    for _ in 0..100 {
        assert_eq!(errno_of(service.clatdStop("up0")), Some(Errno::ENODEV));
    }
    service.clatdStart("up0", "64:ff9b::/96").expect("starts");
    drop(service);
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGTERM).expect("runs");
    assert!(child.wait().expect("waits").success());
    assert_eq!(fixture.clat_state(), "");
    drop(stderr);
}
