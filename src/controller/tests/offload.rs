// SPDX-License-Identifier: Apache-2.0

//! The real program with its real tc programs between two network namespaces. clatd is a stand-in
//! that translates nothing: what arrives has been translated in the kernel.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clat_controller::binder_adapter::{
    ClatStatus, IClatdController, OffloadCounters, Strong, Transport,
};
use clat_controller::client;
use nix::sched::{setns, CloneFlags};
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use common::{is_root, sh, write_script};

const PREFIX: &str = "64:ff9b::/96";
const SERVER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER6: &str = "64:ff9b::c000:201";
const PORT: u16 = 5000;
const PATIENCE: Duration = Duration::from_secs(20);

/// `$2` is the uplink and `$8` the IPv4 address. The MTU is the uplink's less 28: the difference of
/// the headers, and a fragment header.
const STAND_IN: &str = r#"#!/bin/bash
set -e
ip addr replace "$8/32" dev "v4-$2"
ip link set "v4-$2" mtu 1472 up
exec -a "clatd-$2" sleep 1000
"#;

/// A phone and a server, connected by a veth.
struct Place {
    phone: String,
    server: String,
    dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("off-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir(&dir).expect("a new directory");
        let place = Self { phone: format!("{name}-p"), server: format!("{name}-s"), dir };
        let (phone, server) = (&place.phone, &place.server);
        sh(&format!(
            "ip netns add {phone} && ip netns add {server} &&
             ip link add up0 netns {phone} type veth peer name net0 netns {server}"
        ));
        place.phone(
            "ip link set lo up && ip link set up0 up && ip addr add 2001:db8::2/64 dev up0 nodad &&
             ip -6 route add default dev up0",
        );
        sh(&format!(
            "ip netns exec {server} sh -c \"ip link set lo up && ip link set net0 up &&
             ip addr add 2001:db8::1/64 dev net0 nodad &&
             ip addr add {SERVER6}/128 dev net0 nodad\""
        ));
        write_script(&place.dir.join("clatd"), STAND_IN);
        place
    }

    fn phone(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} sh -c '{command}'", self.phone))
    }

    fn controller(&self, args: &[&str]) -> Controller {
        let socket = self.dir.join("controller.sock");
        let child = common::start(
            Command::new("ip")
                .args(["netns", "exec", &self.phone, env!("CARGO_BIN_EXE_clat_controller")])
                .args(["--socket".as_ref(), socket.as_os_str()])
                .args(["--clatd".as_ref(), self.dir.join("clatd").as_os_str()])
                .args(args),
        );
        Controller {
            service: client::connect(Some(&Transport::Rpc(socket)), false).expect("connects"),
            child,
        }
    }

    /// Starts a CLAT. The stand-in does not answer neighbour discovery, so the server gets a static
    /// entry.
    fn start(&self, controller: &Controller) -> Ipv6Addr {
        let v6 = controller.service.clatdStart("up0", PREFIX).expect("starts");
        let mac = self.phone("cat /sys/class/net/up0/address");
        sh(&format!(
            "ip netns exec {} ip neigh replace {v6} lladdr {} dev net0",
            self.server,
            mac.trim()
        ));
        v6.parse().expect("an address")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for netns in [&self.phone, &self.server] {
            sh(&format!("ip netns pids {netns} | xargs -r kill -9; ip netns del {netns}"));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs `f` in a network namespace; sockets made there stay there.
fn inside<T: Send>(netns: &str, f: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{netns}")).expect("the namespace");
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(file, CloneFlags::CLONE_NEWNET).expect("entered");
            f()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Controller {
    service: Strong<dyn IClatdController>,
    child: Child,
}

impl Controller {
    fn clat(&self) -> ClatStatus {
        self.service.getStatus().expect("status").clats.remove(0)
    }

    /// The counters of egress and ingress.
    fn counters(&self) -> (OffloadCounters, OffloadCounters) {
        let clat = self.clat();
        (clat.egress.expect("counted"), clat.ingress.expect("counted"))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// Ends by SIGKILL.
    fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("waits");
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        }
        let _ = self.child.wait();
    }
}

/// Sends `len` bytes to the server and back.
fn echo(client: &TcpStream, server: &TcpStream, len: usize) {
    let bytes: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).expect("small")).collect();
    for (mut from, mut to) in [(client, server), (server, client)] {
        let mut got = vec![0; len];
        thread::scope(|scope| {
            scope.spawn(|| from.write_all(&bytes).expect("sent"));
            to.read_exact(&mut got).expect("received");
        });
        assert!(got == bytes, "other bytes than were sent");
    }
}

