// SPDX-License-Identifier: Apache-2.0

//! What a daemon gives up before its loop: user, groups and capabilities, then most system calls.
//! Which of those it needs is its own to say.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use anyhow::{bail, Context};
pub use clat_sys::privileges::Capability;
use clat_sys::privileges::{
    clear_ambient, keep_bounding, set_dumpable, set_keep_capabilities, set_no_new_privileges,
    Capabilities, CapabilitySet,
};
use nix::libc::{self, c_int};
use nix::unistd::{geteuid, setgroups, setresgid, setresuid, Gid, Uid};
use seccompiler::{
    apply_filter_all_threads, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// What every loop, its last words and the end of its process need.
const COMMON: &[i64] = &[
    // The loop. On some architectures there is only the p variant of epoll_wait.
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_clock_gettime,
    // Packets, what signalfd holds, the log. What is done with sockets beyond that the daemon says.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    // Memory; mmap is below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    // The end, also the bad one: abort() wants its signal.
    libc::SYS_close,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Becomes another user and keeps these capabilities over it, until [`drop_privileges`]: what is
/// opened from then on belongs to that user. Without root it does nothing.
///
/// # Errors
/// The step that failed; the caller must not go on.
pub fn become_user_with(kept: &[Capability], uid: Uid, gid: Gid) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    keep_for_programs(CapabilitySet::default())?;
    set_keep_capabilities(true).context("cannot keep capabilities")?;
    become_user(uid, gid)?;
    let set = CapabilitySet::from(kept);
    Capabilities { effective: set, permitted: set, ..Capabilities::default() }
        .set()
        .with_context(|| format!("cannot keep {kept:?}"))?;
    set_keep_capabilities(false).context("cannot stop keeping capabilities")
}

/// Of what a program run by this one could have, or get by its file, leaves these alone.
fn keep_for_programs(kept: CapabilitySet) -> anyhow::Result<()> {
    clear_ambient().context("cannot drop the ambient capabilities")?;
    if read()?.effective.contains(Capability::CAP_SETPCAP) {
        keep_bounding(kept).context("cannot drop the bounding capabilities")?;
    }
    Ok(())
}

fn read() -> anyhow::Result<Capabilities> {
    Capabilities::read().context("cannot read capabilities")
}

/// Drops all capabilities, those that remain without root and those that changing the user takes;
/// `change_user` does that in between, since it takes some. No program gives any back, and nobody
/// of the same user may look into this one.
///
/// # Errors
/// The step that failed; the caller must not go on.
pub fn drop_privileges(change_user: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    set_no_new_privileges().context("cannot set no_new_privs")?;
    keep_for_programs(CapabilitySet::default())?;
    change_user()?;
    let none = Capabilities::default();
    none.set().context("cannot drop capabilities")?;
    if read()? != none {
        bail!("capabilities are still there after they were dropped");
    }
    set_dumpable(false).context("cannot become undumpable")
}

/// Whether this thread may have this capability.
///
/// # Errors
/// What the kernel said.
pub fn may_have(capability: Capability) -> anyhow::Result<bool> {
    Ok(read()?.permitted.contains(capability))
}

/// Runs something without these capabilities, for this thread, which has them again afterwards.
///
/// # Errors
/// What the kernel said.
pub fn without<T>(those: &[Capability], run: impl FnOnce() -> T) -> anyhow::Result<T> {
    let all = read()?;
    let effective = all.effective & !CapabilitySet::from(those);
    Capabilities { effective, ..all }
        .set()
        .with_context(|| format!("cannot do without {those:?}"))?;
    let done = run();
    all.set().with_context(|| format!("cannot have {those:?} again"))?;
    Ok(done)
}

/// Keeps of its capabilities these alone, for this thread, those that it makes from now on, and the
/// programs that they run.
///
/// # Errors
/// The step that failed; the caller must not go on.
pub fn keep_capabilities(keep: &[Capability]) -> anyhow::Result<()> {
    let keep = CapabilitySet::from(keep);
    keep_for_programs(keep)?;
    let left = read()?.permitted & keep;
    Capabilities { effective: left, permitted: left, ..Capabilities::default() }
        .set()
        .context("cannot drop capabilities")
}

/// Becomes this user, with this group alone.
///
/// # Errors
/// The step that failed.
pub fn become_user(uid: Uid, gid: Gid) -> anyhow::Result<()> {
    if geteuid().is_root() {
        setgroups(&[]).context("cannot drop the groups")?;
    }
    setresgid(gid, gid, gid).with_context(|| format!("cannot become group {gid}"))?;
    setresuid(uid, uid, uid).with_context(|| format!("cannot become user {uid}"))
}

/// System calls that are left. Any other ends the process, with a line in the kernel's log
/// (`type=1326`): its loop never needs it, so it would be someone else's code.
#[derive(Debug)]
pub struct Filter(BTreeMap<i64, Vec<SeccompRule>>);

impl Filter {
    /// These, and what every loop needs.
    ///
    /// # Errors
    /// None that is known of.
    pub fn new(calls: &[i64]) -> anyhow::Result<Self> {
        let all = COMMON.iter().chain(calls);
        let mut filter = Self(all.map(|&number| (number, Vec::new())).collect());
        // abort() sends itself its signal, and nobody else any.
        let own = c_int::try_from(std::process::id())?;
        filter.0.insert(libc::SYS_tgkill, vec![rule(0, SeccompCmpOp::Eq, own)?]);
        // Memory, but never code.
        let no_exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC.try_into()?);
        for number in [libc::SYS_mmap, libc::SYS_mprotect] {
            filter.0.insert(number, vec![rule(2, no_exec.clone(), 0)?]);
        }
        Ok(filter)
    }

    /// Also this one, where its argument `index` (from 0) is one of `values`.
    ///
    /// # Errors
    /// When there can be no such argument.
    pub fn only(mut self, call: i64, index: u8, values: &[c_int]) -> anyhow::Result<Self> {
        let rules = values.iter().map(|&value| rule(index, SeccompCmpOp::Eq, value));
        self.0.insert(call, rules.collect::<Result<_, _>>()?);
        Ok(self)
    }

    /// Leaves these system calls, and no other, to all threads.
    ///
    /// # Errors
    /// What the kernel said; the caller must not go on.
    pub fn apply(self) -> anyhow::Result<()> {
        let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
            log::warn!("no system call filter on {}", std::env::consts::ARCH);
            return Ok(());
        };
        let (others, these) = (SeccompAction::KillProcess, SeccompAction::Allow);
        let program: BpfProgram = SeccompFilter::new(self.0, others, these, arch)?.try_into()?;
        apply_filter_all_threads(&program).context("cannot filter system calls")
    }
}

fn rule(index: u8, operator: SeccompCmpOp, value: c_int) -> anyhow::Result<SeccompRule> {
    let value = value.try_into()?;
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}
