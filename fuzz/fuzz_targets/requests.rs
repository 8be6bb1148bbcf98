// SPDX-License-Identifier: Apache-2.0

//! Requests of the AIDL interface with arbitrary arguments, one after another, to a controller on a
//! host in memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = clat_controller::fuzz::requests(data);
});
