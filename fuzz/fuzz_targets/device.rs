// SPDX-License-Identifier: Apache-2.0

//! The in-process TUN/TAP device: the first byte chooses its flags and the operations, the rest is
//! written in both directions.
#![no_main]

use clat_tun::device::{Devices, Flags};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let tap = choice & 1 != 0;
    let flags = Flags { tun: !tap, tap, no_packet_info: choice & 2 != 0 };
    let devices = Devices::default();
    let device = devices.open();
    assert!(device.set_iff("", flags).is_ok());
    let Some(interface) = devices.interface(device.name()) else { panic!("it is there") };
    let written = device.write(data);
    let sent = interface.send(data);
    let (restored, files) = match Devices::restore(&devices.save(&[&device])) {
        Ok(restored) => restored,
        Err(errno) => panic!("what was saved can be restored: {errno}"),
    };
    let mut buf = vec![0; usize::from(choice >> 2)];
    if let Ok(len) = files[0].read(&mut buf) {
        assert!(sent == Ok(true) && len <= data.len() + 4);
    }
    let Some(interface) = restored.interface(files[0].name()) else { panic!("it is there") };
    if let Ok(Some(frame)) = interface.recv() {
        assert!(written == Ok(data.len()) && data.ends_with(&frame.frame));
    }
});
