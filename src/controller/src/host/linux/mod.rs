//! The host as it is: Linux, with or without Android on it.

mod bpf;
mod default_route;
mod firewall;
mod links;
mod process;
mod properties;
mod reconcile;
mod tc;

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod offload_tests;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clat_netlink::tun_queues;
use clat_tun::{default_queues, Options, Tun};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::net::if_::if_nametoindex;

pub use bpf::BPF_DIR;
pub use process::{spawn, LinuxChild};
pub use properties::Properties;

use super::{Devices, Offload, System};
use crate::ebpf_mode::KernelVersion;
use crate::errors::{explain, worded};
use crate::names::IfaceName;

/// Whether netd is there: it knows which interface belongs to which network, sets the routes, and owns the chain of the
/// drop rules.
pub const HAS_NETD: bool = cfg!(target_os = "android");

/// Where programs are looked for, whatever PATH says.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/system/bin";

/// The machine that this process runs on, seen from the network namespace of the thread that asks.
#[derive(Debug)]
pub struct LinuxHost {
    clatd: PathBuf,
    properties: Properties,
    bpf_dir: Option<PathBuf>,
}

impl LinuxHost {
    /// A host that starts `clatd` for its CLATs, and whose system properties are `properties`. Programs and maps of the
    /// translation in the kernel are in `bpf_dir`; without, there is none.
    #[must_use]
    pub fn new(clatd: PathBuf, properties: Properties, bpf_dir: Option<PathBuf>) -> Self {
        Self { clatd, properties, bpf_dir }
    }
}

/// Shows that this is the only controller in its network namespace; two would share the firewall's chain and the pool
/// of addresses. Given back when dropped, or by the kernel when the process dies.
#[derive(Debug)]
pub struct NamespaceLock {
    path: PathBuf,
    _file: Flock<File>,
}

impl NamespaceLock {
    /// Takes the lock, a file in `dir`.
    ///
    /// # Errors
    /// EBUSY when another controller has it; those of the file system.
    pub fn take(dir: &Path) -> io::Result<Self> {
        let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
        let path = dir.join(format!("netns-{namespace}.lock"));
        loop {
            let file =
                File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
            let file = file.map_err(|e| explain(e, path.display()))?;
            let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    Errno::EAGAIN => worded(
                        Errno::EBUSY,
                        format!(
                            "another clat_controller runs in this network namespace (it holds {})",
                            path.display()
                        ),
                    ),
                    errno => explain(errno, path.display()),
                },
            )?;
            // The last holder may have removed the file between our open and our lock.
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

impl Drop for NamespaceLock {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            log::warn!("{}: {e}", self.path.display());
        }
    }
}

impl System for LinuxHost {
    fn property(&self, name: &str) -> Option<String> {
        self.properties.get(name)
    }

    fn kernel_version(&self) -> KernelVersion {
        let release =
            nix::sys::utsname::uname().map(|uname| uname.release().to_string_lossy().into_owned());
        release.unwrap_or_default().parse().unwrap_or_else(|e| {
            log::error!("cannot read the kernel's version: {e}");
            KernelVersion(0, 0)
        })
    }

    fn random(&self) -> io::Result<[u8; 8]> {
        Ok(clat_sys::random_bytes()?)
    }
}

/// A TUN device of ours. It is removed when dropped, and not only with its last descriptor: a program that another
/// thread is just starting has copies of all of them until it is loaded.
#[derive(Debug)]
pub struct Device {
    tun: Tun,
    index: u32,
}

impl Device {
    fn of(tun: Result<Tun, clat_tun::Error>) -> io::Result<Self> {
        let tun = tun.map_err(|e| {
            // AOSP's words.
            match &e {
                clat_tun::Error::Open(errno) => {
                    log::error!("open of tun device failed ({})", errno.desc());
                }
                _ => log::error!("ioctl(TUNSETIFF) failed ({})", e.errno().desc()),
            }
            worded(e.errno(), e.to_string())
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
    }
}

impl Devices for LinuxHost {
    type Tun = Device;

    fn create_tun(&self, name: &IfaceName) -> io::Result<Device> {
        // Not on a phone, where it would be memory for what the programs in the kernel do.
        if default_queues() > 1 && cfg!(not(target_os = "android")) {
            if let Some(device) = create_with_queues(name)? {
                return Ok(device);
            }
        }
        Device::of(Tun::create(name.as_str(), Options::default()))
    }
}

/// A device that takes more queues. It has no owner for a moment, in which whoever may open `/dev/net/tun` could take one of
/// them: unless the kernel says that there is only ours, it goes again and there is `None`.
fn create_with_queues(name: &IfaceName) -> io::Result<Option<Device>> {
    let device = Device::of(Tun::create_with_queues(name.as_str(), Options::default()))?;
    match tun_queues(device.index)? {
        Some(1) => return Ok(Some(device)),
        Some(n) => log::warn!("{name} has {n} queues, one of them ours: made again, of one queue"),
        None => log::info!("the kernel does not tell who has queues of {name}: it gets one only"),
    }
    Ok(None)
}

impl Offload for LinuxHost {
    type Programs = bpf::Objects;

    fn programs(&self) -> io::Result<Option<bpf::Objects>> {
        self.bpf_dir.as_deref().map(bpf::Objects::get).transpose()
    }

    fn why_no_programs(&self) -> &'static str {
        // SELinux lets no domain but a few of AOSP's own use BPF.
        if HAS_NETD {
            "policy"
        } else {
            "not wanted"
        }
    }
}

/// Finds a program in [`PATH`].
fn find_program(name: &str) -> io::Result<PathBuf> {
    PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file()).ok_or_else(
        || {
            worded(
                Errno::ENOENT,
                format!("{name} is not installed (on Debian: apt-get install iptables)"),
            )
        },
    )
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

    #[test]
    fn the_kernel_has_a_version_and_chance() {
        let host =
            LinuxHost::new(PathBuf::new(), Properties::new(None, None).expect("no file"), None);
        assert!(host.kernel_version() > KernelVersion(4, 0));
        assert_ne!(host.random().expect("random"), host.random().expect("random"));
    }
}
