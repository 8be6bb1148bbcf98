// SPDX-License-Identifier: Apache-2.0

//! Link headers in a capture, and how they change with translation.

use anyhow::bail;

use super::report::Skip;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// AF_INET, the same on every system.
const AF_INET: u32 = 2;
/// AF_INET6 of NetBSD and OpenBSD, of FreeBSD, of macOS, and of Linux.
const AF_INET6: [u32; 4] = [24, 28, 30, 10];

/// IP versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    const fn ethertype(self) -> u16 {
        match self {
            Self::V4 => ETHERTYPE_IPV4,
            Self::V6 => ETHERTYPE_IPV6,
        }
    }

    /// The family of a translated packet.
    fn of(ip: &[u8]) -> Self {
        if ip.first().is_some_and(|byte| byte >> 4 == 6) {
            Self::V6
        } else {
            Self::V4
        }
    }
}

/// The supported link types (numbers of <https://www.tcpdump.org/linktypes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// LINKTYPE_ETHERNET, with or without VLAN tags.
    Ethernet,
    /// LINKTYPE_LINUX_SLL: Linux's cooked header for any interface.
    Cooked,
    /// LINKTYPE_LINUX_SLL2: the same, with the interface's index.
    Cooked2,
    /// LINKTYPE_NULL: an address family, in the byte order of the capturing host.
    Null,
    /// LINKTYPE_LOOP: an address family, in network byte order.
    Loop,
    /// IP packets without link header: LINKTYPE_RAW (101), or a number that some systems use for it
    /// (12, 14).
    Raw(u32),
    /// LINKTYPE_IPV4 and LINKTYPE_IPV6: raw packets of one family.
    Only(Family),
}

/// A link header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Its length.
    pub(super) len: usize,
    /// The family in its type field.
    pub(super) family: Option<Family>,
    /// Offset of that field: an EtherType, or an address family.
    type_at: usize,
}

impl Link {
    /// The link type of that number.
    pub(super) fn new(number: u32) -> anyhow::Result<Self> {
        Ok(match number {
            0 => Self::Null,
            1 => Self::Ethernet,
            12 | 14 | 101 => Self::Raw(number),
            108 => Self::Loop,
            113 => Self::Cooked,
            228 => Self::Only(Family::V4),
            229 => Self::Only(Family::V6),
            276 => Self::Cooked2,
            _ => bail!(
                "link type {number} is not supported; capture on an Ethernet or raw IP interface, \
                 or on \"any\""
            ),
        })
    }

    /// The link type of the output, which must fit both families.
    pub(super) const fn output_type(self) -> u32 {
        match self {
            Self::Null => 0,
            Self::Ethernet => 1,
            Self::Loop => 108,
            Self::Cooked => 113,
            Self::Raw(number) => number,
            Self::Only(_) => 101,
            Self::Cooked2 => 276,
        }
    }

    /// Parses the link header.
    pub(super) fn split(self, frame: &[u8]) -> Result<Header, Skip> {
        match self {
            Self::Raw(_) => Ok(Header { len: 0, family: None, type_at: 0 }),
            Self::Only(family) => Ok(Header { len: 0, family: Some(family), type_at: 0 }),
            Self::Ethernet => ethertype(frame, 12, 14),
            Self::Cooked => ethertype(frame, 14, 16),
            Self::Cooked2 => ethertype(frame, 0, 20),
            Self::Null | Self::Loop => {
                let (number, _) = self.address_family(frame).ok_or(Skip::ShortFrame)?;
                let family = match number {
                    AF_INET => Family::V4,
                    number if AF_INET6.contains(&number) => Family::V6,
                    other => return Err(Skip::OtherFamily(other)),
                };
                Ok(Header { len: 4, family: Some(family), type_at: 0 })
            }
        }
    }

    /// The number at the start of a frame, and whether it is little-endian. All families are below
    /// 256, which shows the byte order.
    fn address_family(self, frame: &[u8]) -> Option<(u32, bool)> {
        let bytes = *frame.first_chunk()?;
        let little = self == Self::Null && bytes[..2] != [0, 0];
        let number = if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
        Some((number, little))
    }

    /// The frame for a translated packet: the same header with the type of the other family.
    /// `frame` is the original one.
    pub(super) fn forward(self, frame: &[u8], header: Header, ip: &[u8]) -> Vec<u8> {
        let mut out = [&frame[..header.len], ip].concat();
        let family = Family::of(ip);
        match self {
            Self::Raw(_) | Self::Only(_) => {}
            Self::Ethernet | Self::Cooked | Self::Cooked2 => {
                out[header.type_at..][..2].copy_from_slice(&family.ethertype().to_be_bytes());
            }
            Self::Null | Self::Loop => {
                let little = self.address_family(frame).is_some_and(|(_, little)| little);
                let number = match (family, self) {
                    (Family::V4, _) => AF_INET,
                    // OpenBSD's loopback uses LINKTYPE_LOOP, macOS's LINKTYPE_NULL.
                    (Family::V6, Self::Loop) => AF_INET6[0],
                    (Family::V6, _) => AF_INET6[2],
                };
                let bytes = if little { number.to_le_bytes() } else { number.to_be_bytes() };
                out[..4].copy_from_slice(&bytes);
            }
        }
        out
    }

