// SPDX-License-Identifier: Apache-2.0

//! A thread's capabilities (capabilities(7)), and who may inspect its process: capget(2) and
//! capset(2), which nix lacks, and prctl(2), which it has for Linux only.

use std::fmt;
use std::ops::{BitAnd, Not};

use libc::{c_int, c_ulong};
use nix::errno::Errno;

/// The capabilities that the programs use, by the kernel's names and numbers (linux/capability.h).
#[allow(non_camel_case_types, missing_docs)] // capabilities(7) has their names and purposes
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    CAP_DAC_OVERRIDE = 1,
    CAP_DAC_READ_SEARCH = 2,
    CAP_KILL = 5,
    CAP_SETGID = 6,
    CAP_SETUID = 7,
    CAP_SETPCAP = 8,
    CAP_NET_ADMIN = 12,
    CAP_NET_RAW = 13,
    CAP_SYS_ADMIN = 21,
    CAP_PERFMON = 38,
    CAP_BPF = 39,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A set of capabilities as the kernel's bits, including those without a name here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// Whether the set contains this capability.
    #[must_use]
    pub fn contains(self, capability: Capability) -> bool {
        self & Self::from(&[capability]) != Self::default()
    }
}

impl<const N: usize> From<&[Capability; N]> for CapabilitySet {
    fn from(those: &[Capability; N]) -> Self {
        Self::from(&those[..])
    }
}

impl From<&[Capability]> for CapabilitySet {
    fn from(those: &[Capability]) -> Self {
        Self(those.iter().fold(0, |bits, &one| bits | 1 << one as u32))
    }
}

impl BitAnd for CapabilitySet {
    type Output = Self;

    /// The intersection.
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for CapabilitySet {
    type Output = Self;

    /// The complement.
    fn not(self) -> Self {
        Self(!self.0)
    }
}

/// The capabilities of the calling thread, without its bounding and ambient sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What the kernel checks.
    pub effective: CapabilitySet,
    /// What the thread may add to its effective set.
    pub permitted: CapabilitySet,
    /// What is kept across execve(2), for programs whose files have the same capabilities.
    pub inheritable: CapabilitySet,
}

/// linux/prctl.h; libc has them for Android only since 2025.
const PR_SET_DUMPABLE: c_int = 4;
const PR_SET_KEEPCAPS: c_int = 8;
const PR_CAPBSET_READ: c_int = 23;
const PR_CAPBSET_DROP: c_int = 24;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const PR_CAP_AMBIENT: c_int = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: c_ulong = 4;

/// _LINUX_CAPABILITY_VERSION_3 (linux/capability.h), in which a set is two 32-bit words.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    /// 0 for the calling thread.
    pid: c_int,
}

/// 32 bits of each set; the lower half comes first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Capabilities {
    /// Reads the current sets.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn read() -> nix::Result<Self> {
        let (mut header, mut words) = (Header { version: VERSION, pid: 0 }, [Words::default(); 2]);
        let (header, place) = (&mut header, words.as_mut_ptr());
        // SAFETY: the kernel writes a header and, of this version, two structures.
        Errno::result(unsafe { libc::syscall(libc::SYS_capget, header, place) })?;
        let [low, high] = words;
        let set = |low: u32, high: u32| CapabilitySet(u64::from(high) << 32 | u64::from(low));
        Ok(Self {
            effective: set(low.effective, high.effective),
            permitted: set(low.permitted, high.permitted),
            inheritable: set(low.inheritable, high.inheritable),
        })
    }

    /// Sets them: for this thread, threads that it creates from now on, and programs that these
    /// run.
    ///
    /// # Errors
    /// `EPERM` if a permitted capability is added, or an effective one is not permitted.
    pub fn set(self) -> nix::Result<()> {
        let words = [0, 32].map(|shift| {
            // One half of a set.
            let word = |set: CapabilitySet| (set.0 >> shift & 0xffff_ffff) as u32;
            Words {
                effective: word(self.effective),
                permitted: word(self.permitted),
                inheritable: word(self.inheritable),
            }
        });
        let mut header = Header { version: VERSION, pid: 0 };
        let (header, words) = (&mut header, words.as_ptr());
        // SAFETY: the kernel reads a header and, of this version, two structures.
        Errno::result(unsafe { libc::syscall(libc::SYS_capset, header, words) }).map(drop)
    }
}

