//! What happens to one packet: read, checksum and segments completed, translated, written.

use std::ops::Range;
use std::time::Instant;

use clat_tun::{GsoType, Tun, VirtioHeader};
use clat_xlat::{Packet, Reason, Rule, Translator, Verdict, HEADROOM, TAILROOM};
use nix::errno::Errno;

use crate::checksum::{complete, fold, pseudo_header};
use crate::counters::{self, Tally};
use crate::limit::Bucket;
use crate::reassembly::{Outcome, Reassembly};
use crate::segment::Segments;
use crate::socket::{PacketSocket, RawSocket, LINK_HEADER};

/// Room for the largest packet, its link header, a byte by which to notice a larger one, and what translation needs.
const BUFFER: usize = HEADROOM + LINK_HEADER + 40 + 65535 + 1 + TAILROOM;

const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where a packet came from; its translation goes to the other side, an ICMP error about it back to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Tun,
    Uplink,
}

/// Both ends of the CLAT and what stands between them.
#[derive(Debug)]
pub struct Forwarder<'t> {
    path: Path<'t>,
    /// The packet that was read.
    buf: Vec<u8>,
    /// What is made of it: a segment, or a reassembled datagram.
    spare: Vec<u8>,
}

#[derive(Debug)]
struct Path<'t> {
    translator: Translator<'t>,
    tun: Tun,
    packet: PacketSocket,
    raw: RawSocket,
    reassembly: Reassembly,
    /// ICMP errors to IPv4 and to IPv6: one side must not use up the other's.
    errors4: Bucket,
    errors6: Bucket,
    tally: Tally,
    /// Whether the TUN device takes UDP_SEGMENT packets: not before Linux 6.2.
    takes_udp_gso: bool,
}

impl<'t> Forwarder<'t> {
    /// Connects both ends.
    #[must_use]
    pub fn new(translator: Translator<'t>, tun: Tun, packet: PacketSocket, raw: RawSocket) -> Self {
        let takes_udp_gso = tun.vnet_header_len() > 0;
        let path = Path {
            translator,
            tun,
            packet,
            raw,
            reassembly: Reassembly::default(),
            errors4: Bucket::default(),
            errors6: Bucket::default(),
            tally: Tally::default(),
            takes_udp_gso,
        };
        Self { path, buf: vec![0; BUFFER], spare: vec![0; BUFFER] }
    }

    /// The TUN device.
    #[must_use]
    pub fn tun(&self) -> &Tun {
        &self.path.tun
    }

    /// The socket of the uplink.
    #[must_use]
    pub fn packet_socket(&self) -> &PacketSocket {
        &self.path.packet
    }

    /// The line of counters.
    #[must_use]
    pub fn counters(&mut self, interface: &str) -> String {
        let tally = &mut self.path.tally;
        tally.reassembly = self.path.reassembly.abandoned();
        tally.overrun += self.path.packet.overruns();
        counters::line(interface, self.path.translator.counters(), tally)
    }

    /// Reads and forwards one packet from the TUN device.
    ///
    /// # Errors
    /// What reading said: `EAGAIN` when none waits.
    pub fn from_tun(&mut self) -> Result<(), Errno> {
        let (vnet, len) = self.path.tun.recv(&mut self.buf[HEADROOM..BUFFER - TAILROOM])?;
        let range = HEADROOM..HEADROOM + len;
        self.path.handle(Side::Tun, &vnet, &mut self.buf, range, &mut self.spare);
        Ok(())
    }

