// SPDX-License-Identifier: Apache-2.0

//! Network namespaces removed with their owner, and programs in them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::sched::{setns, CloneFlags};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// Where `ip netns` keeps its names.
const NETNS_DIR: &str = "/run/netns";
/// Prefix of the names of the lab's namespaces and folders.
pub(crate) const PREFIX: &str = "clatlab-";
/// Seconds after which a program is considered hanging.
const PATIENCE: u32 = 60;

static COUNT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A number unique among the labs of this process.
pub(crate) fn unique() -> u32 {
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// A network namespace, removed on drop along with the processes in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Creates the namespace `clatlab-PID-NUMBER-role`, with its loopback up.
    ///
    /// # Errors
    /// Those of `ip netns add`.
    pub fn new(lab: u32, role: &str) -> Result<Self> {
        SWEEP.call_once(sweep);
        let name = format!("{PREFIX}{}-{lab}-{role}", std::process::id());
        host(&format!("ip netns add {name}"))?;
        let file = File::open(Path::new(NETNS_DIR).join(&name))?;
        let ns = Self { name, file };
        ns.run("ip link set lo up")?;
        Ok(ns)
    }

    /// Its name, for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `f` in a thread inside the namespace. Sockets that `f` opens stay in it.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or those of `f`.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).context("setns")?;
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command inside the namespace, with its own `/sys`.
    #[must_use]
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(argv).stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, with a timeout.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S]) -> Result<Output> {
        let patience = PATIENCE.to_string();
        let mut command = self.command(&["timeout", "-k", "2", &patience]);
        command.args(argv).output().context("ip netns exec")
    }

    /// Runs `line`, split at blanks, and returns its standard output.
    ///
    /// # Errors
    /// If it fails; with its output.
    pub fn run(&self, line: &str) -> Result<String> {
        let argv: Vec<&str> = line.split_whitespace().collect();
        succeed(line, &self.output(&argv)?)
    }

    /// Starts a program that runs until the result is dropped; its output goes to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S], log: &Path) -> Result<Daemon> {
        let file = File::create(log)?;
        let child =
            self.command(argv).stdout(file.try_clone()?).stderr(file).spawn().context("spawn")?;
        Ok(Daemon { child, log: log.to_owned() })
    }

    /// A DNS server with these options, independent of the host's configuration.
    ///
    /// # Errors
    /// When it does not come about.
    pub fn dnsmasq(&self, options: &str, log: &Path) -> Result<Daemon> {
        let line = format!(
            "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --pid-file \
                --user=root \
             --log-facility=- --bind-interfaces --local=/example/ {options}"
        );
        let argv: Vec<&str> = line.split_whitespace().collect();
        let mut dnsmasq = self.spawn(&argv, log)?;
        dnsmasq.wait_for("started")?;
        Ok(dnsmasq)
    }

    /// The processes in this network namespace.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.file.metadata().map(|m| pids_in(m.ino())).unwrap_or_default()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        end(&self.pids());
        let _ = host(&format!("ip netns del {}", self.name));
    }
}

/// A program in the background; SIGTERM when dropped, then SIGKILL.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Its output so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has written `text`.
    ///
    /// # Errors
    /// If it ends before, or does not write it within 15 seconds.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        while !self.log().contains(text) {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended ({status}) before {text:?}: {}", self.log());
            }
            ensure!(Instant::now() < deadline, "never wrote {text:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    /// If it does not end within ten seconds.
    pub fn stop(&mut self, signal: Signal) -> Result<std::process::ExitStatus> {
        kill(Pid::from_raw(self.pid()), signal)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "did not end on {signal}: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) && self.stop(Signal::SIGTERM).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}---", self.log.display(), self.log());
        }
    }
}

/// Runs `line` on the host.
pub(crate) fn host(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("no program")?;
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    succeed(line, &output.with_context(|| line.to_owned())?)
}

fn succeed(line: &str, output: &Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{line}: {}: {out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(out)
}

/// The path of a program, also from the usual directories.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|d| d.join(program)).find(|p| p.is_file())
}

fn pids_in(inode: u64) -> Vec<i32> {
    let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = proc.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| m.ino() == inode)
    })
    .collect()
}

fn end(pids: &[i32]) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// Removes remains of labs whose process has ended.
fn sweep() {
    for entry in fs::read_dir(NETNS_DIR).into_iter().flatten().flatten().filter(is_orphan) {
        end(&entry.metadata().map(|m| pids_in(m.ino())).unwrap_or_default());
        let _ = host(&format!("ip netns del {}", entry.file_name().to_string_lossy()));
    }
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if is_orphan(&entry) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether it has a lab's name, and that lab's process has ended.
fn is_orphan(entry: &fs::DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy().into_owned();
    let pid = name.strip_prefix(PREFIX).and_then(|n| n.split('-').next()?.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}