    /// The frame for an ICMP error to the sender.
    pub(super) fn reply(self, frame: &[u8], header: Header, ip: &[u8]) -> Vec<u8> {
        let mut out = self.forward(frame, header, ip);
        match self {
            Self::Ethernet => out[..12].rotate_left(6),
            Self::Cooked => {
                out[1] = opposite(out[1]);
                out[4..14].fill(0);
            }
            Self::Cooked2 => {
                out[10] = opposite(out[10]);
                out[11..20].fill(0);
            }
            Self::Null | Self::Loop | Self::Raw(_) | Self::Only(_) => {}
        }
        out
    }

    /// Whether an ICMP error may be sent about this frame: not if it was a link-layer broadcast or
    /// multicast (RFC 1812 §4.3.2.7, RFC 4443 §2.4 (e.4), (e.5)).
    pub(super) fn may_answer(self, frame: &[u8]) -> bool {
        match self {
            // The group bit of the destination.
            Self::Ethernet => frame[0] & 1 == 0,
            Self::Cooked => !is_for_many(frame[1]),
            Self::Cooked2 => !is_for_many(frame[10]),
            Self::Null | Self::Loop | Self::Raw(_) | Self::Only(_) => true,
        }
    }
}

// Packet types of cooked headers (packet(7)): for this host, broadcast, multicast, or sent by this
// host.
const PACKET_HOST: u8 = 0;
const PACKET_BROADCAST: u8 = 1;
const PACKET_MULTICAST: u8 = 2;
const PACKET_OUTGOING: u8 = 4;

const fn is_for_many(packet_type: u8) -> bool {
    matches!(packet_type, PACKET_BROADCAST | PACKET_MULTICAST)
}

/// The packet type of an answer: outgoing to incoming, and the reverse. The link-layer address in a
/// cooked header is the sender's, so that of the answering side is unknown.
const fn opposite(packet_type: u8) -> u8 {
    if packet_type == PACKET_OUTGOING {
        PACKET_HOST
    } else {
        PACKET_OUTGOING
    }
}

