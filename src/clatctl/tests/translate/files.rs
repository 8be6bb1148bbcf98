// SPDX-License-Identifier: Apache-2.0

//! Capture files of every kind, valid and damaged, independently of translation.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::{Command, Stdio};

use etherparse::PacketBuilder;
use pcap_file::{Endianness, TsResolution};

use crate::support::*;

const P: &str = "--prefix 64:ff9b::/96";

fn udp4() -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4([192, 0, 0, 4], [198, 51, 100, 1], 64)
        .udp(1234, 53)
        .write(&mut packet, b"question")
        .unwrap();
    packet
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ethertype.to_be_bytes(), payload].concat()
}

#[test]
fn byte_order_and_resolution_of_a_pcap_stay() {
    for endianness in [Endianness::Big, Endianness::Little] {
        for resolution in [TsResolution::MicroSecond, TsResolution::NanoSecond] {
            let folder = Folder::new();
            folder.write("in", &pcap_as(header(RAW, endianness, resolution), &[udp4(), udp4()]));
            assert_ok(&folder.translate(&format!("{P} in out")));
            let (header, packets) = parse(&folder.read("out"));
            assert_eq!((header.endianness, header.ts_resolution), (endianness, resolution));
            assert_eq!(u32::from(header.datalink), RAW);
            assert!(packets.iter().all(|(_, fraction, _)| *fraction == 7));
        }
    }
}

#[test]
fn frames_without_ip_are_skipped_and_counted() {
    let folder = Folder::new();
    let frames = [ethernet(0x0806, &[0; 28]), ethernet(0x86dd, b"")[..13].to_vec(), vec![]];
    folder.write("in", &pcap(ETHERNET, &frames));
    let output = folder.translate(&format!("{P} --explain in out"));
    assert_ok(&output);
    let text = stdout(&output);
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with("1: skipped: not-ip-frame, EtherType 0x0806 is not IP (RFC"),
        "{text}"
    );
    assert!(lines[1].starts_with("2: skipped: short-frame"), "{text}");
    assert!(
        lines[3].contains("3 packets:")
            && lines[3].contains("3 skipped (not-ip-frame 1, short-frame 2)"),
        "{text}"
    );
    assert_eq!(frames_of(&folder), 0);
}

fn frames_of(folder: &Folder) -> usize {
    frames(&folder.read("out")).len()
}

#[test]
fn a_packet_that_is_not_ip_is_dropped_by_name() {
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, &[vec![0x12, 0x34], vec![]]));
    let output = folder.translate(&format!("{P} --explain in out"));
    assert_ok(&output);
    let text = stdout(&output);
    let line = "1: not IP, 2 bytes: dropped: not-ip, neither IPv4 nor IPv6 \
                (RFC 791 §3.1, RFC 8200 §3)\n";
    assert!(text.starts_with(line), "{text}");
}

/// Packets with wrong lengths and types: each gets a line, and no incomplete packet is written.
#[test]
fn hostile_packets_are_explained_one_by_one() {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    let seeds = [udp4(), vec![0x60; 80], {
        let mut packet = Vec::new();
        PacketBuilder::ipv6([0x20; 16], [0x20; 16], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut packet, b"data")
            .unwrap();
        packet
    }];
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for at in 0..20_000 {
        let mut packet = seeds[at % seeds.len()].clone();
        for _ in 0..=random(4) {
            let place = random(packet.len());
            packet[place] = u8::try_from(random(256)).unwrap();
        }
        packet.truncate(1 + random(packet.len()));
        packets.push(packet);
    }
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, &packets));
    let output = folder.translate(
        "--prefix 64:ff9b::/96 --eam 192.0.0.4=2020::4 --ttl decrement --explain in out",
    );
    assert_ok(&output);
    assert_eq!(stdout(&output).lines().count(), packets.len() + 1);
    for packet in frames(&folder.read("out")) {
        let length = match packet[0] >> 4 {
            4 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
            _ => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        };
        assert_eq!(length, packet.len(), "{packet:02x?}");
    }
}

