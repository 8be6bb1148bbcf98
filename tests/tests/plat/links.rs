// SPDX-License-Identifier: Apache-2.0

//! Guests on each kind of socket: a killed one, one that sends garbage; and what platd is still
//! permitted.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::{can_run, USER_NAMESPACES};
use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{
    connect, recv, send, socket, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr,
};
use nix::unistd::Pid;

use crate::{resident_kib, status_of, wait_until, World, NOBODY};

/// Duration of garbage.
const GARBAGE: Duration = Duration::from_secs(60);
/// Most memory of a platd with [`FLOWS`] flows.
const MEMORY_KIB: u64 = 128 << 10;
const FLOWS: &str = "1000";
const LINKS: [&str; 3] = ["socket", "packets", "frames"];

/// A guest with little more than a TCP connection.
const GUEST: &str = include_str!("scripts/guest.py");

fn guest(world: &World, way: &str, path: &Path, port: &str) -> Result<clat_tests::Daemon> {
    let path = path.to_str().context("path")?;
    let log = world.path(&format!("{way}-{port}.log"));
    let mut guest = world.host.spawn(&["python3", "-c", GUEST, way, path, port], &log)?;
    guest.wait_for("connected")?;
    Ok(guest)
}

/// Its flows are kept for a guest that returns in time; then they end, and the next guest finds a
/// new network.
#[test]
fn killed_in_mid_flow() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    for way in LINKS {
        let path = world.path(&format!("{way}.sock"));
        let mut platd =
            world.daemon(way, &[&format!("--{way}"), path.to_str().context("path")?])?;
        let status = || world.status(way);
        let open = || Ok::<_, anyhow::Error>(status()?["flows_open"].as_u64());
        ensure!(status()?["connected"] == false);
        let killed = guest(&world, way, &path, "5001")?;
        ensure!(status()?["connected"] == true);
        // Without work it sleeps; there may be a router advertisement, and traffic of the guest's
        // start.
        let before = sleeps(platd.pid())?;
        std::thread::sleep(Duration::from_secs(2));
        ensure!(sleeps(platd.pid())? - before <= 3, "{way}: it does not sleep");
        kill(Pid::from_raw(killed.pid()), Signal::SIGKILL)?;
        wait_until("gone", || Ok(status()?["connected"] == false))?;
        ensure!(status()?["guest"].is_string() && open()? == Some(1), "{way}: {}", status()?);
        let again = guest(&world, way, &path, "5002")?;
        ensure!(status()?["connected"] == true && open()? == Some(2), "{way}: {}", status()?);
        let killed = Instant::now();
        kill(Pid::from_raw(again.pid()), Signal::SIGKILL)?;
        wait_until("flows go", || Ok(open()? == Some(0)))?;
        ensure!((9..13).contains(&killed.elapsed().as_secs()), "{way}: {:?}", killed.elapsed());
        ensure!(status()?["guest"].is_null(), "{way}: {}", status()?);
        let _next = guest(&world, way, &path, "5003")?;
        ensure!(open()? == Some(1) && status()?["connected"] == true, "{way}: {}", status()?);
        let left = platd.log().matches("the guest has left").count();
        ensure!(platd.stop(Signal::SIGTERM)?.success() && left == 2, "{}", platd.log());
    }
    Ok(())
}

/// Not only is a flow kept: its transfer goes on once the guest is back.
#[test]
fn back_in_mid_flow() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    for way in LINKS {
        let path = world.path(&format!("{way}.sock"));
        let path = path.to_str().context("path")?;
        let platd = world.daemon(way, &[&format!("--{way}"), path])?;
        let argv = ["python3", "-c", GUEST, way, path, "5001", "back"];
        let mut guest = world.host.spawn(&argv, &world.path(&format!("{way}.back")))?;
        guest.wait_for("connected")?;
        let status = world.status(way)?;
        ensure!(status["flows_open"] == 1 && status["stats"]["tcp"] == 1, "{way}: {status}");
        ensure!(platd.log().contains("the guest has left") || way == "frames", "{}", platd.log());
    }
    Ok(())
}

/// One line says what was wrong with a stream; the connection is closed, and the next guest is
/// served.
#[test]
fn lengths_that_lie() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    let path = world.path("lies.sock");
    let mut platd = world.daemon("lies", &["--socket", path.to_str().context("path")?])?;
    for length in [0_u32, 13, 1 << 17, u32::MAX] {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&length.to_be_bytes())?;
        let mut room = [0; 4096];
        // Read until it is closed: there may be a router advertisement first.
        while stream.read(&mut room)? > 0 {}
        platd.wait_for(&format!(" {length} bytes"))?;
        let log = platd.log();
        let line = log.lines().find(|line| line.contains(&format!(" {length} bytes")));
        ensure!(line.is_some_and(|line| line.contains("the guest has left")), "{log}");
    }
    let _decent = guest(&world, "socket", &path, "5001")?;
    ensure!(platd.stop(Signal::SIGTERM)?.success(), "{}", platd.log());
    Ok(())
}

