// SPDX-License-Identifier: Apache-2.0

//! Starts a process with vfork semantics and only the descriptors meant for it (posix_spawn(3)).

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use crate::posix_spawn as ffi;

/// Flag of close_range(2) (linux/close_range.h), which libc lacks for Android.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;

/// Starts `program` with a copy of each descriptor in `kept`, under the same number, none of which
/// may be 0 to 2. stdout and stderr are inherited, stdin is /dev/null, all others are closed. No
/// signal is blocked, and SIGPIPE is not ignored. `argv` begins with the program's name;
/// `environment` has entries like `PATH=/bin`.
///
/// # Errors
/// Those of posix_spawn(3): `ENOENT` if the program does not exist. `InvalidInput` for a text with
/// a NUL.
pub fn spawn(
    program: &Path,
    argv: &[impl AsRef<[u8]>],
    environment: &[impl AsRef<[u8]>],
    kept: &[BorrowedFd<'_>],
) -> io::Result<Pid> {
    close_all_on_exec()?;
    let path = CString::new(program.as_os_str().as_bytes())?;
    let argv = CStrings::new(argv)?;
    let environment = CStrings::new(environment)?;
    let mut attributes = Attributes::new()?;
    attributes.set()?;
    let mut actions = FileActions::new()?;
    actions.set(kept)?;

    let mut pid = 0;
    // SAFETY: every pointer is to a valid value (see the types below) that outlives the call; both
    // arrays end with a null pointer, and exec does not write to the strings.
    check(unsafe {
        ffi::posix_spawn(
            &mut pid,
            path.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            argv.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    })?;
    Ok(Pid::from_raw(pid))
}

/// Sets close-on-exec on every descriptor but the first three, including those inherited from our
/// parent.
fn close_all_on_exec() -> io::Result<()> {
    if ffi::CLOSES_ALL {
        return Ok(());
    }
    // SAFETY: the call takes three numbers and no pointer; close-on-exec closes no descriptor here.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    // Before Linux 5.11.
    for entry in fs::read_dir("/proc/self/fd")? {
        let fd = entry?.file_name().to_str().and_then(|name| name.parse().ok()).unwrap_or(0);
        if fd > 2 {
            // The descriptor may have been closed meanwhile. SAFETY: no memory is passed.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
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

/// posix_spawnattr_t, from init to destroy. Boxed, since POSIX does not say that it may be moved.
struct Attributes(Box<MaybeUninit<ffi::posix_spawnattr_t>>);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to memory of the right size and alignment, which the call makes
        // valid.
        check(unsafe { ffi::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        Ok(Self(attributes))
    }

    /// Uses vfork, blocks no signal, and resets SIGPIPE, which Rust programs ignore.
    fn set(&mut self) -> io::Result<()> {
        let flags = ffi::POSIX_SPAWN_USEVFORK
            | ffi::POSIX_SPAWN_SETSIGMASK
            | ffi::POSIX_SPAWN_SETSIGDEF
            | if ffi::CLOSES_ALL { ffi::POSIX_SPAWN_CLOEXEC_DEFAULT } else { 0 };
        let (none, mut pipe) = (SigSet::empty(), SigSet::empty());
        pipe.add(Signal::SIGPIPE);
        // SAFETY: the attributes are valid (see `new`), the sets live through the calls, which copy
        // them.
        unsafe {
            check(ffi::posix_spawnattr_setflags(self.0.as_mut_ptr(), flags))?;
            check(ffi::posix_spawnattr_setsigmask(self.0.as_mut_ptr(), none.as_ref()))?;
            check(ffi::posix_spawnattr_setsigdefault(self.0.as_mut_ptr(), pipe.as_ref()))
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: valid since `new`, and not used again.
        unsafe { ffi::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

/// posix_spawn_file_actions_t, from init to destroy.
struct FileActions(Box<MaybeUninit<ffi::posix_spawn_file_actions_t>>);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to memory of the right size and alignment, which the call makes
        // valid.
        check(unsafe { ffi::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Self(actions))
    }

    /// Makes stdin /dev/null, and copies each of `kept` to the same number without close-on-exec.
    fn set(&mut self, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
        // SAFETY: the actions are valid (see `new`); the path is a literal, and copied.
        unsafe {
            check(ffi::posix_spawn_file_actions_addopen(
                self.0.as_mut_ptr(),
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
                check(ffi::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), number, number))?;
            }
        }
        Ok(())
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: valid since `new`, and not used again.
        unsafe { ffi::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

/// C strings, and the null-terminated array of pointers to them that exec takes.
struct CStrings {
    _strings: Vec<CString>,
    pointers: Vec<*mut libc::c_char>,
}

impl CStrings {
    fn new(strings: &[impl AsRef<[u8]>]) -> io::Result<Self> {
        let strings = strings.iter().map(|text| CString::new(text.as_ref()));
        let strings = strings.collect::<Result<Vec<_>, _>>()?;
        let pointers =
            strings.iter().map(|s| s.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
        Ok(Self { _strings: strings, pointers })
    }
}