    /// Reads and forwards one packet from the uplink.
    ///
    /// # Errors
    /// What reading said: `EAGAIN` when none waits, `ENETDOWN` when the interface is down.
    pub fn from_uplink(&mut self) -> Result<(), Errno> {
        match self.path.packet.recv(&mut self.buf[HEADROOM..BUFFER - TAILROOM]) {
            Ok((vnet, range)) => {
                let range = HEADROOM + range.start..HEADROOM + range.end;
                self.path.handle(Side::Uplink, &vnet, &mut self.buf, range, &mut self.spare);
                Ok(())
            }
            // One packet is lost; the next may be better.
            Err(Errno::EMSGSIZE | Errno::EINVAL) => {
                self.path.tally.receive += 1;
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }
}

impl Path<'_> {
    fn handle(
        &mut self,
        side: Side,
        vnet: &VirtioHeader,
        buf: &mut [u8],
        range: Range<usize>,
        spare: &mut [u8],
    ) {
        let packet = &mut buf[range.clone()];
        if side == Side::Uplink && self.can_carry(packet, vnet) {
            return self.carry(vnet, buf, range, spare);
        }
        if vnet.gso_type != GsoType::None {
            let Some(mut segments) = Segments::new(packet, vnet) else {
                self.tally.offload += 1;
                return;
            };
            while let Some(len) = segments.next(&mut spare[HEADROOM..BUFFER - TAILROOM]) {
                self.translate(side, spare, HEADROOM..HEADROOM + len, None);
            }
            return;
        }
        if vnet.needs_csum && !complete(packet, vnet) {
            self.tally.offload += 1;
            return;
        }
        self.translate(side, buf, range, Some(spare));
    }

    /// Translates a whole packet and writes what it becomes. `spare` is for the reassembly.
    fn translate(
        &mut self,
        from: Side,
        buf: &mut [u8],
        range: Range<usize>,
        spare: Option<&mut [u8]>,
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
                        Side::Tun => self.write_uplink(frame),
                        Side::Uplink => self.write_tun(frame),
                    }
                }
            }
            Verdict::Reply { error, .. } => self.answer(from, error),
            Verdict::Drop(reason @ (Reason::FragmentedIcmp | Reason::ExtensionBehindFragment)) => {
                let Some(spare) = spare else { return };
                let out = &mut spare[HEADROOM..BUFFER - TAILROOM];
                let outcome = self.reassembly.offer(packet.bytes(), Instant::now(), out);
                if outcome == Outcome::Dropped {
                    return;
                }
                match reason {
                    Reason::FragmentedIcmp => self.tally.held_icmp += 1,
                    _ => self.tally.held_extension += 1,
                }
                if let Outcome::Whole(len) = outcome {
                    self.translate(from, spare, HEADROOM..HEADROOM + len, None);
                }
            }
            Verdict::Drop(_) => {}
        }
    }

    /// Whether the TUN device can be left to complete what `vnet` leaves open of an IPv6 packet: TCP or UDP right
    /// behind the header.
    fn can_carry(&self, packet: &[u8], vnet: &VirtioHeader) -> bool {
        let kind = match vnet.gso_type {
            GsoType::None => vnet.needs_csum,
            GsoType::TcpV6 => packet.get(6) == Some(&TCP),
            GsoType::UdpL4 => packet.get(6) == Some(&UDP) && self.takes_udp_gso,
            _ => false,
        };
        kind && self.tun.vnet_header_len() > 0
            && packet.get(6).is_some_and(|protocol| checksum_offset(*protocol).is_some())
            && (!vnet.needs_csum || usize::from(vnet.csum_start) == IPV6_HEADER)
            && packet.len() >= IPV6_HEADER + 20
    }

    /// Translates once what stands for many segments, or has no checksum yet, and hands it on as such.
    fn carry(
        &mut self,
        vnet: &VirtioHeader,
        buf: &mut [u8],
        range: Range<usize>,
        spare: &mut [u8],
    ) {
        let l4_len = range.len() - IPV6_HEADER;
        let Ok(mut packet) = Packet::new(buf, range) else {
            self.tally.receive += 1;
            return;
        };
        match self.translator.to_ipv4(&mut packet) {
            Verdict::Forward { rule: Rule::To4, mut frames } => {
                let Some(frame) = frames.next() else { return };
                let Some(vnet) = partial(frame, l4_len, vnet) else {
                    self.tally.offload += 1;
                    return;
                };
                match self.tun.send(&vnet, frame) {
                    Ok(()) => {}
                    Err(Errno::EINVAL) if vnet.gso_type == GsoType::UdpL4 => {
                        log::info!(
                            "the TUN device takes no UDP_SEGMENT packets; cutting them here"
                        );
                        self.takes_udp_gso = false;
                        let Some(mut segments) = Segments::new(frame, &vnet) else { return };
                        while let Some(len) = segments.next(spare) {
                            self.write_tun(&spare[..len]);
                        }
                    }
                    Err(_) => self.tally.tun_write += 1,
                }
            }
            Verdict::Reply { error, .. } => self.answer(Side::Uplink, error),
            // Neither a fragment nor an ICMP error is left to be completed.
            Verdict::Forward { .. } => self.tally.offload += 1,
            Verdict::Drop(_) => {}
        }
    }

    /// Sends an ICMP error back to where its cause came from.
    fn answer(&mut self, to: Side, error: &[u8]) {
        let bucket = match to {
            Side::Tun => &mut self.errors4,
            Side::Uplink => &mut self.errors6,
        };
        if !bucket.take(Instant::now()) {
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
        if self.raw.send(packet).is_err() {
            self.tally.send += 1;
        }
    }
}

