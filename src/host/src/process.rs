// SPDX-License-Identifier: Apache-2.0

//! clatd as a process: started with vfork semantics and only the descriptors meant for it, and
//! watched by a pidfd.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use clat_sys::{pidfd, wait_readable, HostError, ERROR_FD};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitid, waitpid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::{pipe2, Pid};

use crate::PATH;

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// The environment variables that clatd inherits.
const PASSED_ON: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// How much of that is heard, in bytes.
const LONGEST: usize = 512;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As text, such as "exited with status 1 (no route to 64:ff9b::)".
    pub how: String,
    /// The exit status, if it exited and the status is known.
    pub status: Option<i32>,
}

/// A child process. Dropping it sends SIGTERM, then SIGKILL, and reaps it.
#[derive(Debug)]
pub struct ClatdProcess {
    pid: Pid,
    /// Readable when the process has ended.
    pidfd: OwnedFd,
    /// What it says about its end, where it was given a descriptor for that.
    said: Option<File>,
    reaped: bool,
    /// Whether a previous controller started it. Then another process reaps it, after which its id
    /// may be reused.
    adopted: bool,
}

impl ClatdProcess {
    /// A process that a previous controller has started.
    pub(crate) fn adopt(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, said: None, reaped: false, adopted: true }
    }

    /// Lets it run on: dropping this no longer ends it.
    pub fn detach(mut self) {
        self.reaped = true;
    }

    fn end_adopted(&self) -> nix::Result<()> {
        pidfd::send_signal(self.pidfd.as_fd(), Signal::SIGTERM)?;
        // One that was stopped hears nothing else.
        pidfd::send_signal(self.pidfd.as_fd(), Signal::SIGCONT)?;
        if wait_readable(&[self.pidfd.as_fd()], Some(GRACE)).is_none() {
            log::warn!("pid {} does not end by SIGTERM; killing it", self.pid);
            pidfd::send_signal(self.pidfd.as_fd(), Signal::SIGKILL)?;
            wait_readable(&[self.pidfd.as_fd()], Some(GRACE));
        }
        Ok(())
    }

    fn end(&self) -> nix::Result<()> {
        // Until we reap the child, its id is not reused.
        kill(self.pid, Signal::SIGTERM)?;
        // One that was stopped hears nothing else.
        kill(self.pid, Signal::SIGCONT)?;
        if wait_readable(&[self.pidfd.as_fd()], Some(GRACE)).is_none() {
            log::warn!("pid {} does not end by SIGTERM; killing it", self.pid);
            kill(self.pid, Signal::SIGKILL)?;
        }
        waitpid(self.pid, None).map(drop)
    }
}

impl AsFd for ClatdProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl ClatdProcess {
    /// The process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// The kernel's error.
    pub fn kill(&self) -> io::Result<()> {
        if self.adopted {
            pidfd::send_signal(self.pidfd.as_fd(), Signal::SIGKILL)?;
        } else {
            kill(self.pid, Signal::SIGKILL)?;
        }
        Ok(())
    }

    /// Reaps the process after it has ended.
    pub fn reap(&mut self) -> Ended {
        self.reaped = true;
        if self.adopted {
            return Ended { how: "ended".to_owned(), status: None };
        }
        let (how, status) = match waitpid(self.pid, None) {
            Ok(WaitStatus::Exited(_, code)) => {
                let why = self.last_words().map_or_else(String::new, |why| format!(" ({why})"));
                (format!("exited with status {code}{why}"), Some(code))
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => (format!("was killed by {signal}"), None),
            Ok(other) => (format!("ended: {other:?}"), None),
            Err(e) => (format!("cannot be waited for: {e}"), None),
        };
        Ended { how, status }
    }

    /// The line that it has left, without what no terminal should get.
    fn last_words(&mut self) -> Option<String> {
        let mut line = [0; LONGEST];
        let len = self.said.take()?.read(&mut line).ok()?;
        let line = String::from_utf8_lossy(line.get(..len)?);
        let words: String = line.lines().next()?.chars().filter(|c| !c.is_control()).collect();
        Some(words).filter(|words| !words.is_empty())
    }
}

impl Drop for ClatdProcess {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        let ended = if self.adopted { self.end_adopted() } else { self.end() };
        if let Err(e) = ended {
            log::error!("cannot end pid {}: {e}", self.pid);
        }
    }
}

