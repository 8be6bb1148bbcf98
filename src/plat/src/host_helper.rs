// SPDX-License-Identifier: Apache-2.0

//! A second process, for what platd has given up the right to: it says whom the host's
//! resolv.conf(5) names when that changes, and removes platd's files when platd has ended, however
//! that was.
//!
//! It is this program, started again. It reads nothing that a guest has a say in.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;
use clat_tun::handover;
use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};
use nix::unistd::setsid;

use crate::netns_helper::{keep_on_exec, own_program, signals, wait};
use crate::resolv_conf::{self, Watch};

/// Bytes of the longest message.
const LONGEST: usize = 4096;

/// What it is for.
#[derive(Args, Debug)]
pub struct HostHelper {
    /// The socket that leads to the parent.
    #[arg(long)]
    pub control: RawFd,
    /// Whether the parent wants to know the host's resolvers.
    #[arg(long)]
    pub resolvers: bool,
    /// What is removed in the end.
    pub files: Vec<PathBuf>,
}

impl HostHelper {
    /// Does it, until the parent has ended.
    ///
    /// # Errors
    /// The step that failed.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        // Whoever ends a whole group of processes ends the parent, too; this one comes last.
        signals().thread_block()?;
        setsid().context("cannot leave the terminal")?;
        clat_sandbox::drop_privileges(|| Ok(()))?;
        let control = clat_sys::adopt(self.control).context("--control")?;
        let files: Vec<_> = self.files.iter().map(|path| (path, identity(path))).collect();
        self.follow(&control)?;
        for (path, before) in files {
            // Another platd may have taken the name over.
            if before.is_some() && identity(path) == before {
                let _ = fs::remove_file(path);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Tells of other resolvers until the parent has ended.
    fn follow(&self, control: &OwnedFd) -> anyhow::Result<()> {
        // A user has no more than so many watches.
        let watch = self.resolvers.then(|| Watch::new(&[resolv_conf::PATH])).and_then(Result::ok);
        let mut told = resolv_conf::resolvers();
        while !wait(Some(control.as_fd()), watch.as_ref().map(AsFd::as_fd))? {
            let _ = watch.as_ref().map(Watch::renew);
            let now = resolv_conf::resolvers();
            // Nobody to ask is no better than who was asked before: the host has no network.
            if now != told && !now.is_empty() {
                // If the parent has ended, that is seen next.
                let _ = handover::send(control.as_raw_fd(), &serde_json::to_vec(&now)?, &[]);
                told = now;
            }
        }
        Ok(())
    }
}

/// Which file it is, whatever it is called. Numbers of files that are gone are used again.
fn identity(path: &Path) -> Option<(u64, u64, Option<SystemTime>)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino(), file.created().ok()))
}

/// The process, for its parent.
#[derive(Debug)]
pub(crate) struct Helper {
    control: OwnedFd,
    process: Child,
}

impl Helper {
    /// Starts it, if there is something for it to do.
    ///
    /// # Errors
    /// The kernel's error.
    pub(crate) fn start(resolvers: bool, files: &[&Path]) -> anyhow::Result<Option<Self>> {
        if !resolvers && files.is_empty() {
            return Ok(None);
        }
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .context("cannot make a socket pair")?;
        keep_on_exec(&theirs)?;
        let mut helper = Command::new(own_program());
        helper.args(["__host-helper", "--control", &theirs.as_raw_fd().to_string()]);
        if resolvers {
            helper.arg("--resolvers");
        }
        helper.arg("--").args(files);
        helper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = helper.spawn().context("cannot start a helper")?;
        Ok(Some(Self { control: ours, process }))
    }

    /// Ends it: what it does in the end is done then.
    pub(crate) fn end(mut self) {
        drop(self.control);
        let _ = self.process.wait();
    }

    /// What it has said: the host's resolvers as they are now.
    pub(crate) fn resolvers(&self) -> Option<Vec<SocketAddr>> {
        let mut message = [0; LONGEST];
        let (len, _) = handover::receive(self, &mut message).ok()?;
        serde_json::from_slice(&message[..len]).ok()
    }
}

impl AsFd for Helper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}
