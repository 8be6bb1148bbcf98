// SPDX-License-Identifier: Apache-2.0

//! ClatCoordinator's natives, called from a JVM (`-Xcheck:jni`) in the lab's phone as by Android's
//! system server.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::{chown, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use clat_tests::{can_run, install, program, Lab, Offloads, PREFIX, SERVER4, SERVER6};
use clat_xlat::{Local, Prefix};

/// The class's package in AOSP's source, and its renamed one in the module.
const PLAIN: &str = "com.android.server.connectivity";
const RENAMED: &str = "android.net.connectivity.com.android.server.connectivity";

/// Android's users of the system server and of clatd.
const SYSTEM: &str = "1000";
const CLAT: u32 = 1029;

/// A mark as made by ClatCoordinator, for network 100.
const MARK: i32 = 0xf_0064;

const NEEDS: &[&str] = &["java", "javac", "setpriv", "ip", "ping", "ip6tables"];

/// A JVM that has loaded the library and calls the natives of one class.
struct Jvm {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Jvm {
    /// Compiles the class into `package`, and starts a JVM in the lab's phone with the user and
    /// capabilities of the system server.
    fn new(lab: &Lab, package: &str) -> Result<Self> {
        let source = format!("{}/com/android/server/connectivity/ClatCoordinator.java", sources());
        let source = fs::read_to_string(&source).context(source)?;
        ensure!(source.contains(&format!("package {PLAIN};")), "another package than {PLAIN}");
        let classes = lab.dir().join(package);
        let class = classes.join("ClatCoordinator.java");
        fs::create_dir_all(&classes)?;
        fs::write(&class, source.replace(PLAIN, package))?;
        compile(&classes, &[&class, &calls()])?;
        let mut jvm = Self::start(lab, &classes, &format!("{package}.ClatCoordinator"))?;
        ensure!(jvm.read()? == Ok("loaded".to_owned()), "not loaded");
        Ok(jvm)
    }

    fn start(lab: &Lab, classes: &Path, class: &str) -> Result<Self> {
        // Copies that the system server may read and run, wherever this was built.
        let library = lab.dir().join("libclat_jni.so");
        let built = std::env::current_exe()?.with_file_name("libclat_jni.so");
        fs::copy(&built, &library).with_context(|| built.display().to_string())?;
        let clatd = lab.dir().join("clatd");
        if !clatd.exists() {
            install(&program("clatd")?, &clatd)?;
            // As installed by the module.
            chown(&clatd, Some(CLAT), Some(CLAT))?;
            fs::set_permissions(&clatd, fs::Permissions::from_mode(0o6755))?;
        }
        // dac_override for machines where /dev/net/tun is root's; Android's is system's.
        let capabilities = "-all,+net_admin,+net_raw,+kill,+dac_override";
        let mut child = lab
            .phone
            .command(&["setpriv", "--reuid", SYSTEM, "--regid", SYSTEM, "--clear-groups"])
            .args(["--inh-caps", capabilities, "--ambient-caps", capabilities])
            .args(["java", "-Xcheck:jni", "-XX:TieredStopAtLevel=1", "-Xmx64m"])
            // Lets Calls make FileDescriptors from numbers.
            .args(["--add-opens", "java.base/java.io=ALL-UNNAMED", "-cp"])
            .arg(classes)
            .args(["Calls".as_ref(), library.as_os_str(), class.as_ref()])
            .env("CLATD", &clatd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, input, output })
    }

