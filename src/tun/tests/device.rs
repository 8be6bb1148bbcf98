// SPDX-License-Identifier: Apache-2.0

//! The in-process device, compared with what tun(4) says of Linux's.

use std::os::fd::{AsFd, BorrowedFd};

use clat_tun::device::{Device, Devices, Flags, Interface, Snapshot, QUEUE};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const TUN: Flags = Flags { tun: true, tap: false, no_packet_info: true };
const TAP: Flags = Flags { tun: false, tap: true, no_packet_info: true };
const V4: &[u8] = &[0x45, 1, 2, 3];
const V6: &[u8] = &[0x60, 4, 5, 6];

fn open(devices: &Devices, name: &str, flags: Flags) -> (Device, Interface) {
    let device = devices.open();
    device.set_iff(name, flags).expect("attached");
    let interface = devices.interface(device.name()).expect("it is there");
    (device, interface)
}

fn with_info(flags: Flags) -> Flags {
    Flags { no_packet_info: false, ..flags }
}

fn ethernet(protocol: u16) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &protocol.to_be_bytes(), b"payload"].concat()
}

fn ready(fd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}

fn read(device: &Device) -> Result<Vec<u8>, Errno> {
    let mut buf = [0; 100];
    device.read(&mut buf).map(|len| buf[..len].to_vec())
}

#[test]
fn tun_xor_tap() {
    let device = Devices::default().open();
    for flags in [Flags::default(), Flags { tun: true, tap: true, no_packet_info: true }] {
        assert_eq!(device.set_iff("x", flags), Err(Errno::EINVAL));
    }
    assert_eq!(device.set_iff("x", TUN), Ok(()));
    assert_eq!((device.name(), device.flags()), ("x", TUN));
}

#[test]
fn one_tunsetiff_a_descriptor() {
    let devices = Devices::default();
    let (device, _) = open(&devices, "x", TUN);
    assert_eq!(device.set_iff("x", TUN), Err(Errno::EINVAL));
    assert_eq!(device.set_iff("y", TUN), Err(Errno::EINVAL));
    assert!(devices.interface("y").is_none());
}

#[test]
fn names() {
    let devices = Devices::default();
    let all: Vec<_> = ["", "", "v4-%d", "", "v4-%d"]
        .iter()
        .zip([TUN, TUN, TUN, TAP, TAP])
        .map(|(name, flags)| open(&devices, name, flags).0)
        .collect();
    let names: Vec<_> = all.iter().map(Device::name).collect();
    assert_eq!(names, ["tun0", "tun1", "v4-0", "tap0", "v4-1"]);
    for bad in ["a/b", "a b", "0123456789abcdef", "..", "%d%d", "%s", "ä"] {
        assert_eq!(devices.open().set_iff(bad, TUN), Err(Errno::EINVAL), "{bad}");
    }
}

#[test]
fn a_device_of_that_name_is_joined_and_the_last_to_leave_removes_it() {
    let devices = Devices::default();
    let (first, interface) = open(&devices, "x", TUN);
    let (second, _) = open(&devices, "x", with_info(TUN));
    assert_eq!(devices.open().set_iff("x", TAP), Err(Errno::EINVAL), "of the other kind");
    interface.send(V4).unwrap();
    interface.send(V6).unwrap();
    assert_eq!(read(&second).unwrap(), [&[0, 0, 0x08, 0x00], V4].concat());
    assert_eq!(read(&first).unwrap(), V6);
    drop(first);
    assert_eq!(second.write(&[&[0, 0, 0x86, 0xdd], V6].concat()), Ok(8));
    assert_eq!(interface.recv().unwrap().unwrap().frame, V6);
    drop(second);
    assert!(devices.interface("x").is_none());
    assert_eq!(interface.recv(), Err(Errno::EIO));
    assert!(ready(interface.as_fd()), "a waiting thread is woken");
}

#[test]
fn unattached_and_removed() {
    let devices = Devices::default();
    let device = devices.open();
    assert_eq!(device.write(V4), Err(Errno::EBADFD));
    assert_eq!(read(&device), Err(Errno::EBADFD));
    assert_eq!(device.event().unwrap_err(), Errno::EBADFD);
    assert_eq!((device.name(), device.flags()), ("", Flags::default()));

    let (device, interface) = open(&devices, "x", TUN);
    interface.send(V4).unwrap();
    assert!(devices.remove("x"));
    assert!(!devices.remove("x"));
    assert_eq!(device.write(V4), Err(Errno::EIO));
    assert_eq!(read(&device), Err(Errno::EIO));
    assert_eq!(interface.send(V4), Err(Errno::EIO));
    assert!(ready(device.event().unwrap()));
    // Dropping it does not affect its successor of the same name.
    let (successor, _) = open(&devices, "x", TUN);
    drop(device);
    assert!(devices.interface("x").is_some());
    assert_eq!(successor.write(V4), Ok(4));
}

