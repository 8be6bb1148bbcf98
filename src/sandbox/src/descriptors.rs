// SPDX-License-Identifier: Apache-2.0

//! The descriptors that a daemon was started with.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::libc;
use nix::unistd::dup2;

/// Leaves of the standard descriptors stderr alone, for the log, and of a terminal no more than
/// writing: whoever started this has opened it to read from, and what is typed there is for others.
///
/// # Errors
/// When there is no `/dev/null`; the caller must not go on.
pub fn close_standard_input_and_output() -> anyhow::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    for standard in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
        dup2(null.as_raw_fd(), standard).context("cannot close what a caller gave")?;
    }
    let flags = OFlag::from_bits_retain(fcntl(libc::STDERR_FILENO, FcntlArg::F_GETFL)?);
    if io::stderr().is_terminal() && flags & OFlag::O_ACCMODE != OFlag::O_WRONLY {
        let again =
            File::options().write(true).custom_flags(libc::O_NOCTTY).open("/proc/self/fd/2");
        match again {
            Ok(again) => dup2(again.as_raw_fd(), libc::STDERR_FILENO).map(drop)?,
            // Another user's, as behind sudo: who may not open it can still write.
            Err(e) => log::info!("the terminal stays readable: {e}"),
        }
    }
    Ok(())
}
