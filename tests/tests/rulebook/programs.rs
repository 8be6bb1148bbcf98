// SPDX-License-Identifier: Apache-2.0

//! The tc programs: compiled, loaded, their maps filled, and run on packets without a device.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clat_netlink::NextHop;
use clat_offload::abi::{NextHopValue, SLOTS};
use clat_offload::{EgressEntry, IngressEntry, OffloadCounters, PASSED_REASONS};
use clat_tests::BPF_OBJECTS;
use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder, PrintLevel, ProgramInput};
use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

use super::Outcome;

/// Return values of a program (linux/pkt_cls.h).
const TC_ACT_PIPE: u32 = 3;
const TC_ACT_REDIRECT: u32 = 7;

/// Makes a test run begin with CHECKSUM_COMPLETE, as from a device that computes it, and fail with
/// EBADMSG if the program did not keep it right. Linux 6.10.
const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Slots of the counters of the egress programs, of the ingress programs, and of both for all
/// CLATs.
pub(crate) const EGRESS: Range<u32> = 0..SLOTS;
pub(crate) const INGRESS: Range<u32> = SLOTS..2 * SLOTS;
pub(crate) const BOTH: Range<u32> = 0..2 * SLOTS;

/// Slots of packets passed on, by reason.
pub(crate) fn reason(name: &str) -> usize {
    PASSED_REASONS.iter().position(|reason| *reason == name).expect(name)
}

/// The entries of a CLAT.
pub(crate) fn entries(
    (v4iface, uplink, oif_is_ethernet): (u32, u32, bool),
    (local4, local6, prefix): (Ipv4Addr, Ipv6Addr, Ipv6Addr),
) -> (EgressEntry, IngressEntry) {
    let (iif, oif) = (v4iface, uplink);
    let egress = EgressEntry { iif, local4, oif, local6, prefix, oif_is_ethernet };
    let (iif, oif) = (uplink, v4iface);
    (egress, IngressEntry { iif, prefix, local6, oif, local4 })
}

/// Loaded programs with their maps.
pub(crate) struct Programs {
    pub(crate) object: Object,
    /// Of test runs.
    flags: u32,
    _dir: TempDir,
}

/// The variable with the folder of the compiled objects, for machines without a compiler.
pub(crate) const OBJECTS: &str = "CLAT_BPF_OBJECTS";

/// One of [`BPF_OBJECTS`], compiled into `dir` if there is no folder of them.
fn object((name, options): (&str, &[&str]), dir: &Path) -> PathBuf {
    if let Some(objects) = std::env::var_os(OBJECTS) {
        return Path::new(&objects).join(name);
    }
    let object = dir.join(name);
    clat_tests::compile_bpf("bpf_progs/clatd.c".as_ref(), options, &object).expect("compiled");
    object
}

impl Programs {
    /// With or without `bpf_redirect_neigh`.
    pub(crate) fn load(has_redirect_neigh: bool) -> Self {
        Self::load_object(BPF_OBJECTS[0], has_redirect_neigh)
    }

    /// With counters in the entries.
    pub(crate) fn load_counting() -> Self {
        Self::load_object(BPF_OBJECTS[1], true)
    }

