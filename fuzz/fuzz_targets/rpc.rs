// SPDX-License-Identifier: Apache-2.0

//! A caller's bytes on the controller's socket, after the check of its credentials: through the
//! gate, the binder library and the service, to a controller on a host in memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = clat_controller::fuzz::session(data);
});
