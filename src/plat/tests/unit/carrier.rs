// SPDX-License-Identifier: Apache-2.0

//! Which guest has the forwarded ports. The time is an argument.

use clat_tun::device::{Devices, Flags};
use nix::sys::epoll::EpollCreateFlags;

use super::*;
use crate::link::InProcess;

const SECOND: Duration = Duration::from_secs(1);

/// A packet to no address, from a guest whose addresses end in this.
fn frame(settings: &Settings, end: u8) -> Vec<u8> {
    let mut frame = [&settings.mac.0[..], &[2, 0, 0, 0, 0, end, 0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0, 0, 0, 59, 64]);
    frame.extend(Ipv6Addr::from(settings.prefix.to_bits() | u128::from(end)).octets());
    frame.extend(settings.router.octets());
    frame
}

/// It probes for duplicates of its address; or it does not, and its likely address is solicited.
#[test]
fn a_guest_that_only_listens_is_found() {
    let (start, settings) = (Instant::now(), Settings::default());
    let own = Ipv6Addr::from(settings.prefix.to_bits() | 7);
    let link_local = Ipv6Addr::from(0xfe80 << 112 | 7);
    for (src, target) in [(Ipv6Addr::UNSPECIFIED, own), (link_local, link_local)] {
        let devices = Devices::default();
        let device = devices.open();
        device.set_iff("", Flags { tun: false, tap: true, no_packet_info: true }).unwrap();
        let interface = devices.interface(device.name()).unwrap();
        let link = Box::new(InProcess::new(interface, &settings));
        let epoll = Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap());
        let bounds = Bounds::default();
        let mut carrier = Carrier::new(settings.clone(), link, None, bounds, epoll, start);
        let mut frame = vec![0x33, 0x33, 0xff, 0, 0, 7, 2, 0, 0, 0, 0, 7, 0x86, 0xdd];
        frame.extend([0x60, 0, 0, 0, 0, 24, 58, 255]);
        frame.extend(src.octets());
        frame.extend(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 7).octets());
        frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(target.octets());
        let mut asked = 0;
        for _ in 0..3 {
            device.write(&frame).unwrap();
            carrier.read(start).unwrap();
            carrier.finish(start).unwrap();
            let mut got = [0; 2000];
            while let Ok(len) = device.read(&mut got) {
                asked +=
                    usize::from(got[..len].get(54) == Some(&135) && got[62..78] == own.octets());
            }
        }
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        if src.is_unspecified() {
            assert_eq!((carrier.guest(), asked), (Some((own, mac)), 0));
        } else {
            // Not for each of its packets.
            assert_eq!((carrier.guest(), asked), (None, 1));
            // But again, for both candidates, until it has the address.
            let next = carrier.next_timer(start).unwrap();
            assert!(next <= start + SECOND, "{:?}", next - start);
            carrier.finish(next).unwrap();
            let kinds: Vec<u8> = std::iter::from_fn(|| {
                let mut got = [0; 2000];
                device.read(&mut got).ok().map(|_| got[54])
            })
            .collect();
            assert_eq!(kinds, [135, 128]);
        }
    }
}

/// It is the same guest as long as it is present, and another one after it has left or has another
/// address.
#[test]
fn whoever_has_the_ports_keeps_them() {
    let devices = Devices::default();
    let device = devices.open();
    device.set_iff("", Flags { tun: false, tap: true, no_packet_info: true }).unwrap();
    let interface = devices.interface(device.name()).unwrap();
    let settings = Settings::default();
    let link = Box::new(InProcess::new(interface, &settings));
    let epoll = Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap());
    let start = Instant::now();
    let bounds = Bounds::default();
    let mut carrier = Carrier::new(settings.clone(), link, None, bounds, epoll, start);
    let mut hear = |end, seconds| {
        let now = start + seconds * SECOND;
        device.write(&frame(carrier.network().settings(), end)).unwrap();
        carrier.read(now).unwrap();
        carrier.finish(now).unwrap();
        let mut asked = false;
        let mut frame = [0; 2000];
        while let Ok(len) = device.read(&mut frame) {
            // A neighbour solicitation.
            asked |= frame[..len].get(54) == Some(&135);
        }
        (carrier.guest().unwrap().0.octets()[15], asked)
    };
    assert_eq!(hear(1, 0), (1, false));
    // Another one does not get them by sending more.
    assert_eq!(hear(2, 1), (1, false));
    assert_eq!(hear(2, 9), (1, false));
    // The guest is solicited, and answers.
    assert_eq!(hear(2, 10), (1, true));
    assert_eq!(hear(2, 12), (1, false));
    assert_eq!(hear(1, 12), (1, false));
    assert_eq!(hear(2, 20), (1, false));
    // It has left.
    assert_eq!(hear(2, 22), (1, true));
    assert_eq!(hear(2, 24), (1, false));
    assert_eq!(hear(2, 25), (2, false));
    // After renumbering, the old address has no value.
    carrier.renumber(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 0), start + 26 * SECOND);
    device.write(&frame(carrier.network().settings(), 3)).unwrap();
    carrier.read(start + 26 * SECOND).unwrap();
    let address = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 3);
    assert_eq!(carrier.guest().unwrap().0, address);
}
