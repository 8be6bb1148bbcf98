// SPDX-License-Identifier: Apache-2.0

//! What a caller says on the controller's socket, past the check of who it is: through the gate,
//! the binder library and the service, to a controller on a host in memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = clat_controller::fuzz::session(data);
});
