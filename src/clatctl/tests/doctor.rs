// SPDX-License-Identifier: Apache-2.0

//! `clatctl doctor` against this machine's kernel: each command that it prints fixes what it
//! reports missing.
#![allow(clippy::unwrap_used)] // helpers are tests too

use std::process::Command;

use nix::sched::{unshare, CloneFlags};
use serde_json::Value;

/// The result of one check, in this thread's network namespace.
fn ask(name: &str) -> Value {
    ask_by(Command::new(env!("CARGO_BIN_EXE_clatctl")), name)
}

/// By a command that this program's arguments are added to.
fn ask_by(mut command: Command, name: &str) -> Value {
    let output = command.args(["--socket", "/nonexistent", "doctor", "--json"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(if answer["ok"] == true { 0 } else { 1 }));
    let checks = answer["checks"].as_array().unwrap();
    let needed = checks.iter().filter(|check| check["needed"] == true);
    assert_eq!(answer["ok"], needed.clone().all(|check| check["state"] == "ok"), "{answer:#}");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
}

/// Runs the command that fixes a check.
fn mend(check: &Value) {
    let command = check["fix"].as_str().unwrap();
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
}

/// Moves this thread into a new network namespace; false without the permission to, which CI must
/// have.
fn namespace() -> bool {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => true,
        Err(err) => {
            assert!(std::env::var_os("CI").is_none(), "not root: {err}");
            eprintln!("SKIPPED: not root: {err}");
            false
        }
    }
}

#[test]
fn a_machine_without_ipv6_is_mended_by_the_command_given() {
    if !namespace() {
        return;
    }
    assert_eq!(ask("IPv6 enabled")["state"], "ok");
    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    for _ in 0..2 {
        let check = ask("IPv6 enabled");
        if check["state"] == "ok" {
            break;
        }
        // "all" sets "default", too; each is reported in turn.
        assert_eq!(check["state"], "missing");
        mend(&check);
    }
    assert_eq!(ask("IPv6 enabled")["state"], "ok");
}

#[test]
fn a_forwarding_uplink_is_told_to_accept_router_advertisements() {
    if !namespace() {
        return;
    }
    // A dot in the name, which sysctl(8) writes differently.
    let add = "ip link add up.7 type veth peer name down7";
    assert!(Command::new("sh").args(["-c", add]).status().unwrap().success());
    assert_eq!(ask("router advertisements")["state"], "ok");
    std::fs::write("/proc/sys/net/ipv6/conf/up.7/forwarding", "1").unwrap();
    let check = ask("router advertisements");
    assert_eq!(check["state"], "optional");
    mend(&check);
    assert_eq!(ask("router advertisements")["state"], "ok");
}

#[test]
fn things_are_tried_without_a_trace() {
    if !namespace() {
        return;
    }
    let links = || Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
    let before = links();
    assert_eq!(ask("TUN")["detail"], "a TUN device could be made");
    assert_eq!(links(), before);
}

/// As a service that was given CAP_BPF alone, whose programs the verifier refuses.
#[test]
fn a_capability_for_bpf_that_is_missing_is_named() {
    if !namespace() {
        return;
    }
    for (taken, state, detail) in [
        ("", "ok", "CAP_SYS_ADMIN"),
        ("-sys_admin", "ok", "CAP_BPF and CAP_PERFMON"),
        ("-sys_admin,-perfmon", "optional", "without CAP_PERFMON"),
        ("-sys_admin,-bpf,-perfmon", "optional", "without CAP_BPF, CAP_PERFMON"),
    ] {
        let mut command = Command::new("setpriv");
        if !taken.is_empty() {
            command.args(["--bounding-set", taken]);
        }
        command.arg(env!("CARGO_BIN_EXE_clatctl"));
        let check = ask_by(command, "capability for BPF");
        assert_eq!((&check["state"], &check["detail"]), (&state.into(), &detail.into()), "{taken}");
    }
}

#[test]
fn without_a_controller_one_has_to_be_started() {
    let start = "clat_controller --socket /nonexistent &";
    for (name, state) in [("controller", "optional"), ("IPv4 by CLATs", "unknown")] {
        let check = ask(name);
        assert_eq!((&check["state"], &check["fix"]), (&state.into(), &start.into()), "{name}");
    }
}
