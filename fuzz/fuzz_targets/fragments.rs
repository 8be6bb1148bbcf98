// SPDX-License-Identifier: Apache-2.0

//! A guest's fragments for platd's flows, in any order, each after three bytes.
#![no_main]

#[path = "../../src/plat/tests/invariants/mod.rs"]
#[allow(dead_code)]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| invariants::fragments(data));
