// SPDX-License-Identifier: Apache-2.0

//! Translated packets that will be sent together. Consecutive UDP datagrams of one flow and one
//! size become one UDP_SEGMENT packet, which costs the kernel as much as a single datagram.

use std::ops::Range;

use clat_packet::checksum::Sum;
use clat_tun::{GsoType, VirtioHeader};

use crate::batch::CAPACITY;
use crate::partial_checksum::{be16, IPV4_HEADER, IPV6_HEADER, UDP, UDP_HEADER};

/// Largest IP packet to build: what the kernel normally takes (GSO_LEGACY_MAX_SIZE), less room for
/// a link header.
const LARGEST: usize = 65_000;

/// One packet, in one piece of memory or several.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its virtio header.
    pub vnet: VirtioHeader,
    /// Its pieces, by index.
    pub pieces: Range<usize>,
    /// Number of packets that it becomes on the wire.
    pub count: usize,
    /// Length in bytes, from the IP header on.
    len: usize,
    /// Whether a datagram may be appended, and if so whether the checksums are known to be right.
    follow: Follow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follow {
    Nothing,
    Datagram { sound: bool },
}

/// What is known of a packet that is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing may be appended. It becomes this many packets on the wire.
    Closed(usize),
    /// A UDP datagram with a partial checksum, which is right by definition.
    PartialDatagram,
    /// A packet with a complete checksum; maybe a UDP datagram.
    Complete,
}

/// Packets in the order in which to send them.
#[derive(Debug)]
pub struct Coalescer {
    messages: Vec<Message>,
    /// Range in the memory of all slots of each piece.
    pieces: Vec<Range<usize>>,
    /// Number of messages sent.
    sent: usize,
}

impl Default for Coalescer {
    fn default() -> Self {
        let (messages, pieces) = (Vec::with_capacity(CAPACITY), Vec::with_capacity(CAPACITY));
        Self { messages, pieces, sent: 0 }
    }
}

impl Coalescer {
    /// Adds the packet at `at` in `memory`, as another segment of the last message if it continues
    /// that and the output takes UDP_SEGMENT (`uso`).
    pub fn push(
        &mut self,
        memory: &mut [u8],
        at: Range<usize>,
        vnet: VirtioHeader,
        kind: Kind,
        uso: bool,
    ) {
        let follow = match kind {
            Kind::PartialDatagram if uso => Follow::Datagram { sound: true },
            Kind::Complete if uso && is_datagram(&memory[at.clone()]) => {
                Follow::Datagram { sound: false }
            }
            _ => Follow::Nothing,
        };
        if self.append(memory, &at, follow) {
            return;
        }
        let count = if let Kind::Closed(count) = kind { count } else { 1 };
        let first = self.pieces.len();
        let len = at.len();
        self.pieces.push(at);
        let pieces = first..self.pieces.len();
        self.messages.push(Message { vnet, pieces, count, len, follow });
    }

    /// Appends a datagram to the last message, as another segment.
    fn append(&mut self, memory: &mut [u8], at: &Range<usize>, follow: Follow) -> bool {
        let (Some(last), Follow::Datagram { sound }) = (self.messages.last_mut(), follow) else {
            return false;
        };
        let Follow::Datagram { sound: last_sound } = last.follow else { return false };
        let Some(first) = self.pieces.get(last.pieces.start).cloned() else { return false };
        let Some(size) = follows(&memory[first.clone()], &memory[at.clone()]) else { return false };
        let headers = at.len() - size;
        if last.len + size > LARGEST
            // The kernel computes the checksums of segments; a wrong one must not become right.
            || !(last_sound || is_sound(&memory[first.clone()]))
            || !(sound || is_sound(&memory[at.clone()]))
        {
            return false;
        }
        self.pieces.push(at.start + headers..at.end);
        last.pieces.end += 1;
        last.count += 1;
        last.len += size;
        let full = first.len() - headers;
        last.follow = if size == full { Follow::Datagram { sound: true } } else { Follow::Nothing };
        if let Some(vnet) = lengthen(&mut memory[first], last.len, full) {
            last.vnet = vnet;
        }
        true
    }

    /// Messages that have not been sent.
    #[must_use]
    pub fn waiting(&self) -> &[Message] {
        &self.messages[self.sent..]
    }

    /// The pieces of a message, as ranges of the memory of all slots.
    #[must_use]
    pub fn pieces(&self, message: &Message) -> &[Range<usize>] {
        &self.pieces[message.pieces.clone()]
    }

