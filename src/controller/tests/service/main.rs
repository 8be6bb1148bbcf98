// SPDX-License-Identifier: Apache-2.0

//! The real program over its real transport, with real TUN devices and routes in a network
//! namespace. The virtual device runs the same tests over kernel binder. Only clatd is a stand-in:
//! a script that sets its device up and then sleeps under clatd's name.

#[path = "../common/mod.rs"]
mod common;
mod events;
mod fixture;
mod socket;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use clat_controller::binder_adapter::{new_listener, ExceptionCode, IClatdController, Status};
use clat_controller::client::{self, errno};
use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use common::{is_root, sh, write_script};
use events::Recorder;
use fixture::{wait_until, Fixture};

const PREFIX: &str = "64:ff9b::/96";

fn errno_of<T: std::fmt::Debug>(result: Result<T, Status>) -> Option<Errno> {
    errno(&result.expect_err("fails"))
}

#[test]
fn a_clat_from_start_to_stop() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    assert_eq!(fixture.clat_state(), "");

    let v6 = service.clatdStart("up0", PREFIX).expect("starts");
    assert!(v6.starts_with("2001:db8:0:1:"), "{v6}");
    let rules = fixture.sh("ip -6 route show table local");
    assert!(rules.contains(&format!("blackhole {v6} dev lo proto 64")), "{rules}");
    let route = fixture.sh("ip -4 route");
    assert!(
        route.starts_with("default dev v4-up0 proto static scope link src 192.0.0.4 metric 20"),
        "{route}"
    );
    assert_eq!(fixture.sh("cat /proc/sys/net/ipv6/conf/v4-up0/disable_ipv6").trim(), "1");

    let status = service.getStatus().expect("status");
    assert!(status.standalone);
    assert_eq!(status.ebpfMode, "Enabled");
    let clat = &status.clats[0];
    assert_eq!(
        (clat.iface.as_str(), clat.v4iface.as_str(), clat.v4.as_str()),
        ("up0", "v4-up0", "192.0.0.4")
    );
    assert_eq!((&clat.v6, clat.nat64Prefix.as_str(), clat.restarts), (&v6, PREFIX, 0));
    assert_eq!(fixture.clatds(), [clat.pid]);
    let open =
        sh(&format!("cd /proc/{}/fd && for i in *; do readlink $i; echo $i; done", clat.pid));
    let open: Vec<_> = open.lines().collect();
    let mut open: Vec<_> = open.chunks(2).filter(|it| !["0", "1", "2"].contains(&it[1])).collect();
    open.sort();
    // The TUN device, and the pipe for why clatd ends.
    let [["/dev/net/tun", tun], [pipe, _]] = open[..] else { panic!("{open:?}") };
    assert!(pipe.starts_with("pipe:"), "{pipe}");
    let info = sh(&format!("cat /proc/{}/fdinfo/{tun}", clat.pid));
    assert!(info.contains("iff:\tv4-up0"), "{info}");

    let dump = service.dumpText(&[]).expect("dump");
    let line = format!(
        "      {}[up0] {PREFIX} {v6} -> 192.0.0.4 {}[v4-up0] [{:#x}]\n",
        clat.ifIndex, clat.v4ifIndex, clat.fwmark
    );
    assert!(dump.contains(&line), "{dump}");
    assert_eq!(clat.fwmark & 0xffff, clat.ifIndex);

    let again = service.clatdStart("up0", PREFIX).expect_err("runs already");
    assert_eq!(errno(&again), Some(Errno::EBUSY));
    let message = client::describe(&again);
    assert!(message.starts_with("up0: ") && message.contains(&clat.pid.to_string()), "{message}");

    fixture.add_uplink("up1", 2);
    let other = service.clatdStart("up1", "2001:db8:64::/96").expect("starts");
    assert!(other.starts_with("2001:db8:0:2:"), "{other}");
    let status = service.getStatus().expect("status");
    let v4: Vec<_> = status.clats.iter().map(|clat| clat.v4.as_str()).collect();
    assert_eq!(v4, ["192.0.0.4", "192.0.0.5"]);
    service.clatdStop("up1").expect("stops");

    service.clatdStop("up0").expect("stops");
    assert_eq!(fixture.clat_state(), "");
    assert_eq!(errno_of(service.clatdStop("up0")), Some(Errno::ENODEV));
    controller.end();
    assert!(!fixture.socket().exists(), "it goes with its server");
}

