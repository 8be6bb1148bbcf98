// SPDX-License-Identifier: Apache-2.0

//! Reassembles fragmented datagrams (RFC 791 §3.2, RFC 8200 §4.5).
//!
//! The result has the headers of the first fragment and the whole payload. An IPv6 datagram keeps
//! its Fragment Header, and with it the identification, as an atomic fragment (RFC 6946). A
//! [`Policy`] bounds memory and time; there is no timer, since old datagrams are given up when the
//! next fragment comes.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use crate::checksum::Sum;
use crate::{ipv4, ipv6, Fragment};

/// The limits of a [`Reassembly`].
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// How long to wait for the rest of a datagram; 60 s in RFC 8200 §4.5 and RFC 1122 §3.3.2.
    pub timeout: Duration,
    /// Most datagrams at once. Beyond that, the oldest one of the owner with most datagrams is
    /// given up.
    pub datagrams: usize,
    /// Most bytes of memory for all of them, bookkeeping included.
    pub bytes: usize,
    /// One owner may take one `share`-th of each limit: 4 is a quarter, 1 is all.
    pub share: usize,
}

/// Bytes of bookkeeping counted for each datagram and each fragment.
const OVERHEAD: usize = 64;

/// Fragments with equal keys belong together (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key<O> {
    owner: O,
    src: u128,
    dst: u128,
    id: u32,
    /// IPv4's protocol. In IPv6, Next Header is not compared: only that of the first fragment
    /// counts.
    protocol: Option<u8>,
}

/// A parsed fragment.
struct Piece<'p, O> {
    key: Key<O>,
    /// All headers in front of the payload, Fragment Header included.
    header: &'p [u8],
    payload: &'p [u8],
    offset: usize,
    more: bool,
}

#[derive(Debug)]
struct Datagram<O> {
    key: Key<O>,
    since: Instant,
    /// The header of the first fragment, once that is here.
    header: Option<Box<[u8]>>,
    /// Offset in bytes and data of each fragment, in order and never overlapping.
    pieces: Vec<(usize, Box<[u8]>)>,
    /// Bytes of payload received.
    have: usize,
    /// Length of the payload, once the last fragment is here.
    total: Option<usize>,
    /// Bytes that count towards [`Policy::bytes`].
    bytes: usize,
    /// Fragments overlapped: later ones are dropped as well (RFC 5722 §4).
    poisoned: bool,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept until the others arrive.
    Kept,
    /// It completed its datagram, which is now at the start of `out`.
    Whole {
        /// Its length.
        len: usize,
        /// Length of its first fragment with headers: what an ICMP error quotes.
        first: usize,
    },
    /// Dropped: not a valid fragment, or one that overlaps another.
    Dropped,
}

/// Incomplete datagrams. Each has an owner (a source address, a guest), who may take only a share
/// of the memory. Fragments of different owners never belong together.
#[derive(Debug)]
pub struct Reassembly<O> {
    policy: Policy,
    /// In the order of arrival.
    datagrams: Vec<Datagram<O>>,
    abandoned: u64,
}

