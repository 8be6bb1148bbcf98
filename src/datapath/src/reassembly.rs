//! Reassembles the fragments that cannot be translated one by one: those of ICMP messages, whose checksum covers
//! the whole, and those with an extension header behind the Fragment Header.
//!
//! What comes out is an atomic fragment, a whole datagram that keeps its identification, so that the translator can
//! carry it on; with more extension headers it comes out without. Memory and time are bounded; a timer is not needed, since the old goes when something new comes.

use std::time::{Duration, Instant};

use crate::checksum::{add, finish};

/// How long to wait for the rest: RFC 8200 §4.5 and RFC 1122 §3.3.2 both say 60 s.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Datagrams at once, and bytes that all of them may take; the oldest goes when there are more.
const MAX_DATAGRAMS: usize = 64;
const MAX_BYTES: usize = 1 << 20;
/// The part of either that one source may take.
const SHARE: usize = 4;
/// What a fragment costs beside its bytes.
const OVERHEAD: usize = 64;

const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Which fragments belong together (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    source: [u8; 16],
    destination: [u8; 16],
    id: u32,
    /// The protocol of IPv4; IPv6 does not compare it.
    protocol: Option<u8>,
}

/// A fragment, taken apart.
struct Fragment<'p> {
    key: Key,
    /// Everything in front of the payload, with the Fragment Header.
    header: &'p [u8],
    payload: &'p [u8],
    offset: usize,
    more: bool,
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    since: Instant,
    /// The header of the first fragment, once that is here.
    header: Option<Box<[u8]>>,
    /// By offset, never overlapping.
    pieces: Vec<(usize, Box<[u8]>)>,
    /// Length of the payload, once the last fragment is here.
    total: Option<usize>,
    /// What it takes of the memory.
    bytes: usize,
    /// Fragments overlapped: what is still to come is dropped as well (RFC 5722 §4).
    poisoned: bool,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept until the others arrive.
    Kept,
    /// It was the last that lacked: the whole datagram stands at the start of the buffer, with this many bytes.
    Whole(usize),
    /// It was dropped: not a sound fragment, or one that overlaps another.
    Dropped,
}

/// Datagrams of which some fragments are here.
#[derive(Debug, Default)]
pub struct Reassembly {
    /// In the order of arrival.
    datagrams: Vec<Datagram>,
    abandoned: u64,
}

impl Reassembly {
    /// Takes one fragment, IPv4 or IPv6. A datagram that it completes is written to `out`.
    pub fn offer(&mut self, packet: &[u8], now: Instant, out: &mut [u8]) -> Outcome {
        self.expire(now);
        let parsed = match packet.first().map(|b| b >> 4) {
            Some(4) => parse_v4(packet),
            Some(6) => parse_v6(packet),
            _ => None,
        };
        let Some(fragment) = parsed else { return Outcome::Dropped };
        let key = fragment.key;
        let index = self.datagrams.iter().position(|d| d.key == key).unwrap_or_else(|| {
            self.datagrams.push(Datagram {
                key,
                since: now,
                header: None,
                pieces: Vec::new(),
                total: None,
                bytes: OVERHEAD,
                poisoned: false,
            });
            self.datagrams.len() - 1
        });
        let datagram = &mut self.datagrams[index];
        let held = datagram.pieces.len() as u64;
        if !datagram.insert(&fragment) {
            self.abandoned += held;
            return Outcome::Dropped;
        }
        if datagram.is_whole() {
            let datagram = self.datagrams.remove(index);
            return match datagram.write(out) {
                Some(len) => Outcome::Whole(len),
                None => {
                    self.abandoned += datagram.pieces.len() as u64;
                    Outcome::Dropped
                }
            };
        }
        self.make_room(&key.source);
        Outcome::Kept
    }

    /// How many fragments had been kept and then were given up, because the rest did not come in time, overlapped or
    /// found no room.
    #[must_use]
    pub fn abandoned(&self) -> u64 {
        self.abandoned
    }