#[test]
fn json_is_one_object_a_line_with_the_summary_last() {
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, &[vec![0x12, 0x34]]));
    let output = folder.translate(&format!("{P} --explain --json in out"));
    assert_ok(&output);
    let text = stdout(&output);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines,
        [
            serde_json::json!({
                "type": "packet", "packet": 1, "direction": null, "source": null,
                "destination": null, "protocol": null, "sourcePort": null,
                "destinationPort": null, "icmpType": null, "icmpCode": null, "length": 2,
                "action": "dropped", "name": "not-ip", "what": "neither IPv4 nor IPv6",
                "rfc": "RFC 791 §3.1, RFC 8200 §3", "frames": []
            }),
            serde_json::json!({
                "type": "summary", "input": "in", "output": "out", "packets": 1,
                "forwarded": {"packets": 0, "frames": 0, "byRule": {}},
                "replied": {"packets": 0, "byReason": {}},
                "dropped": {"packets": 1, "byReason": {"not-ip": 1}},
                "skipped": {"packets": 0, "byReason": {}},
            }),
        ]
    );
}

#[test]
fn usage_errors_exit_with_2_and_touch_nothing() {
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, &[udp4()]));
    for (words, part) in [
        ("in out", "--prefix"),
        ("--local4 192.0.0.4 in out", "--local6"),
        ("--local6 2001:db8::4 in out", "--local4"),
        ("--prefix 64:ff9b::/95 in out", "32, 40, 48, 56, 64 or 96"),
        ("--prefix 10.0.0.0/8 in out", "IPv4 prefix"),
        ("--prefix 64:ff9b::1/96 in out", "behind the prefix"),
        ("--eam 192.0.2.0/24=2001:db8::/121 in out", "suffix"),
        ("--prefix 64:ff9b::/96 --mtu4 67 in out", "67"),
        ("--prefix 64:ff9b::/96 --mtu6 1279 in out", "1279"),
        ("--prefix 64:ff9b::/96 --lowest-ipv6-mtu 1279 in out", "1279"),
        ("--prefix 64:ff9b::/96 --ttl up in out", "copy, decrement"),
        ("--prefix 64:ff9b::/96 --udp-zero x in out", "compute, drop, forward"),
        ("--prefix 64:ff9b::/96 --icmp-errors x in out", "sent, limited, none"),
        ("--prefix 64:ff9b::/96 --router4 192.0.2.1/24 in out", "behind the prefix"),
        ("--prefix 64:ff9b::/96 --router4 224.0.0.1 in out", "no host has"),
        ("--prefix 64:ff9b::/96 --router6 ff02::2 in out", "no router has"),
        ("--eam 192.0.2.1=ff02::1 in out", "no host has"),
        ("--eam 192.0.2.1=2001:db8::1 --eam 192.0.2.1=2001:db8::2 in out", "contradicts"),
        ("--local4 224.0.0.1 --local6 2001:db8::4 in out", "no host has"),
        ("--local4 192.0.0.4 --local6 ff02::1 in out", "no host has"),
        ("--local4 255.255.255.255 --local6 2001:db8::4 in out", "no host has"),
        ("--prefix 64:ff9b::/96 in", "OUT.pcap"),
    ] {
        let output = folder.translate(words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}: {stderr}");
        assert!(stderr.contains(part), "{words}: {stderr}");
    }
    assert_eq!(folder.names(), ["in"]);
}

#[test]
fn a_file_that_ends_too_early_fails_in_one_line_and_leaves_out_alone() {
    let whole = pcap(ETHERNET, &[ethernet(0x0800, &udp4()), ethernet(0x0806, &[0; 28])]);
    let folder = Folder::new();
    folder.write("out", b"precious");
    // A file cut at the end of a packet is complete.
    let first = 24 + 16 + 14 + udp4().len();
    for len in (0..whole.len()).filter(|len| ![24, first].contains(len)) {
        folder.write("in", &whole[..len]);
        let output = folder.translate(&format!("{P} in out"));
        assert_eq!(output.status.code(), Some(1), "{len}");
        let line = complaint(&output);
        assert!(line.starts_with("clatctl: in: "), "{len}: {line}");
        if len > 24 {
            assert!(
                line.contains(if len < first { "packet 1: " } else { "packet 2: " }),
                "{len}: {line}"
            );
            assert!(line.contains("ends in the middle"), "{len}: {line}");
        }
        assert_eq!(folder.read("out"), b"precious", "{len}");
    }
    assert_eq!(folder.names(), ["in", "out"], "no temporary file stays");
}