/// Drops all capabilities but these from the thread's bounding set, so that no program that it runs
/// can get them.
///
/// # Errors
/// `EPERM` without CAP_SETPCAP.
pub fn keep_bounding(kept: CapabilitySet) -> nix::Result<()> {
    for number in 0..u64::BITS {
        let there = match prctl(PR_CAPBSET_READ, number.into()) {
            // Beyond the kernel's last capability.
            Err(Errno::EINVAL) => break,
            there => there? == 1,
        };
        if there && kept.0 >> number & 1 == 0 {
            prctl(PR_CAPBSET_DROP, number.into())?;
        }
    }
    Ok(())
}

/// Clears the thread's ambient set, which programs that it runs would inherit.
///
/// # Errors
/// The kernel's error.
pub fn clear_ambient() -> nix::Result<()> {
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL).map(drop)
}

/// Sets whether capabilities stay permitted when the thread changes from root to another user
/// (PR_SET_KEEPCAPS).
///
/// # Errors
/// The kernel's error.
pub fn set_keep_capabilities(keep: bool) -> nix::Result<()> {
    prctl(PR_SET_KEEPCAPS, keep.into()).map(drop)
}

/// Sets no_new_privs: no program that the thread runs gains privileges by set-user-id bits or file
/// capabilities. Cannot be undone.
///
/// # Errors
/// The kernel's error.
pub fn set_no_new_privileges() -> nix::Result<()> {
    prctl(PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Sets whether other processes of the same user may inspect this process, and whether it dumps
/// core. A change of user resets it to `fs.suid_dumpable`.
///
/// # Errors
/// The kernel's error.
pub fn set_dumpable(dumpable: bool) -> nix::Result<()> {
    prctl(PR_SET_DUMPABLE, dumpable.into()).map(drop)
}

fn prctl(option: c_int, argument: c_ulong) -> nix::Result<c_int> {
    const NONE: c_ulong = 0;
    // SAFETY: the options of this file take numbers, and no memory.
    Errno::result(unsafe { libc::prctl(option, argument, NONE, NONE, NONE) })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use nix::unistd::geteuid;

    use super::*;

    /// A capability set of the calling thread, from /proc.
    fn status(name: &str) -> CapabilitySet {
        let status = fs::read_to_string("/proc/thread-self/status").expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a set");
        CapabilitySet(u64::from_str_radix(line.trim(), 16).expect("bits"))
    }

    fn capabilities() -> Capabilities {
        Capabilities {
            effective: status("CapEff:"),
            permitted: status("CapPrm:"),
            inheritable: status("CapInh:"),
        }
    }

    #[test]
    fn a_set_has_what_was_put_in() {
        let set = CapabilitySet::from(&[Capability::CAP_BPF, Capability::CAP_KILL]);
        assert_eq!(set, CapabilitySet(1 << 39 | 1 << 5));
        assert!(set.contains(Capability::CAP_BPF) && !set.contains(Capability::CAP_SETUID));
        assert_eq!(set & !CapabilitySet::from(&[Capability::CAP_KILL]), CapabilitySet(1 << 39));
        assert_eq!(Capability::CAP_NET_RAW.to_string(), "CAP_NET_RAW");
    }

    #[test]
    fn they_are_read_and_set_for_this_thread() {
        assert_eq!(Capabilities::read(), Ok(capabilities()));
        if !geteuid().is_root() {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
            eprintln!("SKIPPED: needs root");
            return;
        }
        let before = capabilities();
        let changed = thread::spawn(move || {
            let kept = CapabilitySet::from(&[Capability::CAP_NET_RAW, Capability::CAP_BPF]);
            let wanted = Capabilities {
                effective: CapabilitySet::from(&[Capability::CAP_BPF]),
                permitted: kept,
                inheritable: CapabilitySet::from(&[Capability::CAP_NET_RAW]),
            };
            clear_ambient().expect("cleared");
            keep_bounding(kept).expect("dropped");
            wanted.set().expect("set");
            assert_eq!((capabilities(), Capabilities::read()), (wanted, Ok(wanted)));
            assert_eq!((status("CapBnd:"), status("CapAmb:")), (kept, CapabilitySet::default()));
            // Dropped capabilities cannot be regained.
            assert_eq!(before.set(), Err(Errno::EPERM));
        });
        changed.join().expect("the thread");
        assert_eq!(capabilities(), before);
    }
}
