// SPDX-License-Identifier: Apache-2.0

//! A second process for what platd's sandbox does not allow: it reports changes of the resolvers in
//! the host's resolv.conf(5), and removes platd's files after platd has ended, for whatever reason.
//!
//! It runs this program again. It reads nothing that a guest can influence.

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

/// Maximum length of a message, in bytes.
const MAX_MESSAGE: usize = 4096;

/// Options of the helper.
#[derive(Args, Debug)]
pub struct HostHelper {
    /// The socket to the parent.
    #[arg(long)]
    pub control: RawFd,
    /// Whether to report the host's resolvers.
    #[arg(long)]
    pub resolvers: bool,
    /// The files to remove at the end.
    pub files: Vec<PathBuf>,
}

impl HostHelper {
    /// Runs until the parent has ended.
    ///
    /// # Errors
    /// The step that failed.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        // Survives signals to the parent's process group, since it has to end after the parent.
        signals().thread_block()?;
        setsid().context("cannot leave the terminal")?;
        clat_sandbox::drop_privileges(|| Ok(()))?;
        let control = clat_sys::adopt(self.control).context("--control")?;
        let files: Vec<_> = self.files.iter().map(|path| (path, identity(path))).collect();
        self.follow(&control)?;
        for (path, before) in files {
            // Another platd may have replaced the file.
            if before.is_some() && identity(path) == before {
                let _ = fs::remove_file(path);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Reports new resolvers until the parent has ended.
    fn follow(&self, control: &OwnedFd) -> anyhow::Result<()> {
        // Fails at the user's inotify limits.
        let watch = self.resolvers.then(|| Watch::new(&[resolv_conf::PATH])).and_then(Result::ok);
        let mut told = resolv_conf::resolvers();
        while !wait(Some(control.as_fd()), watch.as_ref().map(AsFd::as_fd))? {
            let _ = watch.as_ref().map(Watch::renew);
            let now = resolv_conf::resolvers();
            // Keep the old resolvers while the host has none, as without a network.
            if now != told && !now.is_empty() {
                // The next `wait` notices the end of the parent.
                let _ = handover::send(control.as_raw_fd(), &serde_json::to_vec(&now)?, &[]);
                told = now;
            }
        }
        Ok(())
    }
}

/// Identifies a file independently of its name. Inode numbers are reused, hence the time.
fn identity(path: &Path) -> Option<(u64, u64, Option<SystemTime>)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino(), file.created().ok()))
}

/// The parent's handle of the process.
#[derive(Debug)]
pub(crate) struct Helper {
    control: OwnedFd,
    process: Child,
}

impl Helper {
    /// Starts it, if it has anything to do.
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

    /// Ends it, and waits until it has removed the files.
    pub(crate) fn end(mut self) {
        drop(self.control);
        let _ = self.process.wait();
    }

    /// Reads a message: the host's current resolvers.
    pub(crate) fn resolvers(&self) -> Option<Vec<SocketAddr>> {
        let mut message = [0; MAX_MESSAGE];
        let (len, _) = handover::receive(self, &mut message).ok()?;
        serde_json::from_slice(&message[..len]).ok()
    }
}

impl AsFd for Helper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}