impl<O: Copy + Eq> Reassembly<O> {
    /// An empty reassembly.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, datagrams: Vec::new(), abandoned: 0 }
    }

    /// Takes one IPv4 or IPv6 packet, from its IP header on; bytes behind it are ignored. A
    /// complete datagram is written to `out`, for which 65,575 bytes are always enough.
    pub fn offer(&mut self, owner: O, packet: &[u8], now: Instant, out: &mut [u8]) -> Outcome {
        self.expire(now);
        let Some(piece) = parse(owner, packet) else { return Outcome::Dropped };
        // A whole packet is independent of fragments with the same identification (RFC 6946 §4).
        if piece.offset == 0 && !piece.more {
            let len = piece.header.len() + piece.payload.len();
            let Some(out) = out.get_mut(..len) else { return Outcome::Dropped };
            out.copy_from_slice(&packet[..len]);
            return Outcome::Whole { len, first: len };
        }
        let index = self.datagrams.iter().position(|d| d.key == piece.key).unwrap_or_else(|| {
            self.datagrams.push(Datagram::new(piece.key, now));
            self.datagrams.len() - 1
        });
        let datagram = &mut self.datagrams[index];
        let held = datagram.pieces.len() as u64;
        if !datagram.insert(&piece) {
            self.abandoned += held;
            return Outcome::Dropped;
        }
        if datagram.is_whole() {
            let datagram = self.datagrams.remove(index);
            return match datagram.write(out) {
                Some(len) => Outcome::Whole { len, first: datagram.first_len() },
                None => {
                    self.abandoned += datagram.pieces.len() as u64;
                    Outcome::Dropped
                }
            };
        }
        self.make_room(owner);
        Outcome::Kept
    }

    /// Number of fragments that were kept and then given up: for lack of time or room, or because
    /// others overlapped.
    #[must_use]
    pub fn abandoned(&self) -> u64 {
        self.abandoned
    }

    /// Number of incomplete datagrams.
    #[must_use]
    pub fn datagrams(&self) -> usize {
        self.datagrams.len()
    }

    /// Number of fragments kept.
    #[must_use]
    pub fn fragments(&self) -> usize {
        self.datagrams.iter().map(|d| d.pieces.len()).sum()
    }

    /// Memory taken, as [`Policy::bytes`] counts it.
    fn bytes(&self) -> usize {
        self.datagrams.iter().map(|d| d.bytes).sum()
    }

    fn expire(&mut self, now: Instant) {
        let timeout = self.policy.timeout;
        while self.datagrams.first().is_some_and(|d| now.duration_since(d.since) >= timeout) {
            self.give_up(0);
        }
    }

    fn make_room(&mut self, owner: O) {
        let Policy { datagrams, bytes, share, .. } = self.policy;
        loop {
            let own = self.datagrams.iter().filter(|d| d.key.owner == owner);
            let (count, held) = own.fold((0, 0), |(n, sum), d| (n + 1, sum + d.bytes));
            let victim = if count > datagrams / share || held > bytes / share {
                self.datagrams.iter().position(|d| d.key.owner == owner)
            } else if self.datagrams.len() > datagrams || self.bytes() > bytes {
                self.oldest_of_most()
            } else {
                None
            };
            match victim {
                Some(index) => self.give_up(index),
                None => return,
            }
        }
    }

    /// The oldest datagram of the owner with most datagrams; of several such owners, the oldest of
    /// all.
    fn oldest_of_most(&self) -> Option<usize> {
        let count = |owner| self.datagrams.iter().filter(|d| d.key.owner == owner).count();
        let all = self.datagrams.iter().enumerate();
        all.max_by_key(|(index, d)| (count(d.key.owner), Reverse(*index))).map(|(index, _)| index)
    }

    fn give_up(&mut self, index: usize) {
        self.abandoned += self.datagrams.remove(index).pieces.len() as u64;
    }
}

impl<O> Datagram<O> {
    fn new(key: Key<O>, since: Instant) -> Self {
        Self {
            key,
            since,
            header: None,
            pieces: Vec::new(),
            have: 0,
            total: None,
            bytes: OVERHEAD,
            poisoned: false,
        }
    }

    /// Adds a fragment; false when it was dropped.
    fn insert(&mut self, piece: &Piece<'_, O>) -> bool {
        if self.poisoned {
            return false;
        }
        let (start, end) = (piece.offset, piece.offset + piece.payload.len());
        let index = self.pieces.partition_point(|(offset, _)| *offset < start);
        // RFC 8200 §4.5 lets a receiver ignore exact duplicates: networks make them, not only
        // attackers.
        if self.pieces.get(index).is_some_and(|(at, data)| *at == start && **data == *piece.payload)
        {
            return true;
        }
        let overlaps = self.pieces.get(index).is_some_and(|(next, _)| *next < end)
            || index > 0 && self.pieces[index - 1].0 + self.pieces[index - 1].1.len() > start
            || self.total.is_some_and(|total| end > total || !piece.more && end != total)
            || !piece.more && self.pieces.last().is_some_and(|(at, data)| at + data.len() > end);
        if overlaps {
            // RFC 5722 §4: discard the whole datagram, and what still comes of it. IPv4 is treated
            // alike (RFC 1858).
            self.poisoned = true;
            self.pieces.clear();
            self.header = None;
            self.bytes = OVERHEAD;
            return false;
        }
        if !piece.more {
            self.total = Some(end);
        }
        if start == 0 {
            self.header = Some(piece.header.into());
            self.bytes += piece.header.len();
        }
        self.have += piece.payload.len();
        self.bytes += piece.payload.len() + OVERHEAD;
        self.pieces.insert(index, (start, piece.payload.into()));
        true
    }

