// SPDX-License-Identifier: Apache-2.0

//! Event listeners get events until they unregister or die.

use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clat_controller::binder_adapter::{
    new_listener, BinderResult, IClatdController, IClatdEventListener, Interface, Strong,
    STOP_FAILED, STOP_REQUESTED, STOP_SHUTDOWN, STOP_UPLINK_GONE,
};
use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::is_root;
use crate::fixture::{self, wait_until, Fixture};
use crate::{errno_of, PREFIX};

/// Records the events.
#[derive(Default)]
pub(crate) struct Recorder(std::sync::Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn note(&self, text: String) -> BinderResult<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        Ok(())
    }
}

impl Interface for Recorder {}

#[allow(non_snake_case)] // AIDL's names
impl IClatdEventListener for Recorder {
    fn onClatdStarted(&self, iface: &str, prefix: &str, v4: &str, v6: &str) -> BinderResult<()> {
        self.note(format!("started {iface} {prefix} {v4} {v6}"))
    }

    fn onClatdStopped(&self, iface: &str, reason: i32) -> BinderResult<()> {
        self.note(format!("stopped {iface} {reason}"))
    }

    fn onClatdRestarted(&self, iface: &str, pid: i32, count: i32, how: &str) -> BinderResult<()> {
        self.note(format!("restarted {iface} {pid} {count} {how}"))
    }

    fn onClatdProbed(&self, iface: &str, working: &str) -> BinderResult<()> {
        self.note(format!("probed {iface} {working}"))
    }

    fn onClatdDied(&self, iface: &str, pid: i32, how: &str) -> BinderResult<()> {
        self.note(format!("died {iface} {pid} {how}"))
    }
}

/// The number of listeners in the dump.
fn listeners(service: &Strong<dyn IClatdController>) -> usize {
    let dump = service.dumpText(&[]).expect("dump");
    let line = dump.lines().find_map(|line| line.strip_prefix("    listeners: "));
    line.and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn what_happens_is_told_in_order() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.listen();
    let told = Recorder::default();
    let events = std::sync::Arc::clone(&told.0);
    let listener = new_listener(told);
    let next = |count: usize| {
        wait_until("an event", || events.lock().expect("no panic").len() >= count);
        events.lock().expect("no panic")[count - 1].clone()
    };
    service.registerEventListener(&listener).expect("registers");
    service.registerEventListener(&listener).expect("once more");
    assert_eq!(listeners(&service), 1);

    let v6 = service.clatdStart("up0", PREFIX).expect("starts");
    assert_eq!(next(1), format!("started up0 {PREFIX} 192.0.0.4 {v6}"));
    let pid = service.getStatus().expect("status").clats[0].pid;
    assert!(pid > 0, "it does not run");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    assert_eq!(next(2), format!("died up0 {pid} was killed by SIGKILL"));
    let restarted = next(3);
    let pid = service.getStatus().expect("status").clats[0].pid;
    assert_eq!(restarted, format!("restarted up0 {pid} 1 was killed by SIGKILL"));
    service.clatdStop("up0").expect("stops");
    assert_eq!(next(4), format!("stopped up0 {STOP_REQUESTED}"));

    service.unregisterEventListener(&listener).expect("was registered");
    assert_eq!(errno_of(service.unregisterEventListener(&listener)), Some(Errno::ENOENT));
    assert_eq!(listeners(&service), 0);
    service.clatdStart("up0", PREFIX).expect("starts");
    service.registerEventListener(&listener).expect("registers again");
    controller.end();
    assert_eq!(next(5), format!("stopped up0 {STOP_SHUTDOWN}"));
    assert_eq!(events.lock().expect("no panic").len(), 5);
}

#[test]
fn why_a_clat_ended_is_told() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.listen();
    let told = Recorder::default();
    let events = std::sync::Arc::clone(&told.0);
    let listener = new_listener(told);
    service.registerEventListener(&listener).expect("registers");
    let last = || events.lock().expect("no panic").last().cloned().unwrap_or_default();
    service.clatdStart("up0", PREFIX).expect("starts");
    fixture.sh("ip link del up0");
    let gone = format!("stopped up0 {STOP_UPLINK_GONE}");
    wait_until("its end with the uplink", || last() == gone);
    fixture.add_uplink("up0", 1);
    service.clatdStart("up0", PREFIX).expect("starts again under the same name");
    // An opponent that does not give up.
    let failed = format!("stopped up0 {STOP_FAILED}");
    wait_until("its end", || {
        fixture.sh("ip addr flush dev v4-up0 2>&1 || true");
        last() == failed
    });
}

/// Not a test: listens until it is killed.
#[test]
fn as_a_listener() {
    let Some(transport) = fixture::inherited_transport() else { return };
    let service = clat_controller::client::connect(Some(&transport), true).expect("connects");
    let listener = new_listener(Recorder::default());
    service.registerEventListener(&listener).expect("registers");
    thread::sleep(Duration::from_secs(1000));
}

#[test]
fn a_listener_that_dies_is_dropped() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    let peer = || {
        let mut peer = controller.peer(&fixture, "events::as_a_listener");
        peer.stdout(Stdio::null()).spawn().expect("the peer starts")
    };
    let mut peers = [peer(), peer()];
    wait_until("both", || listeners(&service) == 2);
    for (peer, left) in peers.iter_mut().zip([1, 0]) {
        peer.kill().expect("it runs");
        peer.wait().expect("waits");
        wait_until("its end", || listeners(&service) == left);
    }
    service.clatdStart("up0", PREFIX).expect("starts");
    service.clatdStop("up0").expect("stops");
}

#[test]
fn a_listener_that_does_not_listen_holds_up_nobody() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    let mut peer = controller.peer(&fixture, "events::as_a_listener");
    let mut peer = peer.stdout(Stdio::null()).spawn().expect("the peer starts");
    wait_until("it", || listeners(&service) == 1);
    let pid = Pid::from_raw(i32::try_from(peer.id()).expect("a pid"));
    kill(pid, Signal::SIGSTOP).expect("it runs");
    // The controller does not wait for it, however much it leaves unread.
    for _ in 0..10 {
        service.clatdStart("up0", PREFIX).expect("starts");
        service.clatdStop("up0").expect("stops");
    }
    peer.kill().expect("it runs");
    peer.wait().expect("waits");
    wait_until("its end", || listeners(&service) == 0);
    controller.end();
}
