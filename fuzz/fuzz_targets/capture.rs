// SPDX-License-Identifier: Apache-2.0

//! Capture files, translated as by `clatctl translate`, with a line for each packet. The first byte
//! chooses the arguments.
#![no_main]

use libfuzzer_sys::fuzz_target;

const CLAT: [&str; 6] = [
    "--local4=192.0.0.4",
    "--local6=2001:db8::4",
    "--prefix=64:ff9b::/96",
    "--strict-wkp",
    "--explain",
    "--json",
];
const ROUTER: [&str; 4] = [
    "--eam=192.0.2.0/24=2001:db8::/120",
    "--prefix=2001:db8:100::/40",
    "--ttl=decrement",
    "--explain",
];

fuzz_target!(|data: &[u8]| {
    let Some((how, bytes)) = data.split_first() else { return };
    let arguments = if how & 1 == 0 { &CLAT[..] } else { &ROUTER[..] };
    let _ = clatctl::translate_bytes(arguments, bytes);
});
