// SPDX-License-Identifier: Apache-2.0

//! Result of a translation (forward, reply or drop) and its reason.

use core::mem;
use core::ops::Range;

use clat_packet::{ipv4, ipv6, Fragment, Malformed};

/// Declares an enum of reasons, each with a stable name, an explanation and the document that
/// requires it.
macro_rules! causes {
    ($(#[$meta:meta])* $name:ident {
        $($variant:ident $id:literal $what:literal $rfc:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[doc = concat!($what, " (", $rfc, ").")] $variant,)*
        }

        impl $name {
            /// Every variant, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Stable name for counters and JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $id,)* }
            }

            /// What happened, as a phrase.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what,)* }
            }

            /// The document and section that requires it.
            #[must_use]
            pub const fn rfc(self) -> &'static str {
                match self { $(Self::$variant => $rfc,)* }
            }
        }
    };
}

causes! {
    /// Why a packet was not translated.
    ///
    /// Those that RFCs want answered lead to [`Verdict::Reply`], if an error may be sent at all.
    Reason {
        NotIp "not-ip" "neither IPv4 nor IPv6" "RFC 791 §3.1, RFC 8200 §3",
        Truncated "truncated" "shorter than its headers say" "RFC 1812 §5.2.2",
        BadHeader "bad-header" "impossible header length" "RFC 1812 §5.2.2",
        BadHeaderChecksum "bad-header-checksum" "wrong IPv4 header checksum" "RFC 1812 §5.2.2",
        BadExtension "bad-extension" "extension headers that do not parse" "RFC 8200 §4",
        BadFragment "bad-fragment" "fragment that cannot be part of a packet"
            "RFC 791 §3.2, RFC 8200 §4.5",
        BadLength "bad-length" "transport length beyond the packet" "RFC 768",
        IllegalSource "illegal-source" "source address that no packet may have"
            "RFC 7915 §4.1, §5.1",
        IllegalDestination "illegal-destination" "destination that is never forwarded"
            "RFC 1812 §5.3.7, RFC 3927 §2.7",
        Multicast "multicast" "multicast is not translated" "RFC 7915 §1.2",
        ForeignSource "foreign-source" "source is not the CLAT's address" "RFC 6877 §6.3",
        SourceUnmapped "source-unmapped" "source has no address in the other family"
            "RFC 7915 §5.1",
        DestinationUnmapped "destination-unmapped" "destination has no address in the other family"
            "RFC 7915 §4.6, §5.6",
        NonGlobalInWellKnownPrefix "non-global-in-wkp" "non-global IPv4 address in 64:ff9b::/96"
            "RFC 6052 §3.1",
        AuthenticationHeader "authentication-header"
            "AH covers the addresses and cannot be translated"
            "RFC 7915 §5.1.1, §4.4",
        NoCounterpart "no-counterpart" "protocol means something else in the other family"
            "RFC 7915 §4.1, §4.4",
        GroupManagement "group-management" "IGMP and MLD stay on their link" "RFC 7915 §4.2, §5.2",
        SourceRoute "source-route" "unexpired source route" "RFC 7915 §4.1",
        SegmentsLeft "segments-left" "routing header with segments left" "RFC 7915 §5.1",
        FragmentedIcmp "fragmented-icmp"
            "fragment of an ICMP message, whose checksum covers the whole"
            "RFC 7915 §1.2",
        ExtensionBehindFragment "extension-behind-fragment"
            "extension header behind a Fragment Header"
            "RFC 7915 §5.1.1",
        UdpZeroChecksum "udp-zero-checksum" "UDP without a checksum" "RFC 7915 §4.5",
        UdpZeroChecksumFragment "udp-zero-checksum-fragment"
            "first fragment of UDP without a checksum"
            "RFC 7915 §4.5",
        IcmpType "icmp-type" "ICMP type or code without a counterpart" "RFC 7915 §4.2, §5.2",
        IcmpPointer "icmp-pointer" "parameter problem at a field without a counterpart"
            "RFC 7915 §4.2, §5.2",
        MtuBelowMinimum "mtu-below-minimum" "Packet Too Big with an MTU below IPv6's least"
            "RFC 8201 §4",
        NestedError "nested-error" "ICMP error about an ICMP error" "RFC 7915 §4.3, §5.3",
        QuotedPacket "quoted-packet" "ICMP error whose quoted packet does not parse"
            "RFC 7915 §4.3, §5.3",
        QuotedAddress "quoted-address" "ICMP error whose quoted packet is not ours"
            "RFC 7915 §4.3, §5.3",
        HopLimit "hop-limit" "hop limit or TTL ran out here" "RFC 7915 §4.1, §5.1",
        TooBigForIpv6 "too-big-for-ipv6" "DF is set and the IPv6 link is too small" "RFC 7915 §4.1",
        TooBigForIpv4 "too-big-for-ipv4" "the IPv4 link is too small" "RFC 7915 §5, §5.1",
    }
}