    /// The bytes that are held.
    fn bytes(&self) -> usize {
        self.datagrams.iter().map(|d| d.bytes).sum()
    }

    fn expire(&mut self, now: Instant) {
        while self.datagrams.first().is_some_and(|d| now.duration_since(d.since) >= TIMEOUT) {
            self.give_up(0);
        }
    }

    fn make_room(&mut self, source: &[u8; 16]) {
        loop {
            let own = self.datagrams.iter().filter(|d| d.key.source == *source);
            let (count, bytes) = own.fold((0, 0), |(n, sum), d| (n + 1, sum + d.bytes));
            let victim = if count > MAX_DATAGRAMS / SHARE || bytes > MAX_BYTES / SHARE {
                self.datagrams.iter().position(|d| d.key.source == *source)
            } else if self.datagrams.len() > MAX_DATAGRAMS || self.bytes() > MAX_BYTES {
                Some(0)
            } else {
                None
            };
            match victim {
                Some(index) => self.give_up(index),
                None => return,
            }
        }
    }

    fn give_up(&mut self, index: usize) {
        self.abandoned += self.datagrams.remove(index).pieces.len() as u64;
    }
}

impl Datagram {
    /// Adds a fragment; false when it was dropped.
    fn insert(&mut self, fragment: &Fragment<'_>) -> bool {
        if self.poisoned {
            return false;
        }
        let (start, end) = (fragment.offset, fragment.offset + fragment.payload.len());
        let index = self.pieces.partition_point(|(offset, _)| *offset < start);
        // RFC 8200 §4.5 lets an exact duplicate pass for what it is: the network's doing, not an attack.
        if self
            .pieces
            .get(index)
            .is_some_and(|(at, data)| *at == start && **data == *fragment.payload)
        {
            return true;
        }
        let overlaps = self.pieces.get(index).is_some_and(|(next, _)| *next < end)
            || index > 0 && self.pieces[index - 1].0 + self.pieces[index - 1].1.len() > start
            || self.total.is_some_and(|total| end > total || !fragment.more && end != total)
            || !fragment.more && self.pieces.last().is_some_and(|(at, data)| at + data.len() > end);
        if overlaps {
            // RFC 5722 §4: the whole datagram goes, and what is still to come of it. IPv4 gets the same (RFC 1858).
            self.poisoned = true;
            self.pieces.clear();
            self.header = None;
            self.bytes = OVERHEAD;
            return false;
        }
        if !fragment.more {
            self.total = Some(end);
        }
        if start == 0 {
            self.header = Some(fragment.header.into());
            self.bytes += fragment.header.len();
        }
        self.bytes += fragment.payload.len() + OVERHEAD;
        self.pieces.insert(index, (start, fragment.payload.into()));
        true
    }

    fn is_whole(&self) -> bool {
        // Nothing overlaps or goes beyond the end, so the lengths alone tell.
        self.header.is_some()
            && self.total == Some(self.pieces.iter().map(|(_, data)| data.len()).sum())
    }

    /// Writes the datagram as an atomic fragment, or without a Fragment Header where that has to go; `None` when it is longer than an IP packet can be.
    fn write(&self, out: &mut [u8]) -> Option<usize> {
        let header = self.header.as_ref()?;
        let len = header.len() + self.total?;
        let v4 = header[0] >> 4 == 4;
        let length = u16::try_from(if v4 { len } else { len - 40 }).ok()?.to_be_bytes();
        let out = out.get_mut(..len)?;
        let (head, mut rest) = out.split_at_mut(header.len());
        head.copy_from_slice(header);
        for (_, data) in &self.pieces {
            let (to, behind) = rest.split_at_mut(data.len());
            to.copy_from_slice(data);
            rest = behind;
        }
        if v4 {
            head[2..4].copy_from_slice(&length);
            // Neither offset nor MF; DF was clear on what has been fragmented.
            head[6..8].fill(0);
            head[10..12].fill(0);
            let sum = finish(add(0, head));
            head[10..12].copy_from_slice(&sum);
        } else {
            head[4..6].copy_from_slice(&length);
            let (next, at) = find_fragment_header(head)?;
            if is_extension(head[at]) {
                // No translator takes more headers behind a Fragment Header (RFC 7915 §5.1.1): it becomes as many
                // bytes of padding, PadN.
                head[next] = DESTINATION_OPTIONS;
                head[at + 1..at + 8].copy_from_slice(&[0, 1, 4, 0, 0, 0, 0]);
            } else {
                // What it says of the place goes, the identification stays.
                head[at + 2..at + 4].fill(0);
            }
        }
        Some(len)
    }
}

