// SPDX-License-Identifier: Apache-2.0

//! Where tayga 0.9.2 (Debian 12) and `clat_xlat` differ, and why.

/// A known difference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// The cases; `*` at the end matches any suffix.
    pub(crate) cases: &'static [&'static str],
    /// The fields; `*` at the end matches any suffix.
    pub(crate) fields: &'static [&'static str],
    /// Who is right, and by which text.
    #[allow(dead_code)] // shown by Debug, and read by people
    pub(crate) why: &'static str,
}

/// The index of the entry for this difference.
pub(crate) fn find(case: &str, field: &str) -> Option<usize> {
    let fits = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => text == pattern,
    };
    KNOWN.iter().position(|k| {
        k.cases.iter().any(|c| fits(c, case)) && k.fields.iter().any(|f| fits(f, field))
    })
}

/// The table.
pub(crate) const KNOWN: &[Known] = &[
    // Both ways.
    Known {
        cases: &["46 udp ttl 1"],
        fields: &["tos", "id"],
        why: "errors of a router are internetwork control, 0xc0 (RFC 1812 §4.3.2.5), and their DF \
            is clear, so they have an identification; tayga sends 0 and 0",
    },
    Known {
        cases: &["64 udp hops 1"],
        fields: &["tos"],
        why: "the same precedence on ours towards IPv6; tayga's is 0",
    },
    Known {
        cases: &["46 udplite"],
        fields: &["payload", "checksum"],
        why: "UDP-Lite has a pseudo header (RFC 3828 §3.1) and the addresses are not neutral; \
            tayga leaves its checksum wrong",
    },
    Known {
        cases: &["64 udplite"],
        fields: &["payload", "checksum"],
        why: "the same towards \
        IPv4",
    },
    Known {
        cases: &["46 protocol ah"],
        fields: &["family"],
        why: "AH covers the addresses: it could only fail at the receiver, so the sender is told; \
            tayga passes it",
    },
    Known { cases: &["64 protocol ah"], fields: &["family"], why: "the same towards IPv4" },
    Known {
        cases: &["46 error with extension"],
        fields: &["icmp.extension", "icmp.length", "icmp.word", "length", "quoted.payload"],
        why: "RFC 7915 §4.2 wants RFC 4884 extensions kept and the length field adjusted; tayga \
            strips them",
    },
    // To IPv6.
    Known {
        cases: &["46 udp checksum 0"],
        fields: &["packets"],
        why: "a checksum is computed (RFC 7915 §4.5); tayga 0.9.2 drops",
    },
    Known {
        cases: &["46 options lsrr unexpired"],
        fields: &["family"],
        why: "source route failed (RFC 7915 §4.1); tayga translates it as if it were not there",
    },
    Known { cases: &["46 options ssrr unexpired"], fields: &["family"], why: "the same" },
    Known {
        cases: &["46 protocol igmp"],
        fields: &["packets"],
        why: "IGMP is of one link (RFC 7915 §4.2); tayga passes it",
    },
    Known {
        cases: &["46 protocol hop-by-hop"],
        fields: &["family"],
        why: "number 0 would become an extension header that the sender never wrote; tayga passes \
            it",
    },
    Known {
        cases: &["46 protocol fragment header"],
        fields: &["family"],
        why: "number 44 likewise: payload would be read as a Fragment Header",
    },
    Known {
        cases: &["46 protocol icmpv6"],
        fields: &["family"],
        why: "number 58 likewise: payload would be read as ICMPv6, with a checksum that nobody \
            made",
    },
    Known {
        cases: &["46 foreign source"],
        fields: &["packets"],
        why: "a CLAT lets out only its own address (RFC 6877 §6.3); tayga puts any into the \
            prefix, as a NAT64's half would",
    },
    Known {
        cases: &["46 parameter problem *"],
        fields: &["packets"],
        why: "pointers are translated by RFC 7915 figure 3 (and code 2, bad length); tayga drops \
            what it has no entry for",
    },
    Known {
        cases: &["46 error about a fragment"],
        fields: &[
            "icmp.length",
            "length",
            "quoted.id",
            "quoted.length",
            "quoted.mf",
            "quoted.offset",
        ],
        why: "the quoted packet gets the Fragment Header that it had on the wire (RFC 7915 §4.3); \
            tayga leaves it out",
    },
    // To IPv4.
    Known {
        cases: &["64 udp total 12*"],
        fields: &["df", "id"],
        why:
            "DF is set from 1261 bytes of IPv4 on (RFC 7915 §5.1), and then the identification is \
            0; tayga starts \
              elsewhere. Below, both give out numbers, each from its own start",
    },
    Known {
        cases: &["64 error with extension"],
        fields: &["icmp.extension", "icmp.length", "icmp.word", "length", "quoted.payload"],
        why: "extensions as above",
    },
    Known {
        cases: &["64 parameter problem at *"],
        fields: &["packets"],
        why: "pointers are translated by RFC 7915 figure 6; tayga drops these",
    },
    Known {
        cases: &["64 unreachable 3"],
        fields: &["packets"],
        why: "address unreachable is host unreachable (RFC 7915 §5.2); tayga drops it",
    },
    Known {
        cases: &["46 fragment icmp"],
        fields: &["packets"],
        why: "who sends what is discarded is told (RFC 7915 §4.4); tayga drops in silence",
    },
    Known {
        cases: &["64 too big 1000"],
        fields: &["packets"],
        why: "an MTU below 1280 is discarded, as RFC 8201 §4 has it for the node that the \
            translator \
              answers for; tayga drops one of 0 alone",
    },
    Known {
        cases: &["64 router without a form"],
        fields: &["packets"],
        why: "comes from 192.0.0.8 and carries the router's address \
              (draft-ietf-v6ops-icmpext-xlat-v6only-source); tayga drops it",
    },
    Known {
        cases: &["64 source without a form"],
        fields: &["packets"],
        why:
            "dropped in silence, as RFC 7915 §5.1 has it for sources that cannot be mapped; tayga \
            answers with an error",
    },
    Known {
        cases: &["64 udp checksum 0"],
        fields: &["packets"],
        why: "without a checksum in IPv6 (RFC 6936) it has none in IPv4 either, which is legal \
            there; tayga drops it",
    },
    Known {
        cases: &["64 protocol icmp"],
        fields: &["family"],
        why: "number 1 means nothing in IPv6 and would be read as ICMP; tayga passes it",
    },
    Known {
        cases: &["64 segments left"],
        fields: &["family"],
        why: "parameter problem at the segments left (RFC 7915 §5.1); tayga translates it",
    },
    Known {
        cases: &[
            "64 unreachable *",
            "64 too big *",
            "64 time exceeded *",
            "64 parameter problem \
            1",
            "64 error *",
        ],
        fields: &["df", "quoted.df"],
        why: "errors and what they quote have DF clear up to 1260 bytes (RFC 7915 §5.1, §5.3); \
            tayga sets it",
    },
    Known {
        cases: &["64 *"],
        fields: &["id"],
        why: "identifications are each translator's own count, and 0 where DF is set, which tayga \
            has on errors",
    },
];