    /// The next answer: a value, or an exception.
    fn read(&mut self) -> Result<Result<String, String>> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match line.trim_end().split_once(' ') {
            Some(("=", value)) => Ok(Ok(value.to_owned())),
            Some(("!", exception)) => Ok(Err(exception.to_owned())),
            _ => bail!("{line:?}: {}", self.complaints()),
        }
    }

    /// Calls a native: its name without `native_`, and its arguments.
    fn call(&mut self, line: &str) -> Result<Result<String, String>> {
        writeln!(self.input.as_mut().context("piped")?, "native_{line}")?;
        self.read().context(line.to_owned())
    }

    /// Calls a native that must not throw.
    fn get(&mut self, line: &str) -> Result<String> {
        self.call(line)?.map_err(|exception| anyhow::anyhow!("{line}: {exception}"))
    }

    /// Calls a native that must throw exactly this.
    fn throws(&mut self, line: &str, exception: &str) -> Result<()> {
        let got = self.call(line)?;
        ensure!(got == Err(exception.to_owned()), "{line}: {got:?}, not {exception}");
        Ok(())
    }

    /// Its stderr, once it has ended.
    fn complaints(&mut self) -> String {
        self.input = None;
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        said
    }

    /// Ends it. `-Xcheck:jni` must have found no fault.
    fn end(mut self) -> Result<()> {
        self.input = None;
        let mut rest = String::new();
        self.output.read_to_string(&mut rest)?;
        let said = self.complaints();
        let status = self.child.wait()?;
        // clatd logs there, too.
        let fine = said.lines().all(|line| line.starts_with("clatd-up0: "));
        ensure!(status.success() && rest.is_empty() && fine, "{status}: {rest}{said}");
        Ok(())
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Jvm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sources() -> String {
    format!("{}/jvm", env!("CARGO_MANIFEST_DIR"))
}

fn calls() -> PathBuf {
    Path::new(&sources()).join("Calls.java")
}

fn compile(classes: &Path, files: &[&Path]) -> Result<()> {
    let output = Command::new("javac")
        .args(["-Werror", "-Xlint:all", "-d"])
        .arg(classes)
        .args(files)
        .output()?;
    ensure!(output.status.success(), "javac: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What ClatCoordinator holds while it starts a CLAT.
struct Parts {
    v4: String,
    v6: Ipv6Addr,
    tun: String,
    read: String,
    write: String,
}

/// The steps of ClatCoordinator before it starts clatd, with netd's part done by `ip`.
fn prepare(lab: &Lab, jvm: &mut Jvm) -> Result<Parts> {
    let prefix: Prefix = PREFIX.parse().context("a prefix")?;
    let (pfx96, index) = (prefix.addr(), index_of(lab, "up0")?);
    let v4 = jvm.get("selectIpv4Address 192.0.0.4 29")?;
    let v6: Ipv6Addr = jvm.get(&format!("generateIpv6Address up0 {v4} {pfx96} {MARK}"))?.parse()?;
    let read = jvm.get("openPacketSocket")?;
    let write = jvm.get(&format!("openRawSocket6 {MARK}"))?;
    jvm.get(&format!("addAnycastSetsockopt {write} {v6} {index}"))?;
    jvm.get(&format!("configurePacketSocket {read} {v6} {index}"))?;
    let tun = jvm.get("createTunInterface v4-up0")?;
    let mtu: u32 = jvm.get(&format!("detectMtu {pfx96} {} {MARK}", 0x0808_0808))?.parse()?;
    ensure!(mtu == 1500, "MTU {mtu}");
    for line in [
        "ip link set v4-up0 mtu 1472 up",
        &format!("ip addr add {v4}/32 dev v4-up0"),
        "ip route add default dev v4-up0",
        &format!("ip6tables -w -t raw -A PREROUTING -i up0 -d {v6} -j DROP"),
    ] {
        lab.phone.run(line)?;
    }
    Ok(Parts { v4, v6, tun, read, write })
}

fn start(jvm: &mut Jvm, parts: &Parts) -> Result<u32> {
    let Parts { v4, v6, tun, read, write } = parts;
    let pfx96 = PREFIX.trim_end_matches("/96");
    let line = format!("startClatd {tun} {read} {write} up0 {pfx96} {v4} {v6}");
    Ok(jvm.get(&line)?.parse()?)
}

fn index_of(lab: &Lab, name: &str) -> Result<u32> {
    Ok(lab.phone.run(&format!("cat /sys/class/net/{name}/ifindex"))?.trim().parse()?)
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A line of /proc/PID/status.
fn status_of(pid: u32, name: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    Ok(line.with_context(|| format!("no {name} in {status}"))?.to_owned())
}

/// What is linked into the library, beside what Cargo declares (house.rs).
#[test]
fn the_library_has_neither_binder_nor_bpf() -> Result<()> {
    if !can_run(&["nm", "readelf"]) {
        return Ok(());
    }
    let library = std::env::current_exe()?.with_file_name("libclat_jni.so");
    let output = |program: &str, option: &str| -> Result<String> {
        let output = Command::new(program).arg(option).arg(&library).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let symbols = output("nm", "--demangle")?;
    ensure!(symbols.contains(" T JNI_OnLoad"), "no symbols of its own");
    for part in ["bpf_object__", "bpf_program__", "libbpf", "rsbinder", "android_net_clat"] {
        let found: Vec<_> = symbols.lines().filter(|line| line.contains(part)).collect();
        ensure!(found.is_empty(), "{found:#?}");
    }
    let dynamic = output("readelf", "--dynamic")?;
    for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        let ours = ["libc.so", "libgcc_s.so", "libm.so", "ld-linux"];
        ensure!(ours.iter().any(|name| line.contains(name)), "{line}");
    }
    Ok(())
}

#[test]
fn a_clat_is_started_and_stopped() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let mut jvm = Jvm::new(&lab, RENAMED)?;
    let parts = prepare(&lab, &mut jvm)?;
    ensure!(parts.v4 == "192.0.0.4", "{}", parts.v4);
    let local = Local { v4: parts.v4.parse()?, v6: parts.v6 };
    ensure!(local.is_neutral(&PREFIX.parse().context("a prefix")?), "{local:?} is not neutral");
    ensure!(parts.v6.segments()[..4] == [0x2001, 0xdb8, 1, 0], "{}", parts.v6);
    // An interface has it now.
    ensure!(jvm.get("selectIpv4Address 192.0.0.4 29")? == "192.0.0.5");
    let cookie: u64 = jvm.get(&format!("getSocketCookie {}", parts.write))?.parse()?;
    ensure!(
        cookie != 0 && jvm.get(&format!("getSocketCookie {}", parts.read))? != cookie.to_string()
    );

    let pid = start(&mut jvm, &parts)?;
    lab.phone.run(&format!("ping -n -c 3 -i 0.2 -W 5 {SERVER4}"))?;
    let server = Lab::listen(&lab.internet, SocketAddr::from((SERVER6, 7)))?;
    let mut client = Lab::connect(&lab.phone, SocketAddr::from((SERVER4, 7)))?;
    let (mut accepted, from) = server.accept()?;
    ensure!(from.ip() == parts.v6, "{from}");
    client.write_all(b"by Java's clatd")?;
    let mut got = [0; 15];
    accepted.read_exact(&mut got)?;
    ensure!(&got == b"by Java's clatd");

    // It has neither Java's user nor capabilities, and only the given ones of Java's descriptors.
    ensure!(status_of(pid, "Uid")? == format!("{CLAT}\t{CLAT}\t{CLAT}\t{CLAT}"));
    ensure!(status_of(pid, "Gid")? == format!("{CLAT}\t{CLAT}\t{CLAT}\t{CLAT}"));
    ensure!(status_of(pid, "CapPrm")?.trim_start_matches('0').is_empty());
    ensure!(fs::read(format!("/proc/{pid}/cmdline"))?.starts_with(b"clatd-up0\0"));
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        open.push(fs::read_link(entry?.path())?.display().to_string());
    }
    let ours = |fd: &str| fs::read_link(format!("/proc/{}/fd/{fd}", jvm.pid()));
    for fd in [&parts.read, &parts.write, &parts.tun] {
        let link = ours(fd)?.display().to_string();
        ensure!(open.contains(&link), "{link} is not in {open:?}");
    }
    let foreign = ["/dev/null", "/dev/net/tun", "pipe:", "socket:", "anon_inode:"];
    ensure!(open.iter().all(|link| foreign.iter().any(|kind| link.starts_with(kind))), "{open:?}");

    jvm.get(&format!("stopClatd {pid}"))?;
    ensure!(!is_there(pid), "{pid} is still there");
    jvm.end()
}

#[test]
fn stopping_takes_no_poll_interval_and_ends_nobody_else() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let mut jvm = Jvm::new(&lab, PLAIN)?;
    let parts = prepare(&lab, &mut jvm)?;
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let pid = start(&mut jvm, &parts)?;
        lab.phone.run(&format!("ping -n -c 1 -W 5 {SERVER4}"))?;
        let begun = Instant::now();
        jvm.get(&format!("stopClatd {pid}"))?;
        fastest = fastest.min(begun.elapsed());
        ensure!(!is_there(pid), "{pid} is still there");
    }
    // AOSP's sleeps 100 ms before its first check.
    ensure!(fastest < Duration::from_millis(100), "{fastest:?} at best");

    let pid = start(&mut jvm, &parts)?;
    lab.phone.run(&format!("kill -KILL {pid}"))?;
    jvm.get(&format!("stopClatd {pid}"))?;
    ensure!(!is_there(pid), "{pid} was not reaped");
    jvm.get(&format!("stopClatd {pid}"))?;

    // A process that Java may kill but that is not its child.
    let mut sleep = Command::new("setpriv")
        .args(["--reuid", SYSTEM, "--clear-groups", "sleep", "60"])
        .stdin(Stdio::null())
        .spawn()?;
    jvm.get(&format!("stopClatd {}", sleep.id()))?;
    let alive = sleep.try_wait()?.is_none();
    sleep.kill()?;
    sleep.wait()?;
    ensure!(alive, "another's process was ended");
    jvm.end()
}

