// SPDX-License-Identifier: Apache-2.0

//! The TUN device of a CLAT.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use clat_netlink::{tun_queues, Subscription, Topic};
use clat_sys::{errno_of, wait_readable, HostError};
use clat_tun::{default_queues, Options, Tun};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::{record, IfaceName, HAS_NETD};

/// How long the kernel may take to take a device down whose last owner was killed.
const LEAVING: Duration = Duration::from_secs(1);

/// AOSP's words.
const OPEN: &str = "open of tun device failed";
const TUNSETIFF: &str = "ioctl(TUNSETIFF) failed";

/// A TUN device of ours. It is removed when dropped, and not only with its last descriptor: a
/// program that another thread is just starting has copies of all of them until it is loaded.
#[derive(Debug)]
pub struct Device {
    pub(crate) tun: Tun,
    pub(crate) index: u32,
}

impl Device {
    /// Opens `/dev/net/tun` and creates a device of exactly this name. One that the kernel is just
    /// taking down, since whoever had it was killed, is waited for.
    ///
    /// # Errors
    /// Those of open(2) and TUNSETIFF: `EBUSY` when the name is taken.
    pub fn create(name: &IfaceName) -> io::Result<Self> {
        let links = Subscription::new(&[Topic::Links])?;
        let deadline = Instant::now() + LEAVING;
        loop {
            match Self::try_create(name) {
                Err(e) if errno_of(&e) == Errno::EBUSY => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if wait_readable(&[links.as_fd()], Some(left)).is_none() {
                        log::error!("{TUNSETIFF} ({})", Errno::EBUSY.desc());
                        return Err(e);
                    }
                    links.read()?;
                }
                created => return created,
            }
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.tun.name()
    }

    fn try_create(name: &IfaceName) -> io::Result<Self> {
        // One queue on a phone: more cost memory, and the programs in the kernel carry the load.
        if default_queues() > 1 && !HAS_NETD {
            if let Some(device) = create_with_queues(name)? {
                return Ok(device);
            }
        }
        Self::of(Tun::create(name.as_str(), Options::default()))
    }

    fn of(tun: Result<Tun, clat_tun::Error>) -> io::Result<Self> {
        let tun = tun.map_err(|e| {
            match &e {
                clat_tun::Error::Open(errno) => log::error!("{OPEN} ({})", errno.desc()),
                // Perhaps not the last word.
                _ if e.errno() == Errno::EBUSY => {}
                _ => log::error!("{TUNSETIFF} ({})", e.errno().desc()),
            }
            HostError::because(e.errno(), e.to_string())
        })?;
        let index = if_nametoindex(tun.name())?;
        Ok(Self { tun, index })
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(e) = clat_netlink::delete_link(self.index) {
            log::error!("cannot remove {}: {e}", self.tun.name());
        }
        record::remove(self.tun.name());
    }
}

/// Makes a device that takes more queues. For a moment it has no owner, and anybody who may open
/// `/dev/net/tun` could attach a queue: unless the kernel then says that ours is the only one, the
/// device is removed and the result is `None`.
fn create_with_queues(name: &IfaceName) -> io::Result<Option<Device>> {
    let device = Device::of(Tun::create_with_queues(name.as_str(), Options::default()))?;
    match tun_queues(device.index)? {
        Some(1) => return Ok(Some(device)),
        Some(n) => log::warn!("{name} has {n} queues, one of them ours: made again, of one queue"),
        None => log::info!("the kernel does not tell who has queues of {name}: it gets one only"),
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{unshare, CloneFlags};

    use super::*;

    /// Runs `test` in a thread with a new network namespace, which goes with the thread.
    fn in_namespace(test: impl FnOnce() + Send + 'static) {
        if !nix::unistd::geteuid().is_root() {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
            eprintln!("SKIPPED: needs root for network namespaces");
            return;
        }
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    /// As after the end of a process that was killed.
    #[test]
    fn a_device_that_is_leaving_is_waited_for() {
        in_namespace(|| {
            let v4iface = IfaceName::parse("v4-up0").expect("a name");
            let former = Tun::create("v4-up0", Options::default()).expect("created");
            thread::scope(|scope| {
                let next = scope.spawn(|| Device::create(&v4iface));
                thread::sleep(LEAVING / 10);
                drop(former);
                next.join().expect("no panic").expect("created");
            });
            let _other = Tun::create("v4-up0", Options::default()).expect("created");
            let refused = Device::create(&v4iface).expect_err("it stays");
            assert_eq!(errno_of(&refused), Errno::EBUSY);
        });
    }

    #[test]
    fn queues_of_a_device_are_ours_alone() {
        in_namespace(|| {
            let v4iface = IfaceName::parse("v4-up0").expect("a name");
            let device =
                create_with_queues(&v4iface).expect("created").expect("nobody else is here");
            assert_eq!(tun_queues(device.index).expect("told"), Some(1));
            let another = device.tun.add_queue().expect("a queue");
            assert_eq!(tun_queues(device.index).expect("told"), Some(2));
            drop(another);
            assert_eq!(tun_queues(device.index).expect("told"), Some(1));
            let index = device.index;
            drop(device);
            assert!(tun_queues(index).is_err(), "it is gone");
            let single =
                clat_tun::Tun::create("t0", clat_tun::Options::default()).expect("created");
            let index = nix::net::if_::if_nametoindex("t0").expect("there");
            assert_eq!(tun_queues(index).expect("told"), None);
            drop(single);
        });
    }
}