/// A substitute for a pidfd before Linux 5.3: a pipe that is at its end, so readable, when the
/// process has ended.
fn end_of(pid: Pid) -> io::Result<OwnedFd> {
    let (ended, held) = pipe2(OFlag::O_CLOEXEC)?;
    let wait = move || {
        // WNOWAIT leaves the process for its owner to reap. If the owner reaps it first, this
        // returns as well.
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR)
        {
        }
        drop(held);
    };
    thread::Builder::new().name("clatd-wait".into()).spawn(wait)?;
    Ok(ended)
}

/// Starts `program` with a copy of each descriptor in `kept`, under the same number, none of which
/// may be 0 to 2; all others but stdout and stderr are closed.
///
/// # Errors
/// Those of posix_spawn(3): ENOENT if the program does not exist.
pub fn spawn(program: &Path, argv: &[String], kept: &[BorrowedFd<'_>]) -> io::Result<ClatdProcess> {
    spawn_with(program, argv, kept, None)
}

/// The same, with one more descriptor, [`ERROR_FD`]: what the program writes to that becomes part
/// of how it [`Ended`].
///
/// # Errors
/// Those of [`spawn`], and of pipe(2).
pub fn spawn_heard(
    program: &Path,
    argv: &[String],
    kept: &[BorrowedFd<'_>],
) -> io::Result<ClatdProcess> {
    let (said, says) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let kept = [kept, &[says.as_fd()]].concat();
    let variable = format!("{ERROR_FD}={}", says.as_raw_fd());
    let mut process = spawn_with(program, argv, &kept, Some(variable))?;
    process.said = Some(said.into());
    Ok(process)
}

fn spawn_with(
    program: &Path,
    argv: &[String],
    kept: &[BorrowedFd<'_>],
    variable: Option<String>,
) -> io::Result<ClatdProcess> {
    let passed_on = PASSED_ON.iter().filter_map(|name| {
        let value = std::env::var_os(name)?;
        Some([name.as_bytes(), b"=", value.as_bytes()].concat())
    });
    let path = format!("PATH={PATH}").into_bytes();
    let more = variable.map(String::into_bytes);
    let environment: Vec<_> = passed_on.chain([path]).chain(more).collect();
    let pid = clat_sys::spawn(program, argv, &environment, kept)?;
    let pidfd = match pidfd::open(pid) {
        Err(Errno::ENOSYS) => end_of(pid),
        pidfd => pidfd.map_err(|e| HostError::during("pidfd_open", e)),
    };
    match pidfd {
        Ok(pidfd) => Ok(ClatdProcess { pid, pidfd, said: None, reaped: false, adopted: false }),
        Err(e) => {
            // Do not leave a process running that cannot be watched.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            Err(e)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    use nix::sys::signal::{SigSet, SigmaskHow};
    use nix::unistd::dup;

    use super::*;

    fn start(program: &str, argv: &[&str], fd: &impl AsFd) -> ClatdProcess {
        let argv: Vec<_> = argv.iter().map(|&arg| arg.to_owned()).collect();
        spawn(Path::new(program), &argv, &[fd.as_fd()]).expect("starts")
    }

    fn proc_text(child: &ClatdProcess, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", child.pid)).expect("it runs")
    }

    #[test]
    fn a_child_gets_nothing_but_what_it_is_given() {
        let (read, _write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        // A descriptor without close-on-exec, as a careless parent may leave open.
        let _leaked = dup(read.as_raw_fd()).expect("a copy");
        let mut term = SigSet::empty();
        term.add(Signal::SIGTERM);
        let before = term.thread_swap_mask(SigmaskHow::SIG_BLOCK).expect("blocked");
        let mut child = start("/bin/sleep", &["clatd-test0", "1000"], &read);
        before.thread_set_mask().expect("as before");

        // After vfork, the parent runs a moment before the new program's arguments are set up.
        while proc_text(&child, "cmdline").is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(proc_text(&child, "cmdline"), "clatd-test0\x001000\0");
        let link = |fd: &str| fs::read_link(format!("/proc/{}/fd/{fd}", child.pid)).expect("open");
        let open = || -> BTreeSet<_> {
            let fds = fs::read_dir(format!("/proc/{}/fd", child.pid)).expect("it runs");
            fds.flatten().map(|fd| fd.file_name().to_string_lossy().into_owned()).collect()
        };
        let number = read.as_raw_fd().to_string();
        let given: BTreeSet<_> = ["0", "1", "2", number.as_str()].map(str::to_owned).into();
        // The dynamic loader has libraries open for a moment; a leaked descriptor would stay.
        let deadline = Instant::now() + Duration::from_secs(5);
        while open() != given && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(open(), given);
        assert_eq!(link("0"), Path::new("/dev/null"));
        let ours = fs::read_link(format!("/proc/self/fd/{number}")).expect("open");
        assert_eq!(link(&number), ours);

        let environment = proc_text(&child, "environ");
        let names: BTreeSet<_> = environment
            .split_terminator('\0')
            .filter_map(|pair| Some(pair.split_once('=')?.0))
            .collect();
        assert!(names.contains("PATH"));
        assert!(names.is_subset(&["PATH", "RUST_LOG", "RUST_BACKTRACE"].into()), "{names:?}");

        let status = proc_text(&child, "status");
        let mask = |name: &str| {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)).expect("in every status");
            u64::from_str_radix(line.trim(), 16).expect("a mask")
        };
        assert_eq!(mask("SigBlk:"), 0);
        assert_eq!(mask("SigIgn:") >> (nix::libc::SIGPIPE - 1) & 1, 0);

        let pid = child.pid;
        assert!(wait_readable(&[child.as_fd()], Some(Duration::ZERO)).is_none());
        kill(pid, Signal::SIGKILL).expect("it runs");
        assert_eq!(wait_readable(&[child.as_fd()], None), Some(0));
        assert_eq!(child.reap().how, "was killed by SIGKILL");
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn dropping_ends_a_child_however_stubborn() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let child = start("/bin/sleep", &["clatd-test0", "1000"], &read);
        let pid = child.pid;
        let begun = Instant::now();
        drop(child);
        assert!(begun.elapsed() < GRACE, "SIGTERM was enough: {:?}", begun.elapsed());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());

        let child = start("/bin/sleep", &["clatd-test0", "1000"], &read);
        kill(child.pid, Signal::SIGSTOP).expect("it runs");
        let begun = Instant::now();
        drop(child);
        assert!(begun.elapsed() < GRACE, "it was stopped: {:?}", begun.elapsed());

        let script = format!(
            "trap '' TERM; echo ready >/proc/self/fd/{}; while :; do sleep 0.1; done",
            write.as_raw_fd()
        );
        let child = start("/bin/sh", &["clatd-test0", "-c", &script], &write);
        let pid = child.pid;
        let mut ready = [0; 6];
        nix::unistd::read(read.as_raw_fd(), &mut ready).expect("it says so");
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn how_a_child_ended_and_that_there_is_none() {
        let (read, _write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let mut child = start("/bin/sh", &["clatd-test0", "-c", "exit 3"], &read);
        assert_eq!(wait_readable(&[child.as_fd()], None), Some(0));
        assert_eq!(child.reap().how, "exited with status 3");
        let error = spawn(Path::new("/nonexistent"), &[], &[read.as_fd()]).expect_err("no program");
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOENT));
        assert!(spawn(Path::new("/bin/sleep"), &["a\0b".to_owned()], &[read.as_fd()]).is_err());
    }

    #[test]
    fn the_last_words_of_a_child() {
        let (read, _write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        for (script, how) in [
            (
                "printf 'no \\033[1mway\\nmore' >/proc/self/fd/$CLATD_ERROR_FD; exit 2",
                "2 (no [1mway)",
            ),
            ("exit 3", "3"),
        ] {
            let argv = ["clatd-test0", "-c", script].map(str::to_owned);
            let mut child =
                spawn_heard(Path::new("/bin/sh"), &argv, &[read.as_fd()]).expect("starts");
            assert_eq!(wait_readable(&[child.as_fd()], None), Some(0));
            assert_eq!(child.reap().how, format!("exited with status {how}"));
        }
    }

    #[test]
    fn an_end_is_seen_without_pidfd() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let mut child =
            start("/bin/cat", &["cat", &format!("/proc/self/fd/{}", read.as_raw_fd())], &read);
        let ended = end_of(child.pid).expect("a thread");
        assert!(wait_readable(&[ended.as_fd()], Some(Duration::ZERO)).is_none());
        kill(child.pid, Signal::SIGTERM).expect("it runs");
        assert_eq!(wait_readable(&[ended.as_fd()], None), Some(0));
        assert_eq!(child.reap().how, "was killed by SIGTERM");
        drop(write);
    }
}
