// SPDX-License-Identifier: Apache-2.0

//! Fragments of a guest for platd's flows, in any order: three bytes before each.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| clat_plat::invariants::fragments(data));