    fn is_whole(&self) -> bool {
        // Fragments neither overlap nor go beyond the end, so comparing lengths is enough.
        self.header.is_some() && self.total == Some(self.have)
    }

    /// The length of the first fragment, from its IP header on.
    fn first_len(&self) -> usize {
        let payload = self.pieces.first().map_or(0, |(_, piece)| piece.len());
        self.header.as_ref().map_or(0, |header| header.len()) + payload
    }

    /// Writes the datagram; `None` when it is longer than an IP packet can be.
    fn write(&self, out: &mut [u8]) -> Option<usize> {
        let header = self.header.as_ref()?;
        let len = header.len() + self.total?;
        let v4 = header.first()? >> 4 == 4;
        let length = u16::try_from(if v4 { len } else { len - ipv6::HEADER }).ok()?.to_be_bytes();
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
            // Clears offset, MF and DF.
            head[6..8].fill(0);
            head[10..12].fill(0);
            let field = Sum::of(head).field();
            head[10..12].copy_from_slice(&field);
        } else {
            // An atomic fragment keeps the identification.
            ipv6::mark(out, 0, false);
        }
        Some(len)
    }
}

/// Stands for a packet that is no fragment.
const WHOLE: Fragment = Fragment { offset: 0, more: false, id: 0 };

