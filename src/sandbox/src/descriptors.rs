// SPDX-License-Identifier: Apache-2.0

//! The descriptors that a daemon was started with.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use clat_sys::{replace_standard, status_flags};
use nix::libc;

/// Leaves of the standard descriptors stderr alone, for the log, and of a terminal no more than
/// writing: whoever started this has opened it to read from, and what is typed there is for others.
///
/// # Errors
/// When there is no `/dev/null`; the caller must not go on.
pub fn close_standard_input_and_output() -> anyhow::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    for standard in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
        replace_standard(standard, &null).context("cannot close what a caller gave")?;
    }
    let mode = status_flags(io::stderr())? & libc::O_ACCMODE;
    if io::stderr().is_terminal() && mode != libc::O_WRONLY {
        let again =
            File::options().write(true).custom_flags(libc::O_NOCTTY).open("/proc/self/fd/2");
        match again {
            Ok(again) => replace_standard(libc::STDERR_FILENO, again)?,
            // Another user's, as behind sudo: who may not open it can still write.
            Err(e) => log::info!("the terminal stays readable: {e}"),
        }
    }
    Ok(())
}