#[test]
fn lying_lengths_fail_in_one_line() {
    let whole = pcap(RAW, &[udp4(), udp4()]);
    let (captured, original) = (24 + 8, 24 + 12);
    let big = pcap(RAW, &[vec![0x45; 256 * 1024 + 1]]);
    let change = |at: usize, value: u32| {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for (bytes, part) in [
        (change(captured, u32::MAX), "claims more bytes than there are"),
        (change(captured, 0x7fff_ffff), "claims more bytes than there are"),
        (change(captured, 1000), "claims more bytes than there are"),
        (change(original, 3), "36 bytes captured of 3"),
        (big, "no packet has over 262144"),
    ] {
        let folder = Folder::new();
        folder.write("in", &bytes);
        let output = folder.translate(&format!("{P} in out"));
        assert_eq!(output.status.code(), Some(1), "{part}");
        let line = complaint(&output);
        assert!(
            line.starts_with("clatctl: in: packet 1: ") && line.contains(part),
            "{part}: {line}"
        );
        assert_eq!(folder.names(), ["in"]);
    }
}

#[test]
fn packets_that_the_capture_cut_short_are_reported_and_the_rest_is_done() {
    let mut bytes = pcap(RAW, &[udp4(), vec![0]]);
    bytes[24 + 12..24 + 16].copy_from_slice(&1500_u32.to_le_bytes());
    let folder = Folder::new();
    folder.write("in", &bytes);
    let output = folder.translate(&format!("{P} --explain in out"));
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("in: 1 of 2 packets were cut short"));
    let text = stdout(&output);
    assert!(
        text.starts_with("1: skipped: cut-short, the capture does not have all of it"),
        "{text}"
    );
    assert!(text.contains("2: not IP, 1 bytes: dropped"), "{text}");
    assert_eq!(folder.names(), ["in", "out"]);
}

#[test]
fn what_is_no_capture_is_said_to_be_none() {
    for bytes in [&b""[..], b"abc", b"#!/bin/sh\necho this is no capture\n", &[0; 100]] {
        let folder = Folder::new();
        folder.write("in", bytes);
        let output = folder.translate(&format!("{P} in out"));
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint(&output).contains("in: is neither pcap nor pcapng"));
        assert_eq!(folder.names(), ["in"]);
    }
}

/// `tcpdump -i any`, current and older, and the loopback of the BSDs and of macOS.
#[test]
fn link_types_of_loopback_and_of_any() {
    let cooked =
        |ethertype: [u8; 2]| [&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 2, 0, 0][..], &ethertype].concat();
    let cooked2 = |ethertype: [u8; 2]| {
        [&ethertype[..], &[0, 0, 0, 0, 0, 3, 0, 1, 0, 6, 2, 0, 0, 0, 0, 2, 0, 0]].concat()
    };
    let (v4, v6, arp) = ([0x08, 0], [0x86, 0xdd], [0x08, 0x06]);
    for (link, before, after, other) in [
        (COOKED, cooked(v4), cooked(v6), cooked(arp)),
        (276, cooked2(v4), cooked2(v6), cooked2(arp)),
        (0, vec![2, 0, 0, 0], vec![30, 0, 0, 0], vec![7, 0, 0, 0]),
        (108, vec![0, 0, 0, 2], vec![0, 0, 0, 24], vec![0, 0, 0, 7]),
    ] {
        let folder = Folder::new();
        let frames_in = [[&before[..], &udp4()].concat(), [&other[..], &[0; 20]].concat(), vec![1]];
        folder.write("in", &pcap(link, &frames_in));
        let output = folder.translate(&format!("{P} --explain in out"));
        assert_ok(&output);
        let text = stdout(&output);
        assert!(text.contains("2: skipped: not-ip-frame"), "{link}: {text}");
        assert!(text.contains("3: skipped: short-frame"), "{link}: {text}");
        let (header, packets) = parse(&folder.read("out"));
        assert_eq!(u32::from(header.datalink), link);
        let [(_, _, frame)] = &packets[..] else { panic!("{link}: {text}") };
        assert_eq!(frame[..after.len()], after, "{link}");
        assert_eq!(frame[after.len()] >> 4, 6, "{link}");
        // And back; translation clears DF of small packets.
        folder.write("in", &folder.read("out"));
        assert_ok(&folder.translate(&format!("{P} in out")));
        let back = frames(&folder.read("out"));
        assert_eq!(back.len(), 1, "{link}");
        assert_eq!(back[0][..before.len()], before, "{link}");
        assert_eq!(back[0][before.len() + 12..], udp4()[12..], "{link}");
    }
}

