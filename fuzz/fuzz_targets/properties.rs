// SPDX-License-Identifier: Apache-2.0

//! A build.prop file of any kind, as `clat_controller --build-prop` reads it: by rsproperties.
#![no_main]

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static FILE: OnceLock<PathBuf> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let file = FILE.get_or_init(|| {
        std::env::temp_dir().join(format!("clat-fuzz-{}.prop", std::process::id()))
    });
    // What it imports are files of this machine.
    if data.windows(6).any(|word| word == b"import") || fs::write(file, data).is_err() {
        return;
    }
    let mut properties = HashMap::new();
    let _ = rsproperties::load_properties_from_file(file, None, "", &mut properties);
    let text: usize = properties.iter().map(|(name, value)| name.len() + value.len()).sum();
    // Invalid UTF-8 becomes U+FFFD, of three bytes.
    assert!(text <= 3 * data.len());
});
