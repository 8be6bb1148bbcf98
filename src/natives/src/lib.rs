// SPDX-License-Identifier: Apache-2.0
//! What the natives of `com.android.server.connectivity.ClatCoordinator` do, by which Android's
//! ConnectivityService runs CLATs itself (AOSP, packages/modules/Connectivity, service/jni).
//!
//! Two faces call it: AOSP's own C++ by the C ABI ([`ffi`], `include/clat_natives.h`), which is
//! what may enter com.android.tethering, and `clat_jni`, which registers the natives itself. What
//! is said when something fails is AOSP's, to the letter.

pub mod coordinator;
pub mod ffi;

use std::fmt;

/// Why a native fails, by the exception that Java sees.
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
    /// An IOException that says which step failed, and how.
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

/// Has the library log under AOSP's tag. Off Android the program says where its log goes.
pub fn init_log() {
    #[cfg(target_os = "android")]
    android_logger::init_once(
        android_logger::Config::default()
            .with_tag("jniClatCoordinator")
            .with_max_level(log::LevelFilter::Info),
    );
}
