// SPDX-License-Identifier: Apache-2.0

//! The standard descriptors that a daemon inherits.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use clat_sys::{replace_standard, status_flags};
use nix::libc;

/// Replaces stdin and stdout by `/dev/null` and keeps stderr for the log. If stderr is a terminal,
/// it is reopened for writing only: a shell has opened it for reading, too, and what is typed there
/// is not for the daemon.
///
/// # Errors
/// If there is no `/dev/null`; the caller must not go on.
pub fn close_standard_input_and_output() -> anyhow::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    for standard in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
        replace_standard(standard, &null).context("cannot replace stdin or stdout")?;
    }
    let mode = status_flags(io::stderr())? & libc::O_ACCMODE;
    if io::stderr().is_terminal() && mode != libc::O_WRONLY {
        let again =
            File::options().write(true).custom_flags(libc::O_NOCTTY).open("/proc/self/fd/2");
        match again {
            Ok(again) => replace_standard(libc::STDERR_FILENO, again)?,
            // It may be another user's, as with sudo, and cannot be opened.
            Err(e) => log::info!("the terminal stays readable: {e}"),
        }
    }
    Ok(())
}
