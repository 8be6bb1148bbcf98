//! Giving up what carrying packets does not need: user, groups, capabilities, and most system calls.

use std::collections::BTreeMap;

use anyhow::{bail, Context};
use caps::CapSet;
use nix::libc;
use nix::sys::prctl;
use nix::unistd::{geteuid, setgroups, setresgid, setresuid, Gid, Uid};
use seccompiler::{
    apply_filter, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Who owns nothing.
const NOBODY: u32 = 65534;

/// Drops everything, in the order in which each step still has the right to take the next. `user` is whom root becomes,
/// instead of nobody.
///
/// # Errors
/// The step that failed; the caller must not go on.
pub(crate) fn enter(user: Option<(Uid, Gid)>) -> anyhow::Result<()> {
    prctl::set_no_new_privs().context("cannot set no_new_privs")?;
    caps::clear(None, CapSet::Ambient).context("cannot drop the ambient capabilities")?;
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding).context("cannot drop the bounding capabilities")?;
    }
    if geteuid().is_root() {
        let (uid, gid) = user.unwrap_or((Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)));
        let become_user = || {
            setgroups(&[])?;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)
        };
        match become_user() {
            Err(errno) if user.is_none() => {
                // Root of a user namespace may have nobody to become; what it has it may lose all the same.
                log::debug!("staying root of this namespace ({errno}), without capabilities");
            }
            done => done.with_context(|| format!("cannot become user {uid}"))?,
        }
    } else if user.is_some_and(|(uid, _)| uid != geteuid()) {
        bail!("--runas: only root can become another user");
    }
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).with_context(|| format!("cannot drop the {set:?} capabilities"))?;
    }
    if !caps::read(None, CapSet::Permitted)?.is_empty() {
        bail!("capabilities are still there after they were dropped");
    }
    prctl::set_dumpable(false).context("cannot become undumpable")?;
    match TargetArch::try_from(std::env::consts::ARCH) {
        Ok(arch) => apply_filter(&filter(arch)?).context("cannot filter system calls"),
        Err(_) => {
            log::warn!("no system call filter on {}", std::env::consts::ARCH);
            Ok(())
        }
    }
}

/// What carrying packets needs. No file can be opened, no program run, no process touched.
fn filter(arch: TargetArch) -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = [
        // The loop.
        libc::SYS_epoll_pwait,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        libc::SYS_epoll_ctl,
        libc::SYS_clock_gettime,
        // Links, flows, signalfd, the log.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_accept4,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_shutdown,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_getsockname,
        libc::SYS_getpeername,
        // Non-blocking, by the standard library.
        libc::SYS_ioctl,
        libc::SYS_fcntl,
        // The end of a guest's process, and of the command that runs inside.
        libc::SYS_pidfd_open,
        libc::SYS_wait4,
        libc::SYS_waitid,
        // Random numbers, memory; mmap is below.
        libc::SYS_getrandom,
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
    // TCP, UDP and ping of both families, nothing else.
    let families = [libc::AF_INET, libc::AF_INET6];
    let families: Result<Vec<_>, anyhow::Error> =
        families.into_iter().map(|f| Ok(only(0, SeccompCmpOp::Eq, f.try_into()?)?)).collect();
    rules.insert(libc::SYS_socket, families?);
    // Between flows and the DNS server.
    let unix = only(0, SeccompCmpOp::Eq, libc::AF_UNIX.try_into()?)?;
    rules.insert(libc::SYS_socketpair, vec![unix]);
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}
