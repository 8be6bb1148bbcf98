// SPDX-License-Identifier: Apache-2.0

//! Property files, from which the first API level is read.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use clat_controller::host::linux::Properties;
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{memfd_create, MemFdCreateFlag};

fuzz_target!(|data: &[u8]| {
    // The reader takes a file; this one is in memory.
    let file = memfd_create(c"build.prop", MemFdCreateFlag::empty()).expect("a file in memory");
    let mut file = File::from(file);
    file.write_all(data).expect("written");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    if let Ok(properties) = Properties::new(Some(Path::new(&path)), None) {
        let _ = properties.get("ro.product.first_api_level");
    }
});
