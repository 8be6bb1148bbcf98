// SPDX-License-Identifier: Apache-2.0

//! RFC 4884, as far as it bears on who rewrites messages.

use super::{Document, Requirement as R};

pub(super) const DOCUMENT: Document = Document {
    number: 4884,
    title: "Extended ICMP to Support Multi-Part Messages",
    note: "What it asks of traceroute is traceroute's.",
    requirements: &[
        R(
            "§3, §4",
            "MUST",
            "quote at least 128 bytes in front of extensions, padded with zeros",
            &[
                "rfc7915::s4_2_extensions_make_room_or_go",
                "rfc7915::s5_3_routers_without_an_ipv4_form",
            ],
            "",
        ),
        R(
            "§3, §4",
            "MUST",
            "pad the quote to 32 bits in ICMPv4, to 64 bits in ICMPv6",
            &[
                "rfc7915::s4_2_extensions_are_kept_and_padded_anew",
                "rfc7915::s5_2_extensions_are_kept_and_padded_anew",
            ],
            "",
        ),
        R(
            "§4",
            "MUST",
            "give the length attribute where there are extensions",
            &[
                "rfc7915::s4_2_extensions_are_kept_and_padded_anew",
                "rfc7915::s5_2_extensions_are_kept_and_padded_anew",
            ],
            "",
        ),
        R(
            "§4.6",
            "MUST NOT",
            "append extensions to other messages, such as Packet Too Big",
            &["rfc7915::rfc4884_s4_6_messages_without_extensions"],
            "",
        ),
        R(
            "§5.4, §5.5",
            "MUST",
            "take a length of zero to mean that there are none",
            &["rfc7915::rfc4884_s5_5_what_is_no_length"],
            "And any below 128 bytes, unless an extension structure with the right checksum stands \
             there: routers that do not know this RFC leave junk in the byte.",
        ),
        R(
            "§7",
            "MUST NOT",
            "let the message exceed the minimum reassembly buffer",
            &[
                "rfc7915::s4_3_errors_stay_within_1280_bytes",
                "rfc7915::s4_2_extensions_that_are_too_long_are_truncated",
                "rfc7915::s5_2_extensions_that_are_too_long_are_truncated",
            ],
            "576 bytes of ICMPv4 (RFC 1812 §4.3.2.3), 1280 of ICMPv6 (RFC 4443 §2.4 (c)).",
        ),
    ],
};
