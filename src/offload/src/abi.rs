// SPDX-License-Identifier: Apache-2.0

//! Keys and values of the maps, as in bpf_progs/clatd.h: native byte order, addresses in network
//! byte order. A test below compares both.

use std::net::{Ipv4Addr, Ipv6Addr};

use clat_netlink::NextHop;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::model::{EgressEntry, Hook, IngressEntry};

/// A key or a value of a map.
pub(crate) trait Plain: FromBytes + IntoBytes + Immutable + KnownLayout {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> Plain for T {}

/// How many counters each value of the first two maps ends with: packets and bytes on Android,
/// where clatrs.o has them (`CLAT_COUNT_IN_ENTRY`).
const ENTRY_COUNTERS: usize = if cfg!(target_os = "android") { 2 } else { 0 };

/// `struct clat_egress_key`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EgressKey {
    iif: u32,
    local4: [u8; 4],
}

/// `struct clat_egress_value`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EgressValue {
    oif: u32,
    local6: [u8; 16],
    pfx96: [u8; 16],
    oif_is_ethernet: u8,
    pad: [u8; 3],
    counters: [u64; ENTRY_COUNTERS],
}

/// `struct clat_ingress_key`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IngressKey {
    iif: u32,
    pfx96: [u8; 16],
    local6: [u8; 16],
}

/// `struct clat_ingress_value`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IngressValue {
    oif: u32,
    local4: [u8; 4],
    counters: [u64; ENTRY_COUNTERS],
}

/// CLAT_SLOTS: the number of addresses, and so the most CLATs.
pub const SLOTS: u32 = 8;

/// The index of a CLAT in the array maps.
#[must_use]
pub fn slot(local4: Ipv4Addr) -> u32 {
    local4.to_bits() % SLOTS
}

/// The index in the array of counters, which has two for each CLAT, egress first.
#[must_use]
pub fn counters_slot(hook: Hook, local4: Ipv4Addr) -> u32 {
    match hook {
        Hook::Egress | Hook::Direct => slot(local4),
        Hook::Ingress => SLOTS + slot(local4),
    }
}

/// `struct clat_next_hop`; [`Default`] means that none is known.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct NextHopValue {
    router: [u8; 16],
    known: u32,
}

impl From<NextHop> for NextHopValue {
    fn from(next_hop: NextHop) -> Self {
        Self { router: next_hop.towards(Ipv6Addr::UNSPECIFIED).octets(), known: 1 }
    }
}

impl EgressEntry {
    /// The key and the value as the map has them.
    #[must_use]
    pub fn to_abi(&self) -> (EgressKey, EgressValue) {
        let key = EgressKey { iif: self.iif, local4: self.local4.octets() };
        let value = EgressValue {
            oif: self.oif,
            local6: self.local6.octets(),
            pfx96: self.prefix.octets(),
            oif_is_ethernet: self.oif_is_ethernet.into(),
            pad: [0; 3],
            counters: [0; ENTRY_COUNTERS],
        };
        (key, value)
    }

    pub(crate) fn from_abi(key: EgressKey, value: EgressValue) -> Self {
        Self {
            iif: key.iif,
            local4: Ipv4Addr::from(key.local4),
            oif: value.oif,
            local6: Ipv6Addr::from(value.local6),
            prefix: Ipv6Addr::from(value.pfx96),
            oif_is_ethernet: value.oif_is_ethernet != 0,
        }
    }
}

impl IngressEntry {
    /// The key and the value as the map has them.
    #[must_use]
    pub fn to_abi(&self) -> (IngressKey, IngressValue) {
        let key =
            IngressKey { iif: self.iif, pfx96: self.prefix.octets(), local6: self.local6.octets() };
        let (oif, local4) = (self.oif, self.local4.octets());
        (key, IngressValue { oif, local4, counters: [0; ENTRY_COUNTERS] })
    }

    pub(crate) fn from_abi(key: IngressKey, value: IngressValue) -> Self {
        Self {
            iif: key.iif,
            prefix: Ipv6Addr::from(key.pfx96),
            local6: Ipv6Addr::from(key.local6),
            oif: value.oif,
            local4: Ipv4Addr::from(value.local4),
        }
    }
}