/// RFC 791 §3.2.
fn parse_v4(packet: &[u8]) -> Option<Fragment<'_>> {
    let header = usize::from(packet[0] & 0xf) * 4;
    let total = usize::from(word(packet, 2)?);
    if header < 20 || total < header || total > packet.len() {
        return None;
    }
    let place = word(packet, 6)?;
    let mut key = Key {
        source: [0; 16],
        destination: [0; 16],
        id: word(packet, 4)?.into(),
        protocol: Some(packet[9]),
    };
    key.source[..4].copy_from_slice(&packet[12..16]);
    key.destination[..4].copy_from_slice(&packet[16..20]);
    let offset = usize::from(place & 0x1fff) * 8;
    fragment(key, &packet[..header], &packet[header..total], offset, place & 0x2000 != 0)
}

/// RFC 8200 §4.5.
fn parse_v6(packet: &[u8]) -> Option<Fragment<'_>> {
    let end = 40 + usize::from(word(packet, 4)?);
    let packet = packet.get(..end)?;
    let (_, at) = find_fragment_header(packet)?;
    let place = word(packet, at + 2)?;
    let id = packet.get(at + 4..at + 8)?;
    let mut key = Key {
        source: [0; 16],
        destination: [0; 16],
        id: u32::from_be_bytes([id[0], id[1], id[2], id[3]]),
        protocol: None,
    };
    key.source.copy_from_slice(&packet[8..24]);
    key.destination.copy_from_slice(&packet[24..40]);
    let (header, payload) = packet.split_at(at + 8);
    fragment(key, header, payload, usize::from(place & 0xfff8), place & 1 != 0)
}

/// Where the number 44 stands that announces the Fragment Header, and where that is.
fn find_fragment_header(packet: &[u8]) -> Option<(usize, usize)> {
    let (mut next, mut at) = (6, 40);
    while is_extension(*packet.get(next)?) {
        next = at;
        at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
    }
    (packet[next] == FRAGMENT).then_some((next, at))
}

/// Hop-by-hop options, a routing header, destination options.
fn is_extension(header: u8) -> bool {
    matches!(header, 0 | 43 | DESTINATION_OPTIONS)
}

