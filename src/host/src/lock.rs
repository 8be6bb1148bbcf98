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

/// How long to wait for a killed controller's child, which has a copy of the lock until its exec.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Proves that this is the only controller in its network namespace; two would share the firewall's
/// chain and the pool of addresses. Released when dropped, or by the kernel when the process ends.
#[derive(Debug)]
pub struct NamespaceLock {
    path: PathBuf,
    _file: Flock<File>,
}

impl NamespaceLock {
    /// Takes the lock, a file in `dir`. Waits a moment: if the previous controller was killed while
    /// starting a program, that program still has the lock until its exec.
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
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Err((_, Errno::EAGAIN)) if Instant::now() < deadline => {
                    thread::sleep(RELEASE_TIMEOUT / 100);
                    continue;
                }
                Err((_, Errno::EAGAIN)) => {
                    let cause = format!(
                        "another clat_controller runs in this network namespace (it holds {})",
                        path.display()
                    );
                    return Err(HostError::because(Errno::EBUSY, cause));
                }
                Err((_, errno)) => return Err(HostError::during(path.display(), errno)),
                Ok(file) => file,
            };
            // The previous holder may have removed the file between our open and our lock.
            let is_there = fs::metadata(&path).is_ok_and(|there| {
                file.metadata()
                    .is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
            });
            if is_there {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

/// The inode number of this thread's network namespace.
pub(crate) fn namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

impl Drop for NamespaceLock {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            log::warn!("{}: {e}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_controller_a_namespace() {
        let dir = std::env::temp_dir().join(format!("clat-lock-{}", std::process::id()));
        fs::create_dir(&dir).expect("a directory");
        let first = NamespaceLock::take(&dir).expect("free");
        let second = NamespaceLock::take(&dir).expect_err("taken");
        assert!(second.to_string().contains("another clat_controller"), "{second}");
        drop(first);
        drop(NamespaceLock::take(&dir).expect("free again"));
        fs::remove_dir(&dir).expect("nothing is left in it");
    }
}
