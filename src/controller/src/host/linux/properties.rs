// SPDX-License-Identifier: Apache-2.0

//! System properties: Android's, or else those of a build.prop file, or else those of the newest
//! device.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clat_sys::HostError;
use nix::errno::Errno;
use nix::libc;

use crate::ebpf_mode::NEWEST_API_LEVEL;

/// The API level with which a device was first sold.
const FIRST_API_LEVEL: &str = "ro.product.first_api_level";

/// Maximum length of a build.prop file, in bytes. Android's have some 10,000.
const MAX_FILE: u64 = 1 << 20;

/// A source of properties; by default without any.
#[derive(Debug, Default)]
pub struct Properties {
    given: HashMap<String, String>,
    area: Option<area::Area>,
}

impl Properties {
    /// The properties of this machine: only those of `build_prop` if given, else Android's if any,
    /// else the newest API level. `first_api_level` overrides all.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn new(build_prop: Option<&Path>, first_api_level: Option<u32>) -> io::Result<Self> {
        let area = if build_prop.is_none() { area::Area::find() } else { None };
        let mut given = build_prop.map_or_else(|| Ok(HashMap::new()), read_file)?;
        let newest = (build_prop.is_none() && area.is_none()).then_some(NEWEST_API_LEVEL);
        if let Some(level) = first_api_level.or(newest) {
            given.insert(FIRST_API_LEVEL.to_owned(), level.to_string());
        }
        Ok(Self { given, area })
    }

    /// A property; `None` if it is not set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        self.given.get(name).cloned().or_else(|| self.area.as_ref()?.get(name))
    }
}

/// The properties in a build.prop file, `name=value` in each line. Imported files are not read.
fn read_file(path: &Path) -> io::Result<HashMap<String, String>> {
    let read = || {
        // Without waiting: a FIFO without a writer is empty.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let mut text = Vec::new();
        match file.take(MAX_FILE + 1).read_to_end(&mut text)? as u64 {
            0..=MAX_FILE => Ok(text),
            _ => Err(HostError::because(Errno::EFBIG, format!("more than {MAX_FILE} bytes"))),
        }
    };
    let text = read().map_err(|e| HostError::during(path.display(), e))?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect())
}

#[cfg(not(soong))]
mod area {
    use std::path::Path;

    /// The directory of Android's properties.
    const DIR: &str = "/dev/__properties__";

    /// Android's properties.
    #[derive(Debug)]
    pub(super) struct Area;

    impl Area {
        pub(super) fn find() -> Option<Self> {
            Path::new(DIR).exists().then_some(Self)
        }

        pub(super) fn get(&self, name: &str) -> Option<String> {
            Some(rsproperties::get_or(name, String::new())).filter(|value| !value.is_empty())
        }
    }
}

#[cfg(soong)]
mod area {
    /// Android's properties.
    #[derive(Debug)]
    pub(super) struct Area;

    impl Area {
        pub(super) fn find() -> Option<Self> {
            Some(Self)
        }

        pub(super) fn get(&self, name: &str) -> Option<String> {
            let value = rustutils::system_properties::read(name);
            value.unwrap_or_else(|e| {
                log::error!("{name}: {e}");
                None
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    const SDK: &str = "ro.build.version.sdk";

    #[test]
    fn of_a_build_prop() {
        let path = std::env::temp_dir().join(format!("clat-prop-{}", std::process::id()));
        fs::write(
            &path,
            "# comment=1\n\nro.build.version.sdk=34\n ro.product.first_api_level = 28 \nnonsense\n",
        )
        .expect("a file");
        let properties = |level| Properties::new(Some(&path), level).expect("readable");
        assert_eq!(properties(None).get(SDK).as_deref(), Some("34"));
        assert_eq!(properties(None).get(FIRST_API_LEVEL).as_deref(), Some("28"));
        assert_eq!(properties(Some(30)).get(FIRST_API_LEVEL).as_deref(), Some("30"));
        assert_eq!(properties(None).get("# comment"), None);
        fs::remove_file(&path).expect("removed");
        assert!(Properties::new(Some(&path), None).is_err());
    }

    /// Endless files are an error, and FIFOs without a writer are empty; neither blocks.
    #[test]
    fn of_a_file_without_an_end() {
        let path = std::env::temp_dir().join(format!("clat-endless-{}", std::process::id()));
        fs::write(&path, "import /dev/full\nro.build.version.sdk=34\n").expect("a file");
        let properties = Properties::new(Some(&path), None).expect("readable");
        assert_eq!(properties.get(SDK).as_deref(), Some("34"));
        fs::remove_file(&path).expect("removed");
        mkfifo(&path, Mode::S_IRUSR).expect("a FIFO");
        let properties = Properties::new(Some(&path), None).expect("readable");
        assert_eq!(properties.get(SDK), None);
        fs::remove_file(&path).expect("removed");
        let error = Properties::new(Some(Path::new("/dev/full")), None).expect_err("no end");
        assert_eq!(clat_sys::errno_of(&error), Errno::EFBIG, "{error}");
    }

    #[test]
    fn of_a_property_area() {
        let dir = std::env::temp_dir().join(format!("clat-area-{}", std::process::id()));
        fs::create_dir(&dir).expect("a directory");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("ours");
        let info = rsproperties::build_trie(&[], "u:object_r:default_prop:s0", "string");
        fs::write(dir.join("property_info"), info.expect("a trie")).expect("written");
        let mut made = rsproperties::SystemProperties::new_area(&dir).expect("a new area");
        made.add(SDK, "34").expect("added");
        made.add(FIRST_API_LEVEL, "28").expect("added");
        drop(made);
        let config = rsproperties::PropertyConfig::with_properties_dir(&dir);
        rsproperties::try_init(config).expect("not used before");
        let properties = Properties { given: HashMap::new(), area: Some(area::Area) };
        assert_eq!(properties.get(SDK).as_deref(), Some("34"));
        assert_eq!(properties.get(FIRST_API_LEVEL).as_deref(), Some("28"));
        assert_eq!(properties.get("ro.nothing"), None);
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn of_a_machine_that_is_no_android() {
        let newest = Properties { area: None, ..Properties::new(None, None).expect("no file") };
        let level = if Path::new("/dev/__properties__").exists() { None } else { Some("36") };
        assert_eq!(newest.get(FIRST_API_LEVEL).as_deref(), level);
        let given = Properties::new(None, Some(28)).expect("no file");
        assert_eq!(given.get(FIRST_API_LEVEL).as_deref(), Some("28"));
    }
}
