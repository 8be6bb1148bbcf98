// SPDX-License-Identifier: Apache-2.0

//! No member of the socket's group can delay the answers to others.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clat_controller::binder_adapter::{new_listener, IClatdController, Transport};
use clat_controller::client;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::{is_root, sh};
use crate::events::Recorder;
use crate::fixture::{self, wait_until, Fixture};

/// How long any other user may wait for an answer, connecting included.
const WAIT: Duration = Duration::from_millis(100);

/// How long another connection of the attacking user may wait.
const OWN_WAIT: Duration = Duration::from_secs(1);

/// How much memory an attack may cost: a user's 128 KiB, what threads need, and what the allocator
/// keeps.
const MEMORY: u64 = 8 << 20;

/// Lines that an attack of [`TIME`] may leave in the log.
const LINES: usize = 300;

/// How long an attack lasts.
const TIME: Duration = Duration::from_secs(3);

/// The environment variable with the name of the attack.
const ATTACK: &str = "CLAT_TEST_ATTACK";

const ALLOWED: u32 = 4321;
const STRANGER: u32 = 10123;

/// RpcConnectionHeader of a new session in version 2, and RpcOutgoingConnectionInit.
const HANDSHAKE: [u8; 24] = *b"\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0cci\0\0\0\0\0";

/// RpcWireHeader of a transaction of 64 MiB.
const LARGEST: [u8; 16] = *b"\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0";

/// Not a test: attacks until it is killed.
#[test]
fn as_an_attacker() {
    let Some(transport) = fixture::inherited_transport() else { return };
    let Transport::Rpc(socket) = &transport else { panic!("there is only a socket to attack") };
    let attack = std::env::var(ATTACK).expect("an attack");
    let open = || UnixStream::connect(socket).ok();
    let each: &(dyn Fn() + Sync) = match attack.as_str() {
        "garbage" => &|| {
            if let Some(mut stream) = open() {
                let _ = stream.write_all(&[0xa5; 4096]);
            }
        },
        "half-open" => &|| {
            let mut streams: Vec<_> = (0..125).filter_map(|_| open()).collect();
            thread::sleep(Duration::from_millis(200));
            streams.iter_mut().for_each(|stream| drop(stream.write(b"\x02")));
        },
        "frames" => &|| {
            if let Some(mut stream) = open() {
                let begun = stream.write_all(&HANDSHAKE).and_then(|()| stream.write_all(&LARGEST));
                let chunk = [0; 1 << 16];
                let more = |_: &()| stream.write_all(&chunk).is_ok();
                let _ = begun.map(|()| std::iter::repeat(()).take(1024).take_while(more).count());
            }
        },
        "trickle" => &|| {
            if let Some(mut stream) = open() {
                for byte in HANDSHAKE.iter().chain(&[0; 16]) {
                    thread::sleep(Duration::from_millis(20));
                    let _ = stream.write(std::slice::from_ref(byte));
                }
            }
        },
        "events" => &|| {
            let listen = |_| {
                let service = client::connect(Some(&transport), true).ok()?;
                let _ = service.registerEventListener(&new_listener(Recorder::default()));
                Some(service)
            };
            let listening: Vec<_> = (0..8).map(listen).collect();
            thread::sleep(Duration::from_secs(1000));
            drop(listening);
        },
        "calls" => &|| {
            if let Ok(service) = client::connect(Some(&transport), false) {
                while service.clatdStop("up9").is_err_and(|e| client::errno(&e).is_some()) {}
            }
        },
        "deaf" => &|| {
            if let Some(mut stream) = open() {
                // Questions whose answers are not read.
                let _ = stream.write_all(&HANDSHAKE);
                let root = [&[0u8, 0, 0, 0, 40, 0, 0, 0][..], &[0; 48]].concat();
                while stream.write_all(&root).is_ok() {}
            }
        },
        other => panic!("there is no attack {other}"),
    };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| loop {
                each();
            });
        }
    });
}

struct Victim {
    fixture: Fixture,
    transport: Transport,
    log: PathBuf,
    child: Child,
}

