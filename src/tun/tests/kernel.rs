// SPDX-License-Identifier: Apache-2.0

//! The kernel's own TUN driver, through `/dev/net/tun`.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use clat_tun::{Error, GsoType, Options, Tun, VirtioHeader};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{unshare, CloneFlags};
use nix::sys::socket::{setsockopt, sockopt};

/// A device exists as long as any descriptor of it, and a program started by another test has
/// copies of all descriptors until its exec.
static ALONE: Mutex<()> = Mutex::new(());

/// Moves this thread into a new network namespace while no other test runs; `None` where that is
/// not possible.
fn namespace() -> Option<MutexGuard<'static, ()>> {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let tried = unshare(CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string()).and_then(|()| {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map(|_| ())
            .map_err(|e| e.to_string())
    });
    match tried {
        Ok(()) => Some(alone),
        Err(why) if std::env::var_os("CI").is_some() => panic!("cannot test TUN devices: {why}"),
        Err(why) => {
            eprintln!("SKIPPED: cannot test TUN devices ({why}); run as root");
            None
        }
    }
}

#[test]
fn created_twice() {
    let Some(_alone) = namespace() else { return };
    let first = Tun::create("t0", Options::default()).unwrap();
    assert_eq!(first.name(), "t0");
    let second = Tun::create("t0", Options::default()).unwrap_err();
    assert!(matches!(second, Error::Exists { .. }), "{second}");
    assert_eq!(second.raw_os_error(), Some(libc::EBUSY));
    // The loopback device is no TUN device, but the name is in use.
    assert!(matches!(Tun::create("lo", Options::default()), Err(Error::Exists { .. })));
}

#[test]
fn gone_with_its_last_descriptor() {
    let Some(_alone) = namespace() else { return };
    let tun = Tun::create("t1", Options::default()).unwrap();
    let copy = tun.as_fd().try_clone_to_owned().unwrap();
    drop(tun);
    assert!(if_nametoindex("t1").is_ok());
    drop(copy);
    assert_eq!(if_nametoindex("t1"), Err(Errno::ENODEV));
}

#[test]
fn asked_what_it_is() {
    let Some(_alone) = namespace() else { return };
    for (packet_info, vnet_header) in [(false, false), (false, true), (true, false), (true, true)] {
        let made = Tun::create("t2", Options { packet_info, vnet_header }).unwrap();
        let taken = Tun::from_fd(OwnedFd::from(made)).unwrap();
        assert_eq!(taken.name(), "t2");
        assert_eq!(taken.has_packet_info(), packet_info);
        assert_eq!(taken.vnet_header_len(), if vnet_header { VirtioHeader::LEN } else { 0 });
        assert_eq!(taken.recv(&mut [0; 100]), Err(Errno::EAGAIN));
    }
}

#[test]
fn names_that_no_interface_has() {
    let names =
        ["", ".", "..", "a b", "a\nb", "a/b", "a:b", "tun%d", "sixteen-bytes-xx", "\u{e9}", "a\0"];
    for name in names {
        let error = Tun::create(name, Options::default()).unwrap_err();
        assert!(matches!(error, Error::Name(_)), "{name:?}: {error}");
        assert_eq!(error.errno(), Errno::EINVAL);
    }
}

#[test]
fn descriptors_of_other_things() {
    let null = File::open("/dev/null").unwrap();
    let error = Tun::from_fd(null.into()).unwrap_err();
    assert!(error.to_string().contains("is not a TUN device"), "{error}");
    if namespace().is_some() {
        // Open, but attached to no device yet.
        let raw = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let error = Tun::from_fd(raw.into()).unwrap_err();
        assert_eq!(error.errno(), Errno::EBADFD);
    }
}

