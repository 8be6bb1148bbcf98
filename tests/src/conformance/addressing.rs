// SPDX-License-Identifier: Apache-2.0

//! RFC 6052, RFC 7757 and RFC 6791: which address stands for which.

use super::{Document, Requirement as R};

pub(super) const RFC6052: Document = Document {
    number: 6052,
    title: "IPv6 Addressing of IPv4/IPv6 Translators",
    note: "What §3.2 to §3.4 ask of who announces routes and chooses prefixes is theirs.",
    requirements: &[
        R(
            "§2.2",
            "MUST",
            "have bits 64 to 71 zero, of a /96 prefix too",
            &[
                "addresses::rfc6052_s2_4_text_representation",
                "addresses::prefixes_that_are_none",
                "addresses::prefixes_give_back_what_they_hold",
            ],
            "",
        ),
        R(
            "§2.2",
            "SHOULD",
            "have the suffix zero",
            &["addresses::rfc6052_s2_4_text_representation"],
            "",
        ),
        R(
            "§2.2",
            "SHOULD",
            "ignore a suffix that is not zero",
            &["addresses::rfc6052_s2_2_suffix_and_u_octet_are_ignored"],
            "",
        ),
        R(
            "§3.1",
            "MUST NOT, MUST",
            "not translate non-global IPv4 addresses in the well-known prefix, but drop them",
            &[
                "addresses::rfc6052_s3_1_well_known_prefix_is_for_global_addresses",
                "addresses::rfc6052_s3_1_errors_from_non_global_addresses",
                "siit::rfc_6052_strict_well_known_prefix_refuses_private_addresses",
            ],
            "With `--strict-wkp` alone. A CLAT leaves it to the PLAT: networks do serve private \
             addresses by 64:ff9b::/96, native IPv6 reaches them, and RFC 8215 came late.",
        ),
        R(
            "§3.1",
            "SHOULD NOT",
            "make IPv4-translatable addresses of the well-known prefix",
            &[],
            "The CLAT's own address is in the uplink's /64. What a SIIT is given as a prefix is up \
             to who gives it.",
        ),
        R(
            "§3.3",
            "MUST",
            "construct addresses as §2.2 says",
            &["addresses::rfc6052_s2_4_text_representation"],
            "",
        ),
    ],
};

pub(super) const RFC7757: Document = Document {
    number: 7757,
    title: "Explicit Address Mappings for Stateless IP/ICMP Translation",
    note: "A CLAT's own pair of addresses is such a mapping (appendix A.1).",
    requirements: &[
        R(
            "§3.2",
            "MUST",
            "take 32 and 128 bits where no length is given",
            &["addresses::rfc7757_s3_mappings"],
            "",
        ),
        R(
            "§3.2",
            "MUST",
            "have no more suffix bits in IPv4 than in IPv6",
            &["addresses::mappings_that_are_none"],
            "",
        ),
        R(
            "§3.2",
            "MUST",
            "translate each address by itself, those in ICMP errors too, unless §4 says otherwise",
            &[
                "addresses::rfc7757_s3_mappings",
                "addresses::a_neutral_clat_that_sends_to_itself",
                "siit::rfc_7757_the_longest_match_wins_and_before_the_prefix",
            ],
            "So a packet from and to the same IPv4 address has the same IPv6 address twice.",
        ),
        R(
            "§3.3",
            "MUST",
            "come to the outcome of the steps given",
            &["addresses::rfc7757_s3_mappings", "addresses::rfc7757_s3_3_longest_match_first"],
            "",
        ),
        R(
            "§3.3.1, §3.3.2",
            "MUST",
            "go on with RFC 7915 where no mapping matches",
            &["addresses::rfc7757_s3_3_longest_match_first"],
            "",
        ),
        R(
            "§4.2",
            "SHOULD",
            "support hairpinning, by default",
            &[
                "addresses::rfc7757_s4_2_2_hairpin",
                "siit::rfc_7757_4_two_mapped_nodes_reach_each_other",
            ],
            "A CLAT does not: it has no nodes behind it.",
        ),
        R(
            "§4.2.1",
            "MUST NOT",
            "use a mapping for the source of what comes back",
            &["addresses::rfc7757_s4_2_2_hairpin"],
            "",
        ),
        R(
            "§4.2.1",
            "MUST NOT",
            "use one for the inner destination of an error that comes back, nor for its source, \
             where they are the same",
            &["addresses::rfc7757_s4_2_1_hairpinned_errors"],
            "",
        ),
        R(
            "§4.2.2",
            "MUST",
            "translate back at once what meets the conditions, by the rules of §4.2.1",
            &[
                "addresses::rfc7757_s4_2_2_hairpin",
                "addresses::rfc7757_s4_2_2_what_cannot_come_back",
            ],
            "",
        ),
        R(
            "§4.2.2",
            "SHOULD NOT",
            "count the hop twice",
            &["addresses::rfc7757_s4_2_2_hairpin"],
            "",
        ),
        R(
            "§5",
            "MAY",
            "refuse mappings whose prefixes are identical",
            &[
                "addresses::rfc7757_s5_contradictions",
                "files::usage_errors_exit_with_2_and_touch_nothing",
            ],
            "",
        ),
    ],
};

pub(super) const RFC6791: Document = Document {
    number: 6791,
    title: "Stateless Source Address Mapping for ICMPv6 Packets",
    note: "For routers that have no IPv4 form.",
    requirements: &[
        R(
            "§3.1",
            "SHOULD NOT",
            "have the source address get the packet discarded, nor take a private one",
            &["rfc7915::s5_3_routers_without_an_ipv4_form"],
            "192.0.0.8, the IPv4 dummy address (RFC 7600 §4.8), which no network routes; \
             `--router4` takes others. On its way to a CLAT's host it crosses no network.",
        ),
        R(
            "§4",
            "SHOULD",
            "have an ICMP extension tell the IPv6 address",
            &["rfc7915::s5_3_routers_without_an_ipv4_form"],
            "The Node Identification Object, which \
             draft-ietf-v6ops-icmpext-xlat-v6only-source asks for, in place of RFC 5837's, which \
             tells interfaces of the router that sends it.",
        ),
        R(
            "§5",
            "RECOMMENDED",
            "choose an address of the pool at random",
            &[
                "addresses::rfc6791_s5_pool",
                "siit::rfc_6791_a_pool_for_routers_without_an_ipv4_form",
            ],
            "By a hash of the router's address: two routers most likely differ, which is what \
             chance is for, and each is the same in every line of a traceroute.",
        ),
    ],
};