impl Victim {
    fn new() -> Self {
        let fixture = Fixture::new();
        let log = fixture.dir.join("log");
        let transport = Transport::Rpc(fixture.socket());
        let uid = ALLOWED.to_string();
        let mut command = fixture.command(&transport, &["--allow-uid", &uid]);
        let child = command.stderr(File::create(&log).expect("a log")).spawn().expect("starts");
        let victim = Self { fixture, transport, log, child };
        wait_until("the controller", || victim.said().contains("ready on "));
        // Only the check of the peer's credentials is left.
        fs::set_permissions(victim.fixture.socket(), fs::Permissions::from_mode(0o666))
            .expect("opened");
        victim
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Resident memory, in bytes.
    fn memory(&self) -> u64 {
        let pages = fs::read_to_string(format!("/proc/{}/statm", self.pid())).expect("it runs");
        let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        pages.expect("a number") * 4096
    }

    fn ask(&self) -> Duration {
        let begin = Instant::now();
        let service = client::connect(Some(&self.transport), false).expect("connects");
        service.getStatus().expect("answers");
        begin.elapsed()
    }

    fn attack(&self, attack: &str, uid: u32) -> Child {
        let mut command = Command::new(self.fixture.peer_program());
        command.args(["socket::attacks::as_an_attacker", "--exact", "--nocapture"]);
        command.current_dir("/").env(fixture::PEER, self.fixture.socket()).env(ATTACK, attack);
        command.stdout(Stdio::null()).stderr(Stdio::null()).uid(uid).gid(uid);
        command.spawn().expect("the attacker starts")
    }
}

/// Measures what others notice of an attack.
fn withstands(attack: &str, uid: u32) {
    if !is_root() {
        return;
    }
    let victim = Victim::new();
    for _ in 0..10 {
        victim.ask();
    }
    let (memory, lines) = (victim.memory(), victim.said().lines().count());
    let mut attacker = victim.attack(attack, uid);
    thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    let mut waits = Vec::new();
    let mut most = 0;
    while begin.elapsed() < TIME {
        waits.push(victim.ask());
        most = most.max(victim.memory());
        thread::sleep(Duration::from_millis(10));
    }
    assert!(attacker.try_wait().expect("waits").is_none(), "the attacker gave up");
    attacker.kill().expect("it runs");
    attacker.wait().expect("waits");
    waits.sort_unstable();
    let lines = victim.said().lines().count() - lines;
    let (median, worst) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    let memory = most.saturating_sub(memory);
    eprintln!(
        "{attack} by uid {uid}: others waited {median:.1?}, at worst {worst:.1?} of {}; {} KiB \
            more, {lines} lines",
        waits.len(),
        memory >> 10
    );
    let wait = if uid == 0 { OWN_WAIT } else { WAIT };
    assert!(worst <= wait, "{median:?} {worst:?}");
    assert!(memory <= MEMORY, "{memory}");
    assert!(lines <= LINES, "{lines}");
    // The controller still ends at once.
    let begin = Instant::now();
    kill(Pid::from_raw(victim.pid()), Signal::SIGTERM).expect("it runs");
    let mut victim = victim;
    assert!(victim.child.wait().expect("waits").success());
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

macro_rules! withstands {
    ($($name:ident: $attack:literal, $uid:expr;)*) => {
        $(#[test]
        fn $name() {
            withstands($attack, $uid);
        })*
    };
}

withstands! {
    garbage_of_a_stranger: "garbage", STRANGER;
    garbage_of_a_caller: "garbage", ALLOWED;
    half_open_connections_of_a_stranger: "half-open", STRANGER;
    half_open_connections_of_a_caller: "half-open", ALLOWED;
    large_frames_of_a_caller: "frames", ALLOWED;
    bytes_one_by_one_of_a_caller: "trickle", ALLOWED;
    idle_listeners_of_a_caller: "events", ALLOWED;
    idle_listeners_of_the_same_user: "events", 0;
    calls_without_end_of_a_caller: "calls", ALLOWED;
    unread_answers_of_a_caller: "deaf", ALLOWED;
}

#[test]
fn many_at_once_are_all_served() {
    if !is_root() {
        return;
    }
    let victim = Victim::new();
    thread::scope(|scope| {
        let asked: Vec<_> = (0..40).map(|_| scope.spawn(|| victim.ask())).collect();
        asked.into_iter().for_each(|asked| assert!(asked.join().is_ok()));
    });
    let mut stream = UnixStream::connect(victim.fixture.socket()).expect("connects");
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
    // The server sends nothing before it is asked.
    stream.read(&mut [0]).expect_err("nothing to read");
    sh(&format!("kill {}", victim.pid()));
}