/// Reads a header of `len` bytes with an EtherType at `type_at`, and the VLAN tags behind it.
fn ethertype(frame: &[u8], mut type_at: usize, mut len: usize) -> Result<Header, Skip> {
    loop {
        let bytes = frame.get(..len).ok_or(Skip::ShortFrame)?;
        let family = match u16::from_be_bytes([bytes[type_at], bytes[type_at + 1]]) {
            ETHERTYPE_IPV4 => Family::V4,
            ETHERTYPE_IPV6 => Family::V6,
            // VLAN tags: IEEE 802.1Q, 802.1ad, and the number used before that.
            0x8100 | 0x88a8 | 0x9100 => {
                (type_at, len) = (len + 2, len + 4);
                continue;
            }
            other => return Err(Skip::NotIp(other)),
        };
        return Ok(Header { len, family: Some(family), type_at });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: [u8; 12] = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2];

    fn forward(link: Link, frame: &[u8], ip: &[u8]) -> Vec<u8> {
        link.forward(frame, link.split(frame).unwrap(), ip)
    }

    fn reply(link: Link, frame: &[u8], ip: &[u8]) -> Vec<u8> {
        link.reply(frame, link.split(frame).unwrap(), ip)
    }

    #[test]
    fn ethernet_keeps_its_header_but_the_ethertype() {
        let frame = [&MACS[..], &[0x81, 0, 0, 7, 0x08, 0], &[0x45, 0]].concat();
        let header = Link::Ethernet.split(&frame).unwrap();
        assert_eq!((header.len, header.family), (18, Some(Family::V4)));
        let out = forward(Link::Ethernet, &frame, &[0x60, 9]);
        assert_eq!(out, [&MACS[..], &[0x81, 0, 0, 7, 0x86, 0xdd, 0x60, 9]].concat());
    }

    #[test]
    fn a_reply_goes_back_where_the_packet_came_from() {
        let frame = [&MACS[..], &[0x86, 0xdd]].concat();
        let out = reply(Link::Ethernet, &frame, &[0x60]);
        assert_eq!(out, [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0x86, 0xdd, 0x60]);
        assert_eq!(reply(Link::Raw(101), &[], &[0x60]), [0x60]);
    }

    /// The layouts of <https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL.html> and SLL2.
    #[test]
    fn cooked_headers() {
        let v1 = [0, 0, 0, 1, 0, 6, 2, 2, 2, 2, 2, 2, 0, 0, 0x08, 0, 0x45];
        assert_eq!(forward(Link::Cooked, &v1, &[0x60])[14..], [0x86, 0xdd, 0x60]);
        assert_eq!(forward(Link::Cooked, &v1, &[0x60])[..14], v1[..14]);
        let back = reply(Link::Cooked, &v1, &[0x45]);
        assert_eq!(back, [0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0, 0x45]);
        let v2 = [0x86, 0xdd, 0, 0, 0, 0, 0, 7, 0, 1, 4, 6, 2, 2, 2, 2, 2, 2, 0, 0, 0x60];
        assert_eq!(forward(Link::Cooked2, &v2, &[0x45])[..2], [0x08, 0]);
        assert_eq!(forward(Link::Cooked2, &v2, &[0x45])[2..20], v2[2..20]);
        let back = reply(Link::Cooked2, &v2, &[0x60]);
        assert_eq!(back, [&v2[..10], &[0; 10], &[0x60]].concat());
        // With a VLAN tag behind either.
        let tag = [0, 7, 0x08, 0];
        let tagged = [&v1[..14], &[0x81, 0], &tag, &[0x45]].concat();
        assert_eq!(
            forward(Link::Cooked, &tagged, &[0x60])[14..],
            [0x81, 0, 0, 7, 0x86, 0xdd, 0x60]
        );
        let tagged = [&[0x81, 0], &v2[2..20], &tag, &[0x45]].concat();
        assert_eq!(forward(Link::Cooked2, &tagged, &[0x60])[20..], [0, 7, 0x86, 0xdd, 0x60]);
        for (link, whole) in [(Link::Cooked, &v1[..16]), (Link::Cooked2, &v2[..20])] {
            for len in 0..whole.len() {
                assert_eq!(link.split(&whole[..len]), Err(Skip::ShortFrame), "{len}");
            }
        }
    }

    #[test]
    fn loopback_headers() {
        for (frame, out) in [([2, 0, 0, 0], [30, 0, 0, 0]), ([0, 0, 0, 2], [0, 0, 0, 30])] {
            assert_eq!(forward(Link::Null, &frame, &[0x60])[..4], out);
        }
        for number in [24, 28, 30, 10] {
            assert_eq!(forward(Link::Null, &[number, 0, 0, 0], &[0x45])[..4], [2, 0, 0, 0]);
            assert_eq!(reply(Link::Loop, &[0, 0, 0, number], &[0x45]), [0, 0, 0, 2, 0x45]);
        }
        assert_eq!(forward(Link::Loop, &[0, 0, 0, 2], &[0x60]), [0, 0, 0, 24, 0x60]);
        assert_eq!(Link::Null.split(&[7, 0, 0, 0]), Err(Skip::OtherFamily(7)));
        assert_eq!(Link::Loop.split(&[2, 0, 0, 0]), Err(Skip::OtherFamily(0x0200_0000)));
        assert_eq!(Link::Null.split(&[2, 0, 0]), Err(Skip::ShortFrame));
    }

    #[test]
    fn rfc1812_s4_3_2_7_no_errors_about_broadcasts_of_the_link() {
        let ethernet = |first| [&[first; 6][..], &[2; 6], &[0x08, 0]].concat();
        let cooked = |kind| [&[0, kind][..], &[0; 14]].concat();
        let cooked2 = |kind| [&[0; 10][..], &[kind], &[0; 9]].concat();
        for (link, frame, may) in [
            (Link::Ethernet, ethernet(2), true),
            (Link::Ethernet, ethernet(0xff), false),
            (Link::Ethernet, ethernet(0x33), false),
            (Link::Cooked, cooked(0), true),
            (Link::Cooked, cooked(1), false),
            (Link::Cooked, cooked(2), false),
            (Link::Cooked, cooked(4), true),
            (Link::Cooked2, cooked2(0), true),
            (Link::Cooked2, cooked2(1), false),
            (Link::Cooked2, cooked2(2), false),
            (Link::Null, vec![2, 0, 0, 0], true),
            (Link::Raw(101), vec![], true),
        ] {
            assert_eq!(link.may_answer(&frame), may, "{link:?} {frame:?}");
        }
    }

    #[test]
    fn frames_without_ip_are_told_apart() {
        let arp = [&MACS[..], &[0x08, 0x06]].concat();
        assert_eq!(Link::Ethernet.split(&arp), Err(Skip::NotIp(0x0806)));
        for len in 0..14 {
            assert_eq!(Link::Ethernet.split(&arp[..len]), Err(Skip::ShortFrame), "{len}");
        }
        // A tag with nothing behind it.
        assert_eq!(
            Link::Ethernet.split(&[&MACS[..], &[0x81, 0, 0, 7, 8]].concat()),
            Err(Skip::ShortFrame)
        );
    }

    #[test]
    fn raw_in_one_family_comes_out_as_raw_in_both() {
        assert_eq!(Link::new(228).unwrap().output_type(), 101);
        assert_eq!(Link::new(12).unwrap().output_type(), 12);
        for number in [0, 1, 14, 101, 108, 113, 276] {
            assert_eq!(Link::new(number).unwrap().output_type(), number);
        }
        assert!(Link::new(105).unwrap_err().to_string().contains("link type 105"));
    }
}