#[test]
fn bad_input() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    for (iface, prefix, expected) in [
        ("up 0", PREFIX, Errno::EINVAL),
        ("up0\n-A INPUT -j DROP", PREFIX, Errno::EINVAL),
        ("", PREFIX, Errno::EINVAL),
        ("thirteenchars", PREFIX, Errno::ENODEV),
        ("fourteen-chars", PREFIX, Errno::ENODEV),
        ("fifteen-charact", PREFIX, Errno::ENODEV),
        ("sixteen-characte", PREFIX, Errno::ENAMETOOLONG),
        ("unknown0", PREFIX, Errno::ENODEV),
        ("up0", "nonsense", Errno::EINVAL),
        ("up0", "192.0.2.0/24", Errno::EAFNOSUPPORT),
        ("up0", "64:ff9b::/95", Errno::EINVAL),
        ("up0", "64:ff9b::1/96", Errno::EINVAL),
        ("lo", PREFIX, Errno::EADDRNOTAVAIL),
    ] {
        assert_eq!(
            errno_of(service.clatdStart(iface, prefix)),
            Some(expected),
            "{iface:?} {prefix:?}"
        );
        assert_eq!(fixture.clat_state(), "");
    }
    fs::remove_file(fixture.dir.join("clatd")).expect("there");
    let error = service.clatdStart("up0", PREFIX).expect_err("no clatd");
    assert_eq!(errno(&error), Some(Errno::ENOENT));
    assert!(client::describe(&error).contains("cannot start clatd"), "{error}");
    assert_eq!(fixture.clat_state(), "");
    write_script(&fixture.dir.join("clatd"), "#!/bin/sh\nexit 3\n");
    assert_eq!(errno_of(service.clatdStart("up0", PREFIX)), Some(Errno::EIO));
    assert_eq!(fixture.clat_state(), "");
}

#[test]
fn with_netd_interfaces_have_to_be_assigned() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&["--no-standalone", "--first-api-level", "28"]);
    let service = controller.connect();
    assert_eq!(errno_of(service.clatdStart("up0", PREFIX)), Some(Errno::ENODEV));
    assert_eq!(errno_of(service.networkAddInterface(0, "up0")), Some(Errno::EINVAL));
    service.networkAddInterface(100, "up0").expect("free");
    assert_eq!(errno_of(service.networkAddInterface(101, "up0")), Some(Errno::EBUSY));
    service.clatdStart("up0", PREFIX).expect("starts");
    let status = service.getStatus().expect("status");
    assert_eq!(
        (status.standalone, status.ebpfMode.as_str(), status.clats[0].fwmark),
        (false, "Maybe", 0xf0064)
    );
    assert_eq!(errno_of(service.networkRemoveInterface(101, "up0")), Some(Errno::ENOENT));
    service.networkRemoveInterface(100, "up0").expect("there");
    let route = fixture.sh("ip -4 route");
    assert!(!route.contains("default"), "{route}");
    // Removing the interface has stopped the CLAT, and so does destroying the network; another
    // network on the same interface works.
    for net_id in [200, 300] {
        assert!(service.getStatus().expect("status").clats.is_empty());
        service.networkAddInterface(net_id, "up0").expect("free");
        service.clatdStart("up0", PREFIX).expect("starts");
        service.networkDestroy(net_id).expect("there");
    }
    assert_eq!(errno_of(service.networkDestroy(0)), Some(Errno::EINVAL));
}

#[test]
fn nothing_piles_up() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    service.clatdStart("up0", PREFIX).expect("starts");
    service.clatdStop("up0").expect("stops");
    let before = controller.descriptors();
    for _ in 0..20 {
        service.clatdStart("up0", PREFIX).expect("starts");
        service.clatdStop("up0").expect("stops");
    }
    assert_eq!(controller.descriptors(), before);
    assert_eq!(fixture.clat_state(), "");
}

#[test]
fn a_dead_clatd_comes_back() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    let v6 = service.clatdStart("up0", PREFIX).expect("starts");
    let pid = service.getStatus().expect("status").clats[0].pid;
    // kill(2) of 0 would signal this process's whole group.
    assert!(pid > 0, "it does not run");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    wait_until("the restart", || service.getStatus().expect("status").clats[0].restarts == 1);
    wait_until("its setup", || fixture.clatds().len() == 1);
    let clat = &service.getStatus().expect("status").clats[0];
    assert_eq!((&clat.v6, clat.v4.as_str()), (&v6, "192.0.0.4"));
    assert_eq!(fixture.clatds(), [clat.pid]);
    assert_ne!(clat.pid, pid);
    service.clatdStop("up0").expect("stops");
    assert_eq!(fixture.clat_state(), "");
}

#[test]
fn what_a_killed_controller_left_is_removed() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut controller = fixture.controller(&[]);
    controller.connect().clatdStart("up0", PREFIX).expect("starts");
    // Named like a clatd, but without a TUN device of that name.
    let netns = &fixture.netns;
    let mut bystander = Command::new("ip")
        .args(["netns", "exec", netns, "bash", "-c", "exec -a clatd-other sleep 1000"])
        .spawn()
        .expect("starts");
    controller.signal(Signal::SIGKILL);
    controller.child.wait().expect("waits");
    assert_ne!(fixture.clat_state(), "");
    wait_until("the bystander", || fixture.clatds().len() == 2);

    let controller = fixture.controller(&[]);
    let bystander_pid = i32::try_from(bystander.id()).expect("a pid");
    assert_eq!(fixture.clat_state(), format!("clatd {bystander_pid}\n"));
    bystander.kill().expect("it runs");
    bystander.wait().expect("waits");
    let service = controller.connect();
    service.clatdStart("up0", PREFIX).expect("starts");
    assert_eq!(fixture.sh("ip -6 route show table local | grep -c blackhole").trim(), "1");
    // The end of the controller removes a running CLAT.
    controller.end();
    assert_eq!(fixture.clat_state(), "");
}