impl From<Malformed> for Reason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::NotIp => Self::NotIp,
            Malformed::Truncated => Self::Truncated,
            Malformed::BadHeader => Self::BadHeader,
            Malformed::BadHeaderChecksum => Self::BadHeaderChecksum,
            Malformed::BadExtension => Self::BadExtension,
            Malformed::BadFragment => Self::BadFragment,
        }
    }
}

causes! {
    /// How a forwarded packet was translated.
    Rule {
        To6 "to6" "header translated" "RFC 7915 §4.1",
        To6Fragment "to6-fragment" "fragment translated, with Fragment Header" "RFC 7915 §4.1",
        To6Split "to6-split" "DF clear and larger than lowest-ipv6-mtu: fragmented" "RFC 7915 §4.1",
        To6UdpZero "to6-udp-zero" "UDP checksum computed" "RFC 7915 §4.5",
        To6Echo "to6-echo" "ICMP echo translated" "RFC 7915 §4.2",
        To6Error "to6-error" "ICMP error and the packet in it translated" "RFC 7915 §4.2, §4.3",
        To4 "to4" "header translated" "RFC 7915 §5.1",
        To4Fragment "to4-fragment" "fragment translated" "RFC 7915 §5.1.1",
        To4Split "to4-split" "DF clear and larger than the IPv4 link: fragmented" "RFC 791 §3.2",
        To4Echo "to4-echo" "ICMPv6 echo translated" "RFC 7915 §5.2",
        To4Error "to4-error" "ICMPv6 error and the packet in it translated" "RFC 7915 §5.2, §5.3",
        To4ErrorUnmapped "to4-error-unmapped" "ICMPv6 error from a router without an IPv4 form"
            "RFC 7915 §5.1, draft-ietf-v6ops-icmpext-xlat-v6only-source §3",
        Hairpin "hairpin" "between two explicit mappings: translated to IPv4 and back"
            "RFC 7757 §4.2.2",
    }
}

/// What to do with a packet.
#[derive(Debug)]
pub enum Verdict<'p> {
    /// Send it on: in the other family, or after [`Rule::Hairpin`] as IPv6.
    Forward {
        /// The rule that applied.
        rule: Rule,
        /// One packet, or its fragments.
        frames: Frames<'p>,
    },
    /// Do not forward it; send its sender an ICMP error of its own family.
    Reply {
        /// What was wrong.
        reason: Reason,
        /// The ICMP error, from its IP header on.
        error: &'p [u8],
    },
    /// Do not forward it. The buffer still holds the original packet.
    Drop(Reason),
}

/// The translated packet or its fragments, in the order in which to send them.
///
/// The payload of fragments is not copied: asking for the next one moves the header over bytes that
/// were handed out before.
#[derive(Debug)]
pub struct Frames<'p> {
    /// The packet, from its header on; of one that is fragmented, from the fragment handed out last
    /// on.
    rest: &'p mut [u8],
    /// Offset of `rest` in the buffer.
    start: usize,
    split: Option<Split>,
}

/// One translated packet.
#[derive(Debug)]
pub struct Frame<'p> {
    /// The packet, from its IP header on. The payload may be modified; a fragment's header is
    /// needed for the next fragment.
    pub bytes: &'p mut [u8],
    /// Its range in the buffer that the [`Packet`](crate::Packet) was made of.
    pub range: Range<usize>,
}

