// SPDX-License-Identifier: Apache-2.0

//! A lock that allows one controller per network namespace.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clat_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How long to wait for the kernel to release a killed controller's locks, and for that one's
/// child, which has its descriptors until its exec.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Proves that this is the only controller in its network namespace; two would share the firewall's
/// chain and the pool of addresses. Released when dropped, or by the kernel when the process ends.
///
/// A record lock (fcntl(2)) goes with its process at once; a lock of flock(2) on the same file when
/// its last descriptor is closed, after that of each packet socket, which takes some 15 ms.
#[derive(Debug)]
pub struct NamespaceLock {
    path: PathBuf,
    file: File,
}

/// A [`NamespaceLock`] while no process has descriptors of a previous controller.
#[derive(Debug)]
pub struct SettledLock {
    path: PathBuf,
    _file: Flock<File>,
}

impl NamespaceLock {
    /// Takes the lock, a file in `dir`. Waits a moment for a controller that was just killed.
    ///
    /// # Errors
    /// EBUSY if another controller has it; those of the file system.
    pub fn take(dir: &Path) -> io::Result<Self> {
        let path = dir.join(format!("netns-{}.lock", namespace()?));
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            let file =
                File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
            let file = file.map_err(|e| HostError::during(path.display(), e))?;
            match clat_sys::lock_record(&file) {
                Err(Errno::EAGAIN | Errno::EACCES) => wait_for_release(deadline, &path)?,
                Err(errno) => return Err(HostError::during(path.display(), errno)),
                Ok(()) => {
                    // The previous holder may have removed the file between our open and our lock.
                    let is_there = fs::metadata(&path).is_ok_and(|there| {
                        file.metadata().is_ok_and(|ours| {
                            (ours.dev(), ours.ino()) == (there.dev(), there.ino())
                        })
                    });
                    if is_there {
                        return Ok(Self { path, file });
                    }
                }
            }
        }
    }

    /// Waits until nothing is open any more of what a killed controller had open.
    ///
    /// # Errors
    /// EBUSY if that does not come.
    pub fn settle(self) -> io::Result<SettledLock> {
        let Self { path, mut file } = self;
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => return Ok(SettledLock { path, _file: file }),
                Err((file, Errno::EAGAIN)) => {
                    wait_for_release(deadline, &path)?;
                    file
                }
                Err((_, errno)) => return Err(HostError::during(path.display(), errno)),
            };
        }
    }
}

/// Waits a little, unless it is later than `deadline`.
fn wait_for_release(deadline: Instant, path: &Path) -> io::Result<()> {
    if Instant::now() < deadline {
        thread::sleep(RELEASE_TIMEOUT / 200);
        return Ok(());
    }
    let path = path.display();
    let cause = format!("another clat_controller runs in this network namespace (it holds {path})");
    Err(HostError::because(Errno::EBUSY, cause))
}

/// The inode number of this thread's network namespace.
pub(crate) fn namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

impl Drop for SettledLock {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            log::warn!("{}: {e}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{unshare, CloneFlags};

    use super::*;

    /// Runs this as if in another process: record locks belong to a table of descriptors.
    fn elsewhere<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        let apart = || {
            unshare(CloneFlags::CLONE_FILES).expect("a table of its own");
            run()
        };
        thread::scope(|scope| scope.spawn(apart).join().expect("no panic"))
    }

    #[test]
    fn one_controller_a_namespace() {
        let dir = std::env::temp_dir().join(format!("clat-lock-{}", std::process::id()));
        fs::create_dir(&dir).expect("a directory");
        let first = NamespaceLock::take(&dir).and_then(NamespaceLock::settle).expect("free");
        let second = elsewhere(|| NamespaceLock::take(&dir)).expect_err("taken");
        assert!(second.to_string().contains("another clat_controller"), "{second}");
        drop(first);
        drop(NamespaceLock::take(&dir).and_then(NamespaceLock::settle).expect("free again"));
        fs::remove_dir(&dir).expect("nothing is left in it");
    }

    /// The kernel closes the descriptors of a killed process one by one.
    #[test]
    fn what_a_killed_controller_had_open_is_waited_for() {
        let dir = std::env::temp_dir().join(format!("clat-lock-dying-{}", std::process::id()));
        fs::create_dir(&dir).expect("a directory");
        let path = dir.join(format!("netns-{}.lock", namespace().expect("known")));
        let file = File::create(path).expect("a file");
        let dying = Flock::lock(file, FlockArg::LockExclusiveNonblock).expect("locked");
        let next = NamespaceLock::take(&dir).expect("nobody lives");
        let time = Duration::from_millis(100);
        let begun = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(time);
                drop(dying);
            });
            drop(next.settle().expect("closed soon"));
        });
        assert!(begun.elapsed() >= time, "{:?}", begun.elapsed());
        fs::remove_dir(&dir).expect("nothing is left in it");
    }
}
