//! clatd as a process: started with vfork semantics and nothing but its TUN device, watched by a pidfd.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use clat_tun::Tun;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::sys::signal::{kill, SigSet, Signal};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::Pid;

use super::{LinuxHost, PATH};
use crate::errors::explain;
use crate::host::{Child, ClatdArgs, Processes};
use crate::supervisor::wait;

/// How long a process gets to end by itself.
pub(super) const GRACE: Duration = Duration::from_secs(3);

/// What of our environment clatd may see.
const PASSED_ON: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// A child process. Dropping it sends SIGTERM, then SIGKILL, and reaps it.
#[derive(Debug)]
pub struct LinuxChild {
    pid: Pid,
    pidfd: OwnedFd,
    reaped: bool,
}

impl LinuxChild {
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
        let status = waitpid(self.pid, None);
        self.reaped = true;
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
        if let Err(e) = self.end() {
            log::error!("cannot end pid {}: {e}", self.pid);
        }
    }
}

impl Processes for LinuxHost {
    type Child = LinuxChild;

    fn spawn_clatd(&self, args: &ClatdArgs, tun: &Tun) -> io::Result<LinuxChild> {
        close_all_on_exec()?;
        // A number other than the one it has here: dup2 to itself would leave close-on-exec set.
        let passed = if tun.as_fd().as_raw_fd() == 3 { 4 } else { 3 };
        spawn(&self.clatd, &args.argv(passed), tun.as_fd(), passed)
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

/// Sets close-on-exec on every descriptor but the first three: also on those that whoever started us left open.
fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: the call takes three numbers and no pointer; close-on-exec takes no descriptor away from anyone here.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
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
struct Attributes(Box<libc::posix_spawnattr_t>);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to memory of the right size and alignment, which the call makes valid.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: it has just been made valid.
        Ok(Self(unsafe { attributes.assume_init() }))
    }

    /// vfork, no signal blocked, and SIGPIPE, which Rust programs ignore, as it was.
    fn set(&mut self) -> io::Result<()> {
        #[cfg(any(target_env = "gnu", target_os = "android"))]
        const VFORK: libc::c_int = libc::POSIX_SPAWN_USEVFORK as libc::c_int;
        #[cfg(not(any(target_env = "gnu", target_os = "android")))]
        const VFORK: libc::c_int = 0;
        let flags = VFORK
            | libc::POSIX_SPAWN_SETSIGMASK as libc::c_int
            | libc::POSIX_SPAWN_SETSIGDEF as libc::c_int;
        let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        let (none, mut pipe) = (SigSet::empty(), SigSet::empty());
        pipe.add(Signal::SIGPIPE);
        // SAFETY: the attributes are valid (see `new`), the sets live through the calls, which copy them.
        unsafe {
            check(libc::posix_spawnattr_setflags(&mut *self.0, flags))?;
            check(libc::posix_spawnattr_setsigmask(&mut *self.0, none.as_ref()))?;
            check(libc::posix_spawnattr_setsigdefault(&mut *self.0, pipe.as_ref()))
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: valid since `new`, and not used again.
        unsafe { libc::posix_spawnattr_destroy(&mut *self.0) };
    }
}

/// posix_spawn_file_actions_t, from init to destroy.
struct FileActions(Box<libc::posix_spawn_file_actions_t>);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to memory of the right size and alignment, which the call makes valid.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: it has just been made valid.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    /// `from` becomes `to`, without close-on-exec, and stdin is empty.
    fn set(&mut self, from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
        // SAFETY: the actions are valid (see `new`); the path is a literal, and copied.
        unsafe {
            check(libc::posix_spawn_file_actions_addopen(
                &mut *self.0,
                libc::STDIN_FILENO,
                c"/dev/null".as_ptr(),
                libc::O_RDONLY,
                0,
            ))?;
            check(libc::posix_spawn_file_actions_adddup2(&mut *self.0, from.as_raw_fd(), to))
        }
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: valid since `new`, and not used again.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut *self.0) };
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

/// Starts `program` with `passed` as a copy of `fd`.
fn spawn(
    program: &Path,
    argv: &[String],
    fd: BorrowedFd<'_>,
    passed: RawFd,
) -> io::Result<LinuxChild> {
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
    actions.set(fd, passed)?;

    let mut pid = 0;
    // SAFETY: every pointer is to a value that is valid (see the types above) and lives through the call; both arrays
    // end with a null pointer, and exec does not write to the strings.
    check(unsafe {
        libc::posix_spawn(
            &mut pid,
            path.as_ptr(),
            &*actions.0,
            &*attributes.0,
            argv.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    })?;
    let pid = Pid::from_raw(pid);
    match pidfd_open(pid) {
        Ok(pidfd) => Ok(LinuxChild { pid, pidfd, reaped: false }),
        Err(e) => {
            // Without a pidfd it could not be watched.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            Err(explain(e, "pidfd_open"))
        }
    }
}
