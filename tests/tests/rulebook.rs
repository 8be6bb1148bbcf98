// SPDX-License-Identifier: Apache-2.0

//! One rulebook: what the BPF programs translate is byte for byte the translation of `xlat`, and
//! what they do not translate they pass on unchanged.
#![allow(clippy::cast_possible_truncation)] // of lengths and random numbers

#[path = "../../src/xlat/tests/common/mod.rs"]
mod common;
#[path = "rulebook/devices.rs"]
mod devices;
#[path = "rulebook/flows.rs"]
mod flows;
#[path = "rulebook/programs.rs"]
mod programs;
#[path = "rulebook/vectors.rs"]
mod vectors;

use clat_netlink::NextHop;
use clat_offload::IngressEntry;
use clat_tun::{GsoType, VirtioHeader};
use clat_xlat::{Addresses, Config, Local, Prefix, Translator};
use common::*;
use devices::Wires;
use programs::{entries, reason, Programs, BOTH};
use proptest::prop_assume;
use proptest::test_runner::{Config as Cases, TestCaseError, TestRunner};

/// The loopback device: both interfaces of a CLAT; no packet is sent.
const LO: u32 = 1;
/// Another, by which packets are received once more.
const OTHER: u32 = 2;

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Sent on, in the other family.
    Translated(Vec<u8>),
    /// Left to the daemon, as it was.
    Passed,
}

pub(crate) fn can_run() -> bool {
    std::env::var_os(programs::OBJECTS).is_some() || clat_tests::can_run(&["clang"])
}

fn can_run_devices() -> bool {
    can_run() && clat_tests::can_run(&["ip", "tc", "mount", "ethtool"])
}

/// Two CLAT addresses: one that is checksum-neutral and one that is not.
fn locals() -> [Local; 2] {
    let neutral = Local::neutral(LOCAL4, LOCAL6, &Prefix::WELL_KNOWN, [0x5a; 8]);
    assert!(neutral.is_neutral(&Prefix::WELL_KNOWN));
    [Local { v4: LOCAL4, v6: LOCAL6 }, neutral]
}

/// The identification generated for an IPv4 packet, which has none in IPv6.
fn made_up_id(packet: &[u8]) -> u16 {
    let fragment_or_df = be16(packet, 6) != 0;
    if packet[0] >> 4 == 4 && !fragment_or_df {
        be16(packet, 4)
    } else {
        1
    }
}

/// Whether `outcome` agrees with `xlat` for this packet.
pub(crate) fn agree(local: Local, packet: &[u8], outcome: &Outcome) -> Result<(), String> {
    let Outcome::Translated(out) = outcome else { return Ok(()) };
    let config = Config { mtu4: 65535, mtu6: 65575, ..config() };
    let prefixes = vec![Prefix::WELL_KNOWN];
    let addresses = Addresses { local: Some(local), prefixes, ..Addresses::default() };
    let translator = Translator::new(config, addresses, made_up_id(out));
    let mut translator = translator.map_err(|e| e.to_string())?;
    match run(&mut translator, packet) {
        Out::Forward(_, frames) if frames == [out.clone()] => Ok(()),
        other => Err(format!("in {packet:02x?}\nprogram {out:02x?}\nxlat {other:02x?}")),
    }
}

/// The program for a packet's family on an Ethernet interface.
fn program(packet: &[u8]) -> &'static str {
    match packet.first().map(|b| b >> 4) {
        Some(6) => "schedcls_ingress_clat_ether",
        _ => "schedcls_egress_clat_ether",
    }
}

/// Programs with a CLAT between the loopback device and itself, or another that receives.
fn on_loopback(local: Local, ethernet: bool, receives: u32) -> Programs {
    add_on_loopback(Programs::load(true), local, ethernet, receives)
}

fn add_on_loopback(programs: Programs, local: Local, ethernet: bool, receives: u32) -> Programs {
    let addresses = (local.v4, local.v6, Prefix::WELL_KNOWN.addr());
    let (egress, ingress) = entries((LO, LO, ethernet), addresses);
    programs.add((egress, IngressEntry { oif: receives, ..ingress }));
    programs
}

#[test]
fn made_by_hand() {
    if !can_run() {
        return;
    }
    for local in locals() {
        for ethernet in [false, true] {
            let programs = on_loopback(local, ethernet, OTHER);
            for vector in vectors::by_hand(local) {
                let before = programs.counters(BOTH);
                let outcome = programs.run(program(&vector.packet), &vector.packet, vector.gso);
                let after = programs.counters(BOTH);
                vector.check(local, &outcome, &before, &after);
            }
        }
    }
}

