// SPDX-License-Identifier: Apache-2.0

//! Records of CLATs in files, for the next controller to take them over. clatd's command line has
//! the same data, but clatd can change that.
//!
//! One file for each TUN device of each network namespace, accessible to root only.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clat_sys::HostError;
use nix::errno::Errno;

use crate::lock::namespace;
use crate::{ClatdArgs, HAS_NETD};

/// Directory of the records and of the lock of the network namespace. Writable by root only.
pub const RUN_DIR: &str = if HAS_NETD { "/data/misc/clat" } else { "/run/clat" };

/// Prefix of the names of this network namespace's records.
fn file_prefix() -> io::Result<String> {
    Ok(format!("netns-{}-", namespace()?))
}

fn path(device: &str) -> io::Result<PathBuf> {
    Ok(Path::new(RUN_DIR).join(file_prefix()? + device))
}

/// Records the arguments of the clatd that serves a TUN device, and the index of its uplink, whose
/// name may change.
///
/// # Errors
/// Those of the file system.
pub fn write(device: &str, uplink: u32, argv: &[String]) -> io::Result<()> {
    let path = path(device)?;
    let written = || {
        // Renamed into place, so that the record is complete even if this process is killed.
        let new = path.with_extension("new");
        let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new);
        file?.write_all(format!("{uplink}\n{}", argv.join("\n")).as_bytes())?;
        fs::rename(new, &path)
    };
    written().map_err(|e| HostError::during(path.display(), e))
}

/// The recorded arguments of the clatd that serves a TUN device, and the index of its uplink.
///
/// # Errors
/// Those of the file system; EINVAL for a file that [`write()`] has not written.
pub fn read(device: &str) -> io::Result<(ClatdArgs, u32)> {
    let path = path(device)?;
    let text = fs::read_to_string(&path).map_err(|e| HostError::during(path.display(), e))?;
    let parse = || {
        let (uplink, argv) = text.split_once('\n')?;
        let (args, _) = ClatdArgs::parse(&argv.split('\n').collect::<Vec<_>>())?;
        Some((args, uplink.parse().ok()?))
    };
    parse().ok_or_else(|| {
        let cause = format!("{} is not a record of clat_controller", path.display());
        HostError::because(Errno::EINVAL, cause)
    })
}

/// Removes the record of a TUN device, if there is one.
pub(crate) fn remove(device: &str) {
    match path(device).and_then(fs::remove_file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot remove the record of {device}: {e}");
        }
        _ => {}
    }
}

/// Removes the records of all TUN devices but these.
pub(crate) fn remove_all_but(kept: &[&str]) {
    let Ok(prefix) = file_prefix() else { return };
    for file in fs::read_dir(RUN_DIR).into_iter().flatten().flatten() {
        let name = file.file_name();
        let device = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        if device.is_some_and(|device| !kept.contains(&device)) {
            let _ = fs::remove_file(file.path());
        }
    }
}
