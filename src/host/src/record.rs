// SPDX-License-Identifier: Apache-2.0

//! What a controller writes down about its CLATs, for the next one to go on with them. A clatd has
//! the same on its command line, but that is its own to change.
//!
//! A file for each TUN device of each network namespace, root's alone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clat_sys::HostError;
use nix::errno::Errno;

use crate::lock::namespace;
use crate::{ClatdArgs, HAS_NETD};

/// Where the records are, and the lock of the network namespace. Others may not write there.
pub const RUN_DIR: &str = if HAS_NETD { "/data/misc/clat" } else { "/run/clat" };

/// How the names of the records of this network namespace begin.
fn begin() -> io::Result<String> {
    Ok(format!("netns-{}-", namespace()?))
}

fn path(device: &str) -> io::Result<PathBuf> {
    Ok(Path::new(RUN_DIR).join(begin()? + device))
}

/// Writes down the arguments of the clatd that serves a TUN device.
///
/// # Errors
/// Those of the file system.
pub fn write(device: &str, argv: &[String]) -> io::Result<()> {
    let path = path(device)?;
    let written = || {
        // Whole or not at all, whenever this process ends.
        let new = path.with_extension("new");
        let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new);
        file?.write_all(argv.join("\n").as_bytes())?;
        fs::rename(new, &path)
    };
    written().map_err(|e| HostError::during(path.display(), e))
}

/// What the clatd was told that serves a TUN device.
///
/// # Errors
/// Those of the file system; EINVAL for what [`write()`] has not written.
pub fn read(device: &str) -> io::Result<ClatdArgs> {
    let path = path(device)?;
    let text = fs::read_to_string(&path).map_err(|e| HostError::during(path.display(), e))?;
    let argv: Vec<_> = text.split('\n').collect();
    ClatdArgs::parse(&argv).map(|(args, _)| args).ok_or_else(|| {
        let cause = format!("{} is not as a controller writes it", path.display());
        HostError::because(Errno::EINVAL, cause)
    })
}

/// Removes what is written down about a TUN device, if anything.
pub(crate) fn remove(device: &str) {
    match path(device).and_then(fs::remove_file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot remove what was written down about {device}: {e}");
        }
        _ => {}
    }
}

/// Removes what a former life has written down about any but these TUN devices.
pub(crate) fn remove_all_but(kept: &[&str]) {
    let Ok(begin) = begin() else { return };
    for file in fs::read_dir(RUN_DIR).into_iter().flatten().flatten() {
        let name = file.file_name();
        let device = name.to_str().and_then(|name| name.strip_prefix(&begin));
        if device.is_some_and(|device| !kept.contains(&device)) {
            let _ = fs::remove_file(file.path());
        }
    }
}