#[cfg(all(test, not(target_os = "android")))]
mod tests {
    use std::mem::{offset_of, size_of};

    use libbpf_rs::btf::types::{MemberAttr, Struct};
    use libbpf_rs::{Btf, HasSize};

    use super::*;
    use crate::model::{OffloadCounters, PASSED_REASONS};
    use clat_host::address::{FIRST_V4, POOL_LEN};

    /// A struct's size, and its members with their offsets in bytes.
    type Layout = (usize, Vec<(String, usize)>);

    #[test]
    fn layouts_are_those_of_the_object() {
        let btf = Btf::from_path(concat!(env!("OUT_DIR"), "/clatd.o")).expect("BTF");
        let in_object = |name: &str| -> Layout {
            let found: Struct<'_> = btf.type_by_name(name).expect("a struct of this name");
            let member = |member: libbpf_rs::btf::types::StructMember<'_>| {
                let MemberAttr::Normal { offset } = member.attr else { panic!("a bit field") };
                let name = member.name.expect("a name").to_string_lossy().into_owned();
                (name, offset as usize / 8)
            };
            (found.size(), found.iter().map(member).collect())
        };
        macro_rules! layout {
            ($type:ident { $($c:literal: $rust:ident),* }) => {
                (size_of::<$type>(), vec![$(($c.to_owned(), offset_of!($type, $rust))),*])
            };
        }
        for (name, expected) in [
            ("clat_egress_key", layout!(EgressKey { "iif": iif, "local4": local4 })),
            (
                "clat_egress_value",
                layout!(EgressValue {
                    "oif": oif,
                    "local6": local6,
                    "pfx96": pfx96,
                    "oifIsEthernet": oif_is_ethernet,
                    "pad": pad
                }),
            ),
            (
                "clat_ingress_key",
                layout!(IngressKey { "iif": iif, "pfx96": pfx96, "local6": local6 }),
            ),
            ("clat_ingress_value", layout!(IngressValue { "oif": oif, "local4": local4 })),
            ("clat_next_hop", layout!(NextHopValue { "router": router, "known": known })),
            (
                "clat_counters",
                layout!(OffloadCounters {
                    "packets": packets,
                    "bytes": bytes,
                    "super_packets": super_packets,
                    "neighbour": neighbour,
                    "lost": lost,
                    "passed": passed
                }),
            ),
        ] {
            assert_eq!(in_object(name), expected, "{name}");
        }
    }

    #[test]
    fn slots_are_those_of_the_header() {
        let header = include_str!("../../../bpf_progs/clatd.h");
        assert!(header.contains(&format!("#define CLAT_SLOTS {SLOTS}\n")));
        let pool = FIRST_V4.to_bits() & !(SLOTS - 1);
        assert!(header.contains(&format!("#define CLAT_POOL {pool:#x}\n")));
        assert_eq!(SLOTS, 1 << (32 - POOL_LEN), "one for each address");
    }

    #[test]
    fn reasons_are_those_of_the_header_and_explained() {
        let header = include_str!("../../../bpf_progs/clatd.h");
        let (_, rest) = header.split_once("enum clat_reason {").expect("the reasons");
        let (reasons, _) = rest.split_once('}').expect("their end");
        let names: Vec<_> = reasons
            .lines()
            .filter_map(|line| line.trim().strip_prefix("CLAT_")?.split_once(','))
            .map(|(name, _)| name.to_lowercase().replace('_', "-"))
            .collect();
        assert_eq!(names, PASSED_REASONS);

        let page = include_str!("../../../docs/offload.md");
        let (_, rest) = page.split_once("| reason |").expect("the table of reasons");
        let (rows, _) = rest.split_once("\n\n").expect("its end");
        let explained = rows.lines().filter_map(|row| row.strip_prefix("| `")?.split_once('`'));
        let explained: Vec<_> = explained.map(|(reason, _)| reason).collect();
        assert_eq!(explained, PASSED_REASONS, "docs/offload.md");
    }
}
