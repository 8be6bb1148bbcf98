//! The real program over its real socket, with real TUN devices, firewall rules and routes in a network namespace.
//! Only clatd is a stand-in: a script that sets its device up and then sleeps under clatd's name.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clat_controller::binder_adapter::{ExceptionCode, IClatdController, Status, Strong};
use clat_controller::client::{self, errno};
use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use common::{is_root, sh};

const PREFIX: &str = "64:ff9b::/96";

/// `$2` is the uplink and `${10}` the IPv4 address (see `ClatdArgs::argv`). bash, since only that can choose argv[0].
const STAND_IN: &str = r#"#!/bin/bash
set -e
ip addr replace "$8/32" dev "v4-$2"
ip link set "v4-$2" up
exec -a "clatd-$2" sleep 1000
"#;

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A network namespace with the uplink `up0`, and a directory for sockets.
struct Place {
    netns: String,
    dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let netns = format!("ctl-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&netns);
        fs::create_dir(&dir).expect("a new directory");
        let place = Self { netns, dir };
        sh(&format!("ip netns add {}", place.netns));
        place.sh("ip link set lo up");
        place.add_uplink("up0", 1);
        let clatd = place.dir.join("clatd");
        fs::write(&clatd, STAND_IN).expect("written");
        fs::set_permissions(&clatd, fs::Permissions::from_mode(0o755)).expect("executable");
        place
    }

    fn add_uplink(&self, name: &str, net: u16) {
        self.sh(&format!(
            "ip link add {name} type veth peer name p{name} && ip link set p{name} up && ip link set {name} up &&
             ip addr add 2001:db8:0:{net}::2/64 dev {name} nodad && ip -6 route add default dev {name} metric {net}"
        ));
    }

    fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} sh -c '{command}'", self.netns))
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("controller.sock")
    }

    fn controller(&self, args: &[&str]) -> Controller {
        let child = common::start(&mut self.command(&self.socket(), args));
        Controller { child, socket: self.socket() }
    }

    fn command(&self, socket: &Path, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.netns, env!("CARGO_BIN_EXE_clat_controller")])
            .arg("--socket")
            .arg(socket)
            .arg("--clatd")
            .arg(self.dir.join("clatd"))
            .args(args);
        command
    }

    /// What a CLAT takes, as the kernel shows it; empty when there is none of it.
    fn taken(&self) -> String {
        let rules = self.sh("ip6tables-save -t raw | grep DROP || true");
        let links = self.sh("ip -o link | grep v4- || true");
        let routes = self.sh("ip -4 route");
        let pids = self.clatds().iter().map(|pid| format!("clatd {pid}\n")).collect::<String>();
        rules + &links + &routes + &pids
    }

    fn clatds(&self) -> Vec<i32> {
        let pids = sh(&format!("ip netns pids {}", self.netns));
        let is_clatd = |pid: &str| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with("clatd-"))
        };
        pids.lines().filter(|pid| is_clatd(pid)).filter_map(|pid| pid.parse().ok()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let netns = &self.netns;
        sh(&format!("ip netns pids {netns} | xargs -r kill -9; ip netns del {netns}"));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

struct Controller {
    child: Child,
    socket: PathBuf,
}

impl Controller {
    fn connect(&self) -> Strong<dyn IClatdController> {
        client::connect(&self.socket).expect("connects")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("it runs");
    }

    /// Ends by SIGTERM, cleanly.
    fn end(mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().expect("waits").success());
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // By SIGTERM, lest it leaves its lock; unless it has been waited for, or hangs.
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

fn errno_of<T: std::fmt::Debug>(result: Result<T, Status>) -> Option<Errno> {
    errno(&result.expect_err("fails"))
}

#[test]
fn a_clat_from_start_to_stop() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&[]);
    let service = controller.connect();
    assert_eq!(place.taken(), "");

    let v6 = service.clatdStart("up0", PREFIX).expect("starts");
    assert!(v6.starts_with("2001:db8:0:1:"), "{v6}");
    let rules = place.sh("ip6tables -t raw -S");
    assert!(rules.contains("-A PREROUTING -j clat_raw_PREROUTING"), "{rules}");
    assert!(
        rules.contains(&format!(
            "-A clat_raw_PREROUTING -s 64:ff9b::/96 -d {v6}/128 -i up0 -j DROP"
        )),
        "{rules}"
    );
    let route = place.sh("ip -4 route");
    assert!(
        route.starts_with("default dev v4-up0 proto static scope link src 192.0.0.4 metric 20"),
        "{route}"
    );
    assert_eq!(place.sh("cat /proc/sys/net/ipv6/conf/v4-up0/disable_ipv6").trim(), "1");

    let status = service.getStatus().expect("status");
    assert!(status.standalone);
    assert_eq!(status.ebpfMode, "Enabled");
    let clat = &status.clats[0];
    assert_eq!(
        (clat.iface.as_str(), clat.v4iface.as_str(), clat.v4.as_str()),
        ("up0", "v4-up0", "192.0.0.4")
    );
    assert_eq!((&clat.v6, clat.nat64Prefix.as_str(), clat.restarts), (&v6, PREFIX, 0));
    assert_eq!(place.clatds(), [clat.pid]);
    let open = sh(&format!("ls /proc/{}/fd", clat.pid));
    let open: Vec<_> = open.split_whitespace().filter(|fd| !["0", "1", "2"].contains(fd)).collect();
    let [tun] = open[..] else { panic!("{open:?}") };
    let info = sh(&format!("cat /proc/{}/fdinfo/{tun}", clat.pid));
    assert!(info.contains("iff:\tv4-up0"), "{info}");

    let dump = service.dumpText().expect("dump");
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

    place.add_uplink("up1", 2);
    let other = service.clatdStart("up1", "2001:db8:64::/96").expect("starts");
    assert!(other.starts_with("2001:db8:0:2:"), "{other}");
    let status = service.getStatus().expect("status");
    let v4: Vec<_> = status.clats.iter().map(|clat| clat.v4.as_str()).collect();
    assert_eq!(v4, ["192.0.0.4", "192.0.0.5"]);
    service.clatdStop("up1").expect("stops");

    service.clatdStop("up0").expect("stops");
    assert_eq!(place.taken(), "");
    assert_eq!(errno_of(service.clatdStop("up0")), Some(Errno::ENODEV));
    controller.end();
    assert_eq!(place.sh("ip6tables-save -t raw | grep clat || true"), "");
    assert!(!place.socket().exists());
}