#[test]
fn what_is_shorter_than_its_headers_is_swallowed() {
    let devices = Devices::default();
    for (flags, least) in [(with_info(TUN), 4), (TAP, 14), (with_info(TAP), 18)] {
        let (device, interface) = open(&devices, "", flags);
        for len in 0..least {
            assert_eq!(device.write(&vec![0; len]), Ok(len), "{flags:?}");
            assert_eq!(interface.recv(), Ok(None), "{flags:?} {len}");
        }
        assert_eq!(device.write(&vec![0; least]), Ok(least), "{flags:?}");
        assert!(interface.recv().unwrap().is_some(), "{flags:?}");
    }
}

#[test]
fn an_empty_packet_of_no_protocol_is_an_error() {
    let devices = Devices::default();
    let (device, interface) = open(&devices, "x", TUN);
    assert_eq!(device.write(&[]), Err(Errno::EINVAL));
    assert_eq!(device.write(&[0x50; 40]), Err(Errno::EINVAL));
    assert_eq!(device.write(&vec![0x60; 1 << 17]), Err(Errno::EMSGSIZE));
    assert_eq!(interface.send(&[]), Err(Errno::EINVAL));
    assert_eq!(interface.recv(), Ok(None));
}

#[test]
fn where_the_protocol_comes_from() {
    let devices = Devices::default();
    let info = |protocol: u16, rest: &[u8]| [&[0, 0], &protocol.to_be_bytes()[..], rest].concat();
    for (flags, data, protocol) in [
        (TUN, V4.to_vec(), 0x0800),
        (TUN, V6.to_vec(), 0x86dd),
        (with_info(TUN), info(0x1234, V4), 0x1234),
        (TAP, ethernet(0x0806), 0x0806),
        (with_info(TAP), info(0x1234, &ethernet(0x0806)), 0x1234),
    ] {
        let (device, interface) = open(&devices, "", flags);
        assert_eq!(device.write(&data), Ok(data.len()));
        let written = interface.recv().unwrap().unwrap();
        assert_eq!(written.protocol, protocol, "{flags:?}");
        assert_eq!(written.source, if flags.tap { [2, 0, 0, 0, 0, 2] } else { [0; 6] });
        assert!(data.ends_with(&written.frame));
    }
    let (device, interface) = open(&devices, "", with_info(TAP));
    interface.send(&ethernet(0x86dd)).unwrap();
    assert_eq!(read(&device).unwrap(), info(0x86dd, &ethernet(0x86dd)));
}

#[test]
fn a_short_buffer_truncates_and_the_packet_info_says_so() {
    let devices = Devices::default();
    let (device, interface) = open(&devices, "x", with_info(TUN));
    for _ in 0..3 {
        interface.send(V6).unwrap();
    }
    let mut buf = [0xff; 6];
    assert_eq!(device.read(&mut buf[..3]), Err(Errno::EINVAL));
    assert_eq!(device.read(&mut buf), Ok(6));
    assert_eq!(u16::from_ne_bytes([buf[0], buf[1]]), 1);
    assert_eq!(buf[2..], [0x86, 0xdd, 0x60, 4]);
    assert_eq!(device.read(&mut buf[..4]), Ok(4));
    assert_eq!(read(&device).unwrap(), [&[0, 0, 0x86, 0xdd], V6].concat());
    assert_eq!(read(&device), Err(Errno::EAGAIN));
}

#[test]
fn queues_are_bounded_and_events_tell_of_them() {
    let devices = Devices::default();
    let (device, interface) = open(&devices, "x", TUN);
    assert!(!ready(device.event().unwrap()) && !ready(interface.as_fd()));
    for n in 0..QUEUE + 3 {
        assert_eq!(interface.send(V4), Ok(n < QUEUE));
        assert_eq!(device.write(V6), Ok(4));
    }
    assert_eq!(interface.dropped(), (3, 3));
    for _ in 0..QUEUE {
        assert!(ready(device.event().unwrap()) && ready(interface.as_fd()));
        assert_eq!(read(&device).unwrap(), V4);
        assert!(interface.recv().unwrap().is_some());
    }
    assert!(!ready(device.event().unwrap()) && !ready(interface.as_fd()));
    assert_eq!((read(&device), interface.recv()), (Err(Errno::EAGAIN), Ok(None)));
}