/// Number of voluntary context switches of a process.
fn sleeps(pid: i32) -> Result<u64> {
    Ok(status_of(pid, "voluntary_ctxt_switches:")?.parse()?)
}

/// The guest is a socket, whichever process sends by it. Ancillary data with its frames is not
/// accepted.
#[test]
fn a_datagram_socket_of_several_processes() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    let path = world.path("two.sock");
    let path = path.to_str().context("path")?;
    let mut platd = world.daemon("two", &["--frames", path])?;
    let descriptors =
        || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{}/fd", platd.pid()))?.count());
    let before = descriptors()?;
    let connected = || Ok::<_, anyhow::Error>(world.status("two")?["connected"] == true);
    let argv = ["python3", "-c", include_str!("scripts/two_senders.py"), path];
    let mut guest = world.host.spawn(&argv, &world.path("two.guest"))?;
    guest.wait_for("one is left")?;
    ensure!(connected()?, "one of two is");
    guest.wait_for("it has sent")?;
    ensure!(connected()?, "the other is");
    wait_until("its process is watched, nothing of its own here", || {
        Ok(descriptors()? == before + 1)
    })?;
    kill(Pid::from_raw(guest.pid()), Signal::SIGKILL)?;
    wait_until("both are gone", || Ok(!connected()?))?;
    ensure!(descriptors()? == before);
    platd.stop(Signal::SIGTERM)?;
    Ok(())
}

/// A guest of root's with a socket that others may not write to, as made by QEMU.
#[test]
fn whose_socket_a_guest_has() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    let path = world.path("private.sock");
    let way = ["--frames", path.to_str().context("path")?];
    let mut platd = world.daemon("nobody", &way)?;
    let argv = ["python3", "-c", GUEST, "private", way[1], "5001"];
    let unanswered = world.host.spawn(&argv, &world.path("unanswered.log"))?;
    platd.wait_for("--runas 0")?;
    // Logged once, however often it fails.
    wait_until("lost more", || Ok(world.status("nobody")?["frames_lost"].as_u64() >= Some(3)))?;
    let path = world.path(&format!("private.sock.{}", unanswered.pid()));
    ensure!(platd.log().matches("cannot answer the guest").count() == 1, "{}", platd.log());
    ensure!(platd.log().contains(path.to_str().context("path")?), "{}", platd.log());
    ensure!(world.status("nobody")?["connected"] == true);
    drop(unanswered);
    wait_until("gone", || Ok(world.status("nobody")?["connected"] == false))?;
    platd.stop(Signal::SIGTERM)?;

    for user in ["root", "0"] {
        let platd = world.daemon("root", &[&way[..], &["--runas", user]].concat())?;
        let _guest = guest(&world, "private", Path::new(way[1]), "5002")?;
        let status = fs::read_to_string(format!("/proc/{}/status", platd.pid()))?;
        ensure!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
        ensure!(status.contains("Uid:\t0\t0\t0\t0\n"), "{status}");
    }
    let platd = |args: &[&str]| -> Result<String> {
        let output = world.platd(args)?;
        ensure!(!output.status.success());
        Ok(String::from_utf8(output.stderr)?)
    };
    let said = platd(&["--frames", "x", "--runas", "nosuchuser"])?;
    ensure!(said.contains("there is no such user"), "{said}");
    let own = world.path("own.sock");
    let said = platd(&["--frames", own.to_str().context("path")?, "--runas", "root"])?;
    ensure!(said.contains("only root can become another user"), "{said}");
    Ok(())
}