fn connect(place: &Place) -> (TcpStream, TcpStream) {
    let listener = inside(&place.server, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)));
    let listener = listener.expect("a listener");
    let client = inside(&place.phone, || {
        TcpStream::connect_timeout(&SocketAddr::from((SERVER4, PORT)), PATIENCE)
    });
    let client = client.expect("connected through the kernel");
    let (server, peer) = listener.accept().expect("accepted");
    assert!(matches!(peer.ip(), IpAddr::V6(_)));
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
    }
    (client, server)
}

#[test]
fn flows_pass_the_kernel_alone() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&[]);
    assert_eq!(controller.service.getStatus().expect("status").ebpfMode, "Enabled");
    let v6 = place.start(&controller);
    assert!(controller.clat().offloaded);

    place.phone(&format!("ping -c 3 -i 0.2 -W 5 {SERVER4}"));
    let (egress, ingress) = controller.counters();
    assert_eq!((egress.packets, egress.bytes, egress.neighbour), (3, 3 * 84, 3));
    assert_eq!((ingress.packets, ingress.bytes), (3, 3 * 104));
    assert_eq!((egress.lost, ingress.lost), (0, 0));

    let server = inside(&place.server, || UdpSocket::bind((SERVER6, PORT)));
    let client = inside(&place.phone, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let (server, client) = (server.expect("bound"), client.expect("bound"));
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
    }
    let mut bytes = [0; 2000];
    for len in [0, 1, 1000, 1200] {
        client.send_to(&vec![7; len], (SERVER4, PORT)).expect("sent");
        let (got, from) = server.recv_from(&mut bytes).expect("received");
        assert_eq!((got, from.ip()), (len, IpAddr::V6(v6)));
        server.send_to(&bytes[..got], from).expect("sent");
        let (got, from) = client.recv_from(&mut bytes).expect("received");
        assert_eq!((got, from), (len, SocketAddr::from((SERVER4, PORT))));
    }
    let (egress, _) = controller.counters();
    assert_eq!((egress.packets, egress.superPackets), (7, 0));

    // Ten datagrams in one call (UDP_SEGMENT).
    setsockopt(&client, sockopt::UdpGsoSegment, &1000).expect("set");
    client.send_to(&[7; 10_000], (SERVER4, PORT)).expect("sent");
    for _ in 0..10 {
        assert_eq!(server.recv_from(&mut bytes).expect("received").0, 1000);
    }
    let (egress, _) = controller.counters();
    assert_eq!((egress.packets, egress.superPackets, egress.passed.len()), (17, 1, 0));

    let (client, server) = connect(&place);
    echo(&client, &server, 4 << 20);
    let (egress, ingress) = controller.counters();
    assert!(egress.bytes > 4 << 20 && ingress.bytes > 4 << 20, "{egress:?} {ingress:?}");
    assert!(egress.superPackets > 0 && ingress.superPackets > 0, "{egress:?} {ingress:?}");
    assert_eq!((egress.lost, ingress.lost), (0, 0));
    let clat = controller.clat();
    assert_eq!((clat.txPackets, clat.rxPackets), (0, 0), "nothing was left to clatd");
    let dump = controller.service.dumpText(&[]).expect("dump");
    assert!(dump.contains(&format!("    up0: eBPF egress {} packets", egress.packets)), "{dump}");

    controller.service.clatdStop("up0").expect("stops");
    let left = place.phone("tc filter show dev up0 ingress");
    assert_eq!(left, "");
}

