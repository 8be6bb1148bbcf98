// SPDX-License-Identifier: Apache-2.0

//! Runs a test in a child process: one that ends its process, or changes limits or privileges of
//! the whole process.

use std::env;
use std::io;
use std::process::{Command, Output};

/// The environment variable that tells the child what to try.
pub const NAME: &str = "CLAT_ATTEMPT";

/// Runs only the test `test` of this program in a child process, where [`attempted`] returns
/// `what`.
///
/// # Errors
/// When this program cannot be run.
pub fn attempt(test: &str, what: &str) -> io::Result<Output> {
    Command::new(env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(NAME, what)
        .output()
}

/// What this process was started to try; `None` in the parent.
#[must_use]
pub fn attempted() -> Option<String> {
    env::var(NAME).ok()
}