    fn load_object(which: (&str, &[&str]), has_redirect_neigh: bool) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut builder = ObjectBuilder::default();
        let mut open = builder.open_file(object(which, dir.path())).expect("the object opens");
        let switches =
            open.maps_mut().find(|map| map.name().as_encoded_bytes().ends_with(b".rodata"));
        let mut switches = switches.expect("the switches");
        let bytes = switches.initial_value_mut().expect("their values");
        assert_eq!(bytes, [1], "the only one");
        bytes[0] = has_redirect_neigh.into();
        let object = open.load().expect("the programs verify");
        let mut programs = Self { object, flags: CHECKSUM_COMPLETE, _dir: dir };
        if programs.test_run("schedcls_egress_clat_ether", &[0; 64], (0, 0)).is_err() {
            programs.flags = 0;
        }
        programs
    }

    fn map(&self, name: &str) -> libbpf_rs::Map<'_> {
        self.object.maps().find(|map| map.name() == OsStr::new(name)).expect(name)
    }

    /// Adds a CLAT's entries.
    pub(crate) fn add(&self, (egress, ingress): (EgressEntry, IngressEntry)) {
        let put = |name, key: &[u8], value: &[u8]| {
            let map = self.map(name);
            let mut value = value.to_vec();
            // Its counters.
            value.resize(map.value_size() as usize, 0);
            map.update(key, &value, MapFlags::ANY).expect(name);
        };
        let (key, value) = egress.to_abi();
        put("clat_egress_map", key.as_bytes(), value.as_bytes());
        let (key, value) = ingress.to_abi();
        put("clat_ingress_map", key.as_bytes(), value.as_bytes());
        // By default, an Ethernet uplink on which every destination is a neighbour.
        self.set_next_hop(Some(NextHop::OnLink));
    }

    /// Sets the next hop of the uplink.
    pub(crate) fn set_next_hop(&self, next_hop: Option<NextHop>) {
        let value = next_hop.map_or_else(NextHopValue::default, NextHopValue::from);
        for slot in 0..SLOTS {
            self.map("clat_next_hop_map")
                .update(slot.as_bytes(), value.as_bytes(), MapFlags::ANY)
                .expect("the next hop");
        }
    }

    /// The sum of these counters over all CPUs.
    pub(crate) fn counters(&self, slots: Range<u32>) -> OffloadCounters {
        let map = self.map("clat_counters_map");
        let mut sum = OffloadCounters::default();
        for slot in slots {
            let all = map.lookup_percpu(slot.as_bytes(), MapFlags::ANY).expect("counters");
            for one in all.expect("an entry") {
                sum.add(&OffloadCounters::read_from_bytes(&one).expect("the layout"));
            }
        }
        sum
    }

    /// The packets and bytes that the entry of a map has counted, at the end of its value.
    pub(crate) fn counted_in_entry(&self, name: &str) -> [u64; 2] {
        let map = self.map(name);
        let key = map.keys().next().expect("an entry");
        let value = map.lookup(&key, MapFlags::ANY).expect(name).expect("its value");
        <[u64; 2]>::read_from_suffix(&value).expect("counters").1
    }

    fn test_run(
        &self,
        name: &str,
        frame: &[u8],
        (size, segments): (u32, u32),
    ) -> libbpf_rs::Result<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 256];
        // struct __sk_buff
        let mut skb = [0; 192];
        skb[164..168].copy_from_slice(&segments.to_ne_bytes());
        skb[176..180].copy_from_slice(&size.to_ne_bytes());
        let program = self.object.progs_mut().find(|p| p.name() == OsStr::new(name)).expect(name);
        let output = program.test_run(ProgramInput {
            context_in: Some(&mut skb),
            data_in: Some(frame),
            data_out: Some(&mut out),
            flags: self.flags,
            ..ProgramInput::default()
        })?;
        Ok((output.return_value, output.data.map(|data| data.to_vec()).unwrap_or_default()))
    }

    /// Runs a program of an Ethernet interface on an IP packet; for a GSO packet, `gso` is the size
    /// and number of its segments. Checks the resulting Ethernet header.
    pub(crate) fn run(&self, name: &str, packet: &[u8], gso: Option<(u32, u32)>) -> Outcome {
        let ethertype = |ip: &[u8]| if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        // The destination has to be the loopback device's MAC address, zero.
        let mut frame = vec![0; ETHERNET];
        frame[12..].copy_from_slice(&ethertype(packet));
        frame.extend(packet);
        let (verdict, after) =
            self.test_run(name, &frame, gso.unwrap_or_default()).expect("test run");
        match verdict {
            TC_ACT_PIPE => {
                assert_eq!(after, frame, "passed on, but not as it was");
                Outcome::Passed
            }
            TC_ACT_REDIRECT => {
                let ip = &after[ETHERNET..];
                assert_eq!(after[12..ETHERNET], ethertype(ip), "EtherType");
                Outcome::Translated(ip.to_vec())
            }
            other => panic!("verdict {other}"),
        }
    }
}