/// How to fragment a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    /// Length of the header, which every fragment gets.
    header: u8,
    /// Whether the first fragment has been handed out.
    started: bool,
    /// Most bytes of payload in a fragment, a multiple of 8.
    chunk: u16,
    /// Offset of the next fragment, in units of 8 bytes.
    offset: u16,
    /// Whether the packet is itself a fragment that others follow.
    more: bool,
}

impl Split {
    /// Fragments a packet with a header of `header` bytes into packets of at most `mtu` bytes.
    pub(crate) fn new(header: usize, mtu: usize, fragment: Option<Fragment>) -> Self {
        let (offset, more) = fragment.map_or((0, false), |f| (f.offset, f.more));
        let chunk = u16::try_from((mtu - header) / 8 * 8).unwrap_or(0xfff8);
        #[allow(clippy::cast_possible_truncation)] // 20 or 48
        let header = header as u8;
        Self { header, started: false, chunk, offset, more }
    }
}

impl<'p> Frames<'p> {
    #[inline(always)]
    pub(crate) fn new(buf: &'p mut [u8], packet: Range<usize>, split: Option<Split>) -> Self {
        Self { start: packet.start, rest: &mut buf[packet], split }
    }

    /// The next packet, or `None` behind the last.
    #[allow(clippy::should_implement_trait)] // lends from itself, which Iterator cannot
    #[inline]
    pub fn next(&mut self) -> Option<Frame<'_>> {
        if self.split.is_some() {
            return self.next_fragment();
        }
        let bytes = mem::take(&mut self.rest);
        let range = self.start..self.start + bytes.len();
        (!bytes.is_empty()).then_some(Frame { bytes, range })
    }

    #[cold]
    #[inline(never)]
    fn next_fragment(&mut self) -> Option<Frame<'_>> {
        let Split { header, started, chunk, offset, more } = self.split.as_mut()?;
        let (header, size) = (usize::from(*header), usize::from(*chunk));
        if mem::replace(started, true) {
            // The last fragment has been handed out.
            if self.rest.len() <= header + size {
                return None;
            }
            // Copies the header in front of the next piece, over payload that was handed out.
            self.rest.copy_within(..header, size);
            self.rest = mem::take(&mut self.rest).get_mut(size..)?;
            self.start += size;
        }
        let len = self.rest.len().min(header + size);
        let more = *more || len < self.rest.len();
        let bytes = self.rest.get_mut(..len)?;
        if header == ipv4::HEADER {
            ipv4::mark(bytes, *offset, more);
        } else {
            ipv6::mark(bytes, *offset, more);
        }
        // Within 13 bits: no packet is longer than 65,535 bytes.
        *offset += *chunk / 8;
        Some(Frame { bytes, range: self.start..self.start + len })
    }
}

/// Counters of packets and of reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// IPv4 packets translated to IPv6.
    pub packets46: u64,
    /// Their bytes, as IPv4.
    pub bytes46: u64,
    /// IPv6 packets translated to IPv4, including those sent back as IPv6.
    pub packets64: u64,
    /// Their bytes, as IPv6.
    pub bytes64: u64,
    drops: [u64; Reason::ALL.len()],
    replies: [u64; Reason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        let none = [0; Reason::ALL.len()];
        Self { packets46: 0, bytes46: 0, packets64: 0, bytes64: 0, drops: none, replies: none }
    }
}

impl core::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.packets46 += other.packets46;
        self.bytes46 += other.bytes46;
        self.packets64 += other.packets64;
        self.bytes64 += other.bytes64;
        let (drops, replies) = (other.drops.iter(), other.replies.iter());
        self.drops.iter_mut().zip(drops).for_each(|(sum, n)| *sum += n);
        self.replies.iter_mut().zip(replies).for_each(|(sum, n)| *sum += n);
    }
}

impl Counters {
    /// Packets dropped silently for `reason`.
    #[must_use]
    pub const fn drops(&self, reason: Reason) -> u64 {
        self.drops[reason as usize]
    }

    /// Packets answered with an ICMP error for `reason`.
    #[must_use]
    pub const fn replies(&self, reason: Reason) -> u64 {
        self.replies[reason as usize]
    }

    pub(crate) fn count_drop(&mut self, reason: Reason) {
        self.drops[reason as usize] += 1;
    }

    pub(crate) fn count_reply(&mut self, reason: Reason) {
        self.replies[reason as usize] += 1;
    }
}