#[test]
fn a_flow_outlives_a_killed_controller() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut first = place.controller(&[]);
    place.start(&first);
    let (client, server) = connect(&place);
    echo(&client, &server, 100_000);
    first.kill();
    echo(&client, &server, 100_000);

    let second = place.controller(&[]);
    assert_eq!(place.phone("tc filter show dev up0 ingress"), "");
    assert_eq!(place.phone("ip -o link | grep -c v4- || true").trim(), "0");
    place.start(&second);
    place.phone(&format!("ping -c 1 -W 5 {SERVER4}"));
    assert_eq!(second.counters().0.packets, 1);
}

/// Waits until the condition holds.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn filters_that_are_taken_away_are_put_back() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&[]);
    place.start(&controller);
    let filters = || {
        ["v4-up0 egress", "up0 ingress"].map(|at| {
            let shown = place.phone(&format!("tc filter show dev {at}"));
            shown
                .lines()
                .filter(|line| line.contains(" pref 4 ") && line.contains("handle"))
                .count()
        })
    };
    assert_eq!(filters(), [1, 1]);
    for damage in [
        "tc filter del dev v4-up0 egress",
        "tc filter del dev up0 ingress prio 4 protocol ipv6",
        "tc qdisc del dev v4-up0 clsact",
        "tc qdisc del dev up0 clsact",
    ] {
        let sent = controller.counters().0.packets;
        place.phone(damage);
        eventually(damage, || filters() == [1, 1]);
        assert!(controller.clat().offloaded, "{damage}");
        place.phone(&format!("ping -c 1 -W 5 {SERVER4}"));
        assert_eq!(controller.counters().0.packets, sent + 1, "{damage}: counters go on");
    }
}

#[test]
fn who_is_in_a_filters_place_is_told() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&[]);
    place.start(&controller);
    let says = |words: &str| controller.service.dumpText(&[]).expect("dump").contains(words);

    // A filter in front that passes all packets.
    place.phone("tc filter add dev up0 ingress prio 1 protocol ipv6 bpf bytecode \"1,6 0 0 0\"");
    let before = "ingress of up0: packets meet a bpf filter of priority 1 first";
    eventually(before, || says(before));
    assert!(controller.clat().offloaded);
    place.phone(&format!("ping -c 1 -W 5 {SERVER4}"));
    place.phone("tc filter del dev up0 ingress prio 1");
    eventually("nobody before", || !says(before));

    // Another filter takes the place while the controller is stopped.
    let signal = |signal| kill(controller.pid(), signal).expect("it runs");
    signal(Signal::SIGSTOP);
    place.phone(
        "tc filter del dev up0 ingress prio 4 protocol ipv6 &&
         tc filter add dev up0 ingress prio 4 protocol ipv6 u32 match u32 0 0",
    );
    signal(Signal::SIGCONT);
    let taken = "ingress of up0: cannot put the filter back: \
                 its place is taken by a u32 filter of priority 4";
    eventually(taken, || says(taken));
    let clat = controller.clat();
    assert!(!clat.offloaded && clat.ingress.is_none());
    place.phone("tc filter del dev up0 ingress prio 4");
    eventually("its place again", || controller.clat().offloaded && !says(taken));
    place.phone(&format!("ping -c 1 -W 5 {SERVER4}"));

    // The place is taken before the start.
    controller.service.clatdStop("up0").expect("stops");
    place.phone("tc filter add dev up0 ingress prio 4 protocol ipv6 u32 match u32 0 0");
    place.start(&controller);
    assert!(!controller.clat().offloaded);
    place.phone("tc filter del dev up0 ingress prio 4");
    eventually("its place", || controller.clat().offloaded);
    place.phone(&format!("ping -c 1 -W 5 {SERVER4}"));
}

#[test]
fn without_offload_nothing_is_attached() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&["--no-offload"]);
    assert_eq!(controller.service.getStatus().expect("status").ebpfMode, "Disabled");
    place.start(&controller);
    let clat = controller.clat();
    assert!(!clat.offloaded && clat.egress.is_none() && clat.ingress.is_none());
    assert_eq!(place.phone("tc qdisc show | grep clsact || true"), "");
    assert!(!controller.service.dumpText(&[]).expect("dump").contains("BPF ingress map"));
}
