//! What happens to packets: a batch is read, each is translated in its place, and all are written. What cannot leave as it
//! is (a checksum or a cut that nobody behind us can make, fragments) takes the long way, one by one and in its turn.

use std::io::IoSlice;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use clat_packet::rate_limit::{Bucket, Rate};
use clat_packet::reassembly::{Outcome, Policy, Reassembly};
use clat_packet::source;
use clat_tun::{GsoType, Tun, VirtioHeader};
use clat_xlat::{Counters, Packet, Reason, Translator, Verdict, HEADROOM, TAILROOM};
use nix::errno::Errno;

use crate::batch::{Slots, BATCH, FRONT, STRIDE};
use crate::coalesce::{Group, Kind};
use crate::partial_checksum::{complete, stays_whole, Open, IPV4_HEADER, IPV6_HEADER};
use crate::segment::Segments;
use crate::tally::Tally;
use crate::uplink::{Full, Uplink};

/// A batch ends when it has so many bytes, so that they are still in the processor's cache when they are written.
const BATCH_BYTES: usize = 128 << 10;

/// What may be kept of fragments that cannot be translated one by one: those of ICMP messages, whose
/// checksum covers the whole, and those with an extension header behind the Fragment Header.
const FRAGMENTS: Policy = Policy {
    // RFC 8200 §4.5 and RFC 1122 §3.3.2.
    timeout: Duration::from_secs(60),
    datagrams: 64,
    bytes: 1 << 20,
    share: 4,
};

/// How many ICMP errors are sent (RFC 4443 §2.4 (f)): at once as many as Linux does (`icmp_msgs_burst`).
const ERRORS: Rate = Rate { interval: Duration::from_millis(10), burst: 50 };

/// Where packets come from; their translations go to the other side, ICMP errors about them back to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// IPv4.
    Tun,
    /// IPv6.
    Uplink,
}

/// How a turn of one side ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// What was there has been forwarded.
    Done,
    /// The other side takes no more: nothing is read until it does.
    Full(Full),
}

/// Both ends of the CLAT and what stands between them.
#[derive(Debug)]
pub struct Forwarder {
    path: Path,
    up: Lane,
    down: Lane,
}

/// The packets of one direction that are under way.
#[derive(Debug)]
struct Lane {
    slots: Slots,
    /// The first packet that is still to be translated.
    next: usize,
    /// How many segments of that one have left.
    cut: u32,
    group: Group,
    /// How many packets to read at once, by what the last read brought. Upwards each is a call, and one that finds nothing
    /// costs as much; downwards it is their size that counts.
    want: usize,
}

#[derive(Debug)]
struct Path {
    translator: Translator,
    local4: [u8; 4],
    tun: Tun,
    uplink: Uplink,
    /// Owned by their sources.
    reassembly: Reassembly<IpAddr>,
    /// ICMP errors to IPv4 and to IPv6: one side must not use up the other's.
    errors4: Bucket,
    errors6: Bucket,
    errors: Rate,
    tally: Tally,
    /// Whether the kernel takes UDP_SEGMENT packets.
    trains: bool,
    /// For a segment, or a reassembled datagram.
    spare: Vec<u8>,
}

impl Forwarder {
    /// Connects both ends. `local4` is the CLAT's address, and `trains` says whether the kernel takes
    /// [`GsoType::UdpL4`] at all (see [`Tun::take_offloads`]).
    #[must_use]
    pub fn new(
        translator: Translator,
        local4: std::net::Ipv4Addr,
        tun: Tun,
        uplink: Uplink,
        trains: bool,
    ) -> Self {
        let path = Path {
            translator,
            local4: local4.octets(),
            tun,
            uplink,
            reassembly: Reassembly::new(FRAGMENTS),
            errors4: Bucket::default(),
            errors6: Bucket::default(),
            errors: ERRORS,
            tally: Tally::default(),
            trains,
            spare: vec![0; STRIDE],
        };
        Self { path, up: Lane::default(), down: Lane::default() }
    }