/// What ClatCoordinator shows of entries in Android's object: a super-packet is one.
#[test]
fn counted_in_entries() {
    if !can_run() {
        return;
    }
    let local = locals()[0];
    let programs = add_on_loopback(Programs::load_counting(), local, false, OTHER);
    let mut expected = [[0; 2]; 2];
    for vector in vectors::by_hand(local) {
        let outcome = programs.run(program(&vector.packet), &vector.packet, vector.gso);
        if let Outcome::Translated(out) = outcome {
            let [packets, bytes] = &mut expected[usize::from(out[0] >> 4 == 4)];
            *packets += 1;
            *bytes += out.len() as u64;
        }
    }
    let counted = ["clat_egress_map", "clat_ingress_map"].map(|map| programs.counted_in_entry(map));
    assert_eq!(counted, expected);
    assert!(counted.iter().all(|[packets, _]| *packets > 1));
}

#[test]
fn made_by_hand_directly() {
    if !can_run() {
        return;
    }
    for local in locals() {
        let programs = on_loopback(local, false, LO);
        for vector in vectors::by_hand(local) {
            let before = programs.counters(BOTH);
            let outcome = programs.run_direct(&vector.packet, vector.gso);
            vector.check(local, &outcome, &before, &programs.counters(BOTH));
        }
    }
}

#[test]
fn generated_directly() {
    if !can_run() {
        return;
    }
    for local in locals() {
        let programs = on_loopback(local, false, LO);
        let cases = Cases { cases: 4000, failure_persistence: None, ..Cases::default() };
        let result = TestRunner::new(cases).run(&vectors::generated(local), |packet| {
            // A version 0 is the guard's.
            prop_assume!(matches!(packet[0] >> 4, 4 | 6));
            agree(local, &packet, &programs.run_direct(&packet, None)).map_err(TestCaseError::fail)
        });
        if let Err(e) = result {
            panic!("{e}");
        }
        let counters = programs.counters(BOTH);
        assert!(counters.packets > 2000, "most are translated in the kernel: {counters:?}");
        assert_eq!(counters.lost, 0);
    }
}

#[test]
fn ethernet_without_help_from_the_kernel() {
    if !can_run() {
        return;
    }
    let programs = Programs::load(false);
    programs.add(entries((LO, LO, true), (LOCAL4, LOCAL6, Prefix::WELL_KNOWN.addr())));
    let packet = V4::default().build(&udp(9));
    assert_eq!(programs.run(program(&packet), &packet, None), Outcome::Passed);
    let counters = programs.counters(BOTH);
    assert_eq!(counters.passed[reason("ethernet")], 1, "{counters:?}");
}

#[test]
fn ethernet_without_a_next_hop() {
    if !can_run() {
        return;
    }
    let programs = on_loopback(locals()[0], true, OTHER);
    let packet = V4::default().build(&udp(9));
    let run = || programs.run(program(&packet), &packet, None);
    programs.set_next_hop(None);
    assert_eq!(run(), Outcome::Passed);
    let counters = programs.counters(BOTH);
    assert_eq!(counters.passed[reason("next-hop")], 1, "{counters:?}");
    programs.set_next_hop(Some(NextHop::Gateway(ROUTER6)));
    assert_ne!(run(), Outcome::Passed);
}

#[test]
fn generated() {
    if !can_run() {
        return;
    }
    for local in locals() {
        let programs = on_loopback(local, false, OTHER);
        let cases = Cases { cases: 4000, failure_persistence: None, ..Cases::default() };
        let result = TestRunner::new(cases).run(&vectors::generated(local), |packet| {
            let outcome = programs.run(program(&packet), &packet, None);
            agree(local, &packet, &outcome).map_err(TestCaseError::fail)
        });
        if let Err(e) = result {
            panic!("{e}");
        }
        let counters = programs.counters(BOTH);
        assert!(counters.packets > 2000, "most are translated in the kernel: {counters:?}");
        assert_eq!(counters.lost, 0);
    }
}

/// By a device of their own, and directly.
fn locals_both_ways() -> impl Iterator<Item = (Local, bool)> {
    locals().into_iter().flat_map(|local| [(local, false), (local, true)])
}