/// What a process is still permitted, according to the kernel: on a socket, in a namespace, and
/// started by an ordinary user.
#[test]
fn nothing_to_lose() -> Result<()> {
    if !can_run(&["python3", "setpriv", USER_NAMESPACES]) {
        return Ok(());
    }
    let world = World::new()?;
    let path = world.path("safe.sock");
    let by_socket = world.daemon("safe", &["--socket", path.to_str().context("path")?])?;
    let _guest = guest(&world, "socket", &path, "5001")?;
    has_nothing_to_lose(by_socket.pid(), true, &["safe.log"])?;

    let pcap = world.path("safe.pcap");
    let pcap = pcap.to_str().context("path")?;
    let (_guest, by_root) = world.guest("inside", &["--clat", "--pcap", pcap])?;
    has_nothing_to_lose(by_root.pid(), true, &["inside.log", "/dev/net/tun", "safe.pcap"])?;

    let command = world.command(&["run", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    let mut by_user = world.host.spawn(&command, &world.path("run.log"))?;
    by_user.wait_for("ready")?;
    has_nothing_to_lose(by_user.pid(), false, &["run.log", "/tun"])
}

/// Beside sockets and the like, it has only `files` open, and what its parent has left open.
fn has_nothing_to_lose(pid: i32, by_root: bool, files: &[&str]) -> Result<()> {
    // An ordinary user cannot drop the bounding set, which has no effect without new privileges.
    let bounding = by_root.then_some("CapBnd:");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"].into_iter().chain(bounding) {
        let set_of = status_of(pid, set)?;
        ensure!(set_of == "0000000000000000", "{set} {set_of}");
    }
    for (name, value) in
        [("Seccomp:", "2"), ("NoNewPrivs:", "1"), ("Groups:", ""), ("Threads:", "1")]
    {
        let found = status_of(pid, name)?;
        ensure!(found == value, "{name} {found}");
    }
    for ids in ["Uid:", "Gid:"] {
        let found = status_of(pid, ids)?;
        ensure!(found.split_whitespace().all(|id| id == NOBODY), "{ids} {found}");
    }
    let inherited: Vec<_> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .collect();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = fs::read_link(entry?.path())?;
        if inherited.contains(&target) {
            continue;
        }
        let target = target.to_string_lossy();
        ensure!(
            target.starts_with("socket:")
                || target.starts_with("anon_inode:")
                || target == "/dev/null"
                || files.iter().any(|file| target.ends_with(file)),
            "{target}"
        );
    }
    Ok(())
}

/// A small, fast, deterministic random generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or(0) % sides
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| u8::try_from(self.roll(256)).unwrap_or(0)).collect()
    }
}