    /// Notes that the first `count` waiting messages have been sent or lost.
    pub fn remove(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.messages.len() {
            self.messages.clear();
            self.pieces.clear();
            self.sent = 0;
        }
    }
}

fn ip_header(packet: &[u8]) -> Option<(usize, u8)> {
    match packet.first()? >> 4 {
        4 if packet[0] == 0x45 => Some((IPV4_HEADER, *packet.get(9)?)),
        6 => Some((IPV6_HEADER, *packet.get(6)?)),
        _ => None,
    }
}

/// Whether this is an unfragmented UDP datagram with a checksum, without options or extension
/// headers.
fn is_datagram(packet: &[u8]) -> bool {
    let Some((header, UDP)) = ip_header(packet) else { return false };
    let Some(udp) = packet.get(header..) else { return false };
    let fragment =
        header == IPV4_HEADER && be16(packet, 6).map_or(true, |flags| flags & 0x3fff != 0);
    !fragment && be16(udp, 4) == Some(udp.len()) && be16(udp, 6).is_some_and(|sum| sum != 0)
}

fn is_sound(datagram: &[u8]) -> bool {
    ip_header(datagram).is_some_and(|(header, protocol)| {
        let udp = &datagram[header..];
        (Sum::pseudo_header(datagram, protocol, udp.len()) + Sum::of(udp)).is_right()
    })
}

/// The length of the payload of `next`, a datagram, if it may become another segment of `first`.
/// The two may differ only in what the kernel computes for each segment: lengths, checksums, IPv4's
/// identification.
fn follows(first: &[u8], next: &[u8]) -> Option<usize> {
    let (header, _) = ip_header(next)?;
    let headers = header + UDP_HEADER;
    let (a, b) = (first.get(..headers)?, next.get(..headers)?);
    let same = match header {
        IPV4_HEADER => a[..2] == b[..2] && a[6..10] == b[6..10] && a[12..24] == b[12..24],
        _ => a[..4] == b[..4] && a[6..44] == b[6..44],
    };
    let size = next.len() - headers;
    (same && size > 0 && next.len() <= first.len()).then_some(size)
}

