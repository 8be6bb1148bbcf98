// SPDX-License-Identifier: Apache-2.0
//! The natives of `com.android.server.connectivity.ClatCoordinator`, with which Android's
//! ConnectivityService runs CLATs itself (AOSP, packages/modules/Connectivity, service/jni),
//! independent of Java.
//!
//! There are two callers: AOSP's own C++ by the C ABI ([`ffi`], `include/clat_natives.h`), which
//! com.android.tethering allows, and `clat_jni`, which registers the natives itself. Error messages
//! are AOSP's, word for word.

pub mod coordinator;
pub mod ffi;

use std::fmt;

/// Why a native fails, as the exception that Java gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// `java.io.IOException` with this message.
    Io(String),
    /// `java.lang.IllegalArgumentException` with this message.
    IllegalArgument(&'static str),
    /// `java.lang.NullPointerException`: an argument is null.
    Null,
}

impl Failure {
    /// An IOException with the step that failed, and why.
    pub fn io(message: impl Into<String>) -> Self {
        Self::Io(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io(message) => message,
            Self::IllegalArgument(message) => message,
            Self::Null => "null argument",
        })
    }
}

/// Initialises logging with AOSP's tag. Off Android, logging is up to the program.
pub fn init_log() {
    #[cfg(target_os = "android")]
    android_logger::init_once(
        android_logger::Config::default()
            .with_tag("jniClatCoordinator")
            .with_max_level(log::LevelFilter::Info),
    );
}
