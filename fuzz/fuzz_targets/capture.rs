// SPDX-License-Identifier: Apache-2.0

//! A capture of any kind, as `clatctl translate` reads it.
#![no_main]

#[path = "../../src/clatctl/src/translate/capture.rs"]
#[allow(dead_code)]
mod capture;

mod report {
    #[derive(Debug)]
    pub enum Skip {
        CutShort,
    }
}

mod sink {
    pub fn is_stdio(_: &std::path::Path) -> bool {
        false
    }
}

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use capture::{Capture, Record, MAX_CAPTURED};
use libfuzzer_sys::fuzz_target;

static FILE: OnceLock<PathBuf> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let file = FILE.get_or_init(|| {
        std::env::temp_dir().join(format!("clat-fuzz-{}.pcap", std::process::id()))
    });
    if fs::write(file, data).is_err() {
        return;
    }
    let Ok(mut capture) = Capture::open(file) else { return };
    let mut record = Record::default();
    while let Ok(true) = capture.next(&mut record) {
        let _ = capture.header(capture.link_type());
        let _ = record.whole().map(|frame| record.like(frame));
        assert!(record.data.len() <= MAX_CAPTURED && record.data.len() <= data.len());
    }
});
