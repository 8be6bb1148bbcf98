// SPDX-License-Identifier: Apache-2.0

//! Ioctls that a policy denies (here by seccomp, as SELinux denies them to clatd on Android) make
//! the daemon slower, but do not end it.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use clat_datapath::socket::{join_anycast, PacketSocket, RawSocket};
use clat_tun::Options;
use common::*;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::unistd::geteuid;
use seccompiler::{
    apply_filter, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// linux/if_tun.h
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNGETIFF: u64 = 0x8004_54d2;
const TUNGETVNETHDRSZ: u64 = 0x8004_54d7;

/// Numbers of ioctls, each followed by a blank.
const DENIED: &str = "CLATD_DENIED_IOCTLS";
/// The program and its arguments.
const LINE: &str = "CLATD_LINE";

/// A filter that denies these ioctls.
fn denying(numbers: &[u64]) -> BpfProgram {
    let rule = |&number| {
        let (length, is) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        SeccompRule::new(vec![SeccompCondition::new(1, length, is, number).unwrap()]).unwrap()
    };
    let filter = SeccompFilter::new(
        [(libc::SYS_ioctl, numbers.iter().map(rule).collect())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EACCES.try_into().unwrap()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    filter.unwrap().try_into().unwrap()
}

/// In a child process: runs a program to which ioctls are denied.
#[test]
fn with_ioctls_denied() {
    let (Ok(denied), Ok(line)) = (std::env::var(DENIED), std::env::var(LINE)) else { return };
    let numbers: Vec<u64> = denied.split_whitespace().map(|text| text.parse().unwrap()).collect();
    apply_filter(&denying(&numbers)).unwrap();
    let mut words = line.split_whitespace();
    panic!("{}", Command::new(words.next().unwrap()).args(words).exec());
}

/// Such a thread could do what others may not. Nothing is filtered then, not even this thread.
#[test]
fn a_thread_with_a_filter_of_its_own_is_noticed() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let ((ready, is_ready), (go, told)) = (mpsc::channel(), mpsc::channel::<()>());
    let other = thread::spawn(move || {
        apply_filter(&denying(&[TUNGETIFF])).unwrap();
        ready.send(()).unwrap();
        told.recv()
    });
    is_ready.recv().unwrap();
    let error = clatd::privileges::filter_all_threads(&[]).unwrap_err();
    assert!(format!("{error:#}").contains("ESRCH"), "{error:#}");
    drop(go);
    other.join().unwrap().unwrap_err();
}

fn sockets() -> (OwnedFd, OwnedFd) {
    let (index, v6) = (if_nametoindex("up0").unwrap(), V6.parse().unwrap());
    let packet = PacketSocket::open(index, v6).unwrap();
    let raw = RawSocket::open("up0", 0).unwrap();
    join_anycast(raw.as_fd(), index, v6).unwrap();
    let raw = raw.as_fd().try_clone_to_owned().unwrap();
    (packet.as_fd().try_clone_to_owned().unwrap(), raw)
}

#[test]
fn traffic_flows_whatever_is_denied() {
    let Some(network) = Network::new() else { return };
    let all = [TUNSETOFFLOAD, TUNGETIFF, TUNGETVNETHDRSZ];
    let plain = Options { packet_info: false, vnet_header: false };
    let packet_info = Options { packet_info: true, vnet_header: false };
    for (what, denied, layout, options) in [
        ("offload", &all[..1], "vnet", Options::default()),
        ("iff", &all[1..2], "vnet", Options::default()),
        ("vnethdrsz", &all[2..], "vnet", Options::default()),
        ("all-vnet", &all, "vnet", Options::default()),
        ("all-plain", &all, "plain", plain),
        ("all-packet-info", &all, "packet-info", packet_info),
    ] {
        for handed_over in [false, true] {
            // Its maker, the system server, may not do these either.
            let made = thread::scope(|scope| {
                let made = scope.spawn(|| {
                    apply_filter(&denying(denied)).unwrap();
                    tun(options)
                });
                made.join().unwrap()
            });
            let sockets = handed_over.then(|| {
                run("ip addr add 192.0.0.4/32 dev v4-up0; ip link set v4-up0 mtu 1472 up");
                sockets()
            });
            let numbers: String = denied.iter().map(|number| format!("{number} ")).collect();
            let test = std::env::current_exe().unwrap();
            let wrapper = format!(
                "sh -c '{DENIED}=\"{numbers}\" {LINE}=\"$*\" exec {} --exact with_ioctls_denied' -",
                test.display()
            );
            let more = format!("--tun-layout {layout}");
            let mut clatd = Clatd::start_by(&wrapper, what, made, sockets, &more);
            clatd.ready();
            // The ioctl filter alone would look like being ready.
            until("the loop", || clatd.log().contains("IPv6 MTU").then_some(()));
            clatd.counters();
            route();
            eprintln!("{what}, sockets handed over: {handed_over}");
            ping();
            udp_echo(&network);
            tcp_echo(&network);
            unroute();
            let line = clatd.stop();
            assert!(!line.contains("receive") && !line.contains("offload"), "{what}: {line}");
            until("the device to go", || if_nametoindex("v4-up0").is_err().then_some(()));
        }
    }
}
