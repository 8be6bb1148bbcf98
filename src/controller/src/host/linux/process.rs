//! clatd as a process: started with vfork semantics and nothing but the descriptors meant for it, watched by a pidfd.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, FdFlag, OFlag};
use nix::sys::signal::{kill, SigSet, Signal};
use nix::sys::wait::{waitid, waitpid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::{pipe2, Pid};

use super::posix_spawn as ffi;
use super::{Device, LinuxHost, PATH};
use crate::errors::explain;
use crate::host::{Child, ClatdArgs, Processes};
use crate::supervisor::wait;

/// Flag of close_range(2) (linux/close_range.h), which libc lacks for Android.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;

/// How long a process gets to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// What of our environment clatd may see.
const PASSED_ON: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// A child process. Dropping it sends SIGTERM, then SIGKILL, and reaps it.
#[derive(Debug)]
pub struct LinuxChild {
    pid: Pid,
    /// Becomes readable when it ends.
    pidfd: OwnedFd,
    reaped: bool,
    /// Whether it was started by a former life: someone else's to reap, and its number may go to another process.
    adopted: bool,
}

impl LinuxChild {
    /// A process that a former life has started.
    pub(super) fn adopt(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, reaped: false, adopted: true }
    }

    pub(super) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Has it go on.
    pub(super) fn let_go(mut self) {
        self.reaped = true;
    }

    fn end_adopted(&self) -> nix::Result<()> {
        send_signal(&self.pidfd, Signal::SIGTERM)?;
        if wait(&[self.pidfd.as_fd()], Some(GRACE)).is_none() {
            log::warn!("pid {} does not end by SIGTERM; killing it", self.pid);
            send_signal(&self.pidfd, Signal::SIGKILL)?;
            wait(&[self.pidfd.as_fd()], Some(GRACE));
        }
        Ok(())
    }

    fn end(&self) -> nix::Result<()> {
        // Until it is reaped, the number cannot be anyone else's.
        kill(self.pid, Signal::SIGTERM)?;
        if wait(&[self.pidfd.as_fd()], Some(GRACE)).is_none() {
            log::warn!("pid {} does not end by SIGTERM; killing it", self.pid);
            kill(self.pid, Signal::SIGKILL)?;
        }
        waitpid(self.pid, None).map(drop)
    }
}

impl AsFd for LinuxChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Child for LinuxChild {
    fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    fn reap(&mut self) -> String {
        self.reaped = true;
        if self.adopted {
            return "ended".to_owned();
        }
        let status = waitpid(self.pid, None);
        match status {
            Ok(WaitStatus::Exited(_, code)) => format!("exited with status {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("was killed by {signal}"),
            Ok(other) => format!("ended: {other:?}"),
            Err(e) => format!("cannot be waited for: {e}"),
        }
    }
}

impl Drop for LinuxChild {
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

impl Processes for LinuxHost {
    type Child = LinuxChild;

    fn spawn_clatd(&self, args: &ClatdArgs, tun: &Device) -> io::Result<LinuxChild> {
        spawn(&self.clatd, &args.argv(tun.as_fd().as_raw_fd()), &[tun.as_fd()])
            .map_err(|e| explain(e, self.clatd.display()))
    }
}

/// Opens a pidfd (pidfd_open(2), Linux 5.3).
pub(super) fn pidfd_open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and no pointer.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process of a pidfd, unless it has ended (pidfd_send_signal(2), Linux 5.1).
fn send_signal(pidfd: &OwnedFd, signal: Signal) -> nix::Result<()> {
    // SAFETY: the call takes numbers and a null pointer, which stands for what kill(2) would send.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match Errno::result(done) {
        Err(Errno::ESRCH) => Ok(()),
        done => done.map(drop),
    }
}

/// A copy of descriptor `fd` of the process of a pidfd (pidfd_getfd(2), Linux 5.6); close-on-exec. It takes
/// CAP_SYS_PTRACE.
pub(super) fn pidfd_getfd(pidfd: &OwnedFd, fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes three numbers and no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What stands in for a pidfd before Linux 5.3: a pipe that is readable, since it is at its end, when the process ends.
fn end_of(pid: Pid) -> io::Result<OwnedFd> {
    let (ended, held) = pipe2(OFlag::O_CLOEXEC)?;
    let wait = move || {
        // It stays for its owner to reap; whose reaping may well be what ends this.
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR)
        {
        }
        drop(held);
    };
    thread::Builder::new().name("clatd-wait".into()).spawn(wait)?;
    Ok(ended)
}

/// Sets close-on-exec on every descriptor but the first three: also on those that whoever started us left open.
fn close_all_on_exec() -> io::Result<()> {
    if ffi::CLOSES_ALL {
        return Ok(());
    }
    // SAFETY: the call takes three numbers and no pointer; close-on-exec takes no descriptor away from anyone here.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    // Before 5.11.
    for entry in fs::read_dir("/proc/self/fd")? {
        let fd = entry?.file_name().to_str().and_then(|name| name.parse().ok()).unwrap_or(0);
        if fd > 2 {
            // One that has been closed meanwhile does not matter.
            let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
    }
    Ok(())
}

/// The posix_spawn functions return their error.
fn check(error: libc::c_int) -> io::Result<()> {
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(error))
    }
}