/// Parses a fragment; `None` if it is empty, ends beyond the longest packet, or is not a multiple
/// of 8 bytes although more follow.
fn parse<O>(owner: O, packet: &[u8]) -> Option<Piece<'_, O>> {
    let (key, fragment, header, len) = match packet.first()? >> 4 {
        4 => {
            let ip = ipv4::parse_quoted(packet).ok()?;
            let (src, dst) = (ip.src.into(), ip.dst.into());
            let fragment = ip.fragment.unwrap_or(WHOLE);
            let key = Key { owner, src, dst, id: fragment.id, protocol: Some(ip.protocol) };
            (key, fragment, ip.header_len, ip.len)
        }
        _ => {
            let ip = ipv6::parse_quoted(packet).ok()?.ip;
            let fragment = ip.fragment.unwrap_or(WHOLE);
            let key = Key { owner, src: ip.src, dst: ip.dst, id: fragment.id, protocol: None };
            (key, fragment, ip.header_len, ip.len)
        }
    };
    let (header, payload) = packet.get(..len)?.split_at_checked(header)?;
    let Fragment { offset, more, .. } = fragment;
    let sound = !payload.is_empty()
        && (!more || payload.len() % 8 == 0)
        && !fragment.overruns(payload.len());
    sound.then_some(Piece { key, header, payload, offset: usize::from(offset) * 8, more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEVER: &[u8] = &[];
    const TIMEOUT: Duration = Duration::from_secs(60);
    const MAX_DATAGRAMS: usize = 64;
    const MAX_BYTES: usize = 1 << 20;

    fn reassembly() -> Reassembly<u128> {
        Reassembly::new(Policy {
            timeout: TIMEOUT,
            datagrams: MAX_DATAGRAMS,
            bytes: MAX_BYTES,
            share: 4,
        })
    }

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

    fn word(packet: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
    }

    /// Offers a fragment, owned by its source; returns the datagram, or else the outcome.
    fn offer(to: &mut Reassembly<u128>, now: Instant, packet: &[u8]) -> Result<Vec<u8>, Outcome> {
        let mut out = vec![0; 70_000];
        let source = match packet.first().map(|b| b >> 4) {
            Some(4) => ipv4::parse_quoted(packet).map_or(0, |ip| ip.src.into()),
            _ => ipv6::parse_quoted(packet).map_or(0, |parsed| parsed.ip.src),
        };
        match to.offer(source, packet, now, &mut out) {
            Outcome::Whole { len, .. } => Ok(out[..len].to_vec()),
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
            let mut reassembly = reassembly();
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
                prop_assert_eq!(Sum::of(&whole[..20]).fold(), 0xffff);
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
            let mut reassembly = reassembly();
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
            let _ = offer(&mut reassembly(), Instant::now(), &bytes);
        }
    }

    #[test]
    fn rfc_5722_overlaps_discard_the_datagram() {
        for version in [4, 6] {
            for (offset, len, more) in [(8, 8, true), (0, 24, true), (16, 16, true), (16, 8, false)]
            {
                let (now, mut reassembly) = (Instant::now(), reassembly());
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
        let (now, mut reassembly) = (Instant::now(), reassembly());
        assert_eq!(
            offer(&mut reassembly, now, &piece(6, 1, 1, 0, &[1; 8], true)),
            Err(Outcome::Kept)
        );
        let changed = piece(6, 1, 1, 0, &[2; 8], true);
        assert_eq!(offer(&mut reassembly, now, &changed), Err(Outcome::Dropped));
    }

    #[test]
    fn rfc_8200_60_seconds() {
        let (start, mut reassembly) = (Instant::now(), reassembly());
        let (first, last) = (piece(6, 1, 1, 0, &[1; 8], true), piece(6, 1, 1, 8, &[1; 8], false));
        assert_eq!(offer(&mut reassembly, start, &first), Err(Outcome::Kept));
        assert_eq!(offer(&mut reassembly, start + TIMEOUT, &last), Err(Outcome::Kept));
        assert_eq!(reassembly.abandoned(), 1);
        let in_time = start + TIMEOUT * 2 - Duration::from_millis(1);
        assert!(offer(&mut reassembly, in_time, &first).is_ok());
    }

    #[test]
    fn the_oldest_goes_and_one_source_has_its_share() {
        let (now, mut reassembly) = (Instant::now(), reassembly());
        let mut open = |source, id| {
            let _ = offer(&mut reassembly, now, &piece(6, source, id, 0, &[1; 8], true));
        };
        open(1, 1);
        for id in 0..100 {
            open(2, id);
        }
        let of = |r: &Reassembly<u128>, source: u8| {
            let mine = r.datagrams.iter().filter(|d| d.key.src & 0xff == source.into());
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
        let mut reassembly = reassembly();
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

    /// RFC 8200 §4.5: only the Next Header field of the first fragment counts. IPv4 has its
    /// protocol in the key.
    #[test]
    fn rfc_8200_only_the_first_next_header_counts() {
        for order in [[0, 1], [1, 0]] {
            let mut pieces = [piece(6, 1, 7, 0, &[1; 8], true), piece(6, 1, 7, 8, &[2; 8], false)];
            pieces[1][40] = 17;
            let (now, mut reassembly) = (Instant::now(), reassembly());
            assert_eq!(offer(&mut reassembly, now, &pieces[order[0]]), Err(Outcome::Kept));
            let whole = offer(&mut reassembly, now, &pieces[order[1]]).unwrap();
            assert_eq!((whole[40], &whole[48..]), (58, &[[1; 8], [2; 8]].concat()[..]));
        }
        let mut other = piece(4, 1, 7, 8, &[2; 8], false);
        other[9] = 17;
        let (now, mut reassembly) = (Instant::now(), reassembly());
        for packet in [piece(4, 1, 7, 0, &[1; 8], true), other] {
            assert_eq!(offer(&mut reassembly, now, &packet), Err(Outcome::Kept));
        }
    }

    /// RFC 6946 §4: an atomic fragment is processed in isolation from others.
    #[test]
    fn rfc_6946_what_is_whole_stays_alone() {
        for version in [4, 6] {
            let (now, mut reassembly) = (Instant::now(), reassembly());
            let first = piece(version, 1, 7, 0, &[1; 8], true);
            assert_eq!(offer(&mut reassembly, now, &first), Err(Outcome::Kept));
            let whole = piece(version, 1, 7, 0, &[3; 9], false);
            assert_eq!(offer(&mut reassembly, now, &whole), Ok(whole));
            assert!(offer(&mut reassembly, now, &piece(version, 1, 7, 8, &[2; 8], false)).is_ok());
        }
    }

    #[test]
    fn fragments_of_two_owners_never_meet() {
        let (now, mut out) = (Instant::now(), [0; 100]);
        let mut reassembly = reassembly();
        let (first, last) = (piece(6, 1, 7, 0, &[1; 8], true), piece(6, 1, 7, 8, &[2; 8], false));
        assert_eq!(reassembly.offer(1, &first, now, &mut out), Outcome::Kept);
        assert_eq!(reassembly.offer(2, &last, now, &mut out), Outcome::Kept);
        let whole = reassembly.offer(1, &last, now, &mut out);
        assert_eq!(whole, Outcome::Whole { len: 64, first: 56 });
        assert_eq!((reassembly.datagrams(), reassembly.fragments()), (1, 1));
    }
}