#[test]
fn packets_both_ways() {
    let Some(_alone) = namespace() else { return };
    for (packet_info, vnet_header) in [(false, false), (false, true), (true, false), (true, true)] {
        let tun = Tun::create("t3", Options { packet_info, vnet_header }).unwrap();
        let script = "ip addr add 198.51.100.1/24 dev t3 && ip link set t3 up";
        let done = std::process::Command::new("sh").args(["-c", script]).status().unwrap();
        assert!(done.success(), "needs ip(8), of iproute2");
        // Now that it is up, the kernel tells its layout.
        let tun = Tun::from_fd(tun.into()).unwrap();
        assert_eq!(tun.has_packet_info(), packet_info);

        let socket = std::net::UdpSocket::bind("198.51.100.1:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        socket.send_to(b"out", "198.51.100.2:53").unwrap();
        let mut buf = [0; 2000];
        // The kernel may have sent router solicitations before.
        let (vnet, len) = loop {
            let (vnet, len) = tun.recv(&mut buf).unwrap();
            if buf[0] >> 4 == 4 {
                break (vnet, len);
            }
        };
        // The checksum is left to the reader, if the kernel could be told so.
        let open =
            VirtioHeader { needs_csum: true, csum_start: 20, csum_offset: 6, ..Default::default() };
        assert_eq!(vnet, if vnet_header { open } else { VirtioHeader::default() });
        assert_eq!((len, &buf[28..len]), (31, &b"out"[..]));

        // Send the same datagram back: with addresses and ports exchanged, every checksum stays
        // valid.
        for (a, b) in [(12, 16), (13, 17), (14, 18), (15, 19), (20, 22), (21, 23)] {
            buf.swap(a, b);
        }
        tun.send(&vnet, &buf[..len]).unwrap();
        let (len, from) = socket.recv_from(&mut buf).unwrap();
        assert_eq!((&buf[..len], from.to_string().as_str()), (&b"out"[..], "198.51.100.2:53"));

        // Read with its virtio header, and long enough to be written in pieces.
        socket.send_to(&[7; 1000], "198.51.100.2:53").unwrap();
        let (behind, at) = loop {
            let (behind, at) = tun.recv_behind_head(&mut buf).unwrap();
            if buf[at.start] >> 4 == 4 {
                break (behind, at);
            }
        };
        assert_eq!((behind, at.len()), (vnet, 1028));
        let packet = &mut buf[at];
        for (a, b) in [(12, 16), (13, 17), (14, 18), (15, 19), (20, 22), (21, 23)] {
            packet.swap(a, b);
        }
        let pieces = [IoSlice::new(&packet[..28]), IoSlice::new(&packet[28..])];
        tun.send_pieces(&vnet, &pieces).unwrap();
        let mut datagram = [0; 2000];
        let (len, _) = socket.recv_from(&mut datagram).unwrap();
        assert_eq!(datagram[..len], [7; 1000]);
    }
}

#[test]
fn super_packets() {
    let Some(_alone) = namespace() else { return };
    for vnet_header in [false, true] {
        let tun = Tun::create("t4", Options { packet_info: false, vnet_header }).unwrap();
        let script = "echo 1 > /proc/sys/net/ipv6/conf/t4/disable_ipv6
                      ip addr add 198.51.100.1/24 dev t4 && ip link set t4 up";
        let done = std::process::Command::new("sh").args(["-c", script]).status().unwrap();
        assert!(done.success(), "needs ip(8), of iproute2");
        let socket = std::net::UdpSocket::bind("198.51.100.1:0").unwrap();
        setsockopt(&socket, sockopt::UdpGsoSegment, &1000).unwrap();
        socket.send_to(&[7; 2500], "198.51.100.2:53").unwrap();
        let mut buf = [0; 4000];
        let mut read = || tun.recv(&mut buf).unwrap();
        let (vnet, len) = read();
        if vnet_header && vnet.gso_type == GsoType::UdpL4 {
            assert_eq!((len, vnet.gso_size, vnet.needs_csum), (2528, 1000, true));
        } else {
            // Without virtio headers, and before Linux 6.2, the kernel segments.
            assert_eq!([len, read().1, read().1], [1028, 1028, 528]);
        }
        assert_eq!(tun.recv(&mut buf), Err(Errno::EAGAIN));
    }
}

#[test]
fn queues() {
    let Some(_alone) = namespace() else { return };
    for (packet_info, vnet_header) in [(false, false), (false, true), (true, false), (true, true)] {
        let options = Options { packet_info, vnet_header };
        let single = Tun::create("t5", options).unwrap();
        assert!(!single.takes_queues());
        assert_eq!(single.add_queue().unwrap_err().errno(), Errno::EINVAL);
        let first = Tun::create_with_queues("t6", options).unwrap();
        assert!(first.takes_queues());
        let second = first.add_queue().unwrap();
        for tun in [first, second] {
            let tun = Tun::from_fd(tun.into()).unwrap();
            assert_eq!((tun.name(), tun.takes_queues()), ("t6", true));
            assert_eq!(tun.has_packet_info(), packet_info);
            assert_eq!(tun.vnet_header_len(), if vnet_header { VirtioHeader::LEN } else { 0 });
        }
    }
    // Other users may not open a queue.
    let _tun = Tun::create_with_queues("t7", Options::default()).unwrap();
    let shown = std::process::Command::new("ip").args(["-d", "link", "show", "t7"]).output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    assert!(shown.contains("multi_queue") && shown.contains("user root"), "{shown}");
}