/// posix_spawnattr_t, from init to destroy. Boxed, since nothing says that it may be moved.
struct Attributes(Box<ffi::posix_spawnattr_t>);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to memory of the right size and alignment, which the call makes valid.
        check(unsafe { ffi::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: it has just been made valid.
        Ok(Self(unsafe { attributes.assume_init() }))
    }

    /// vfork, no signal blocked, and SIGPIPE, which Rust programs ignore, as it was.
    fn set(&mut self) -> io::Result<()> {
        let flags = ffi::POSIX_SPAWN_USEVFORK
            | ffi::POSIX_SPAWN_SETSIGMASK
            | ffi::POSIX_SPAWN_SETSIGDEF
            | if ffi::CLOSES_ALL { ffi::POSIX_SPAWN_CLOEXEC_DEFAULT } else { 0 };
        let (none, mut pipe) = (SigSet::empty(), SigSet::empty());
        pipe.add(Signal::SIGPIPE);
        // SAFETY: the attributes are valid (see `new`), the sets live through the calls, which copy them.
        unsafe {
            check(ffi::posix_spawnattr_setflags(&mut *self.0, flags))?;
            check(ffi::posix_spawnattr_setsigmask(&mut *self.0, none.as_ref()))?;
            check(ffi::posix_spawnattr_setsigdefault(&mut *self.0, pipe.as_ref()))
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: valid since `new`, and not used again.
        unsafe { ffi::posix_spawnattr_destroy(&mut *self.0) };
    }
}

/// posix_spawn_file_actions_t, from init to destroy.
struct FileActions(Box<ffi::posix_spawn_file_actions_t>);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to memory of the right size and alignment, which the call makes valid.
        check(unsafe { ffi::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: it has just been made valid.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    /// stdin is empty, and of `kept` a copy under the same number is there, which is not close-on-exec.
    fn set(&mut self, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
        // SAFETY: the actions are valid (see `new`); the path is a literal, and copied.
        unsafe {
            check(ffi::posix_spawn_file_actions_addopen(
                &mut *self.0,
                libc::STDIN_FILENO,
                c"/dev/null".as_ptr(),
                libc::O_RDONLY,
                0,
            ))?;
        }
        for fd in kept {
            let number = fd.as_raw_fd();
            // SAFETY: the actions are valid (see `new`).
            unsafe {
                check(ffi::posix_spawn_file_actions_adddup2(&mut *self.0, number, number))?;
            }
        }
        Ok(())
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: valid since `new`, and not used again.
        unsafe { ffi::posix_spawn_file_actions_destroy(&mut *self.0) };
    }
}

/// Strings as exec wants them, together with the array of pointers to them.
struct CStrings {
    _strings: Vec<CString>,
    pointers: Vec<*mut libc::c_char>,
}

impl CStrings {
    fn new(strings: impl IntoIterator<Item = Vec<u8>>) -> io::Result<Self> {
        let strings = strings.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let pointers =
            strings.iter().map(|s| s.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
        Ok(Self { _strings: strings, pointers })
    }
}

/// Starts `program` with a copy of each descriptor that is `kept`, under its number; all others but stdout and stderr are
/// closed. What is kept is neither of the first three.
///
/// # Errors
/// Those of posix_spawn(3): ENOENT when the program is not there.
pub fn spawn(program: &Path, argv: &[String], kept: &[BorrowedFd<'_>]) -> io::Result<LinuxChild> {
    close_all_on_exec()?;
    let path = CString::new(program.as_os_str().as_bytes())?;
    let argv = CStrings::new(argv.iter().map(|arg| arg.clone().into_bytes()))?;
    let passed_on = PASSED_ON.iter().filter_map(|name| {
        let value = std::env::var_os(name)?;
        Some([name.as_bytes(), b"=", value.as_bytes()].concat())
    });
    let environment = CStrings::new(passed_on.chain([format!("PATH={PATH}").into_bytes()]))?;
    let mut attributes = Attributes::new()?;
    attributes.set()?;
    let mut actions = FileActions::new()?;
    actions.set(kept)?;

    let mut pid = 0;
    // SAFETY: every pointer is to a value that is valid (see the types above) and lives through the call; both arrays
    // end with a null pointer, and exec does not write to the strings.
    check(unsafe {
        ffi::posix_spawn(
            &mut pid,
            path.as_ptr(),
            &*actions.0,
            &*attributes.0,
            argv.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    })?;
    let pid = Pid::from_raw(pid);
    let pidfd = match pidfd_open(pid) {
        Err(Errno::ENOSYS) => end_of(pid),
        pidfd => pidfd.map_err(|e| explain(e, "pidfd_open")),
    };
    match pidfd {
        Ok(pidfd) => Ok(LinuxChild { pid, pidfd, reaped: false, adopted: false }),
        Err(e) => {
            // Without a pidfd it could not be watched.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            Err(e)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Instant;

    use nix::sys::signal::SigmaskHow;
    use nix::unistd::{dup, pipe};

    use super::*;

    fn start(program: &str, argv: &[&str], fd: &impl AsFd) -> LinuxChild {
        let argv: Vec<_> = argv.iter().map(|&arg| arg.to_owned()).collect();
        spawn(Path::new(program), &argv, &[fd.as_fd()]).expect("starts")
    }

    fn proc_text(child: &LinuxChild, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", child.pid)).expect("it runs")
    }

    #[test]
    fn a_child_gets_nothing_but_what_it_is_given() {
        let (read, _write) = pipe().expect("a pipe");
        // One that is not close-on-exec, as a careless parent leaves it.
        let _leaked = dup(read.as_raw_fd()).expect("a copy");
        let mut term = SigSet::empty();
        term.add(Signal::SIGTERM);
        let before = term.thread_swap_mask(SigmaskHow::SIG_BLOCK).expect("blocked");
        let mut child = start("/bin/sleep", &["clatd-test0", "1000"], &read);
        before.thread_set_mask().expect("as before");

        // The kernel lets a parent go on before the new program is quite there.
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
        // What loads the new program has its libraries open for a moment; a leak would stay.
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
        assert_eq!(mask("SigIgn:") >> (libc::SIGPIPE - 1) & 1, 0);

        let pid = child.pid;
        assert!(wait(&[child.as_fd()], Some(Duration::ZERO)).is_none());
        kill(pid, Signal::SIGKILL).expect("it runs");
        assert_eq!(wait(&[child.as_fd()], None), Some(0));
        assert_eq!(child.reap(), "was killed by SIGKILL");
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn dropping_ends_a_child_however_stubborn() {
        let (read, write) = pipe().expect("a pipe");
        let child = start("/bin/sleep", &["clatd-test0", "1000"], &read);
        let pid = child.pid;
        let begun = Instant::now();
        drop(child);
        assert!(begun.elapsed() < GRACE, "SIGTERM was enough: {:?}", begun.elapsed());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());

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
        let (read, _write) = pipe().expect("a pipe");
        let mut child = start("/bin/sh", &["clatd-test0", "-c", "exit 3"], &read);
        assert_eq!(wait(&[child.as_fd()], None), Some(0));
        assert_eq!(child.reap(), "exited with status 3");
        let error = spawn(Path::new("/nonexistent"), &[], &[read.as_fd()]).expect_err("no program");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert!(spawn(Path::new("/bin/sleep"), &["a\0b".to_owned()], &[read.as_fd()]).is_err());
    }

    #[test]
    fn an_end_is_seen_without_pidfd() {
        let (read, write) = pipe().expect("a pipe");
        let mut child =
            start("/bin/cat", &["cat", &format!("/proc/self/fd/{}", read.as_raw_fd())], &read);
        let ended = end_of(child.pid).expect("a thread");
        assert!(wait(&[ended.as_fd()], Some(Duration::ZERO)).is_none());
        kill(child.pid, Signal::SIGTERM).expect("it runs");
        assert_eq!(wait(&[ended.as_fd()], None), Some(0));
        assert_eq!(child.reap(), "was killed by SIGTERM");
        drop(write);
    }
}
