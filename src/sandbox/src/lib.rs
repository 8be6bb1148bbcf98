// SPDX-License-Identifier: Apache-2.0

//! Drops a daemon's privileges before its loop: user, groups and capabilities, then most system
//! calls. Each daemon says which of these it needs.
#![forbid(unsafe_code)]

#[doc(hidden)] // for tests
pub mod attempt;
mod descriptors;
mod filter;

use anyhow::{bail, Context};
pub use clat_sys::privileges::Capability;
use clat_sys::privileges::{
    clear_ambient, keep_bounding, set_dumpable, set_keep_capabilities, set_no_new_privileges,
    Capabilities, CapabilitySet,
};
use nix::unistd::{geteuid, setgroups, setresgid, setresuid, Gid, Uid};

pub use descriptors::close_standard_input_and_output;
pub use filter::{refuse, Filter};

/// Becomes another user and keeps these capabilities until [`drop_privileges`], so that what it
/// opens until then belongs to that user. Does nothing without root.
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

/// Limits the capabilities that programs run by this process can have, or get from their files, to
/// these.
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

/// Drops all capabilities, calls `change_user`, which needs some of them, and drops what is left.
/// Afterwards no program run by this process gains privileges, and other processes of the same user
/// may not inspect its memory (ptrace(2)).
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
        bail!("some capabilities are left after all were dropped");
    }
    set_dumpable(false).context("cannot become undumpable")
}

/// Whether this thread has this capability in its permitted set.
///
/// # Errors
/// The kernel's error.
pub fn may_have(capability: Capability) -> anyhow::Result<bool> {
    Ok(read()?.permitted.contains(capability))
}

/// Runs `run` without these capabilities in this thread's effective set, and restores them.
///
/// # Errors
/// The kernel's error.
pub fn without<T>(those: &[Capability], run: impl FnOnce() -> T) -> anyhow::Result<T> {
    let all = read()?;
    let effective = all.effective & !CapabilitySet::from(those);
    Capabilities { effective, ..all }
        .set()
        .with_context(|| format!("cannot drop {those:?} for a while"))?;
    let done = run();
    all.set().with_context(|| format!("cannot restore {those:?}"))?;
    Ok(done)
}

/// Drops all capabilities but these: for this thread, for threads that it creates from now on, and
/// for programs that they run.
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

/// Becomes this user, with this group only.
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