/// An IPv6 frame; its checksum is right where `at` says it is.
fn ipv6(next: u8, to: [u8; 16], hops: u8, mut payload: Vec<u8>, at: Option<usize>) -> Vec<u8> {
    // Not the normal guest's, which would get answers of flows that it never had.
    let me = [0x20, 1, 0xd, 0xb8, 4, 0x64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8];
    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    if let Some(at) = at.filter(|at| at + 2 <= payload.len()) {
        payload[at..at + 2].fill(0);
        let pseudo =
            [&me[..], &to, &[0, 0], &len.to_be_bytes(), &[0, 0, 0, next], &payload].concat();
        let mut sum: u64 = pseudo
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
            .sum();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = !u16::try_from(sum).unwrap_or(0);
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let mut frame = vec![2, 0, 0, 0, 4, 0x64, 2, 0, 0, 0, 0, 9, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend(len.to_be_bytes());
    frame.extend([next, hops]);
    frame.extend(me);
    frame.extend(to);
    frame.append(&mut payload);
    frame
}

/// Random bytes, or a valid message damaged before or after its checksum was computed.
fn garbage(dice: &mut Dice) -> Vec<u8> {
    if dice.roll(4) == 0 {
        let len = 14 + dice.roll(1500);
        return dice.bytes(len);
    }
    let port = u8::try_from(dice.roll(8)).unwrap_or(0);
    let server = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 198, 51, 100, 1];
    let dns = [0x20, 1, 0xd, 0xb8, 4, 0x64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53];
    let routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let agents = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
    let question = [&[0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 28, 0, 1][..]].concat();
    let udp = |to: u16, data: &[u8]| {
        let len = u16::try_from(8 + data.len()).unwrap_or(0).to_be_bytes();
        [&[19, port][..], &to.to_be_bytes(), &len, &[0, 0], data].concat()
    };
    let tcp = |to: u8, flags: u8| {
        [19, port, 0, to, 0, 0, 3, 232, 0, 0, 0, 0, 0x50, flags, 255, 255, 0, 0, 0, 0]
    };
    let (next, to, hops, mut payload, at) = match dice.roll(9) {
        0 => (58, routers, 255, vec![133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 9], 2),
        1 => {
            let target =
                [&[135, 0, 0, 0, 0, 0, 0, 0][..], &dns, &[1, 1, 2, 0, 0, 0, 0, 9]].concat();
            (58, dns, 255, target, 2)
        }
        2 => (58, server, 64, [&[128, 0, 0, 0, 0, port, 0, 1][..], &[7; 56]].concat(), 2),
        3 => (17, dns, 64, udp(53, &question), 6),
        4 => (17, agents, 64, udp(547, &[1, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 9, 0, 3, 0, 12]), 6),
        5 => (17, server, 64, udp(80, &[5; 100]), 6),
        6 => (6, server, 64, tcp(81, 2).to_vec(), 16),
        7 => (6, server, 64, [&tcp(81, 0x18)[..], &[9; 40]].concat(), 16),
        _ => (6, dns, 64, tcp(53, 2).to_vec(), 16),
    };
    let (early, late) = (dice.roll(3), dice.roll(3));
    for _ in 0..early {
        let (at, byte) = (dice.roll(payload.len()), dice.bytes(1)[0]);
        payload[at] = byte;
    }
    if dice.roll(8) == 0 {
        payload.truncate(dice.roll(payload.len()));
    }
    let mut frame = ipv6(next, to, hops, payload, Some(at));
    for _ in 0..late {
        let (at, byte) = (12 + dice.roll(frame.len() - 12), dice.bytes(1)[0]);
        frame[at] = byte;
    }
    if dice.roll(8) == 0 {
        frame.truncate(14 + dice.roll(frame.len() - 13));
    }
    frame
}

/// A guest's end of a link.
enum Port {
    Stream(UnixStream),
    Packets(OwnedFd),
    Frames(UnixDatagram),
}

impl Port {
    fn open(way: &str, path: &Path) -> Result<Self> {
        Ok(match way {
            "socket" => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(Duration::from_millis(1)))?;
                stream.set_write_timeout(Some(Duration::from_secs(10)))?;
                Self::Stream(stream)
            }
            "packets" => {
                let fd =
                    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
                connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
                Self::Packets(fd)
            }
            _ => {
                let own = path.with_extension("own");
                let frames = UnixDatagram::bind(&own)?;
                fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
                frames.connect(path)?;
                Self::Frames(frames)
            }
        })
    }

    /// Sends frames, and receives waiting ones. `false` if the connection was closed.
    fn exchange(&mut self, frames: &[Vec<u8>], dice: &mut Dice) -> Result<bool> {
        let mut room = [0; 1 << 16];
        match self {
            Self::Stream(stream) => {
                let mut bytes = Vec::new();
                for frame in frames {
                    let lies = dice.roll(20_000) == 0;
                    let len = if lies { u32::MAX } else { u32::try_from(frame.len())? };
                    bytes.extend(len.to_be_bytes());
                    bytes.extend_from_slice(frame);
                }
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    stream.set_nonblocking(true)?;
                    match stream.write(rest) {
                        Ok(n) => rest = &rest[n..],
                        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                        Err(_) => return Ok(false),
                    }
                    match stream.read(&mut room) {
                        Ok(0) => return Ok(false),
                        Ok(_) => {}
                        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                        Err(_) => return Ok(false),
                    }
                }
            }
            Self::Packets(fd) => {
                for frame in frames {
                    send(fd.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL)?;
                    while recv(fd.as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT).is_ok() {}
                }
            }
            Self::Frames(socket) => {
                for frame in frames {
                    match send(socket.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL) {
                        Ok(_) | Err(Errno::ENOBUFS) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    while recv(socket.as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT).is_ok() {}
                }
            }
        }
        Ok(true)
    }
}

/// As fast as possible, for a minute, on all links at the same time.
#[test]
fn garbage_at_line_rate() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let world = World::new()?;
    let run = |way: &'static str| -> Result<()> {
        let path = world.path(&format!("{way}.sock"));
        let name = format!("--{way}");
        let args =
            [&name, path.to_str().context("path")?, "--max-flows", FLOWS, "--dns", "192.0.2.53"];
        let mut platd = world.daemon(way, &args)?;
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ u64::from(way.as_bytes()[0]));
        let (mut port, until) = (Port::open(way, &path)?, Instant::now() + GARBAGE);
        let (mut sent, mut asked, mut most) = (0_u64, Instant::now(), 0);
        while Instant::now() < until {
            let frames: Vec<_> = (0..64).map(|_| garbage(&mut dice)).collect();
            sent += 64;
            if !port.exchange(&frames, &mut dice)? {
                port = Port::open(way, &path)?;
            }
            if asked.elapsed() > Duration::from_secs(2) {
                asked = Instant::now();
                let status = world.status(way).context("no status any more")?;
                ensure!(status["flows_open"].as_u64() <= Some(FLOWS.parse()?), "{status}");
                most = most.max(resident_kib(platd.pid())?);
            }
        }
        drop(port);
        eprintln!("{way}: {sent} frames, {most} KiB at most");
        ensure!(sent > 10_000 && most < MEMORY_KIB, "{way}: {sent} frames, {most} KiB");
        let _decent = guest(&world, way, &path, "5001")?;
        ensure!(!platd.log().contains("panicked"), "{}", platd.log());
        ensure!(platd.stop(Signal::SIGTERM)?.success());
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = LINKS.map(|way| scope.spawn(move || run(way)));
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
    })
}
