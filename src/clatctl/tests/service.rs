// SPDX-License-Identifier: Apache-2.0

//! `clatctl` against a service with fixed answers on a real socket.
#![allow(clippy::unwrap_used)] // helpers are tests too

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clat_controller::binder_adapter::{
    new_binder, security, serve, service_specific, BinderResult, ClatStatus, ControllerStatus,
    IClatdController, IClatdEventListener, Interface, Server, Strong, Transport, STOP_SHUTDOWN,
};
use clat_controller::SERVICE_NAME;
use nix::errno::Errno;
use nix::unistd::geteuid;
use tempfile::TempDir;

/// wlan0 can be started and stopped; other interfaces fail, each in its own way.
struct Fixed;

impl Interface for Fixed {}

#[allow(non_snake_case)]
impl IClatdController for Fixed {
    fn clatdStart(&self, iface: &str, prefix: &str) -> BinderResult<String> {
        match (iface, prefix) {
            ("wlan0", "64:ff9b::/96") => Ok("2001:db8::1:2:3:4".into()),
            ("rmnet0", _) => {
                Err(service_specific(Errno::EBUSY, "rmnet0: cannot start: pid 7 already runs"))
            }
            ("secret0", _) => Err(security("uid 1 may not")),
            _ => Err(service_specific(Errno::ENODEV, &format!("{iface}: no such interface"))),
        }
    }

    fn clatdStop(&self, iface: &str) -> BinderResult<()> {
        if iface == "wlan0" {
            Ok(())
        } else {
            Err(service_specific(Errno::ENODEV, &format!("{iface}: no CLAT runs there")))
        }
    }

    fn networkAddInterface(&self, _: i32, _: &str) -> BinderResult<()> {
        Ok(())
    }

    fn networkDestroy(&self, _: i32) -> BinderResult<()> {
        Ok(())
    }

    fn networkRemoveInterface(&self, _: i32, _: &str) -> BinderResult<()> {
        Ok(())
    }

    fn getStatus(&self) -> BinderResult<ControllerStatus> {
        let clat = ClatStatus {
            iface: "wlan0".into(),
            ifIndex: 21,
            v4iface: "v4-wlan0".into(),
            v4ifIndex: 34,
            nat64Prefix: "64:ff9b::/96".into(),
            v4: "192.0.0.4".into(),
            v6: "2001:db8::1:2:3:4".into(),
            fwmark: 0xf0064,
            pid: 77,
            uptimeMillis: 3_700_000,
            txPackets: 5,
            rxBytes: 9,
            ..ClatStatus::default()
        };
        Ok(ControllerStatus {
            pid: 42,
            ebpfMode: "Maybe".into(),
            standalone: true,
            clats: vec![clat],
        })
    }

    fn dumpText(&self, _: &[String]) -> BinderResult<String> {
        Ok("  ClatdController\n    Trackers:\n".into())
    }

    fn registerEventListener(
        &self,
        listener: &Strong<dyn IClatdEventListener>,
    ) -> BinderResult<()> {
        let listener = listener.clone();
        std::thread::spawn(move || {
            listener.onClatdStarted("wlan0", "64:ff9b::/96", "192.0.0.4", "2001:db8::1:2:3:4")?;
            listener.onClatdStopped("wlan0", STOP_SHUTDOWN)?;
            listener.onClatdRestarted("wlan1", 7, 3, "exited with status 1")
        });
        Ok(())
    }

    fn unregisterEventListener(&self, _: &Strong<dyn IClatdEventListener>) -> BinderResult<()> {
        Ok(())
    }
}

struct Service {
    folder: TempDir,
    _server: Server,
}

impl Service {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let transport = Transport::Rpc(folder.path().join("socket"));
        let callers = [geteuid().as_raw()];
        let server = serve(&transport, SERVICE_NAME, &new_binder(Fixed), &callers).unwrap();
        Self { folder, _server: server }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}

fn clatctl(socket: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_clatctl"))
        .arg("--socket")
        .arg(socket)
        .args(words)
        .output()
        .unwrap()
}

/// Exit code, stdout and stderr.
fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn start_prints_the_address_and_nothing_else() {
    let service = Service::new();
    let output = clatctl(&service.socket(), &["start", "wlan0", "--prefix", "64:ff9b::/96"]);
    assert_eq!(said(&output), (Some(0), "2001:db8::1:2:3:4\n".into(), String::new()));
    let output = clatctl(&service.socket(), &["stop", "wlan0"]);
    assert_eq!(said(&output), (Some(0), String::new(), String::new()));
}

