// SPDX-License-Identifier: Apache-2.0

//! RFC 7915.

use super::{Document, Requirement as R};

pub(super) const DOCUMENT: Document = Document {
    number: 7915,
    title: "IP/ICMP Translation Algorithm",
    note: "The translator is `xlat`; `clatd`, `platd` and `clatctl translate` call it, and the \
           programs in `bpf_progs` do what it does or leave the packet alone, which the rulebook \
           test holds them to byte for byte.",
    requirements: &[
        R(
            "§1.1",
            "MUST",
            "support one or more algorithms of address mapping",
            &["addresses::rfc6052_s2_4_text_representation", "addresses::rfc7757_s3_mappings"],
            "",
        ),
        R(
            "§1.4",
            "MUST",
            "behave as a router: send Packet Too Big, or fragment what exceeds the next hop's MTU",
            &[
                "rfc7915::s4_1_too_big_with_df_is_answered",
                "rfc7915::s5_1_too_big_for_ipv4",
                "gso::limits_are_those_of_the_longest_packet",
            ],
            "",
        ),
        R(
            "§4",
            "MUST",
            "make sure that a packet without DF does not exceed the path MTU on the IPv6 side",
            &["rfc7915::s4_1_df_clear_is_whole_up_to_1260_and_split_from_1261"],
            "",
        ),
        R(
            "§4, §4.1",
            "MUST",
            "let the administrator adjust the least IPv6 MTU",
            &["rfc7915::s4_1_lowest_ipv6_mtu_is_adjustable"],
            "`clatctl translate --lowest-ipv6-mtu`. A CLAT keeps 1280: the path beyond its uplink \
             is not its own.",
        ),
        R(
            "§4",
            "MUST NOT",
            "include a Fragment Header in what is not fragmented",
            &["rfc7915::s4_1_df_clear_is_whole_up_to_1260_and_split_from_1261"],
            "",
        ),
        R(
            "§4, §5",
            "SHOULD",
            "keep the packets of a flow in order",
            &["queues::many_flows_each_in_order", "rulebook_flows::real_flows"],
            "",
        ),
        R(
            "§4.1",
            "SHOULD",
            "fragment what has no DF and would exceed lowest-ipv6-mtu",
            &[
                "rfc7915::s4_1_df_clear_is_whole_up_to_1260_and_split_from_1261",
                "rfc7915::s4_1_fragments_are_split_further",
            ],
            "",
        ),
        R(
            "§4.1",
            "MUST",
            "answer what has DF and is too big with Fragmentation Needed",
            &["rfc7915::s4_1_too_big_with_df_is_answered"],
            "",
        ),
        R(
            "§4.1",
            "SHOULD",
            "be able to ignore TOS and set the traffic class to zero",
            &["rfc7915::s4_1_s5_1_traffic_class_may_be_set"],
            "`clatctl translate --traffic-class`. A CLAT copies: both ends are the host's own.",
        ),
        R(
            "§4.1",
            "MUST",
            "copy the protocol of all but ICMP, also into a Fragment Header",
            &[
                "rfc7915::s4_5_other_protocols_pass_untouched",
                "rfc7915::s4_1_fragments_keep_their_place",
                "rfc7915::s4_4_what_cannot_be_translated_is_refused",
            ],
            "Not where the number would then mean something else: IPv6's extension headers and \
             ICMPv6 are refused with an error.",
        ),
        R(
            "§4.1",
            "MUST",
            "check a TTL for zero when counting it, and send Time Exceeded",
            &["rfc7915::s4_1_ttl_is_copied_or_counted"],
            "A CLAT on a host does not count: the kernel that forwards to it has.",
        ),
        R(
            "§4.1",
            "SHOULD",
            "silently discard illegal source addresses, but in ICMP errors",
            &[
                "rfc7915::s4_1_illegal_addresses",
                "rfc7915::s4_1_martians_go_no_further",
                "rfc7915::s4_1_icmp_errors_may_come_from_illegal_sources",
            ],
            "",
        ),
        R(
            "§4.1",
            "MUST",
            "ignore options and translate the packet",
            &["rfc7915::s4_1_options_are_skipped_unless_a_source_route_is_left"],
            "",
        ),
        R(
            "§4.1",
            "MUST, SHOULD",
            "discard an unexpired source route, and answer with Source Route Failed",
            &["rfc7915::s4_1_options_are_skipped_unless_a_source_route_is_left"],
            "",
        ),
        R(
            "§4.2",
            "MUST",
            "translate the type of an ICMPv4 message, and the IP header in an error",
            &[
                "rfc7915::s4_2_echo",
                "rfc7915::s4_2_error_types_and_codes",
                "rfc7915::s4_2_parameter_problem_pointers",
                "rfc7915::s4_3_quoted_packet_is_translated_whole",
            ],
            "",
        ),
        R(
            "§4.2",
            "SHOULD",
            "silently drop IGMP",
            &["rfc7915::s4_4_what_cannot_be_translated_is_refused"],
            "",
        ),
        R(
            "§4.2",
            "MUST, MUST NOT",
            "adjust the MTU of Fragmentation Needed by the headers, never below 1280",
            &["rfc7915::s4_2_fragmentation_needed_mtu"],
            "",
        ),
        R(
            "§4.2",
            "MUST",
            "take a plateau of RFC 1191 where the router gave no MTU",
            &["rfc7915::s4_2_fragmentation_needed_mtu"],
            "",
        ),
        R(
            "§4.2",
            "MUST",
            "adjust the length attribute of RFC 4884",
            &["rfc7915::s4_2_extensions_are_kept_and_padded_anew"],
            "",
        ),
        R(
            "§4.2",
            "SHOULD",
            "truncate extensions that are too long",
            &[
                "rfc7915::s4_2_extensions_that_are_too_long_are_truncated",
                "rfc7915::s4_2_extensions_make_room_or_go",
            ],
            "By whole objects, with their checksum: half an object, or a checksum of what is gone, \
             has a receiver throw away all of them.",
        ),
        R(
            "§4.3",
            "MUST",
            "translate the packet in error like any other, but for its TTL",
            &[
                "rfc7915::s4_3_quoted_packet_is_translated_whole",
                "rfc7915::s4_3_quote_cut_anywhere",
            ],
            "",
        ),
        R(
            "§4.3",
            "MUST",
            "update the length in the outer header",
            &["rfc7915::s4_3_errors_stay_within_1280_bytes", "properties::errors_come_out_right"],
            "",
        ),
        R(
            "§4.3",
            "MUST",
            "stop at the first embedded header, and drop what has more",
            &["rfc7915::s4_3_nested_errors_and_foreign_quotes_are_dropped"],
            "",
        ),
        R(
            "§4.4",
            "SHOULD",
            "be able to answer what is discarded, unless it is an ICMPv4 error",
            &[
                "rfc7915::s4_4_what_cannot_be_translated_is_refused",
                "rfc7915::s4_4_s5_4_unmapped_addresses_are_answered",
                "rfc7915::s4_4_fragmented_icmp_is_answered",
                "rfc7915::s4_5_udp_zero_checksum",
            ],
            "In silence go: what does not parse (RFC 1812 §5.2.2), martians (§5.3.7 there), \
             multicast (§4.3.2.7 there), what §4.2 drops silently, what RFC 6052 §3.1 has dropped, \
             and what comes from an address that is not the CLAT's: its sender may be anybody.",
        ),
        R(
            "§4.4, §5.4",
            "SHOULD",
            "let the administrator choose whether errors are sent, rate-limited or not sent",
            &[
                "siit::icmp_errors_are_sent_limited_or_not",
                "answers::limited_by_the_times_of_the_capture",
            ],
            "`clatctl translate --icmp-errors`. A CLAT limits them, to each side by itself.",
        ),
        R(
            "§4.5, §5.5",
            "MUST",
            "update the checksums of TCP, ICMP, and UDP that has one",
            &[
                "properties::round_trip_4_6_4",
                "properties::round_trip_6_4_6",
                "properties::round_trip_of_echo",
                "rfc7915::s4_5_udp_computed_zero_is_sent_as_ffff",
                "rfc7915::s4_5_wrong_checksums_stay_equally_wrong",
            ],
            "UDP-Lite's and DCCP's too.",
        ),
        R(
            "§4.5",
            "SHOULD",
            "be able to drop UDP without a checksum, or to compute one",
            &["rfc7915::s4_5_udp_zero_checksum", "siit::udp_without_a_checksum_by_choice"],
            "The event that goes with a drop is a line of `--explain`, with addresses and ports, \
             and a counter of clatd.",
        ),
        R(
            "§4.5",
            "SHOULD",
            "drop the first fragment of UDP without a checksum",
            &["rfc7915::s4_5_udp_zero_checksum"],
            "",
        ),
        R(
            "§4.5, §5.5",
            "MUST",
            "forward all transport protocols",
            &["rfc7915::s4_5_other_protocols_pass_untouched"],
            "AH apart, which covers the addresses: refused with an error.",
        ),
        R(
            "§4.6, §5.6",
            "MUST",
            "forward without translation where a more specific route leads to the destination",
            &[],
            "A matter of the kernel's routes, which choose before a packet gets here.",
        ),
        R(
            "§4.6, §5.6",
            "MUST",
            "translate what is for a host of the other family",
            &["rfc7915::s4_1_header_fields", "rfc7915::s5_1_header_fields_and_df_by_size"],
            "",
        ),
        R(
            "§5",
            "MUST",
            "evaluate the checksum before translation, and update it",
            &["rfc7915::s4_5_wrong_checksums_stay_equally_wrong"],
            "Updated incrementally (RFC 1624): a wrong one stays exactly as wrong, so that it is \
             evaluated where it was always meant to be, at the end.",
        ),
        R(
            "§5, §5.1",
            "MUST",
            "clear DF up to 1260 bytes of IPv4, else set it",
            &[
                "rfc7915::s5_1_header_fields_and_df_by_size",
                "gso::small_packets_have_no_df_however_many",
            ],
            "",
        ),
        R(
            "§5.1",
            "SHOULD",
            "be able to ignore the traffic class and set TOS to a given value",
            &["rfc7915::s4_1_s5_1_traffic_class_may_be_set"],
            "`clatctl translate --traffic-class`.",
        ),
        R(
            "§5.1",
            "MUST",
            "check a hop limit for zero when counting it, and send Time Exceeded",
            &["rfc7915::s4_1_ttl_is_copied_or_counted"],
            "",
        ),
        R(
            "§5.1",
            "SHOULD",
            "silently drop illegal source addresses",
            &["rfc7915::s5_1_martians_go_no_further"],
            "",
        ),
        R(
            "§5.1",
            "MUST",
            "ignore extension headers, but a routing header with segments left",
            &["rfc7915::s5_1_extension_headers_are_skipped"],
            "",
        ),
        R(
            "§5.1",
            "MUST NOT, SHOULD",
            "not translate segments left, and answer with the place of that field",
            &["rfc7915::s5_1_segments_left_is_answered_at_that_byte"],
            "",
        ),
        R(
            "§5.1.1",
            "SHOULD",
            "drop and log an extension header behind a Fragment Header",
            &[
                "rfc7915::s5_1_1_extension_header_behind_fragment_header",
                "rfc7915::s5_1_1_extension_header_in_an_atomic_fragment",
                "clatd::extensions_behind_a_fragment_header",
            ],
            "Of a piece: what is whole (RFC 6946) can be translated, and is, with the \
             identification that it has. clatd puts pieces together first, and then does so.",
        ),
        R(
            "§5.1.1",
            "MUST",
            "take Total Length and Fragment Offset from the packet and its Fragment Header",
            &["rfc7915::s5_1_1_fragments", "properties::round_trip_of_fragments"],
            "",
        ),
        R(
            "§5.1.1",
            "MUST",
            "fragment up to 1280 bytes of IPv6 where the IPv4 link is smaller",
            &["rfc7915::s5_1_too_big_for_ipv4"],
            "",
        ),
        R(
            "§5.2",
            "MUST",
            "update the checksum, translate the type, and the IP header in an error",
            &[
                "rfc7915::s5_2_error_types_and_codes",
                "rfc7915::s5_2_parameter_problem_pointers",
                "rfc7915::s5_3_quoted_packet_is_translated_whole",
            ],
            "",
        ),
        R(
            "§5.2",
            "MUST",
            "adjust the MTU of Packet Too Big, with regard to a Fragment Header in error",
            &[
                "rfc7915::s5_2_packet_too_big_about_a_fragment",
                "rfc7915::s5_2_packet_too_big_below_1280_is_discarded",
            ],
            "28 bytes about a fragment, where the formula of §5.2 has 20: by that a sender's next \
             packet would be 8 bytes too big again. Below 1280 it is discarded: RFC 8201 §4 has \
             the node do so for which the translator answers, no IPv6 link is that small, and no \
             translator may say so (§4.2). Believed, a forged one has a host send packets of 68 \
             bytes.",
        ),
        R(
            "§5.2",
            "MUST",
            "adjust the length attribute of RFC 4884",
            &[
                "rfc7915::s5_2_extensions_are_kept_and_padded_anew",
                "rfc7915::s5_2_extensions_that_are_too_long_are_truncated",
            ],
            "",
        ),
        R(
            "§5.3",
            "MUST",
            "translate the packet in error like any other, and update the outer length",
            &[
                "rfc7915::s5_3_quoted_packet_is_translated_whole",
                "properties::errors_come_back_right",
            ],
            "",
        ),
        R(
            "§5.3",
            "MUST",
            "stop at the first embedded header, and drop what has more",
            &["rfc7915::s5_3_nested_errors_are_dropped"],
            "",
        ),
        R(
            "§5.4",
            "SHOULD, MUST",
            "answer what is discarded with type 1, code 1, unless it is ICMPv6",
            &[
                "rfc7915::s4_4_what_cannot_be_translated_is_refused",
                "rfc7915::s4_4_s5_4_unmapped_addresses_are_answered",
                "rfc7915::s5_1_1_extension_header_behind_fragment_header",
                "rfc7915::s5_4_errors_quote_the_first_fragment",
                "rfc7915::s5_3_errors_about_errors",
            ],
            "An echo request whose hop limit ran out is answered (RFC 4443 §3.3): traceroute \
             lives on that.",
        ),
        R(
            "§6",
            "MUST",
            "support RFC 6052",
            &["addresses::rfc6052_s2_4_text_representation"],
            "",
        ),
        R("§6", "SHOULD", "support RFC 7757", &["addresses::rfc7757_s3_mappings"], ""),
        R("§6", "SHOULD", "support RFC 6791", &["addresses::rfc6791_s5_pool"], ""),
    ],
};
