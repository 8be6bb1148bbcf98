// SPDX-License-Identifier: Apache-2.0

//! The layouts of `bpf_progs/clatd.h`, once more in Rust.

use std::mem::{offset_of, size_of};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::path::Path;

use libbpf_rs::btf::types::{Enum, MemberAttr, Struct};
use libbpf_rs::btf::Btf;
use libbpf_rs::HasSize;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Which packets leave by the egress program.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct EgressKey {
    pub(crate) iif: u32,
    pub(crate) local4: [u8; 4],
}

/// What becomes of them.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct EgressValue {
    pub(crate) oif: u32,
    pub(crate) local6: [u8; 16],
    pub(crate) pfx96: [u8; 16],
    pub(crate) oif_is_ethernet: u8,
    pub(crate) pad: [u8; 3],
}

/// Which packets the ingress program takes.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct IngressKey {
    pub(crate) iif: u32,
    pub(crate) pfx96: [u8; 16],
    pub(crate) local6: [u8; 16],
}

/// What becomes of them.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct IngressValue {
    pub(crate) oif: u32,
    pub(crate) local4: [u8; 4],
}

/// Who gets what leaves by an Ethernet uplink.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct NextHop {
    pub(crate) router: [u8; 16],
    pub(crate) known: u32,
}

/// Why the programs left a packet to the daemon; in the order of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    ForeignSource,
    Header,
    Address,
    Martian,
    Options,
    Protocol,
    Fragment,
    Icmp,
    Checksum,
    Size,
    Gso,
    Ethernet,
    NextHop,
    #[allow(dead_code)] // nobody makes the kernel fail here
    Kernel,
}

impl Passed {
    pub(crate) const NAMES: [&'static str; 14] = [
        "CLAT_FOREIGN_SOURCE",
        "CLAT_HEADER",
        "CLAT_ADDRESS",
        "CLAT_MARTIAN",
        "CLAT_OPTIONS",
        "CLAT_PROTOCOL",
        "CLAT_FRAGMENT",
        "CLAT_ICMP",
        "CLAT_CHECKSUM",
        "CLAT_SIZE",
        "CLAT_GSO",
        "CLAT_ETHERNET",
        "CLAT_NEXT_HOP",
        "CLAT_KERNEL",
    ];
}

/// What an interface's program has done.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(crate) struct Counters {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) super_packets: u64,
    pub(crate) neighbour: u64,
    pub(crate) lost: u64,
    pub(crate) passed: [u64; Passed::NAMES.len()],
}

impl Counters {
    /// Adds those of another CPU.
    pub(crate) fn add(&mut self, other: &Self) {
        let passed = self.passed.iter_mut().zip(&other.passed);
        for (sum, n) in passed.chain([
            (&mut self.packets, &other.packets),
            (&mut self.bytes, &other.bytes),
            (&mut self.super_packets, &other.super_packets),
            (&mut self.neighbour, &other.neighbour),
            (&mut self.lost, &other.lost),
        ]) {
            *sum += n;
        }
    }
}

/// CLAT_SLOTS: how many CLATs there may be.
pub(crate) const SLOTS: u32 = 8;

/// Where the counters are of the egress programs, of the ingress programs, and of both, all CLATs'.
pub(crate) const EGRESS: Range<u32> = 0..SLOTS;
pub(crate) const INGRESS: Range<u32> = SLOTS..2 * SLOTS;
pub(crate) const BOTH: Range<u32> = 0..2 * SLOTS;

/// A prefix with the address behind it cleared, as the maps have it.
pub(crate) fn pfx96(prefix: Ipv6Addr) -> [u8; 16] {
    let mut octets = prefix.octets();
    octets[12..].fill(0);
    octets
}

/// The one pair of entries of a CLAT.
pub(crate) fn entries(
    (v4iface, uplink, ethernet): (u32, u32, bool),
    (local4, local6, prefix): (Ipv4Addr, Ipv6Addr, Ipv6Addr),
) -> ((EgressKey, EgressValue), (IngressKey, IngressValue)) {
    let (local4, local6, pfx96) = (local4.octets(), local6.octets(), pfx96(prefix));
    let oif_is_ethernet = u8::from(ethernet);
    let egress = (
        EgressKey { iif: v4iface, local4 },
        EgressValue { oif: uplink, local6, pfx96, oif_is_ethernet, pad: [0; 3] },
    );
    let ingress =
        (IngressKey { iif: uplink, pfx96, local6 }, IngressValue { oif: v4iface, local4 });
    (egress, ingress)
}

/// Compares every member of every struct with what the object file says of them, and every reason
/// with what `probe` says: the programs' object has no type information of an enum that is in no
/// map.
pub(crate) fn compare(object: &Path, probe: &Path) {
    let btf = Btf::from_path(object).expect("the object's BTF");
    let seen = |name: &str| {
        let ty: Struct<'_> = btf.type_by_name(name).unwrap_or_else(|| panic!("no struct {name}"));
        let members: Vec<(String, usize)> = ty
            .iter()
            .map(|member| {
                let MemberAttr::Normal { offset } = member.attr else { panic!("a bit field") };
                (member.name.expect("a name").to_string_lossy().into_owned(), offset as usize / 8)
            })
            .collect();
        (ty.size(), members)
    };
    macro_rules! same {
        ($c:literal, $rust:ty { $($name:literal $field:ident),* $(,)? }) => {{
            let members = [$(($name.to_owned(), offset_of!($rust, $field))),*];
            assert_eq!(seen($c), (size_of::<$rust>(), members.to_vec()), $c);
        }};
    }
    same!("clat_egress_key", EgressKey { "iif" iif, "local4" local4 });
    same!("clat_egress_value", EgressValue {
        "oif" oif, "local6" local6, "pfx96" pfx96, "oifIsEthernet" oif_is_ethernet, "pad" pad,
    });
    same!("clat_ingress_key", IngressKey { "iif" iif, "pfx96" pfx96, "local6" local6 });
    same!("clat_ingress_value", IngressValue { "oif" oif, "local4" local4 });
    same!("clat_next_hop", NextHop { "router" router, "known" known });
    same!("clat_counters", Counters {
        "packets" packets, "bytes" bytes, "super_packets" super_packets, "neighbour" neighbour,
        "lost" lost, "passed" passed,
    });

    let btf = Btf::from_path(probe).expect("the probe's BTF");
    let reasons: Enum<'_> = btf.type_by_name("clat_reason").expect("enum clat_reason");
    let reasons: Vec<(String, i64)> = reasons
        .iter()
        .map(|r| (r.name.expect("a name").to_string_lossy().into_owned(), r.value.into()))
        .collect();
    let mut expected: Vec<(String, i64)> =
        Passed::NAMES.iter().zip(0..).map(|(name, n)| ((*name).to_owned(), n)).collect();
    expected.push(("CLAT_REASONS".to_owned(), Passed::Kernel as i64 + 1));
    assert_eq!(reasons, expected);
}