/// A file on a disk that was full, or one allocated in advance, ends in zeros; /dev/zero does not
/// end.
#[test]
fn zeros_are_no_packets() {
    use std::io::Read;
    let folder = Folder::new();
    let whole = pcap(RAW, &[udp4()]);
    folder.write("in", &[&whole[..], &[0; 1 << 16]].concat());
    folder.write("header", &whole[..24]);
    let output = folder.translate(&format!("{P} in out"));
    assert_eq!(output.status.code(), Some(1));
    let line = complaint(&output);
    assert!(line.starts_with("clatctl: in: packet 2: zeros where a packet should be"), "{line}");
    assert_eq!(folder.names(), ["header", "in"]);

    let mut child = Command::new("sh")
        .current_dir(folder.path(""))
        .args(["-c", "cat header /dev/zero | \"$0\" translate --prefix 64:ff9b::/96 - out"])
        .arg(env!("CARGO_BIN_EXE_clatctl"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    child.stderr.take().unwrap().read_to_string(&mut line).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(line.contains("packet 1: zeros where a packet should be"), "{line}");
}

/// The output has no name until it is complete.
#[test]
fn signals_leave_nothing_behind() {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    for signal in ["INT", "TERM", "HUP", "KILL"] {
        let folder = Folder::new();
        folder.write("out", b"precious");
        // This test may have been started with some ignored, as by shells in the background.
        let mut child = Command::new("env")
            .args(["--default-signal=INT,HUP", env!("CARGO_BIN_EXE_clatctl")])
            .current_dir(folder.path(""))
            .args(["translate", "--prefix", "64:ff9b::/96", "-", "out"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&pcap(RAW, &[udp4(), udp4()])).unwrap();
        // It has begun to write in the output's folder.
        let here = std::fs::canonicalize(folder.path("")).unwrap();
        let writes_here = |fd: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_link(fd.unwrap().path()).is_ok_and(|file| file.starts_with(&here))
        };
        let descriptors = format!("/proc/{}/fd", child.id());
        while !std::fs::read_dir(&descriptors).unwrap().any(writes_here) {
            std::thread::yield_now();
        }
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        assert!(child.wait().unwrap().signal().is_some(), "{signal}");
        assert_eq!(folder.names(), ["out"], "{signal}");
        assert_eq!(folder.read("out"), b"precious");
    }
}

/// As with `cp` and redirection.
#[test]
fn a_replaced_file_keeps_owner_and_mode() {
    use std::os::unix::fs::{chown, MetadataExt};
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, &[udp4()]));
    folder.write("out", b"old");
    std::fs::set_permissions(folder.path("out"), std::fs::Permissions::from_mode(0o604)).unwrap();
    let is_root = chown(folder.path("out"), Some(1234), Some(4321)).is_ok();
    let before = std::fs::metadata(folder.path("out")).unwrap();
    assert_ok(&folder.translate(&format!("{P} in out")));
    parse(&folder.read("out"));
    let after = std::fs::metadata(folder.path("out")).unwrap();
    assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
    assert_eq!(after.mode(), before.mode());
    assert_ne!(after.ino(), before.ino(), "replaced, not written into");
    // A new file gets the umask's mode.
    assert_ok(&folder.translate(&format!("{P} in new")));
    folder.write("like", b"");
    let modes = ["new", "like"].map(|name| std::fs::metadata(folder.path(name)).unwrap().mode());
    assert_eq!(modes[0], modes[1]);
    if !is_root {
        println!("not root: an owner other than this user was not tried");
        return;
    }
    // A user who may replace a file but not change its owner changes nothing.
    let of_anybody = || std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.path(""), of_anybody()).unwrap();
    // Where this user gets to, which the build may not be.
    let bin = Folder::new();
    std::fs::set_permissions(bin.path(""), of_anybody()).unwrap();
    let copy = [env!("CARGO_BIN_EXE_clatctl").into(), bin.path("clatctl")];
    assert!(Command::new("cp").args(copy).status().unwrap().success());
    let output = Command::new("setpriv")
        .current_dir(folder.path(""))
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(bin.path("clatctl"))
        .args(["translate", "--prefix", "64:ff9b::/96", "in", "out"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = complaint(&output);
    assert!(line.starts_with("clatctl: out: cannot leave it to user 1234, group 4321"), "{line}");
    assert_eq!(std::fs::metadata(folder.path("out")).unwrap().ino(), after.ino());
    assert_eq!(folder.names(), ["in", "like", "new", "out"]);
}

#[test]
fn other_link_types_are_refused_by_number() {
    let folder = Folder::new();
    folder.write("in", &pcap(105, &[udp4()]));
    let output = folder.translate(&format!("{P} in out"));
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("link type 105 is not supported"));
    assert_eq!(folder.names(), ["in"]);
}