#[test]
fn bad_input() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&[]);
    let service = controller.connect();
    for (iface, prefix, expected) in [
        ("up 0", PREFIX, Errno::EINVAL),
        ("up0\n-A INPUT -j DROP", PREFIX, Errno::EINVAL),
        ("", PREFIX, Errno::EINVAL),
        ("thirteenchars", PREFIX, Errno::ENAMETOOLONG),
        ("fourteen-chars", PREFIX, Errno::ENAMETOOLONG),
        ("fifteen-charact", PREFIX, Errno::ENAMETOOLONG),
        ("sixteen-characte", PREFIX, Errno::ENAMETOOLONG),
        ("unknown0", PREFIX, Errno::ENODEV),
        ("up0", "nonsense", Errno::EINVAL),
        ("up0", "192.0.2.0/24", Errno::EAFNOSUPPORT),
        ("up0", "64:ff9b::/64", Errno::EINVAL),
        ("up0", "64:ff9b::1/96", Errno::EINVAL),
        ("lo", PREFIX, Errno::EADDRNOTAVAIL),
    ] {
        assert_eq!(
            errno_of(service.clatdStart(iface, prefix)),
            Some(expected),
            "{iface:?} {prefix:?}"
        );
        assert_eq!(place.taken(), "");
    }
    fs::remove_file(place.dir.join("clatd")).expect("there");
    let error = service.clatdStart("up0", PREFIX).expect_err("no clatd");
    assert_eq!(errno(&error), Some(Errno::ENOENT));
    assert!(client::describe(&error).contains("cannot start clatd"), "{error}");
    assert_eq!(place.taken(), "");
    fs::write(place.dir.join("clatd"), "#!/bin/sh\nexit 3\n").expect("written");
    fs::set_permissions(place.dir.join("clatd"), fs::Permissions::from_mode(0o755))
        .expect("executable");
    assert_eq!(errno_of(service.clatdStart("up0", PREFIX)), Some(Errno::EIO));
    assert_eq!(place.taken(), "");
}

#[test]
fn with_netd_interfaces_have_to_be_assigned() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&["--no-standalone", "--first-api-level", "28"]);
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
    let route = place.sh("ip -4 route");
    assert!(!route.contains("default"), "{route}");
}

#[test]
fn garbage_on_the_socket() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&[]);
    let service = controller.connect();
    let _silent = UnixStream::connect(place.socket()).expect("connects");
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 4096], &[0xff; 100_000]] {
        let mut stream = UnixStream::connect(place.socket()).expect("connects");
        // It may be hung up on before it has said everything.
        let _ = stream.write_all(bytes);
    }
    assert!(service.getStatus().expect("still there").clats.is_empty());
    assert!(controller.connect().dumpText().expect("still there").contains("ClatdController"));
    controller.end();
}

#[test]
fn nothing_piles_up() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&[]);
    let service = controller.connect();
    service.clatdStart("up0", PREFIX).expect("starts");
    service.clatdStop("up0").expect("stops");
    let before = controller.descriptors();
    for _ in 0..20 {
        service.clatdStart("up0", PREFIX).expect("starts");
        service.clatdStop("up0").expect("stops");
    }
    assert_eq!(controller.descriptors(), before);
    assert_eq!(place.taken(), "");
}

#[test]
fn a_dead_clatd_comes_back() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&[]);
    let service = controller.connect();
    let v6 = service.clatdStart("up0", PREFIX).expect("starts");
    let pid = service.getStatus().expect("status").clats[0].pid;
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    wait_until("the restart", || service.getStatus().expect("status").clats[0].restarts == 1);
    wait_until("its setup", || place.clatds().len() == 1);
    let clat = &service.getStatus().expect("status").clats[0];
    assert_eq!((&clat.v6, clat.v4.as_str()), (&v6, "192.0.0.4"));
    assert_eq!(place.clatds(), [clat.pid]);
    assert_ne!(clat.pid, pid);
    service.clatdStop("up0").expect("stops");
    assert_eq!(place.taken(), "");
}