    /// The TUN device.
    #[must_use]
    pub fn tun(&self) -> &Tun {
        &self.path.tun
    }

    /// The uplink.
    #[must_use]
    pub fn uplink(&self) -> &Uplink {
        &self.path.uplink
    }

    /// Has several forwarders together send as many ICMP errors as one.
    pub fn share_limits(&mut self, forwarders: u32) {
        self.path.errors = ERRORS.shared_by(forwarders);
    }

    /// What happened to packets so far.
    #[must_use]
    pub fn counters(&mut self) -> (Counters, Tally) {
        let tally = &mut self.path.tally;
        tally.reassembly = self.path.reassembly.abandoned();
        tally.overrun += self.path.uplink.packet_socket().overruns();
        (self.path.translator.counters().clone(), *tally)
    }

    /// Forwards a batch from one side, after what is left of the last one.
    ///
    /// # Errors
    /// What reading said: `EAGAIN` when nothing waits, `ENETDOWN` when the uplink is down (what was read is gone then).
    pub fn turn(&mut self, from: Side) -> Result<Turn, Errno> {
        let (path, lane) = match from {
            Side::Tun => (&mut self.path, &mut self.up),
            Side::Uplink => (&mut self.path, &mut self.down),
        };
        if let Err(full) = path.drain(from, lane) {
            return Ok(Turn::Full(full));
        }
        match from {
            Side::Tun => path.read_tun(lane)?,
            Side::Uplink => path.read_uplink(lane)?,
        }
        let drained = path.drain(from, lane);
        if path.uplink.went_down() {
            return Err(Errno::ENETDOWN);
        }
        Ok(drained.map_or_else(Turn::Full, |()| Turn::Done))
    }
}

impl Default for Lane {
    fn default() -> Self {
        Self { slots: Slots::default(), next: 0, cut: 0, group: Group::default(), want: BATCH }
    }
}

impl Path {
    fn read_tun(&mut self, lane: &mut Lane) -> Result<(), Errno> {
        let mut bytes = 0;
        while lane.slots.len() < lane.want && bytes < BATCH_BYTES {
            let slot = lane.slots.slot(lane.slots.len());
            match self.tun.recv(&mut slot[FRONT..STRIDE - TAILROOM]) {
                Ok((vnet, len)) => {
                    lane.slots.note(vnet, len);
                    bytes += len;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EBADMSG) => self.tally.receive += 1,
                Err(errno) if lane.slots.is_empty() => return Err(errno),
                // It will say so again.
                Err(_) => break,
            }
        }
        let len = lane.slots.len();
        lane.want = if len == lane.want { (2 * len).min(BATCH) } else { len };
        self.uplink.begin();
        self.translator.set_mtu6(self.uplink.mtu6());
        Ok(())
    }

    fn read_uplink(&mut self, lane: &mut Lane) -> Result<(), Errno> {
        match self.uplink.packet_socket().recv(&mut lane.slots, lane.want) {
            Ok(()) => {}
            Err(Errno::EINTR) => return Ok(()),
            // One packet is lost; the next may be better.
            Err(Errno::EINVAL) => {
                self.tally.receive += 1;
                return Ok(());
            }
            Err(errno) => return Err(errno),
        }
        let bytes: usize = (0..lane.slots.len()).map(|i| lane.slots.packet(i).1.len()).sum();
        lane.want = (BATCH_BYTES * lane.slots.len() / bytes.max(1)).clamp(2, BATCH);
        Ok(())
    }

    /// Forwards all that was read. What cannot leave yet stays, with all behind it.
    fn drain(&mut self, from: Side, lane: &mut Lane) -> Result<(), Full> {
        while lane.next < lane.slots.len() {
            if lane.cut > 0 || !self.quickly(from, lane) {
                self.flush(from, lane)?;
                self.slowly(from, lane)?;
            }
            (lane.next, lane.cut) = (lane.next + 1, 0);
        }
        self.flush(from, lane)?;
        lane.slots.clear();
        lane.next = 0;
        Ok(())
    }