#[test]
fn paths_that_cannot_be_used_are_named() {
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, &[]));
    std::fs::create_dir(folder.path("dir")).unwrap();
    for (words, start) in [
        ("absent out", "clatctl: absent: No such file"),
        ("dir out", "clatctl: dir: Is a directory"),
        ("in dir", "clatctl: dir: is a folder"),
        ("in nowhere/out", "clatctl: nowhere/out: cannot write to the folder nowhere"),
    ] {
        let output = folder.translate(&format!("{P} {words}"));
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(complaint(&output).starts_with(start), "{words}: {}", complaint(&output));
    }
    assert_eq!(folder.names(), ["dir", "in"]);
}

#[test]
fn in_and_out_may_be_one_file_behind_a_link() {
    let folder = Folder::new();
    folder.write("file", &pcap(RAW, &[udp4()]));
    std::fs::set_permissions(folder.path("file"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("file", folder.path("link")).unwrap();
    assert_ok(&folder.translate(&format!("{P} file link")));
    assert!(std::fs::symlink_metadata(folder.path("link")).unwrap().is_symlink());
    assert_eq!(std::fs::metadata(folder.path("file")).unwrap().permissions().mode() & 0o777, 0o640);
    parse(&folder.read("file"));
    assert_eq!(folder.names(), ["file", "link"]);
}

#[test]
fn devices_are_written_to_and_not_replaced() {
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, &[udp4()]));
    assert_ok(&folder.translate(&format!("{P} in /dev/null")));
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

#[test]
fn a_full_disk_is_one_line_with_its_place() {
    let folder = Folder::new();
    folder.write("in", &pcap(RAW, &[udp4()]));
    let output = folder.translate(&format!("{P} in /dev/full"));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        complaint(&output).starts_with("clatctl: /dev/full: No space left"),
        "{}",
        complaint(&output)
    );
    // A report that cannot be written fails before the output appears.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_clatctl"))
        .current_dir(folder.path(""))
        .args(["translate", "--prefix", "64:ff9b::/96", "--explain", "in", "out"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        complaint(&output).contains("cannot write what happened: No space left"),
        "{}",
        complaint(&output)
    );
    assert_eq!(folder.names(), ["in"]);
}

#[test]
fn a_dash_is_standard_input_and_output() {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_clatctl"))
        .args(["translate", "--prefix", "64:ff9b::/96", "--explain", "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&pcap(RAW, &[vec![0x12], udp4()])).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    parse(&output.stdout);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.starts_with("1: not IP") && words.contains("2 packets:"), "{words}");
}

/// A block of pcapng.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let body = [body, &vec![0; (4 - body.len() % 4) % 4]].concat();
    let len = u32::try_from(body.len() + 12).unwrap().to_le_bytes();
    [&kind.to_le_bytes()[..], &len, &body, &len].concat()
}

fn section() -> Vec<u8> {
    section_of(1)
}

/// A section of this major version.
fn section_of(version: u8) -> Vec<u8> {
    let start = 0x1a2b_3c4d_u32.to_le_bytes();
    block(0x0a0d_0d0a, &[&start[..], &[version, 0, 0, 0], &[0xff; 8]].concat())
}

/// An interface, with a time resolution where one is given.
fn interface(link: u16, resolution: Option<u8>) -> Vec<u8> {
    let mut body = [&link.to_le_bytes()[..], &[0; 6]].concat();
    if let Some(resolution) = resolution {
        body.extend([9, 0, 1, 0, resolution, 0, 0, 0, 0, 0, 0, 0]);
    }
    block(1, &body)
}

fn enhanced(interface: u32, units: u64, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let halves = [units >> 32, units & 0xffff_ffff].map(|half| u32::try_from(half).unwrap());
    let words = [interface, halves[0], halves[1], len, len];
    block(6, &[&words.map(u32::to_le_bytes).concat()[..], data].concat())
}

#[test]
fn pcapng_is_read_and_its_times_kept() {
    let second = 1_700_000_000;
    for (resolution, units, nanos) in [
        (None, second * 1_000_000 + 123_456, 123_456_000),
        (Some(9), second * 1_000_000_000 + 123_456_789, 123_456_789),
        (Some(3), second * 1000 + 5, 5_000_000),
        (Some(0x80 | 10), second * 1024 + 512, 500_000_000),
    ] {
        let folder = Folder::new();
        // The name block does not parse, and is skipped.
        let names = block(4, &[1, 0, 5, 0, 1, 2, 3, 4, 5]);
        let file =
            [section(), interface(101, resolution), names, enhanced(0, units, &udp4())].concat();
        folder.write("in", &file);
        assert_ok(&folder.translate(&format!("{P} in out")));
        let (header, packets) = parse(&folder.read("out"));
        assert_eq!(header.ts_resolution, TsResolution::NanoSecond);
        assert_eq!(u32::from(header.datalink), RAW);
        for (seconds, fraction, _) in packets {
            assert_eq!((u64::from(seconds), fraction), (second, nanos));
        }
    }
}

#[test]
fn broken_pcapng_fails_in_one_line() {
    let ok = [section(), interface(101, None), enhanced(0, 1, &udp4())].concat();
    for (bytes, part) in [
        ([section(), enhanced(0, 1, &udp4())].concat(), "interface 0 is not described"),
        (
            [&ok[..], &interface(1, None), &enhanced(1, 1, &udp4())].concat(),
            "packet 2: has link type 1",
        ),
        (ok[..ok.len() - 1].to_vec(), "packet 1: the file ends in the middle"),
        ([&ok[..], &section_of(2)].concat(), "packet 2: is pcapng of version 2"),
        (section_of(2), "is pcapng of version 2; only version 1 is known"),
        ([&ok[..], &[0; 1 << 16]].concat(), "packet 2: the file is damaged"),
        ([&ok[..], &block(2, &[0; 40])].concat(), "packet 2: has the obsolete Packet Block"),
        (
            [&ok[..], &enhanced(0, u64::MAX, &udp4())].concat(),
            "packet 2: its timestamp is before 1970 or after 2106",
        ),
    ] {
        let folder = Folder::new();
        folder.write("in", &bytes);
        let output = folder.translate(&format!("{P} in out"));
        assert_eq!(output.status.code(), Some(1), "{part}");
        let line = complaint(&output);
        assert!(line.starts_with("clatctl: in: ") && line.contains(part), "{part}: {line}");
        assert_eq!(folder.names(), ["in"]);
    }
}