impl Programs {
    /// The same the direct way, as the route's guard hands packets over: what is left to the daemon
    /// is sent to its device.
    pub(crate) fn run_direct(&self, packet: &[u8], gso: Option<(u32, u32)>) -> Outcome {
        let is_out = packet.first().is_none_or(|first| first >> 4 != 6);
        let mut frame = vec![0; ETHERNET];
        frame[12..].copy_from_slice(if is_out { &[8, 0] } else { &[0x86, 0xdd] });
        frame.extend(packet);
        let mut guarded = frame.clone();
        let is_guarded = is_out && packet.len() >= 20 && packet[0] >> 4 == 4;
        if is_guarded {
            guarded[ETHERNET] &= 0xf;
        }
        let name =
            ["schedcls_ingress_clat_ether", "schedcls_direct_clat_ether"][usize::from(is_out)];
        let (verdict, after) =
            self.test_run(name, &guarded, gso.unwrap_or_default()).expect("test run");
        match verdict {
            TC_ACT_REDIRECT if is_out => {
                assert_eq!(after, frame, "left to the daemon, but not as it was");
                // The program there counts it.
                self.run("schedcls_egress_clat_ether", packet, gso)
            }
            TC_ACT_PIPE if after == frame => {
                assert!(!is_guarded, "let go as IPv4");
                Outcome::Passed
            }
            TC_ACT_PIPE => {
                let ethertype: &[u8] = if is_out { &[0x86, 0xdd] } else { &[8, 0] };
                assert_eq!(&after[12..ETHERNET], ethertype, "EtherType");
                Outcome::Translated(after[ETHERNET..].to_vec())
            }
            other => panic!("verdict {other}"),
        }
    }
}

/// Most instructions that the kernel processes to verify all programs, at each boot of a device
/// with a log line about each. 25,000 take about 0.15 s.
const MOST_VERIFIED: u64 = 25_000;

/// The verifier's log of loaded programs.
static VERIFIER: Mutex<String> = Mutex::new(String::new());

#[test]
fn verifying_is_cheap() {
    if !super::can_run() {
        return;
    }
    libbpf_rs::set_print(Some((PrintLevel::Debug, |_, text| {
        if text.contains("PROG LOAD LOG") {
            VERIFIER.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
    })));
    for which in BPF_OBJECTS {
        let dir = tempfile::tempdir().expect("a folder");
        let mut builder = ObjectBuilder::default();
        let mut open = builder.open_file(object(which, dir.path())).expect("the object opens");
        let mut programs = 0;
        for mut program in open.progs_mut() {
            // BPF_LOG_LEVEL1, as Android's loaders, and BPF_LOG_STATS.
            program.set_log_level(1 | 4);
            programs += 1;
        }
        let _loaded = open.load().expect("the programs verify");
        let log = std::mem::take(&mut *VERIFIER.lock().unwrap_or_else(PoisonError::into_inner));
        let numbers = |before: &str| -> Vec<u64> {
            let lines = log.lines().filter_map(|line| line.strip_prefix(before)?.split(' ').next());
            lines.filter_map(|number| number.parse().ok()).collect()
        };
        let (verified, micros) = (numbers("processed "), numbers("verification time "));
        let (all, micros): (u64, u64) = (verified.iter().sum(), micros.iter().sum());
        println!("verified {}: {verified:?}, together {all}, in {micros} µs", which.0);
        assert_eq!(verified.len(), programs);
        assert!(all <= MOST_VERIFIED, "{verified:?}");
    }
}