#[test]
fn what_a_killed_controller_left_is_removed() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut controller = place.controller(&[]);
    controller.connect().clatdStart("up0", PREFIX).expect("starts");
    // Looks like one, but is not: no TUN device of that name.
    let netns = &place.netns;
    let mut bystander = Command::new("ip")
        .args(["netns", "exec", netns, "bash", "-c", "exec -a clatd-other sleep 1000"])
        .spawn()
        .expect("starts");
    controller.signal(Signal::SIGKILL);
    controller.child.wait().expect("waits");
    assert_ne!(place.taken(), "");
    assert!(place.socket().exists(), "a stale socket");
    wait_until("the bystander", || place.clatds().len() == 2);

    let controller = place.controller(&[]);
    let bystander_pid = i32::try_from(bystander.id()).expect("a pid");
    assert_eq!(place.taken(), format!("clatd {bystander_pid}\n"));
    bystander.kill().expect("it runs");
    bystander.wait().expect("waits");
    assert_eq!(place.sh("ip6tables-save -t raw | grep clat || true"), "");
    let service = controller.connect();
    service.clatdStart("up0", PREFIX).expect("starts");
    assert_eq!(place.sh("ip6tables-save -t raw | grep -c PREROUTING.*clat").trim(), "1");
    // With a CLAT running, the end takes all of it away.
    controller.end();
    assert_eq!(place.taken(), "");
    assert_eq!(place.sh("ip6tables-save -t raw | grep clat || true"), "");
}

#[test]
fn one_controller_a_socket_and_a_namespace() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let first = place.controller(&[]);
    let refused = |mut command: Command| {
        let output = command.output().expect("runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(place.command(&place.socket(), &[]));
    assert!(said.contains("another clat_controller runs in this network namespace"), "{said}");

    let other = Place::new();
    let said = refused(other.command(&place.socket(), &[]));
    assert!(said.contains("another controller answers on"), "{said}");
    first.connect().getStatus().expect("the first still answers");

    let file = other.dir.join("file");
    fs::write(&file, "precious").expect("written");
    let said = refused(other.command(&file, &[]));
    assert!(said.contains("is no socket"), "{said}");
    assert_eq!(fs::read_to_string(&file).expect("still there"), "precious");
}

#[test]
fn without_a_controller_the_client_says_what_helps() {
    let error =
        client::connect(Path::new("/nonexistent/controller.sock")).expect_err("nobody there");
    assert!(error.to_string().contains("start clat_controller as root"), "{error}");
}

/// Not a test: what another user does, in a process of its own.
#[test]
fn as_another_user() {
    let Some(socket) = std::env::var_os("CLAT_TEST_SOCKET") else { return };
    let service = client::connect(Path::new(&socket)).expect("the socket was opened to all");
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
    show("dump", service.dumpText().err());
}

#[test]
fn other_users_are_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let controller = place.controller(&["--allow-uid", "4321"]);
    let mode = fs::metadata(place.socket()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert!(fs::metadata(place.socket()).expect("there").file_type().is_socket());
    assert_eq!(fs::metadata("/run/clat").expect("there").permissions().mode() & 0o007, 0);

    // A copy that others can run, wherever the build is.
    let program = place.dir.join("peer");
    fs::copy(std::env::current_exe().expect("this program"), &program).expect("copied");
    let results = |uid: u32| {
        let output = Command::new(&program)
            .args(["as_another_user", "--exact", "--nocapture"])
            .env("CLAT_TEST_SOCKET", place.socket())
            .current_dir("/")
            .uid(uid)
            .gid(uid)
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter_map(|line| Some(line.split_once("RESULT ")?.1.to_owned()));
        (lines.collect::<Vec<_>>(), String::from_utf8_lossy(&output.stderr).into_owned())
    };

    let (lines, said) = results(65534);
    assert!(lines.is_empty() && said.contains("you may not use"), "{lines:?} {said}");

    // From here on only the check of the peer's credentials is left.
    fs::set_permissions(place.socket(), fs::Permissions::from_mode(0o666)).expect("opened to all");
    let (lines, said) = results(65534);
    assert_eq!(lines.len(), 6, "{said}");
    for line in &lines {
        assert!(line.ends_with("Security uid 65534 may not use the CLAT controller"), "{line}");
    }
    assert_eq!(place.taken(), "");
    for uid in [4321, 1000, 1073] {
        let (lines, said) = results(uid);
        assert_eq!(lines.len(), 6, "{said}");
        for (line, expected) in
            lines.iter().zip(["start", "stop", "add", "remove", "status", "dump"])
        {
            assert_eq!(line.trim(), format!("{expected} None"), "uid {uid}");
        }
    }
    controller.end();
}
