// SPDX-License-Identifier: Apache-2.0

//! The path of packets between the TUN device and the uplink. No system call is made here: packets
//! come in a [`Pending`] and are sent to an [`Output`].
//!
//! On the fast path a packet is translated in place and sent in a batch. Packets that need work
//! before (a checksum or segmentation that the output does not complete, fragmentation) take the
//! slow path, one by one. Order is kept.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use clat_packet::addresses;
use clat_packet::rate_limit::{Bucket, Rate};
use clat_packet::reassembly::{Outcome, Policy, Reassembly};
use clat_tun::{GsoType, VirtioHeader};
use clat_xlat::{Counters, Packet, Reason, Translator, Verdict, HEADROOM, TAILROOM};
use nix::errno::Errno;

use crate::batch::{Batch, CAPACITY, STRIDE};
use crate::coalesce::{Coalescer, Kind};
use crate::partial_checksum::{complete, stays_whole, PartialChecksum, IPV4_HEADER, IPV6_HEADER};
use crate::segment::Segments;
use crate::tally::Tally;

/// Limits for fragments that cannot be translated one by one: those of ICMP messages, whose
/// checksum covers the whole, and those with an extension header behind the Fragment Header.
const FRAGMENTS: Policy = Policy {
    // RFC 8200 §4.5 and RFC 1122 §3.3.2.
    timeout: Duration::from_secs(60),
    datagrams: 64,
    bytes: 1 << 20,
    share: 4,
};

/// Direction of packets. ICMP errors about them go in the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// IPv4 packets from the TUN device become IPv6 packets for the uplink.
    Egress,
    /// IPv6 packets from the uplink become IPv4 packets for the TUN device.
    Ingress,
}

/// An output that takes no more packets for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The TUN device.
    Tun,
    /// The packet socket of the uplink.
    Packet,
    /// The raw socket of the uplink.
    Raw,
}

/// An output for packets: the TUN device or the uplink.
pub trait Output {
    /// Whether it takes batches now ([`Self::send_batch`]), or single packets only
    /// ([`Self::send`]).
    fn takes_batches(&self) -> bool {
        true
    }

    /// Whether packets of a batch may have partial checksums and be GSO packets.
    fn takes_partial_checksums(&self) -> bool {
        true
    }

    /// Sends all messages in `coalescer`, whose packets are in `memory`, and adds to `lost` the
    /// number of packets that cannot be sent.
    ///
    /// # Errors
    /// [`Full`]: unsent messages remain in `coalescer`.
    fn send_batch(
        &mut self,
        coalescer: &mut Coalescer,
        memory: &mut [u8],
        lost: &mut u64,
    ) -> Result<(), Full>;

    /// Checks that [`Self::forward`] and [`Self::send`] have room for another packet.
    ///
    /// # Errors
    /// [`Full`].
    fn make_room(&mut self) -> Result<(), Full> {
        Ok(())
    }

    /// Sends one packet with complete checksums, to the next hop as batches are.
    ///
    /// # Errors
    /// Why the packet is lost.
    fn forward(&mut self, packet: &[u8]) -> Result<(), Errno> {
        self.send(packet)
    }

    /// Sends one packet with complete checksums, by the kernel's route to its destination.
    ///
    /// # Errors
    /// Why the packet is lost.
    fn send(&mut self, packet: &[u8]) -> Result<(), Errno>;
}

/// Packets of one direction that have been read and not yet sent.
#[derive(Debug)]
pub struct Pending {
    /// The packets as they were read.
    pub batch: Batch,
    /// Number of packets to read next, estimated from the last read.
    pub(crate) read_size: usize,
    /// Index of the first packet to be translated.
    next: usize,
    /// Number of segments of that packet that have been sent.
    segments_sent: u32,
    coalescer: Coalescer,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            batch: Batch::default(),
            read_size: CAPACITY,
            next: 0,
            segments_sent: 0,
            coalescer: Coalescer::default(),
        }
    }
}

/// The path of one CLAT, in both directions.
#[derive(Debug)]
pub struct ClatPath {
    translator: Translator,
    v4: [u8; 4],
    /// Each source address owns its fragments.
    reassembly: Reassembly<IpAddr>,
    /// ICMP errors to IPv4 and to IPv6 are limited separately, so that one side does not use up the
    /// other's.
    errors4: Bucket,
    errors6: Bucket,
    errors: Rate,
    tally: Tally,
    /// Whether outputs take UDP_SEGMENT packets.
    uso: bool,
    segment: Vec<u8>,
    datagram: Vec<u8>,
}

impl ClatPath {
    /// A CLAT with the address `v4`. `uso` says whether the outputs take [`GsoType::UdpL4`] (see
    /// [`clat_tun::Tun::take_offloads`]).
    #[must_use]
    pub fn new(mut translator: Translator, v4: Ipv4Addr, uso: bool) -> Self {
        translator.expect_reassembly();
        Self {
            translator,
            v4: v4.octets(),
            reassembly: Reassembly::new(FRAGMENTS),
            errors4: Bucket::default(),
            errors6: Bucket::default(),
            errors: Rate::ICMP_ERRORS,
            tally: Tally::default(),
            uso,
            segment: vec![0; STRIDE],
            datagram: vec![0; STRIDE],
        }
    }

