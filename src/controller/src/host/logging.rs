//! Where the log goes: Android's under the tag that the original has, the journal where stderr is connected to it, else
//! stderr. What scripts look for in the original's log stands there in the original's words.

/// The original's tag.
pub const TAG: &str = "ClatdController";

/// What is logged unless RUST_LOG says otherwise: of the binder library only what is amiss.
#[cfg(not(target_os = "android"))]
const FILTER: &str = "info,rsbinder=warn,rsproperties=warn";

/// Sets the logger of this process up.
#[cfg(target_os = "android")]
pub fn init() {
    let config = android_logger::Config::default();
    android_logger::init_once(config.with_tag(TAG).with_max_level(log::LevelFilter::Info));
}

/// Sets the logger of this process up.
#[cfg(not(target_os = "android"))]
pub fn init() {
    let mut builder =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(FILTER));
    if systemd_journal_logger::connected_to_journal() {
        if let Ok(journal) = systemd_journal_logger::JournalLog::new() {
            let journal = journal.with_syslog_identifier(TAG.to_owned());
            builder.format(move |_, record| journal.journal_send(record));
        }
    }
    builder.init();
}