    fn flush(&mut self, from: Side, lane: &mut Lane) -> Result<(), Full> {
        let (group, memory) = (&mut lane.group, lane.slots.memory());
        match from {
            Side::Tun => self.uplink.send_group(group, memory, &mut self.tally.send),
            Side::Uplink => {
                while let Some(message) = group.waiting().first() {
                    let mut pieces = [IoSlice::new(&[]); BATCH];
                    let places = group.pieces(message);
                    for (piece, place) in pieces.iter_mut().zip(places) {
                        *piece = IoSlice::new(&memory[place.clone()]);
                    }
                    match self.tun.send_pieces(&message.vnet, &pieces[..places.len()]) {
                        Ok(()) => {}
                        Err(Errno::EINTR) => continue,
                        Err(Errno::EAGAIN) => return Err(Full::Tun),
                        Err(_) => self.tally.tun_write += message.count as u64,
                    }
                    group.leave(1);
                }
                Ok(())
            }
        }
    }

    /// Translates the next packet as it is, if it may leave in a group.
    fn quickly(&mut self, from: Side, lane: &mut Lane) -> bool {
        let (vnet, range) = lane.slots.packet(lane.next);
        let packet = &lane.slots.slot(lane.next)[range.clone()];
        if packet.is_empty() {
            self.tally.receive += 1;
            return true;
        }
        let mut open = None;
        if vnet != VirtioHeader::default() {
            open = Open::of(packet, &vnet).filter(|_| self.leaves_open(from, &vnet));
            if open.is_none() && (vnet.needs_csum || vnet.gso_type != GsoType::None) {
                return false;
            }
        }
        // To ourselves, the kernel knows its way.
        let regular = self.uplink.takes_groups()
            && (open.is_some() || stays_whole(packet, packet.len()))
            && packet.get(16..20) != Some(&self.local4);
        if from == Side::Tun && !regular {
            return false;
        }

        let slot = lane.slots.slot(lane.next);
        let Ok(mut packet) = Packet::new(slot, range) else {
            self.tally.receive += 1;
            return true;
        };
        let header = if from == Side::Tun { IPV4_HEADER } else { IPV6_HEADER };
        if let Some(gso) = open.and_then(|open| open.gso(header)) {
            packet = packet.with_gso(gso);
        }
        let verdict = match from {
            Side::Tun => self.translator.to_ipv6(&mut packet),
            Side::Uplink => self.translator.to_ipv4(&mut packet),
        };
        match verdict {
            Verdict::Forward { mut frames, .. } => {
                let Some(frame) = frames.next() else { return true };
                let vnet = match open.map(|open| open.leave(frame.bytes)) {
                    None => VirtioHeader::default(),
                    Some(Some(vnet)) => vnet,
                    Some(None) => {
                        self.tally.offload += 1;
                        return true;
                    }
                };
                let start = lane.next * STRIDE;
                let at = start + frame.range.start..start + frame.range.end;
                let kind = match open {
                    None => Kind::Complete,
                    Some(open) if open.is_datagram() => Kind::OpenDatagram,
                    Some(open) => Kind::Closed(open.count()),
                };
                lane.group.push(lane.slots.memory(), at, vnet, kind, self.trains);
            }
            Verdict::Reply { error, .. } => self.answer(from, error),
            Verdict::Drop(reason) => self.hold(from, packet.bytes(), reason),
        }
        true
    }

    /// Whether the other side is told what is left open.
    fn leaves_open(&self, from: Side, vnet: &VirtioHeader) -> bool {
        let told = from == Side::Tun || self.tun.vnet_header_len() > 0;
        told && (self.trains || vnet.gso_type != GsoType::UdpL4)
    }