#[test]
fn what_fails_throws() -> Result<()> {
    const IO: &str = "java.io.IOException";
    const NULL: &str = "java.lang.NullPointerException: null argument";
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let mut jvm = Jvm::new(&lab, PLAIN)?;
    let io = |message: &str| format!("{IO}: {message}");
    let index = index_of(&lab, "up0")?;
    let read = jvm.get("openPacketSocket")?;
    let write = jvm.get("openRawSocket6 0")?;
    let tun = jvm.get("createTunInterface v4-up0")?;

    let mut throws = |line: &str, exception: &str| jvm.throws(line, exception);
    throws("selectIpv4Address 192.0.0 29", &io("invalid address: Invalid argument"))?;
    throws("selectIpv4Address 2001:db8::1 29", &io("invalid address: Invalid argument"))?;
    throws("selectIpv4Address null 29", NULL)?;
    for len in [-1, 0, 15, 33, 285, i32::MAX] {
        let message = io(&format!("No free IPv4 address in 192.0.0.4/{len}"));
        throws(&format!("selectIpv4Address 192.0.0.4 {len}"), &message)?;
    }
    throws("selectIpv4Address 127.0.0.1 32", &io("No free IPv4 address in 127.0.0.1/32"))?;

    let nowhere = |iface, prefix| {
        io(&format!("Unable to find global source address on {iface} for {prefix}"))
    };
    let generate = "generateIpv6Address";
    throws(&format!("{generate} null 192.0.0.4 64:ff9b:: 0"), &io("Invalid null interface name"))?;
    throws(&format!("{generate} up0 null 64:ff9b:: 0"), NULL)?;
    throws(&format!("{generate} up0 192.0.0.4 null 0"), NULL)?;
    throws(&format!("{generate} up0 1.2 64:ff9b:: 0"), &io("Invalid clat v4 address 1.2"))?;
    throws(&format!("{generate} up0 192.0.0.4 64:ff9b 0"), &io("Invalid prefix 64:ff9b"))?;
    throws(&format!("{generate} up9 192.0.0.4 64:ff9b:: 0"), &nowhere("up9", "64:ff9b::"))?;
    throws(&format!("{generate} lo 192.0.0.4 ::1:0:0 0"), &nowhere("lo", "::1:0:0"))?;
    throws(&format!("{generate} a/../b 192.0.0.4 64:ff9b:: 0"), &nowhere("a/../b", "64:ff9b::"))?;

    throws("createTunInterface null", NULL)?;
    let taken = io("ioctl(TUNSETIFF) failed (Device or resource busy)");
    throws("createTunInterface v4-up0", &taken)?;
    throws("createTunInterface up0", &taken)?;
    let bad = io("ioctl(TUNSETIFF) failed (Invalid argument)");
    throws("createTunInterface v4-sixteen-letters", &bad)?;
    throws("createTunInterface v4/up0", &bad)?;

    throws("detectMtu null 0 0", NULL)?;
    throws("detectMtu 192.0.2.1 0 0", &io("Invalid plat prefix address 192.0.2.1"))?;
    lab.phone.run("ip -6 route add unreachable 64:ff9b::/96")?;
    throws("detectMtu 64:ff9b:: 0 0", &io("detect mtu failed: No route to host"))?;

    for native in ["addAnycastSetsockopt", "configurePacketSocket"] {
        throws(&format!("{native} null ::1 1"), &io("Invalid file descriptor"))?;
        throws(&format!("{native} -1 ::1 1"), &io("Invalid file descriptor"))?;
        throws(&format!("{native} {write} null 1"), NULL)?;
        throws(&format!("{native} {write} ::x 1"), &io("Invalid IPv6 address ::x"))?;
    }
    let anycast = "setsockopt IPV6_JOIN_ANYCAST failed";
    let join = |fd: &str, rest: &str| format!("addAnycastSetsockopt {fd} {rest}");
    throws(&join("9999", "2001:db8:1::5 1"), &io(&format!("{anycast}: Bad file descriptor")))?;
    throws(&join(&write, "2001:db8:1::5 9999"), &io(&format!("{anycast}: No such device")))?;
    throws(&join(&write, "2001:db8:1::5 -1"), &io(&format!("{anycast}: No such device")))?;
    throws(
        &join(&write, &format!("2001:db8:99::5 {index}")),
        &io(&format!("{anycast}: Cannot assign requested address")),
    )?;
    let configure = "configure packet socket failed";
    throws("configurePacketSocket 9999 ::1 1", &io(&format!("{configure}: Bad file descriptor")))?;
    throws(
        &format!("configurePacketSocket {read} ::1 9999"),
        &io(&format!("{configure}: No such device")),
    )?;

    let rest = "up0 64:ff9b:: 192.0.0.4 2001:db8:1::5";
    throws(&format!("startClatd null {read} {write} {rest}"), &io("Invalid tun file descriptor"))?;
    throws(&format!("startClatd {tun} -1 {write} {rest}"), &io("Invalid read socket"))?;
    throws(&format!("startClatd {tun} {read} null {rest}"), &io("Invalid write socket"))?;
    for name in ["up0 64:ff9b:: 192.0.0.4 null", "null 64:ff9b:: 192.0.0.4 ::1"] {
        throws(&format!("startClatd {tun} {read} {write} {name}"), NULL)?;
    }
    let start = format!("startClatd {tun} {read} {write} {rest}");
    fs::set_permissions(lab.dir().join("clatd"), fs::Permissions::from_mode(0o600))?;
    throws(&start, &io("posix_spawn failed: Permission denied"))?;
    fs::remove_file(lab.dir().join("clatd"))?;
    throws(&start, &io("posix_spawn failed: No such file or directory"))?;

    for pid in [0, -1, i32::MIN] {
        let exception = "java.lang.IllegalArgumentException: Invalid pid";
        throws(&format!("stopClatd {pid}"), exception)?;
    }
    throws("getSocketCookie null", &io("Invalid socket file descriptor"))?;
    throws("getSocketCookie 9999", &io("get socket cookie failed: Bad file descriptor"))?;
    let no_socket = io("get socket cookie failed: Socket operation on non-socket");
    throws(&format!("getSocketCookie {tun}"), &no_socket)?;
    jvm.end()
}

#[test]
fn without_its_class_the_library_does_not_load() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let classes = lab.dir().join("none");
    fs::create_dir_all(&classes)?;
    compile(&classes, &[&calls()])?;
    let mut jvm = Jvm::start(&lab, &classes, "none")?;
    let answer = jvm.read()?;
    let refused = answer.as_ref().is_err_and(|e| e.starts_with("java.lang.UnsatisfiedLinkError"));
    ensure!(refused, "{answer:?}");
    jvm.end()
}