    /// Divides the rate of ICMP errors among `paths` paths.
    pub fn share_limits(&mut self, paths: u32) {
        self.errors = Rate::ICMP_ERRORS.shared_by(paths);
    }

    /// Sets the longest IPv6 packet for the uplink, in bytes.
    pub fn set_mtu6(&mut self, mtu6: u32) {
        self.translator.set_mtu6(mtu6);
    }

    /// Counters of translation and of everything else.
    #[must_use]
    pub fn counters(&self) -> (Counters, Tally) {
        let tally = Tally { reassembly: self.reassembly.abandoned(), ..self.tally };
        (self.translator.counters().clone(), tally)
    }

    /// Counters of everything but translation.
    pub fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Forwards all packets of `pending` to `output`, and sends ICMP errors about them to `back`. A
    /// packet for which there is no room stays, with all that follow, for the next call.
    ///
    /// # Errors
    /// The output that is full.
    pub fn forward(
        &mut self,
        direction: Direction,
        pending: &mut Pending,
        output: &mut impl Output,
        back: &mut impl Output,
        now: Instant,
    ) -> Result<(), Full> {
        while pending.next < pending.batch.len() {
            if pending.segments_sent > 0 || !self.fast_path(direction, pending, output, back, now) {
                self.flush(direction, pending, output)?;
                self.slow_path(direction, pending, output, back, now)?;
            }
            (pending.next, pending.segments_sent) = (pending.next + 1, 0);
        }
        self.flush(direction, pending, output)?;
        pending.batch.clear();
        pending.next = 0;
        Ok(())
    }

    fn flush(
        &mut self,
        direction: Direction,
        pending: &mut Pending,
        output: &mut impl Output,
    ) -> Result<(), Full> {
        let lost = lost(&mut self.tally, direction);
        output.send_batch(&mut pending.coalescer, pending.batch.memory(), lost)
    }

    /// Translates the next packet in place for a batch. False if it needs the slow path.
    fn fast_path(
        &mut self,
        direction: Direction,
        pending: &mut Pending,
        output: &mut impl Output,
        back: &mut impl Output,
        now: Instant,
    ) -> bool {
        let (vnet, range) = pending.batch.packet(pending.next);
        let slot = pending.batch.slot(pending.next);
        let packet = &slot[range.clone()];
        if packet.is_empty() {
            self.tally.receive += 1;
            return true;
        }
        let mut partial = None;
        if vnet != VirtioHeader::default() {
            let taken =
                output.takes_partial_checksums() && (self.uso || vnet.gso_type != GsoType::UdpL4);
            partial = PartialChecksum::of(packet, &vnet).filter(|_| taken);
            if partial.is_none() && (vnet.needs_csum || vnet.gso_type != GsoType::None) {
                return false;
            }
        }
        // Fragments would not fit into the slot.
        let fits = direction == Direction::Ingress
            || (partial.is_some() || stays_whole(packet, packet.len()))
                && !self.is_to_itself(packet);
        if !fits || !output.takes_batches() {
            return false;
        }

        let Ok(mut packet) = Packet::new(slot, range.clone()) else {
            self.tally.receive += 1;
            return true;
        };
        let header = if direction == Direction::Egress { IPV4_HEADER } else { IPV6_HEADER };
        if let Some(gso) = partial.and_then(|partial| partial.gso(header)) {
            packet = packet.with_gso(gso);
        }
        match self.translate(direction, &mut packet) {
            Verdict::Forward { mut frames, .. } => {
                let Some(frame) = frames.next() else { return true };
                let vnet = match partial.map(|partial| partial.carry_over(frame.bytes)) {
                    None => VirtioHeader::default(),
                    Some(Some(vnet)) => vnet,
                    Some(None) => {
                        self.tally.offload += 1;
                        return true;
                    }
                };
                let kind = match partial {
                    None => Kind::Complete,
                    Some(partial) if partial.is_datagram() => Kind::PartialDatagram,
                    Some(partial) => Kind::Closed(partial.count()),
                };
                let start = pending.next * STRIDE;
                let at = start + frame.range.start..start + frame.range.end;
                pending.coalescer.push(pending.batch.memory(), at, vnet, kind, self.uso);
            }
            Verdict::Reply { error, .. } => self.reply(direction, error, back, now),
            Verdict::Drop(reason) => {
                let packet = &pending.batch.slot(pending.next)[range];
                self.hold((direction, reason), packet, output, back, now);
            }
        }
        true
    }

