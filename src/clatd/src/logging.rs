// SPDX-License-Identifier: Apache-2.0

//! Where the log goes: on Android to its log, since nobody reads stderr there, under the tag of
//! AOSP's clatd; else to stderr.

#[cfg(target_os = "android")]
mod place {
    /// Sets the logger of this process up.
    pub fn init(_name: &str) {
        let config = android_logger::Config::default();
        android_logger::init_once(config.with_tag("clatd").with_max_level(log::LevelFilter::Info));
    }

    /// Has a line read by whoever reads the log.
    pub fn say(line: &str) {
        log::info!("{line}");
    }
}

#[cfg(not(target_os = "android"))]
mod place {
    use std::io::{self, Write};

    /// Sets the logger of this process up, which puts `name` in front of each line.
    pub fn init(name: &str) {
        let name = name.to_owned();
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
            .format(move |out, record| writeln!(out, "{name}: {}", record.args()))
            .init();
    }

    /// Has a line read by whoever reads the log, whatever is left out of that. If nobody can, that
    /// is no reason to fail.
    pub fn say(line: &str) {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

pub use place::{init, say};
