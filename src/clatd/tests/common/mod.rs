// SPDX-License-Identifier: Apache-2.0

//! A daemon in a network namespace of its own, with another at the far end of its uplink.
// Each test uses a part of this, and fails by panicking.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clat_tun::{Options, Tun};
use nix::sched::{setns, unshare, CloneFlags};
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

pub const V6: &str = "2001:db8:1::c1a7";
/// Far longer than any step takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// This thread's network namespace with the uplink `up0`, and another one with its peer `down0`,
/// which has the IPv6 addresses inside the prefix.
pub struct Network {
    peer: Child,
}

/// Moves this thread into a new network namespace; false where that is not possible, which is a
/// failure with CI in the environment.
pub fn namespace() -> bool {
    let tried = unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|e| e.to_string())
        .and_then(|()| File::open("/dev/net/tun").map(|_| ()).map_err(|e| e.to_string()));
    if let Err(why) = &tried {
        assert!(std::env::var_os("CI").is_none(), "cannot test the daemon: {why}");
        eprintln!("SKIPPED: cannot test the daemon ({why}); run as root");
    }
    tried.is_ok()
}

impl Network {
    /// `None` where namespaces are not possible.
    pub fn new() -> Option<Self> {
        if !namespace() {
            return None;
        }
        let peer = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut network = Self { peer };
        // The line says that the namespace exists.
        let mut line = [0];
        network.peer.stdout.take().unwrap().read_exact(&mut line).unwrap();
        let pid = network.peer.id();
        run(&format!(
            "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
             ip link set lo up
             ip link add up0 type veth peer name down0 netns {pid}
             ip addr add 2001:db8:1::2/64 dev up0 nodad
             ip link set up0 up
             ip -6 route add default via 2001:db8:1::1 dev up0"
        ));
        // Not in `default`, which is for new interfaces only: while its link-local address is
        // tentative, the peer resolves no neighbours.
        network.run_peer(
            "echo 0 > /proc/sys/net/ipv6/conf/down0/accept_dad
             ip link set lo up
             ip addr add 2001:db8:1::1/64 dev down0 nodad
             ip addr add 64:ff9b::203.0.113.1/128 dev lo nodad
             ip link set down0 up",
        );
        Some(network)
    }

    pub fn run_peer(&self, script: &str) -> String {
        let pid = self.peer.id().to_string();
        output(Command::new("nsenter").args(["-t", &pid, "-n", "sh", "-ec", script]))
    }

    /// Runs something in the peer's namespace.
    pub fn in_peer<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.peer.id())).unwrap();
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                what()
            });
            there.join().unwrap()
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.peer.kill();
        let _ = self.peer.wait();
    }
}

pub fn run(script: &str) -> String {
    output(Command::new("sh").args(["-ec", script]))
}

pub fn output(command: &mut Command) -> String {
    let done = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{command:?}: {out}{err}");
    out.into_owned()
}

/// Waits until `ask` returns a value.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: nothing after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A running clatd whose stderr goes to a file.
pub struct Clatd {
    pub child: Child,
    log: PathBuf,
}

impl Clatd {
    /// Starts one on a TUN device that it inherits, with sockets if given.
    pub fn start(test: &str, tun: Tun, sockets: Option<(OwnedFd, OwnedFd)>) -> Self {
        Self::start_with(test, tun, sockets, "")
    }

    /// The same, with more options.
    pub fn start_with(
        test: &str,
        tun: Tun,
        sockets: Option<(OwnedFd, OwnedFd)>,
        more: &str,
    ) -> Self {
        Self::start_by("", test, tun, sockets, more)
    }