/// Changes the headers at the start of `first` for a packet of `len` bytes with `size` bytes of
/// payload in each segment.
fn lengthen(first: &mut [u8], len: usize, size: usize) -> Option<VirtioHeader> {
    let (header, protocol) = ip_header(first)?;
    let total = u16::try_from(len).ok()?;
    let udp = total.checked_sub(u16::try_from(header).ok()?)?;
    if header == IPV4_HEADER {
        first[2..4].copy_from_slice(&total.to_be_bytes());
        first[10..12].fill(0);
        let field = Sum::of(&first[..header]).field();
        first[10..12].copy_from_slice(&field);
    } else {
        first[4..6].copy_from_slice(&udp.to_be_bytes());
    }
    let field = Sum::pseudo_header(first, protocol, udp.into()).partial_field();
    first[header + 4..header + 6].copy_from_slice(&udp.to_be_bytes());
    first[header + 6..header + 8].copy_from_slice(&field);
    Some(VirtioHeader {
        needs_csum: true,
        data_valid: false,
        gso_type: GsoType::UdpL4,
        gso_ecn: false,
        hdr_len: u16::try_from(header + UDP_HEADER).ok()?,
        gso_size: u16::try_from(size).ok()?,
        csum_start: u16::try_from(header).ok()?,
        csum_offset: 6,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::STRIDE;
    use crate::partial_checksum::complete;
    use crate::segment::Segments;
    use proptest::prelude::*;

    /// A datagram with its checksum.
    fn datagram(v6: bool, port: u8, payload: &[u8]) -> Vec<u8> {
        let (header, len) = (if v6 { 40 } else { 20 }, 8 + payload.len());
        let mut packet = vec![0x11; header];
        packet[..2].copy_from_slice(&[if v6 { 0x60 } else { 0x45 }, 0]);
        let length = u16::try_from(if v6 { len } else { header + len }).unwrap().to_be_bytes();
        if v6 {
            packet[4..6].copy_from_slice(&length);
            packet[6] = UDP;
        } else {
            packet[2..4].copy_from_slice(&length);
            packet[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
            packet[9..12].copy_from_slice(&[UDP, 0, 0]);
            let sum = Sum::of(&packet).field();
            packet[10..12].copy_from_slice(&sum);
        }
        packet.extend([0, port, 0, 9]);
        packet.extend(u16::try_from(len).unwrap().to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload);
        let sum =
            (Sum::pseudo_header(&packet, UDP, len) + Sum::of(&packet[header..])).nonzero_field();
        packet[header + 6..header + 8].copy_from_slice(&sum);
        packet
    }

    /// Coalesces packets and returns the virtio header and bytes of each message.
    fn through(packets: &[(Vec<u8>, Kind)], uso: bool) -> Vec<(VirtioHeader, Vec<u8>)> {
        let mut memory = vec![0; packets.len().max(1) * STRIDE];
        let mut coalescer = Coalescer::default();
        for (slot, (packet, kind)) in packets.iter().enumerate() {
            let at = slot * STRIDE + 100..slot * STRIDE + 100 + packet.len();
            memory[at.clone()].copy_from_slice(packet);
            coalescer.push(&mut memory, at, VirtioHeader::default(), *kind, uso);
        }
        let messages = coalescer.waiting().iter();
        let out = messages.map(|message| {
            let pieces = coalescer.pieces(message).iter().flat_map(|piece| &memory[piece.clone()]);
            (message.vnet, pieces.copied().collect::<Vec<u8>>())
        });
        let out: Vec<_> = out.collect();
        let count: usize = coalescer.waiting().iter().map(|message| message.count).sum();
        assert_eq!(count, packets.len());
        coalescer.remove(out.len());
        assert!(coalescer.waiting().is_empty());
        out
    }

    /// The packets that arrive after segmentation.
    fn cut(vnet: &VirtioHeader, mut packet: Vec<u8>) -> Vec<Vec<u8>> {
        if vnet.gso_type == GsoType::None {
            assert!(!vnet.needs_csum || complete(&mut packet, vnet));
            return vec![packet];
        }
        let mut segments = Segments::new(&packet, vnet).unwrap();
        let mut out = vec![0; 2000];
        std::iter::from_fn(|| segments.next(&mut out).map(|len| out[..len].to_vec())).collect()
    }

    fn blank_identification(mut packet: Vec<u8>) -> Vec<u8> {
        if packet.first() == Some(&0x45) && packet.len() >= 12 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        packet
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            v6: bool,
            packets in proptest::collection::vec(
                (0u8..2, 0usize..4, any::<bool>(), any::<u8>()),
                0..32,
            ),
            uso: bool,
        ) {
            let packets: Vec<_> = packets
                .into_iter()
                .map(|(port, size, wrong, fill)| {
                    let mut packet = datagram(v6, port, &vec![fill; size * 5]);
                    let kind = if wrong { Kind::Closed(1) } else { Kind::Complete };
                    // A wrong checksum must stay wrong in any position.
                    if wrong {
                        packet[if v6 { 47 } else { 27 }] ^= 0x10;
                    }
                    (packet, if fill % 2 == 0 { kind } else { Kind::Complete })
                })
                .collect();
            let out = through(&packets, uso);
            prop_assert!(uso || out.len() == packets.len());
            let out = out.into_iter().flat_map(|(vnet, packet)| cut(&vnet, packet));
            let expected = packets.into_iter().map(|(packet, _)| blank_identification(packet));
            prop_assert!(out.map(blank_identification).eq(expected));
        }

        #[test]
        fn hostile_input(
            packets in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 1..60), 0usize..4), 0..32,
            ),
        ) {
            let packets: Vec<_> = packets
                .into_iter()
                .map(|(mut packet, kind)| {
                    packet[0] = [0x45, 0x60, packet[0], 0x45][kind];
                    if let Some(protocol) = packet.get_mut(9) {
                        *protocol = UDP;
                    }
                    (packet, Kind::Complete)
                })
                .collect();
            through(&packets, true);
        }
    }

    #[test]
    fn segments_end_with_the_first_shorter_one() {
        let packets: Vec<_> = [30, 30, 20, 20, 30, 0, 0]
            .map(|size| (datagram(true, 1, &vec![7; size]), Kind::Complete))
            .into();
        let out = through(&packets, true);
        let seen: Vec<_> = out.iter().map(|(vnet, packet)| (vnet.gso_size, packet.len())).collect();
        // 20 bytes may be the last segment behind 30; 30 may not follow 20.
        assert_eq!(seen, [(30, 48 + 80), (0, 68), (0, 78), (0, 48), (0, 48)]);
    }

    #[test]
    fn no_packet_becomes_longer_than_may_be() {
        let packets: Vec<_> =
            (0..32).map(|_| (datagram(true, 1, &[7; 3000]), Kind::Complete)).collect();
        let out = through(&packets, true);
        assert_eq!(out.len(), 2);
        assert!(out.iter().all(|(_, packet)| packet.len() <= LARGEST));
    }
}