    /// Completes and cuts the next packet and forwards what it becomes, one by one.
    fn slowly(&mut self, from: Side, lane: &mut Lane) -> Result<(), Full> {
        let (vnet, range) = lane.slots.packet(lane.next);
        let slot = lane.slots.slot(lane.next);
        let mut spare = std::mem::take(&mut self.spare);
        let done = if vnet.gso_type == GsoType::None {
            self.make_room(from).map(|()| {
                if vnet.needs_csum && !complete(&mut slot[range.clone()], &vnet) {
                    self.tally.offload += 1;
                } else {
                    self.translate(from, slot, range, Some(&mut spare));
                }
            })
        } else if let Some(mut segments) = Segments::behind(&slot[range], &vnet, lane.cut) {
            loop {
                if let Err(full) = self.make_room(from) {
                    break Err(full);
                }
                let Some(len) = segments.next(&mut spare[HEADROOM..STRIDE - TAILROOM]) else {
                    break Ok(());
                };
                lane.cut += 1;
                self.translate(from, &mut spare, HEADROOM..HEADROOM + len, None);
            }
        } else {
            self.tally.offload += 1;
            Ok(())
        };
        self.spare = spare;
        done
    }

    fn make_room(&mut self, from: Side) -> Result<(), Full> {
        match from {
            Side::Tun => self.uplink.make_room(),
            Side::Uplink => Ok(()),
        }
    }

    /// Translates a whole packet and writes what it becomes. `spare` is for the reassembly.
    fn translate(
        &mut self,
        from: Side,
        buf: &mut [u8],
        range: std::ops::Range<usize>,
        spare: Option<&mut Vec<u8>>,
    ) {
        let Ok(mut packet) = Packet::new(buf, range) else {
            self.tally.receive += 1;
            return;
        };
        let verdict = match from {
            Side::Tun => self.translator.to_ipv6(&mut packet),
            Side::Uplink => self.translator.to_ipv4(&mut packet),
        };
        match verdict {
            Verdict::Forward { mut frames, .. } => {
                while let Some(frame) = frames.next() {
                    match from {
                        Side::Tun => self.write_uplink(frame.bytes),
                        Side::Uplink => self.write_tun(frame.bytes),
                    }
                }
            }
            Verdict::Reply { error, .. } => self.answer(from, error),
            Verdict::Drop(reason) => {
                if let Some(spare) = spare {
                    std::mem::swap(&mut self.spare, spare);
                    self.hold(from, packet.bytes(), reason);
                    std::mem::swap(&mut self.spare, spare);
                }
            }
        }
    }

    /// Gives a fragment that cannot be translated by itself to the reassembly, and forwards what that makes of it.
    fn hold(&mut self, from: Side, packet: &[u8], reason: Reason) {
        let held = match reason {
            Reason::FragmentedIcmp => &mut self.tally.held_icmp,
            Reason::ExtensionBehindFragment => &mut self.tally.held_extension,
            _ => return,
        };
        let out = &mut self.spare[HEADROOM..STRIDE - TAILROOM];
        let Some(source) = source(packet) else { return };
        let outcome = self.reassembly.offer(source, packet, Instant::now(), out);
        if outcome == Outcome::Dropped {
            return;
        }
        *held += 1;
        if let Outcome::Whole(len) = outcome {
            let mut spare = std::mem::take(&mut self.spare);
            self.translate(from, &mut spare, HEADROOM..HEADROOM + len, None);
            self.spare = spare;
        }
    }

    /// Sends an ICMP error back to where its cause came from.
    fn answer(&mut self, to: Side, error: &[u8]) {
        let bucket = match to {
            Side::Tun => &mut self.errors4,
            Side::Uplink => &mut self.errors6,
        };
        if !bucket.take(self.errors, Instant::now()) {
            self.tally.rate_limited += 1;
            return;
        }
        match to {
            Side::Tun => self.write_tun(error),
            Side::Uplink => self.write_uplink(error),
        }
    }

    fn write_tun(&mut self, packet: &[u8]) {
        if self.tun.send(&VirtioHeader::default(), packet).is_err() {
            self.tally.tun_write += 1;
        }
    }

    fn write_uplink(&mut self, packet: &[u8]) {
        if self.uplink.send(packet).is_err() {
            self.tally.send += 1;
        }
    }
}