    /// The same, run by another program: its arguments follow those of `wrapper`.
    pub fn start_by(
        wrapper: &str,
        test: &str,
        tun: Tun,
        sockets: Option<(OwnedFd, OwnedFd)>,
        more: &str,
    ) -> Self {
        let log = std::env::temp_dir().join(format!("clatd-{test}-{}.log", std::process::id()));
        // Descriptors are inherited as stdin, stdout and stderr and moved to their numbers, so that
        // no other test's child inherits them.
        let mut script = String::from("exec 3<&0 0</dev/null; ");
        let mut options = String::from("-t 3");
        let mut command = Command::new("sh");
        command.stdin(OwnedFd::from(tun)).stdout(Stdio::null());
        if let Some((read, write)) = sockets {
            command.stdout(read).stderr(write);
            script += "exec 4<&1 5<&2 1>/dev/null; ";
            options += " -r 4 -w 5";
        }
        let (program, log_file) = (env!("CARGO_BIN_EXE_clatd"), log.display());
        let line = format!("{program} -i up0 -p 64:ff9b:: -4 192.0.0.4 -6 {V6} {options} {more}");
        script += &format!("exec {wrapper} {line} 2>{log_file}");
        let child = command.args(["-c", &script]).spawn().unwrap();
        Self { child, log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// A line of /proc/PID/status.
    pub fn status(&self, key: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line[key.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Waits until the loop runs, to which the system call filter is the last step.
    pub fn ready(&mut self) {
        until("clatd in its loop", || {
            let ended = self.child.try_wait().unwrap();
            assert_eq!(ended, None, "{}", self.log());
            (self.status("Seccomp:") == "2").then_some(())
        });
    }

    pub fn wait(&mut self) -> ExitStatus {
        until("the end of clatd", || self.child.try_wait().unwrap())
    }

    pub fn counters(&self) -> String {
        let before = self.log().matches("counters").count();
        kill(self.pid(), Signal::SIGUSR1).unwrap();
        until("a line of counters", || {
            let log = self.log();
            (log.matches("counters").count() > before && log.ends_with('\n'))
                .then(|| log.lines().last().unwrap_or_default().to_owned())
        })
    }

    pub fn stop(mut self) -> String {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        let log = self.log();
        let last = log.lines().last().unwrap_or_default();
        assert!(last.starts_with("clatd-up0: counters egress4="), "{log}");
        last.to_owned()
    }
}

impl Drop for Clatd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}

pub fn tun(options: Options) -> Tun {
    Tun::create("v4-up0", options).unwrap()
}

/// Routes IPv4 through the CLAT, and keeps the kernel from answering what clatd receives, as on
/// Android: with inherited sockets the address is an anycast address.
pub fn route() {
    run(&format!(
        "ip route add 203.0.113.0/24 dev v4-up0 src 192.0.0.4
         ip6tables -w -t raw -A PREROUTING -i up0 -s 64:ff9b::/96 -d {V6} -j DROP"
    ));
}

pub fn unroute() {
    run("ip6tables -w -t raw -F PREROUTING");
}

pub const SERVER: &str = "64:ff9b::203.0.113.1";

/// Counting bytes, so that a misplaced piece is noticed.
pub fn data(len: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_be_bytes).take(len).collect()
}

/// Datagrams of several sizes in both directions, one of them fragmented.
pub fn udp_echo(network: &Network) {
    let server = network.in_peer(|| UdpSocket::bind((SERVER, 0)).unwrap());
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    client.connect(("203.0.113.1", server.local_addr().unwrap().port())).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut buf = vec![0; 65536];
    for len in [0, 1, 64, 1231, 1232, 1233, 1400, 1472, 8000, 40_000] {
        let sent = data(len);
        client.send(&sent).unwrap();
        let (got, from) = server.recv_from(&mut buf).unwrap();
        assert_eq!(from.ip().to_string(), V6);
        assert_eq!(buf[..got], sent, "up, {len} bytes");
        server.send_to(&sent, from).unwrap();
        let got = client.recv(&mut buf).unwrap();
        assert_eq!(buf[..got], sent, "down, {len} bytes");
    }
    // A GSO packet must arrive as datagrams.
    client.send(b"where am I?").unwrap();
    let (_, from) = server.recv_from(&mut buf).unwrap();
    setsockopt(&server, sockopt::UdpGsoSegment, &1200).unwrap();
    let sent = data(10 * 1200 + 77);
    server.send_to(&sent, from).unwrap();
    for chunk in sent.chunks(1200) {
        let got = client.recv(&mut buf).unwrap();
        assert_eq!(buf[..got], *chunk);
    }
    setsockopt(&client, sockopt::UdpGsoSegment, &1200).unwrap();
    client.send(&sent).unwrap();
    for chunk in sent.chunks(1200) {
        let (got, _) = server.recv_from(&mut buf).unwrap();
        assert_eq!(buf[..got], *chunk);
    }
}

/// Some megabytes each way.
pub fn tcp_echo(network: &Network) {
    let server = network.in_peer(|| TcpListener::bind((SERVER, 0)).unwrap());
    let port = server.local_addr().unwrap().port();
    let sent = data(4 << 20);
    thread::scope(|scope| {
        let sent = &sent;
        scope.spawn(move || {
            let (mut there, _) = server.accept().unwrap();
            there.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut got = vec![0; sent.len()];
            there.read_exact(&mut got).unwrap();
            assert!(got == *sent, "up");
            there.write_all(sent).unwrap();
        });
        let mut here = TcpStream::connect(("203.0.113.1", port)).unwrap();
        here.set_read_timeout(Some(PATIENCE)).unwrap();
        here.write_all(sent).unwrap();
        let mut got = vec![0; sent.len()];
        here.read_exact(&mut got).unwrap();
        assert!(got == *sent, "down");
    });
}

/// Unfragmented and fragmented; fragmented ICMP messages need reassembly in both directions.
pub fn ping() {
    for size in [56, 1400, 4000, 30_000] {
        run(&format!("ping -n -c 1 -w 20 -s {size} 203.0.113.1"));
    }
}
