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

/// How long to wait for the kernel to remove a device whose owner was killed.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Log texts of AOSP's ClatdController.
const OPEN: &str = "open of tun device failed";
const TUNSETIFF: &str = "ioctl(TUNSETIFF) failed";

/// A TUN device of ours. It is removed explicitly when dropped: a program that another thread is
/// just starting has copies of all descriptors until its exec, and would keep the device.
#[derive(Debug)]
pub struct Device {
    pub(crate) tun: Tun,
    pub(crate) index: u32,
}

impl Device {
    /// Opens `/dev/net/tun` and creates a device with exactly this name. Waits for the kernel to
    /// remove one of that name whose owner was killed.
    ///
    /// # Errors
    /// Those of open(2) and TUNSETIFF: `EBUSY` if the name is in use.
    pub fn create(name: &IfaceName) -> io::Result<Self> {
        let links = Subscription::new(&[Topic::Links])?;
        let deadline = Instant::now() + REMOVAL_TIMEOUT;
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
        // One queue on a phone: more queues cost memory, and BPF programs carry the load.
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
                // `create` tries again, and logs it if that fails.
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

/// Creates a device that supports several queues. For a moment it has no owner, and anybody who may
/// open `/dev/net/tun` could attach a queue. Unless the kernel says that ours is the only queue,
/// the device is removed and the result is `None`.
fn create_with_queues(name: &IfaceName) -> io::Result<Option<Device>> {
    let device = Device::of(Tun::create_with_queues(name.as_str(), Options::default()))?;
    match tun_queues(device.index)? {
        Some(1) => return Ok(Some(device)),
        Some(n) => log::warn!("{name} has {n} queues, one of them ours: now with one queue"),
        None => log::info!("number of queues of {name} unknown: creating it with one"),
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{unshare, CloneFlags};

    use super::*;

    /// Runs `test` in a thread with a new network namespace.
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

    /// As after its owner was killed.
    #[test]
    fn a_device_that_is_leaving_is_waited_for() {
        in_namespace(|| {
            let v4iface = IfaceName::parse("v4-up0").expect("a name");
            let former = Tun::create("v4-up0", Options::default()).expect("created");
            thread::scope(|scope| {
                let next = scope.spawn(|| Device::create(&v4iface));
                thread::sleep(REMOVAL_TIMEOUT / 10);
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
            assert!(tun_queues(index).is_err(), "it has been removed");
            let single =
                clat_tun::Tun::create("t0", clat_tun::Options::default()).expect("created");
            let index = nix::net::if_::if_nametoindex("t0").expect("there");
            assert_eq!(tun_queues(index).expect("told"), None);
            drop(single);
        });
    }
}
