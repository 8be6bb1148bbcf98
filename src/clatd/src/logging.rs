// SPDX-License-Identifier: Apache-2.0

//! Where the log goes: on Android to its log with the tag of AOSP's clatd, since nobody reads
//! stderr there; else to stderr.

#[cfg(target_os = "android")]
mod place {
    /// Initialises the logger of this process.
    pub fn init(_name: &str) {
        let config = android_logger::Config::default();
        android_logger::init_once(config.with_tag("clatd").with_max_level(log::LevelFilter::Info));
    }

    /// Logs a line.
    pub fn say(line: &str) {
        log::info!("{line}");
    }
}

#[cfg(not(target_os = "android"))]
mod place {
    use std::io::{self, Write};

    /// Initialises the logger of this process, with `name` in front of each line.
    pub fn init(name: &str) {
        let name = name.to_owned();
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
            .format(move |out, record| writeln!(out, "{name}: {}", record.args()))
            .init();
    }

    /// Writes a line to the log at any log level. A closed stderr is no error.
    pub fn say(line: &str) {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

pub use place::{init, say};