#[test]
fn errors_of_the_service_are_one_line_with_their_number() {
    let service = Service::new();
    for (words, line) in [
        (
            &["start", "rmnet0", "--prefix", "::/96"][..],
            "clatctl: rmnet0: cannot start: pid 7 already runs (EBUSY)\n",
        ),
        (
            &["start", "secret0", "--prefix", "::/96"],
            "clatctl: uid 1 may not; call it as root, or start clat_controller with --allow-uid\n",
        ),
        (&["stop", "eth9"], "clatctl: eth9: no CLAT runs there (ENODEV)\n"),
    ] {
        assert_eq!(said(&clatctl(&service.socket(), words)), (Some(1), String::new(), line.into()));
    }
}

#[test]
fn dump_is_the_text_as_it_is() {
    let service = Service::new();
    let output = clatctl(&service.socket(), &["dump"]);
    assert_eq!(
        said(&output),
        (Some(0), "  ClatdController\n    Trackers:\n".into(), String::new())
    );
}

#[test]
fn status_is_text_or_json() {
    let service = Service::new();
    let (code, text, _) = said(&clatctl(&service.socket(), &["status", "--verbose"]));
    assert_eq!(code, Some(0));
    for part in ["controller pid 42, eBPF Maybe, standalone", "v4-wlan0", "0xf0064", "1h01m"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let (code, text, _) = said(&clatctl(&service.socket(), &["status", "--json"]));
    assert_eq!(code, Some(0));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["clats"][0]["fwmark"], 0xf0064);
    assert_eq!(json["clats"][0]["rates"], serde_json::Value::Null);
}

#[test]
fn watching_shows_rates_from_the_second_time_on() {
    use std::io::{BufRead, BufReader};
    let service = Service::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_clatctl"))
        .arg("--socket")
        .arg(service.socket())
        .args(["status", "--json", "--watch", "0.1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(2);
    let lines: Vec<serde_json::Value> =
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    // The closed pipe ends it silently.
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(lines[0]["clats"][0]["rates"], serde_json::Value::Null);
    assert_eq!(lines[1]["clats"][0]["rates"]["txPacketsPerSecond"], 0.0);
}

#[test]
fn events_come_as_json_until_the_controller_goes() {
    use std::io::{BufRead, BufReader};
    let service = Service::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_clatctl"))
        .arg("--socket")
        .arg(service.socket())
        .args(["events", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> serde_json::Value {
        let line = lines.next().expect("a line").unwrap();
        let mut told: serde_json::Value = serde_json::from_str(&line).unwrap();
        let time = told.as_object_mut().and_then(|told| told.remove("time"));
        assert!(time.is_some_and(|time| time.as_u64() > Some(1_700_000_000_000)), "{line}");
        told
    };
    let started = serde_json::json!({
        "event": "started", "iface": "wlan0", "nat64Prefix": "64:ff9b::/96", "v4": "192.0.0.4",
        "v6": "2001:db8::1:2:3:4",
    });
    let stopped = serde_json::json!({ "event": "stopped", "iface": "wlan0", "reason": "shutdown" });
    let restarted = serde_json::json!({
        "event": "restarted", "iface": "wlan1", "pid": 7, "restarts": 3,
        "cause": "exited with status 1",
    });
    assert_eq!([next(), next(), next()], [started, stopped, restarted]);
    drop(service);
    let (code, _, err) = said(&child.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (Some(3), "clatctl: the controller is gone\n"));
}

#[test]
fn no_controller_is_exit_code_3() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    let stale = folder.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [&absent, &stale] {
        for words in [
            &["status"][..],
            &["dump"],
            &["stop", "wlan0"],
            &["start", "wlan0", "--prefix", "::/96"],
        ] {
            let (code, out, err) = said(&clatctl(socket, words));
            assert_eq!((code, out.as_str()), (Some(3), ""), "{err}");
            assert!(err.starts_with("clatctl: ") && err.lines().count() == 1, "{err}");
            assert!(
                err.contains(socket.to_str().unwrap()) && err.contains("start clat_controller"),
                "{err}"
            );
        }
    }
}

#[test]
fn doctor_says_whether_the_controller_answers() {
    let service = Service::new();
    let (code, text, err) = said(&clatctl(&service.socket(), &["doctor", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(err, "");
    assert_eq!(code, Some(if json["ok"] == true { 0 } else { 1 }));
    let check = json["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["name"] == "controller")
        .unwrap();
    assert_eq!((&check["state"], &check["fix"]), (&"ok".into(), &serde_json::Value::Null));
    let (_, text, _) = said(&clatctl(Path::new("/nonexistent"), &["doctor"]));
    assert!(text.contains("clat_controller --socket /nonexistent &"), "{text}");
}

#[test]
fn help_completions_and_the_manual_are_there() {
    for (words, part) in
        [(&["--help"][..], "clatctl translate --prefix"), (&["completions", "bash"], "_clatctl")]
    {
        let (code, text, _) = said(&clatctl(Path::new("/nonexistent"), words));
        assert_eq!(code, Some(0));
        assert!(text.contains(part), "{part}");
    }
}
