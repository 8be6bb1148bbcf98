// SPDX-License-Identifier: Apache-2.0

//! A network namespace, and the program in it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clat_controller::binder_adapter::{IClatdController, Strong, Transport};
use clat_controller::client;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::{self, sh, write_script};

/// `$2` is the uplink and `$8` the IPv4 address (see `ClatdArgs::argv`). bash, since a POSIX shell
/// cannot choose argv[0]. It waits with the setup of its device while a file `clatd.wait` exists.
const STAND_IN: &str = r#"#!/bin/bash
set -e
while [ -e "$0.wait" ]; do sleep 0.05; done
ip addr replace "$8/32" dev "v4-$2"
ip link set "v4-$2" up
exec -a "clatd-$2" sleep 1000
"#;

/// The environment variable with the transport: `binder`, else RPC on a socket.
const TRANSPORT: &str = "CLAT_TEST_TRANSPORT";

/// The environment variable that tells a child process of a test how to reach the controller.
pub(crate) const PEER: &str = "CLAT_TEST_PEER";

/// The program, which on the virtual device is not where it was built.
fn program() -> PathBuf {
    std::env::var_os("CLAT_TEST_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_clat_controller").into(), PathBuf::from)
}

/// In a process that [`Controller::peer`] started, how to reach its controller.
pub(crate) fn inherited_transport() -> Option<Transport> {
    let peer = std::env::var_os(PEER)?;
    Some(if peer == "binder" { Transport::Binder } else { Transport::Rpc(peer.into()) })
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A network namespace with the uplink `up0`, and a directory for sockets.
pub(crate) struct Fixture {
    pub(crate) netns: String,
    pub(crate) dir: PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let netns = format!("ctl-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&netns);
        fs::create_dir(&dir).expect("a new directory");
        let fixture = Self { netns, dir };
        sh(&format!("ip netns add {}", fixture.netns));
        fixture.sh("ip link set lo up");
        fixture.add_uplink("up0", 1);
        write_script(&fixture.dir.join("clatd"), STAND_IN);
        fixture
    }

    pub(crate) fn add_uplink(&self, name: &str, net: u16) {
        self.sh(&format!(
            "ip link add {name} type veth peer name p{name} &&
             ip link set p{name} up && ip link set {name} up &&
             ip addr add 2001:db8:0:{net}::2/64 dev {name} nodad &&
             ip -6 route add default dev {name} metric {net}"
        ));
    }

    pub(crate) fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} sh -c '{command}'", self.netns))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("controller.sock")
    }

    pub(crate) fn controller(&self, args: &[&str]) -> Controller {
        let transport = match std::env::var(TRANSPORT).as_deref() {
            Ok("binder") => Transport::Binder,
            _ => Transport::Rpc(self.socket()),
        };
        let child = common::start(&mut self.command(&transport, args));
        Controller { child, transport }
    }

    /// A copy of this test program that other users can run, wherever the build is. Another process
    /// makes it, for the reason given at `write_script`.
    pub(crate) fn peer_program(&self) -> PathBuf {
        let program = self.dir.join("peer");
        if !program.exists() {
            let this = std::env::current_exe().expect("this program");
            sh(&format!("cp {} {}", this.display(), program.display()));
        }
        program
    }

    pub(crate) fn command(&self, transport: &Transport, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns]).arg(program());
        match transport {
            Transport::Binder => command.arg("--binder"),
            Transport::Rpc(socket) => command.arg("--socket").arg(socket),
        };
        command.arg("--clatd").arg(self.dir.join("clatd")).args(args);
        command
    }

    /// Devices, routes and processes of CLATs; empty if there are none.
    pub(crate) fn clat_state(&self) -> String {
        let rules = self.sh("ip -6 route show table local | grep blackhole || true");
        let links = self.sh("ip -o link | grep v4- || true");
        let routes = self.sh("ip -4 route");
        let pids = self.clatds().iter().map(|pid| format!("clatd {pid}\n")).collect::<String>();
        rules + &links + &routes + &pids
    }

    pub(crate) fn clatds(&self) -> Vec<i32> {
        let pids = sh(&format!("ip netns pids {}", self.netns));
        let is_clatd = |pid: &str| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with("clatd-"))
        };
        pids.lines().filter(|pid| is_clatd(pid)).filter_map(|pid| pid.parse().ok()).collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let netns = &self.netns;
        sh(&format!("ip netns pids {netns} | xargs -r kill -9; ip netns del {netns}"));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub(crate) struct Controller {
    pub(crate) child: Child,
    transport: Transport,
}

impl Controller {
    pub(crate) fn connect(&self) -> Strong<dyn IClatdController> {
        client::connect(Some(&self.transport), false).expect("connects")
    }

    /// A connection that allows callbacks.
    pub(crate) fn listen(&self) -> Strong<dyn IClatdController> {
        client::connect(Some(&self.transport), true).expect("connects")
    }

    /// Runs one of this program's tests as another process.
    pub(crate) fn peer(&self, fixture: &Fixture, test: &str) -> Command {
        let program = fixture.peer_program();
        let mut command = Command::new(program);
        command.args([test, "--exact", "--nocapture"]).current_dir("/").env(
            PEER,
            match &self.transport {
                Transport::Binder => "binder".as_ref(),
                Transport::Rpc(socket) => socket.as_os_str(),
            },
        );
        command
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("it runs");
    }

    /// Ends it cleanly by SIGTERM.
    pub(crate) fn end(mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().expect("waits").success());
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // By SIGTERM, so that it removes its lock; unless it has been waited for, or hangs.
        for _ in 0..1000 {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            self.signal(Signal::SIGTERM);
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