#[test]
fn saved_and_restored_with_what_waits() {
    let devices = Devices::default();
    let (tun, tun_side) = open(&devices, "x", TUN);
    let (joined, _) = open(&devices, "x", with_info(TUN));
    let (tap, tap_side) = open(&devices, "", TAP);
    let (gone, _) = open(&devices, "gone", TUN);
    let (unattached, _unsaved) = (devices.open(), open(&devices, "unsaved", TUN));
    devices.remove("gone");
    tun_side.send(V4).unwrap();
    tun.write(V6).unwrap();
    tap.write(&ethernet(0x0806)).unwrap();
    for _ in 0..QUEUE + 1 {
        tap_side.send(&ethernet(0x86dd)).unwrap();
    }

    let snapshot = devices.save(&[&tun, &joined, &tap, &gone, &unattached]);
    let (restored, files) = Devices::restore(&snapshot).unwrap();
    let files_again: Vec<_> = files.iter().collect();
    assert_eq!(restored.save(&files_again), snapshot);
    let names: Vec<_> = files.iter().map(Device::name).collect();
    assert_eq!(names, ["x", "x", "tap0", "", ""]);
    assert_eq!(files[1].flags(), with_info(TUN));
    assert!(restored.interface("unsaved").is_none(), "nobody has it open any more");

    let side = restored.interface("x").unwrap();
    assert!(ready(files[0].event().unwrap()) && ready(side.as_fd()));
    assert_eq!(read(&files[1]).unwrap(), [&[0, 0, 8, 0], V4].concat());
    assert!(!ready(files[0].event().unwrap()));
    assert_eq!(side.recv().unwrap().unwrap().frame, V6);
    let tap_side = restored.interface("tap0").unwrap();
    assert_eq!(tap_side.dropped(), (0, 1));
    assert_eq!(tap_side.send(&ethernet(0x86dd)), Ok(false), "still full");
    assert_eq!(read(&files[3]), Err(Errno::EIO));
    assert_eq!(read(&files[4]), Err(Errno::EBADFD));
    assert_eq!(files[4].set_iff("new", TAP), Ok(()));
    // The originals are untouched.
    assert_eq!(read(&tun).unwrap(), V4);
}

#[test]
fn a_snapshot_that_lies_is_refused() {
    let devices = Devices::default();
    let (device, interface) = open(&devices, "x", TUN);
    interface.send(V4).unwrap();
    let good = devices.save(&[&device]);
    let spoil: [fn(&mut Snapshot); 8] = [
        |s| s.devices[0].interface = Some(1),
        |s| s.devices[0].flags.tap = true,
        |s| s.devices[0].flags = TAP,
        |s| s.devices.clear(),
        |s| s.interfaces[0].name = "a/b".to_owned(),
        |s| s.interfaces[0].name.clear(),
        |s| s.interfaces[0].to_program = vec![vec![0x45]; QUEUE + 1],
        |s| s.interfaces.push(s.interfaces[0].clone()),
    ];
    for (n, spoil) in spoil.iter().enumerate() {
        let mut bad = good.clone();
        spoil(&mut bad);
        assert_eq!(Devices::restore(&bad).err(), Some(Errno::EINVAL), "{n}");
    }
}

#[test]
fn programs_may_come_and_go_in_parallel() {
    let devices = Devices::default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let (device, interface) = open(&devices, "x", TUN);
                    device.write(V4).unwrap();
                    while interface.recv().unwrap().is_some() {}
                }
            });
        }
    });
    assert!(devices.interface("x").is_none());
}

proptest! {
    #[test]
    fn any_bytes_either_way(data in vec(any::<u8>(), 0..64), room in 0..80_usize) {
        for flags in [TUN, with_info(TUN), TAP, with_info(TAP)] {
            let (device, interface) = open(&Devices::default(), "", flags);
            if device.write(&data).is_ok() {
                if let Some(written) = interface.recv().unwrap() {
                    prop_assert!(data.ends_with(&written.frame));
                }
            }
            let mut buf = vec![0; room];
            if interface.send(&data).is_ok() {
                match device.read(&mut buf) {
                    Ok(len) => prop_assert!(len <= room && len <= 4 + data.len()),
                    Err(errno) => prop_assert_eq!(errno, Errno::EINVAL),
                }
            }
        }
    }
}