    /// Completes the checksums of the next packet, segments it, and forwards the results one by
    /// one.
    fn slow_path(
        &mut self,
        direction: Direction,
        pending: &mut Pending,
        output: &mut impl Output,
        back: &mut impl Output,
        now: Instant,
    ) -> Result<(), Full> {
        let (vnet, range) = pending.batch.packet(pending.next);
        let slot = pending.batch.slot(pending.next);
        if vnet.gso_type == GsoType::None {
            output.make_room()?;
            if vnet.needs_csum && !complete(&mut slot[range.clone()], &vnet) {
                self.tally.offload += 1;
            } else if let Ok(mut packet) = Packet::new(slot, range.clone()) {
                if let Some(why) = self.forward_one(direction, &mut packet, output, back, now) {
                    self.hold((direction, why), packet.bytes(), output, back, now);
                }
            } else {
                self.tally.receive += 1;
            }
            return Ok(());
        }
        let sent = pending.segments_sent;
        let Some(mut segments) = Segments::behind(&slot[range], &vnet, sent) else {
            self.tally.offload += 1;
            return Ok(());
        };
        let mut segment = std::mem::take(&mut self.segment);
        let done = loop {
            if let Err(full) = output.make_room() {
                break Err(full);
            }
            let Some(len) = segments.next(&mut segment[HEADROOM..STRIDE - TAILROOM]) else {
                break Ok(());
            };
            pending.segments_sent += 1;
            if let Ok(mut packet) = Packet::new(&mut segment, HEADROOM..HEADROOM + len) {
                self.forward_one(direction, &mut packet, output, back, now);
            }
        };
        self.segment = segment;
        done
    }

    /// Translates a packet and sends the result. If it is dropped, returns the reason and leaves
    /// the packet as it was.
    fn forward_one(
        &mut self,
        direction: Direction,
        packet: &mut Packet<'_>,
        output: &mut impl Output,
        back: &mut impl Output,
        now: Instant,
    ) -> Option<Reason> {
        let to_itself = direction == Direction::Egress && self.is_to_itself(packet.bytes());
        match self.translate(direction, packet) {
            Verdict::Forward { mut frames, .. } => {
                while let Some(frame) = frames.next() {
                    let sent = if to_itself {
                        output.send(frame.bytes)
                    } else {
                        output.forward(frame.bytes)
                    };
                    if sent.is_err() {
                        *lost(&mut self.tally, direction) += 1;
                    }
                }
            }
            Verdict::Reply { error, .. } => self.reply(direction, error, back, now),
            Verdict::Drop(reason) => return Some(reason),
        }
        None
    }

    /// Whether an IPv4 packet is to the CLAT itself: the kernel has to deliver it, not the next
    /// hop.
    fn is_to_itself(&self, packet: &[u8]) -> bool {
        packet.get(16..20) == Some(&self.v4)
    }

    #[inline(always)]
    fn translate<'p>(&mut self, direction: Direction, packet: &'p mut Packet<'_>) -> Verdict<'p> {
        match direction {
            Direction::Egress => self.translator.to_ipv6(packet),
            Direction::Ingress => self.translator.to_ipv4(packet),
        }
    }

    /// Reassembles dropped fragments that cannot be translated one by one, and forwards the
    /// datagram once it is complete.
    fn hold(
        &mut self,
        (direction, reason): (Direction, Reason),
        packet: &[u8],
        output: &mut impl Output,
        back: &mut impl Output,
        now: Instant,
    ) {
        let Some((source, _)) = addresses(packet) else { return };
        let held = match reason {
            Reason::FragmentedIcmp => &mut self.tally.held_icmp,
            Reason::ExtensionBehindFragment => &mut self.tally.held_extension,
            _ => return,
        };
        let room = &mut self.datagram[HEADROOM..STRIDE - TAILROOM];
        let outcome = self.reassembly.offer(source, packet, now, room);
        if outcome == Outcome::Dropped {
            return;
        }
        *held += 1;
        if let Outcome::Whole { len, first } = outcome {
            let mut datagram = std::mem::take(&mut self.datagram);
            if let Ok(packet) = Packet::new(&mut datagram, HEADROOM..HEADROOM + len) {
                let mut packet = packet.with_first_fragment(first);
                self.forward_one(direction, &mut packet, output, back, now);
            }
            self.datagram = datagram;
        }
    }

    /// Sends an ICMP error about a packet of `direction` to its sender, within the rate limit.
    fn reply(&mut self, direction: Direction, error: &[u8], back: &mut impl Output, now: Instant) {
        let (bucket, opposite) = match direction {
            Direction::Egress => (&mut self.errors4, Direction::Ingress),
            Direction::Ingress => (&mut self.errors6, Direction::Egress),
        };
        if !bucket.take(self.errors, now) {
            self.tally.rate_limited += 1;
        } else if back.send(error).is_err() {
            *lost(&mut self.tally, opposite) += 1;
        }
    }
}

/// The counter of packets that the output of `direction` did not take.
fn lost(tally: &mut Tally, direction: Direction) -> &mut u64 {
    match direction {
        Direction::Egress => &mut tally.send,
        Direction::Ingress => &mut tally.tun_write,
    }
}