#[test]
fn on_raw_ip_devices() {
    if !can_run_devices() {
        return;
    }
    for (number, (local, direct)) in locals_both_ways().enumerate() {
        let wires = Wires::new(number as u32, local, direct).expect("devices");
        let plain = VirtioHeader::default();
        let pass = |packet: &[u8]| {
            let (outcome, out) = wires.pass(&plain, packet).expect("a packet");
            assert!(outcome != Outcome::Passed || out == [packet], "passed on, but not as it was");
            outcome
        };
        // What is sent by the uplink from elsewhere, and not by the route, is nothing of ours.
        let is_ours = |vector: &&vectors::Vector| {
            vector.gso.is_none() && !(direct && vector.passed == Some("foreign-source"))
        };
        for vector in vectors::by_hand(local).iter().filter(is_ours) {
            let before = wires.counters(&vector.packet);
            let outcome = pass(&vector.packet);
            vector.check(local, &outcome, &before, &wires.counters(&vector.packet));
        }
        let cases = Cases { cases: 4000, failure_persistence: None, ..Cases::default() };
        let result = TestRunner::new(cases).run(&vectors::generated(local), |packet| {
            // Devices accept only IP packets.
            prop_assume!(matches!(packet[0] >> 4, 4 | 6));
            agree(local, &packet, &pass(&packet)).map_err(TestCaseError::fail)
        });
        if let Err(e) = result {
            panic!("{e}");
        }
    }
}

/// A packet with a partial checksum: the field holds the sum of the pseudo-header.
fn unfinished(packet: &[u8], gso_type: GsoType, gso_size: u16) -> (VirtioHeader, Vec<u8>) {
    let six = packet[0] >> 4 == 6;
    let (header, at, protocol) = if six { (40, 8, packet[6]) } else { (20, 12, packet[9]) };
    let field = checksum_at(protocol).expect("a checksum");
    let mut out = packet.to_vec();
    let len = (packet.len() - header) as u32;
    let pseudo = sum(&[&packet[at..header], &len.to_be_bytes(), &[0, protocol]]);
    out[header + field..header + field + 2].copy_from_slice(&pseudo.to_be_bytes());
    let l4 = if protocol == TCP { 20 } else { 8 };
    let vnet = VirtioHeader {
        needs_csum: true,
        gso_type,
        gso_ecn: false,
        hdr_len: (header + l4) as u16,
        gso_size,
        csum_start: header as u16,
        csum_offset: field as u16,
        ..VirtioHeader::default()
    };
    (vnet, out)
}

#[test]
fn unfinished_checksums_and_super_packets() {
    if !can_run_devices() {
        return;
    }
    for (number, (local, direct)) in locals_both_ways().enumerate() {
        let wires = Wires::new(10 + number as u32, local, direct).expect("devices");
        for (protocol, gso4, gso6) in
            [(TCP, GsoType::TcpV4, GsoType::TcpV6), (UDP, GsoType::UdpL4, GsoType::UdpL4)]
        {
            let body = |len| if protocol == TCP { tcp(len) } else { udp(len) };
            let four = V4 { protocol, df: true, tos: 0xb8, ..V4::default() };
            let six = V6 { protocol, dst: local.v6, class: 0xb8, ..V6::default() };
            let pass = |packet: &[u8], gso, size| {
                let (vnet, unfinished) = unfinished(packet, gso, size);
                let (outcome, out) = wires.pass(&vnet, &unfinished).expect("a packet");
                assert_ne!(outcome, Outcome::Passed);
                (outcome, out)
            };
            for packet in [four.build(&body(1001)), six.build(&body(1001))] {
                let (outcome, _) = pass(&packet, GsoType::None, 0);
                // As if it had been completed before.
                agree(local, &packet, &outcome).expect("finished right");
            }
            for size in [1000, 1400] {
                for (packet, gso) in
                    [(four.build(&body(9999)), gso4), (six.build(&body(9999)), gso6)]
                {
                    let (vnet, sample) = unfinished(&packet, gso, size);
                    if !wires.takes(&vnet, &sample) {
                        continue;
                    }
                    let before = wires.counters(&packet);
                    let (_, out) = pass(&packet, gso, size);
                    let after = wires.counters(&packet);
                    assert_eq!(after.super_packets, before.super_packets + 1);
                    assert_eq!(out.len(), 9999_usize.div_ceil(size.into()), "segments");
                    assert_eq!(after.packets, before.packets + out.len() as u64);
                    let header = if protocol == TCP { 20 } else { 8 };
                    let mut data = Vec::new();
                    for segment in &out {
                        // Every checksum and length.
                        let seen = check(segment);
                        assert_eq!((seen.class, seen.protocol), (0xb8, protocol));
                        assert_eq!(seen.v6 || seen.df, seen.v6 || size == 1400, "DF by segment");
                        data.extend_from_slice(&seen.payload[header..]);
                    }
                    assert_eq!(data, body(9999)[header..]);
                }
            }
        }
    }
}
