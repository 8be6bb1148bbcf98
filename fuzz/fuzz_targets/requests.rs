// SPDX-License-Identifier: Apache-2.0

//! Arguments of the AIDL interface, in requests one after the other to a controller on a host in
//! memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = clat_controller::fuzz::requests(data);
});