/// Puts the sum of the IPv4 pseudo-header into the L4 checksum field, as the kernel wants it, and says so in a virtio
/// header. `None` if the L4 packet of `l4_len` bytes is not where it should be.
fn partial(frame: &mut [u8], l4_len: usize, vnet: &VirtioHeader) -> Option<VirtioHeader> {
    let header = usize::from(frame.first()? & 0xf) * 4;
    let protocol = *frame.get(9)?;
    let csum_offset = checksum_offset(protocol)?;
    if frame.len() != header + l4_len {
        return None;
    }
    let l4_header = match protocol {
        TCP => usize::from(frame.get(header + 12)? >> 4) * 4,
        _ => 8,
    };
    let at = header + usize::from(csum_offset);
    let sum = fold(pseudo_header(frame, protocol, l4_len));
    frame.get_mut(at..at + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some(VirtioHeader {
        needs_csum: true,
        gso_type: match vnet.gso_type {
            GsoType::TcpV6 => GsoType::TcpV4,
            other => other,
        },
        hdr_len: u16::try_from(header + l4_header).ok()?,
        csum_start: u16::try_from(header).ok()?,
        csum_offset,
        ..*vnet
    })
}

/// Where the checksum stands in a TCP or UDP header.
fn checksum_offset(protocol: u8) -> Option<u16> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::add;

    /// What was to be completed with IPv6 addresses is completed with IPv4 addresses: the checksum is right.
    #[test]
    fn what_is_carried_over_verifies() {
        for (protocol, l4_header) in [(TCP, 32), (UDP, 8)] {
            let l4_len = l4_header + 3001;
            let mut frame = vec![0x5a; 20 + l4_len];
            frame[0] = 0x45;
            frame[9] = protocol;
            let total = u16::try_from(frame.len()).unwrap();
            frame[2..4].copy_from_slice(&total.to_be_bytes());
            if protocol == TCP {
                frame[32] = 0x80;
            }
            let given = VirtioHeader {
                needs_csum: true,
                gso_type: if protocol == TCP { GsoType::TcpV6 } else { GsoType::UdpL4 },
                gso_size: 1000,
                csum_start: 40,
                csum_offset: checksum_offset(protocol).unwrap(),
                ..Default::default()
            };
            assert!(partial(&mut frame.clone(), l4_len + 1, &given).is_none());
            let vnet = partial(&mut frame, l4_len, &given).unwrap();
            assert_eq!((vnet.csum_start, usize::from(vnet.hdr_len)), (20, 20 + l4_header));
            assert_ne!(vnet.gso_type, GsoType::TcpV6);

            let mut segments = Segments::new(&frame, &vnet).unwrap();
            let mut out = [0; 2000];
            let first = segments.next(&mut out).unwrap();
            assert_eq!(first, 20 + l4_header + 1000);

            assert!(complete(&mut frame, &vnet));
            let sum = add(pseudo_header(&frame, protocol, l4_len), &frame[20..]);
            assert_eq!(fold(sum), 0xffff, "{protocol}");
        }
    }
}
