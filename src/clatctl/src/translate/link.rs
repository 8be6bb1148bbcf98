// SPDX-License-Identifier: Apache-2.0

//! What stands in front of an IP packet in a capture, and what has to change there.

use anyhow::bail;

use super::report::Skip;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

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

    /// The family of a packet that the translator made.
    fn of(ip: &[u8]) -> Self {
        if ip.first().is_some_and(|byte| byte >> 4 == 6) {
            Self::V6
        } else {
            Self::V4
        }
    }
}

/// The link types that are understood (numbers of <https://www.tcpdump.org/linktypes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// LINKTYPE_ETHERNET, with or without VLAN tags.
    Ethernet,
    /// IP packets with nothing in front: LINKTYPE_RAW (101), or a number that some systems write
    /// for it (12, 14).
    Raw(u32),
    /// LINKTYPE_IPV4 and LINKTYPE_IPV6: raw packets of the one family.
    Only(Family),
}

impl Link {
    /// The link of that number.
    pub(super) fn new(number: u32) -> anyhow::Result<Self> {
        Ok(match number {
            1 => Self::Ethernet,
            12 | 14 | 101 => Self::Raw(number),
            228 => Self::Only(Family::V4),
            229 => Self::Only(Family::V6),
            _ => bail!(
                "link type {number} is not supported; capture raw IP (101) or Ethernet (1), on one interface rather than \"any\""
            ),
        })
    }

    /// The link type of what comes out: both families must fit.
    pub(super) const fn output_type(self) -> u32 {
        match self {
            Self::Ethernet => 1,
            Self::Raw(number) => number,
            Self::Only(_) => 101,
        }
    }

    /// How many bytes stand in front of the IP packet, and the family that they announce.
    pub(super) fn split(self, frame: &[u8]) -> Result<(usize, Option<Family>), Skip> {
        match self {
            Self::Raw(_) => Ok((0, None)),
            Self::Only(family) => Ok((0, Some(family))),
            Self::Ethernet => {
                let mut at = 12;
                loop {
                    let bytes = frame.get(at..at + 2).ok_or(Skip::ShortFrame)?;
                    match u16::from_be_bytes([bytes[0], bytes[1]]) {
                        ETHERTYPE_IPV4 => return Ok((at + 2, Some(Family::V4))),
                        ETHERTYPE_IPV6 => return Ok((at + 2, Some(Family::V6))),
                        // VLAN tags: IEEE 802.1Q, 802.1ad, and the number used before that.
                        0x8100 | 0x88a8 | 0x9100 => at += 4,
                        other => return Err(Skip::NotIp(other)),
                    }
                }
            }
        }
    }

    /// The frame that carries a translated packet on: the same header with the other EtherType.
    pub(super) fn forward(self, header: &[u8], ip: &[u8]) -> Vec<u8> {
        let mut frame = [header, ip].concat();
        // Only Ethernet has a header, and it ends with the EtherType.
        if let Some(at) = header.len().checked_sub(2) {
            frame[at..at + 2].copy_from_slice(&Family::of(ip).ethertype().to_be_bytes());
        }
        frame
    }

    /// The frame that carries an ICMP error back to the sender.
    pub(super) fn reply(self, header: &[u8], ip: &[u8]) -> Vec<u8> {
        let mut frame = self.forward(header, ip);
        if header.len() >= 12 {
            frame[..12].rotate_left(6);
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: [u8; 12] = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2];

    #[test]
    fn ethernet_keeps_its_header_but_the_ethertype() {
        let header = [&MACS[..], &[0x81, 0, 0, 7, 0x08, 0]].concat();
        let frame = [&header[..], &[0x45, 0]].concat();
        assert_eq!(Link::Ethernet.split(&frame), Ok((18, Some(Family::V4))));
        let out = Link::Ethernet.forward(&header, &[0x60, 9]);
        assert_eq!(out, [&MACS[..], &[0x81, 0, 0, 7, 0x86, 0xdd, 0x60, 9]].concat());
    }

    #[test]
    fn a_reply_goes_back_where_the_packet_came_from() {
        let header = [&MACS[..], &[0x86, 0xdd]].concat();
        let out = Link::Ethernet.reply(&header, &[0x60]);
        assert_eq!(out, [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0x86, 0xdd, 0x60]);
        assert_eq!(Link::Raw(101).reply(&[], &[0x60]), [0x60]);
    }

    #[test]
    fn frames_without_ip_are_told_apart() {
        let arp = [&MACS[..], &[0x08, 0x06]].concat();
        assert_eq!(Link::Ethernet.split(&arp), Err(Skip::NotIp(0x0806)));
        for len in 0..14 {
            assert_eq!(Link::Ethernet.split(&arp[..len]), Err(Skip::ShortFrame), "{len}");
        }
        // A tag, and nothing behind it.
        assert_eq!(
            Link::Ethernet.split(&[&MACS[..], &[0x81, 0, 0, 7, 8]].concat()),
            Err(Skip::ShortFrame)
        );
    }

    #[test]
    fn raw_in_one_family_comes_out_as_raw_in_both() {
        assert_eq!(Link::new(228).unwrap().output_type(), 101);
        assert_eq!(Link::new(12).unwrap().output_type(), 12);
        assert!(Link::new(113).unwrap_err().to_string().contains("link type 113"));
    }
}
