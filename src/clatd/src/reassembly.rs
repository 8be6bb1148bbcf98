//! Reassembles the fragments that cannot be translated one by one: those of ICMP messages, whose checksum covers
//! the whole, and those with an extension header behind the Fragment Header.
//!
//! What comes out is an atomic fragment: a whole datagram that keeps its identification, so that the translator can
//! carry it on. Memory and time are bounded; a timer is not needed, since the old goes when something new comes.

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

    /// Writes the datagram as an atomic fragment; `None` when it is longer than an IP packet can be.
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
            // The Fragment Header is the last 8 bytes; what it says of the place goes, the identification stays.
            let at = header.len() - 6;
            head[at..at + 2].fill(0);
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
    let (mut next, mut at) = (packet[6], 40);
    // Hop-by-hop and destination options and a routing header may stand in front.
    while matches!(next, 0 | 43 | 60) {
        next = *packet.get(at)?;
        at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
    }
    if next != 44 {
        return None;
    }
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