/// A sound fragment: of a datagram that an IP packet can hold, and whole units of 8 bytes unless it is the last.
fn fragment<'p>(
    key: Key,
    header: &'p [u8],
    payload: &'p [u8],
    offset: usize,
    more: bool,
) -> Option<Fragment<'p>> {
    let sound = !payload.is_empty()
        && (!more || payload.len() % 8 == 0)
        && offset + payload.len() <= usize::from(u16::MAX);
    sound.then_some(Fragment { key, header, payload, offset, more })
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::fold;
    use proptest::prelude::*;

    const NEVER: &[u8] = &[];

    /// A fragment of an ICMP message.
    fn piece(version: u8, source: u8, id: u16, offset: usize, data: &[u8], more: bool) -> Vec<u8> {
        let place = u16::try_from(offset).unwrap();
        let mut packet;
        if version == 4 {
            packet = vec![0x45, 0xb9, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[6..8]
                .copy_from_slice(&((place / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
            packet.extend([192, 0, 2, source, 192, 0, 0, 4]);
            packet.extend(data);
            let len = u16::try_from(packet.len()).unwrap();
            packet[2..4].copy_from_slice(&len.to_be_bytes());
        } else {
            packet = vec![0x60, 0, 0, 0, 0, 0, 44, 64];
            packet.extend([0x20; 15]);
            packet.push(source);
            packet.extend([0x21; 16]);
            packet.extend([58, 0]);
            packet.extend((place | u16::from(more)).to_be_bytes());
            packet.extend([0xaa, 0xbb]);
            packet.extend(id.to_be_bytes());
            packet.extend(data);
            let len = u16::try_from(packet.len() - 40).unwrap();
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        }
        packet
    }

    /// Offers pieces one by one; what the last gave.
    fn offer(to: &mut Reassembly, now: Instant, packet: &[u8]) -> Result<Vec<u8>, Outcome> {
        let mut out = vec![0; 70_000];
        match to.offer(packet, now, &mut out) {
            Outcome::Whole(len) => Ok(out[..len].to_vec()),
            other => Err(other),
        }
    }

    proptest! {
        #[test]
        fn any_order_gives_the_datagram(
            version in prop_oneof![Just(4u8), Just(6u8)],
            data in proptest::collection::vec(any::<u8>(), 17..5000),
            unit in 1usize..60,
            order in proptest::collection::vec(any::<prop::sample::Index>(), 0..50),
            duplicate: bool,
        ) {
            let now = Instant::now();
            let size = unit * 8 + 8;
            prop_assume!(data.len() > size);
            let count = data.len().div_ceil(size);
            let mut pieces: Vec<_> = data
                .chunks(size)
                .enumerate()
                .map(|(i, chunk)| piece(version, 1, 7, i * size, chunk, i + 1 < count))
                .collect();
            for (i, index) in order.iter().enumerate() {
                pieces.swap(i % count, index.index(count));
            }
            let mut reassembly = Reassembly::default();
            let (last, first) = pieces.split_last().unwrap();
            for packet in first {
                prop_assert_eq!(offer(&mut reassembly, now, packet), Err(Outcome::Kept));
                if duplicate {
                    prop_assert_eq!(offer(&mut reassembly, now, packet), Err(Outcome::Kept));
                }
            }
            let whole = offer(&mut reassembly, now, last).unwrap();
            let header = if version == 4 { 20 } else { 48 };
            prop_assert_eq!(&whole[header..], &data[..]);
            if version == 4 {
                prop_assert_eq!(usize::from(word(&whole, 2).unwrap()), whole.len());
                prop_assert_eq!(&whole[4..8], &[0, 7, 0, 0]);
                prop_assert_eq!(fold(add(0, &whole[..20])), 0xffff);
            } else {
                prop_assert_eq!(usize::from(word(&whole, 4).unwrap()) + 40, whole.len());
                prop_assert_eq!(&whole[40..48], &[58, 0, 0, 0, 0xaa, 0xbb, 0, 7]);
            }
            prop_assert!(reassembly.datagrams.is_empty());
            prop_assert_eq!(reassembly.abandoned(), 0);
        }

        #[test]
        fn hostile_input_stays_bounded(
            packets in proptest::collection::vec(
                (
                    prop_oneof![Just(4u8), Just(6u8)], 0u8..8, 0u16..20, 0usize..8191,
                    1usize..200, any::<bool>(), 0usize..300, 0u64..40,
                ),
                1..400,
            )
        ) {
            let mut now = Instant::now();
            let mut reassembly = Reassembly::default();
            for (version, source, id, unit, len, more, cut, seconds) in packets {
                now += Duration::from_secs(seconds / 10);
                let packet = piece(version, source, id, unit * 8, &vec![0; len * 8], more);
                let _ = offer(&mut reassembly, now, &packet);
                let _ = offer(&mut reassembly, now, &packet[..packet.len().saturating_sub(cut)]);
                prop_assert!(reassembly.bytes() <= MAX_BYTES);
                prop_assert!(reassembly.datagrams.len() <= MAX_DATAGRAMS);
            }
        }

        #[test]
        fn noise(bytes in proptest::collection::vec(any::<u8>(), 0..100), first in 0x40u8..0x70) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let _ = offer(&mut Reassembly::default(), Instant::now(), &bytes);
        }
    }

    #[test]
    fn rfc_5722_overlaps_discard_the_datagram() {
        for version in [4, 6] {
            for (offset, len, more) in [(8, 8, true), (0, 24, true), (16, 16, true), (16, 8, false)]
            {
                let (now, mut reassembly) = (Instant::now(), Reassembly::default());
                let mut give = |offset, len, more| {
                    offer(&mut reassembly, now, &piece(version, 1, 1, offset, &vec![9; len], more))
                };
                assert_eq!(give(0, 16, true), Err(Outcome::Kept));
                assert_eq!(give(24, 8, true), Err(Outcome::Kept));
                assert_eq!(
                    give(offset, len, more),
                    Err(Outcome::Dropped),
                    "{version} {offset} {len}"
                );
                // What would complete it comes too late.
                assert_eq!(give(16, 8, true), Err(Outcome::Dropped));
                assert_eq!(give(32, 8, false), Err(Outcome::Dropped));
                assert_eq!(reassembly.abandoned(), 2);
            }
        }
    }

    #[test]
    fn a_changed_duplicate_is_an_overlap() {
        let (now, mut reassembly) = (Instant::now(), Reassembly::default());
        assert_eq!(
            offer(&mut reassembly, now, &piece(6, 1, 1, 0, &[1; 8], true)),
            Err(Outcome::Kept)
        );
        let changed = piece(6, 1, 1, 0, &[2; 8], true);
        assert_eq!(offer(&mut reassembly, now, &changed), Err(Outcome::Dropped));
    }

    #[test]
    fn rfc_8200_60_seconds() {
        let (start, mut reassembly) = (Instant::now(), Reassembly::default());
        let (first, last) = (piece(6, 1, 1, 0, &[1; 8], true), piece(6, 1, 1, 8, &[1; 8], false));
        assert_eq!(offer(&mut reassembly, start, &first), Err(Outcome::Kept));
        assert_eq!(offer(&mut reassembly, start + TIMEOUT, &last), Err(Outcome::Kept));
        assert_eq!(reassembly.abandoned(), 1);
        let in_time = start + TIMEOUT * 2 - Duration::from_millis(1);
        assert!(offer(&mut reassembly, in_time, &first).is_ok());
    }

    #[test]
    fn the_oldest_goes_and_one_source_has_its_share() {
        let (now, mut reassembly) = (Instant::now(), Reassembly::default());
        let mut open = |source, id| {
            let _ = offer(&mut reassembly, now, &piece(6, source, id, 0, &[1; 8], true));
        };
        open(1, 1);
        for id in 0..100 {
            open(2, id);
        }
        let of = |r: &Reassembly, source| {
            let mine = r.datagrams.iter().filter(|d| d.key.source[15] == source);
            mine.map(|d| d.key.id & 0xffff).collect::<Vec<_>>()
        };
        assert_eq!(of(&reassembly, 1), [1], "another source's datagram stays");
        assert_eq!(of(&reassembly, 2), (84..100).collect::<Vec<_>>());
        let big = [0; 60_000];
        for source in 10..80 {
            let _ = offer(&mut reassembly, now, &piece(6, source, 1, 0, &big, true));
        }
        assert_eq!(of(&reassembly, 1), [0u32; 0]);
        assert!(reassembly.bytes() <= MAX_BYTES && reassembly.datagrams.len() > 10);
    }

    #[test]
    fn unsound_fragments() {
        let mut reassembly = Reassembly::default();
        let now = Instant::now();
        for packet in [
            piece(4, 1, 1, 8, &[1; 7], true),
            piece(6, 1, 1, 8, &[1; 7], true),
            piece(6, 1, 1, 65_528, &[1; 16], false),
            piece(6, 1, 1, 8, NEVER, false),
        ] {
            assert_eq!(offer(&mut reassembly, now, &packet), Err(Outcome::Dropped));
        }
        assert!(reassembly.datagrams.is_empty());
    }
}
