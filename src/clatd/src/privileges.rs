//! Giving up what the loop does not need: user, groups, capabilities, and most system calls.

use std::collections::BTreeMap;

use anyhow::{bail, Context};
use caps::CapSet;
use nix::libc;
use nix::unistd::{getegid, geteuid, setgroups, setresgid, setresuid, Gid, Uid, User};
use seccompiler::{
    apply_filter_all_threads, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::socket::{become_undumpable, set_no_new_privs};

/// Whom to become, the first that exists: Android's own user (AID_CLAT, 1029, which its C library knows by this name),
/// or whoever owns nothing.
const USERS: [&str; 2] = ["clat", "nobody"];

/// Not in `libc` for every C library (linux/prctl.h).
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Drops user, groups and capabilities, in the order in which each step still has the right to take the next. Threads that
/// are made from then on have none either.
///
/// # Errors
/// The step that failed; the caller must not go on.
pub fn drop_all() -> anyhow::Result<()> {
    set_no_new_privs().context("cannot set no_new_privs")?;
    caps::clear(None, CapSet::Ambient).context("cannot drop the ambient capabilities")?;
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding).context("cannot drop the bounding capabilities")?;
    }
    let (uid, gid) = if geteuid().is_root() {
        setgroups(&[]).context("cannot drop the groups")?;
        target()?
    } else {
        // Of a set-user-id program, which Android's module has: whoever started it remains its real user otherwise.
        (geteuid(), getegid())
    };
    setresgid(gid, gid, gid).with_context(|| format!("cannot become group {gid}"))?;
    setresuid(uid, uid, uid).with_context(|| format!("cannot become user {uid}"))?;
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).with_context(|| format!("cannot drop the {set:?} capabilities"))?;
    }
    if !caps::read(None, CapSet::Permitted)?.is_empty() || geteuid().is_root() {
        bail!("privileges are still there after they were dropped");
    }
    // Nobody of the same user may look into us.
    become_undumpable().context("cannot become undumpable")
}

/// Filters the system calls of all threads, as the last step before packets are forwarded.
///
/// # Errors
/// What the kernel said; the caller must not go on.
pub fn filter_all_threads() -> anyhow::Result<()> {
    match TargetArch::try_from(std::env::consts::ARCH) {
        Ok(arch) => apply_filter_all_threads(&filter(arch)?).context("cannot filter system calls"),
        Err(_) => {
            log::warn!("no system call filter on {}", std::env::consts::ARCH);
            Ok(())
        }
    }
}

fn target() -> anyhow::Result<(Uid, Gid)> {
    for name in USERS {
        if let Some(user) =
            User::from_name(name).with_context(|| format!("cannot look up user {name}"))?
        {
            return Ok((user.uid, user.gid));
        }
    }
    bail!("there is neither a user clat nor a user nobody; create one with `useradd -r clat`")
}

/// What the loop, its last words and the end of the process need. Anything else kills it, with a line in the kernel's
/// log (`type=1326`): translation never needs it, so it would be someone else's code.
fn filter(arch: TargetArch) -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = [
        // The loop. On some architectures there is only the p variant of epoll_wait.
        libc::SYS_epoll_pwait,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        libc::SYS_epoll_ctl,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_recvmmsg,
        libc::SYS_sendmmsg,
        libc::SYS_sendto,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_clock_gettime,
        // Questions about routes and neighbours; socket is below.
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_setsockopt,
        libc::SYS_recvfrom,
        // Whether the uplink is still there, and what its queue has lost; what signalfd holds; the log.
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_read,
        libc::SYS_write,
        // Memory of the reassembly and of messages; mmap is below.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        // How many processors there are, as glibc's allocator asks when it serves another thread.
        libc::SYS_sched_getaffinity,
        // The end, also the bad one: abort() wants its signal.
        libc::SYS_close,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_restart_syscall,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ]
    .into_iter()
    .map(|number| (number, Vec::new()))
    .collect();
    let only = |index, operator, value| {
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    // Memory, but never code.
    let no_exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC.try_into()?);
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(number, vec![only(2, no_exec.clone(), 0)?]);
    }
    let netlink = libc::AF_NETLINK.try_into()?;
    rules.insert(libc::SYS_socket, vec![only(0, SeccompCmpOp::Eq, netlink)?]);
    // The standard library asks before it closes, in debug builds.
    let get_fd = libc::F_GETFD.try_into()?;
    rules.insert(libc::SYS_fcntl, vec![only(1, SeccompCmpOp::Eq, get_fd)?]);
    // Android's allocator names its mappings.
    rules.insert(libc::SYS_prctl, vec![only(0, SeccompCmpOp::Eq, PR_SET_VMA)?]);
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}
