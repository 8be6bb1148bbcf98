// SPDX-License-Identifier: Apache-2.0

//! What a daemon gives up before its loop: user, groups and capabilities, then most system calls.
//! Which of those it needs is its own to say.
#![forbid(unsafe_code)]

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
pub use filter::Filter;

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