/// Not a test: calls by another user, in another process.
#[test]
fn as_another_user() {
    let Some(transport) = fixture::inherited_transport() else { return };
    let service = client::connect(Some(&transport), true).expect("a way in");
    let show = |name: &str, error: Option<Status>| {
        let (exception, message) = error.map_or((ExceptionCode::None, String::new()), |e| {
            (e.exception_code(), client::describe(&e))
        });
        println!("RESULT {name} {exception:?} {message}");
    };
    show("start", service.clatdStart("up0", PREFIX).err());
    show("stop", service.clatdStop("up0").err());
    show("add", service.networkAddInterface(5, "up0").err());
    show("remove", service.networkRemoveInterface(5, "up0").err());
    show("status", service.getStatus().err());
    show("dump", service.dumpText(&[]).err());
    let listener = new_listener(Recorder::default());
    show("register", service.registerEventListener(&listener).err());
    show("unregister", service.unregisterEventListener(&listener).err());
}

#[test]
fn other_users_are_refused() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&["--allow-uid", "4321"]);
    let results = |uid: u32| {
        let mut peer = controller.peer(&fixture, "as_another_user");
        let output = peer.uid(uid).gid(uid).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter_map(|line| Some(line.split_once("RESULT ")?.1.to_owned()));
        (lines.collect::<Vec<_>>(), String::from_utf8_lossy(&output.stderr).into_owned())
    };

    if fixture.socket().exists() {
        let (lines, said) = results(10123);
        assert!(lines.is_empty() && said.contains("you may not use"), "{lines:?} {said}");
        // Only the check of the peer's credentials is left.
        fs::set_permissions(fixture.socket(), fs::Permissions::from_mode(0o666)).expect("opened");
    }
    for uid in [10123, 2000, 65534] {
        let (lines, said) = results(uid);
        let end = format!("uid {uid} may not use the CLAT controller");
        if fixture.socket().exists() {
            // Before anything is read from them.
            assert!(lines.is_empty() && said.contains(&end), "{lines:?} {said}");
            continue;
        }
        assert_eq!(lines.len(), 8, "{said}");
        let end = format!("Security {end}");
        assert!(lines.iter().all(|line| line.ends_with(&end)), "{lines:?}");
    }
    assert_eq!(fixture.clat_state(), "");
    for uid in [4321, 1000, 1073] {
        let (lines, said) = results(uid);
        assert_eq!(lines.len(), 8, "{said}");
        for line in &lines {
            assert!(line.trim().ends_with(" None"), "uid {uid}: {line}");
        }
    }
    controller.end();
}

#[test]
fn a_slow_start_holds_up_nobody() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let wait = fixture.dir.join("clatd.wait");
    fs::write(&wait, "").expect("written");
    fixture.add_uplink("up1", 2);
    thread::scope(|scope| {
        let start = || controller.connect().clatdStart("up0", PREFIX);
        let first = scope.spawn(start);
        wait_until("the device", || fixture.clat_state().contains("v4-up0"));
        // Calls for the same interface are serialized.
        let second = scope.spawn(start);
        let stop = scope.spawn(|| controller.connect().clatdStop("up1"));
        let service = controller.connect();
        assert!(service.dumpText(&[]).expect("dump").contains("ClatdController"));
        assert!(service.getStatus().expect("status").clats.is_empty());
        assert_eq!(errno_of(stop.join().expect("no panic")), Some(Errno::ENODEV));
        assert!(!first.is_finished() && !second.is_finished());
        fs::remove_file(&wait).expect("there");
        // In either order.
        let results = [first, second].map(|thread| thread.join().expect("no panic"));
        let errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert_eq!(errors.iter().filter_map(errno).collect::<Vec<_>>(), [Errno::EBUSY]);
    });
}

#[test]
fn dump_and_status_tell_the_same_as_json() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let controller = fixture.controller(&[]);
    let service = controller.connect();
    let v6 = service.clatdStart("up0", PREFIX).expect("starts");
    let json = service.dumpText(&["-a".to_owned(), "--json".to_owned()]).expect("dump");
    assert!(json.ends_with('\n') && json.lines().count() == 1, "{json}");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let (clat, status) = (&json["clats"][0], service.getStatus().expect("status"));
    assert_eq!(clat["v6"], v6);
    assert_eq!(clat["pid"], status.clats[0].pid);
    assert_eq!((&json["ebpfMode"], &json["standalone"]), (&"Enabled".into(), &true.into()));
    assert_eq!(clat.get("rates"), None);
}
