// SPDX-License-Identifier: Apache-2.0

//! A CLAT of our own for a namespace: what a phone has inside, here between a TUN device in the namespace and the network. IPv4
//! packets become IPv6 packets from an address in the network's prefix, so the network itself stays IPv6-only.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Instant;

use clat_packet::checksum::Sum;
use clat_tun::{GsoType, Tun, VirtioHeader};
use clat_xlat::{Addresses, Config, Gso, Local, Packet, Translator, Verdict, HEADROOM, TAILROOM};
use nix::errno::Errno;

use crate::flow::fragments::Fragments;
use crate::flow::wire::{parse, pseudo, ICMP4, ICMP6, IPV6, TCP, UDP};
use crate::frame::{Mac, ETHERNET, MAX_FRAME};
use crate::settings::Settings;

/// The first address of a CLAT (RFC 7335).
pub const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 4);
/// What IPv6 may add to a packet (RFC 7915 §4.1).
const GROWTH: u16 = 28;
/// The station that its frames come from.
pub const MAC: Mac = Mac([0x02, 0, 0, 0, 0x04, 0x66]);

/// Bytes of an IPv4 header without options, and of a Fragment Header; the number that announces that.
const IPV4: usize = 20;
const FRAGMENT_HEADER: usize = 8;
const FRAGMENT: u8 = 44;

/// Bytes of the longest packet.
const LARGEST: usize = MAX_FRAME - ETHERNET;

/// MTU of the CLAT's device.
#[must_use]
pub fn mtu(settings: &Settings) -> u16 {
    settings.mtu - GROWTH
}

/// A CLAT on `tun` in this network: its way up and its way down.
#[must_use]
pub fn new(tun: Tun, settings: &Settings) -> (Up, Down) {
    let tun = Rc::new(tun);
    let random = fastrand::u64(..).to_be_bytes();
    let local = Local::neutral(V4, settings.prefix, &settings.prefix64, random);
    let config = Config {
        // What comes from the network fits, but for what was put together here, which the device takes as well.
        mtu4: u16::MAX.into(),
        mtu6: settings.mtu.into(),
        // There is one hop to the other end, and its MTU is known.
        lowest_ipv6_mtu: settings.mtu.into(),
        ..Config::default()
    };
    let addresses =
        Addresses { local: Some(local), prefixes: vec![settings.prefix64], ..Addresses::default() };
    let half = || Half {
        tun: Rc::clone(&tun),
        translator: Translator::new(config, addresses.clone(), fastrand::u16(..)),
        buf: vec![0; HEADROOM + LARGEST + 1 + TAILROOM],
        fragments: Fragments::default(),
    };
    (Up(half()), Down { half: half(), local })
}

struct Half {
    tun: Rc<Tun>,
    translator: Translator,
    buf: Vec<u8>,
    /// ICMP messages in pieces: their checksums are of the whole, and so is their translation.
    fragments: Fragments,
}

/// From IPv4 to the network.
pub struct Up(Half);

impl Up {
    /// The device.
    #[must_use]
    pub fn tun(&self) -> &Tun {
        &self.0.tun
    }

    /// Reads what waits, and gives each packet as IPv6 to `each`. At most `most` are read at `now`; whether there may be more.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn recv(
        &mut self,
        most: usize,
        now: Instant,
        mut each: impl FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<bool> {
        let Half { tun, translator, buf, fragments } = &mut self.0;
        let end = buf.len() - TAILROOM;
        for _ in 0..most {
            let (vnet, len) = match tun.recv(&mut buf[HEADROOM..end]) {
                Ok(read) => read,
                Err(Errno::EAGAIN | Errno::EIO) => return Ok(false),
                Err(Errno::EBADMSG | Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let Some(len) = whole(fragments, buf, len, now) else { continue };
            let gso = gso(&vnet, &buf[HEADROOM..HEADROOM + len]);
            let Ok(packet) = Packet::new(buf, HEADROOM..HEADROOM + len) else { continue };
            let mut packet = match gso {
                Some(gso) => packet.with_gso(gso),
                None => packet,
            };
            match translator.to_ipv6(&mut packet) {
                Verdict::Forward { mut frames, .. } => {
                    // The flows do not look at more of it.
                    let vnet = VirtioHeader {
                        needs_csum: vnet.needs_csum,
                        data_valid: vnet.data_valid,
                        gso_type: vnet.gso_type,
                        gso_size: vnet.gso_size,
                        ..VirtioHeader::default()
                    };
                    while let Some(frame) = frames.next() {
                        each(&vnet, frame.bytes);
                    }
                }
                Verdict::Reply { error, .. } => {
                    let _ = tun.send(&VirtioHeader::default(), error);
                }
                Verdict::Drop(reason) => log::trace!("the CLAT drops a packet: {reason:?}"),
            }
        }
        Ok(true)
    }
}

/// From the network to IPv4.
pub struct Down {
    half: Half,
    local: Local,
}

impl Down {
    /// The CLAT's address.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        self.local.v6
    }

    /// Translates an IPv6 packet in pieces, and writes it.
    pub fn send(&mut self, vnet: &VirtioHeader, parts: [&[u8]; 3], now: Instant) -> bool {
        let Half { tun, translator, buf, fragments } = &mut self.half;
        let mut end = HEADROOM;
        for part in parts {
            let Some(room) = buf.get_mut(end..end + part.len()) else { return false };
            room.copy_from_slice(part);
            end += part.len();
        }
        // One that waits for the rest is not lost.
        let Some(len) = whole(fragments, buf, end - HEADROOM, now) else { return true };
        end = HEADROOM + len;
        let gso = gso(vnet, &buf[HEADROOM..end]);
        let Ok(packet) = Packet::new(buf, HEADROOM..end) else { return false };
        let mut packet = match gso {
            Some(gso) => packet.with_gso(gso),
            None => packet,
        };
        let Verdict::Forward { mut frames, .. } = translator.to_ipv4(&mut packet) else {
            return false;
        };
        let mut sent = true;
        while let Some(frame) = frames.next() {
            let vnet = partial(frame.bytes, vnet).unwrap_or_default();
            sent &= tun.send(&vnet, frame.bytes).is_ok();
        }
        sent
    }
}

/// The length of the packet of `len` bytes in the buffer once it is whole: at once, unless it is a fragment of an ICMP message.
fn whole(fragments: &mut Fragments, buf: &mut [u8], len: usize, now: Instant) -> Option<usize> {
    let bytes = &buf[HEADROOM..HEADROOM + len];
    let is_piece = match bytes {
        [0x40..=0x4f, _, _, _, _, _, place, low, _, ICMP4, ..] => place & 0x3f != 0 || *low != 0,
        [0x60..=0x6f, _, _, _, _, _, FRAGMENT, ..] => bytes.get(IPV6) == Some(&ICMP6),
        _ => false,
    };
    let piece = if is_piece { parse(bytes).filter(|p| p.fragment.is_some()) } else { None };
    let Some(piece) = piece else { return Some(len) };
    let (_, message) = fragments.offer(MAC, piece.whole, now)?;
    let packet = buf.get_mut(HEADROOM..)?;
    let header = if packet[0] >> 4 == 4 {
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(IPV4 + message.len()).ok()?.to_be_bytes());
        packet[6..8].fill(0);
        packet[10..12].fill(0);
        let checksum = Sum::of(&packet[..IPV4]).field();
        packet[10..12].copy_from_slice(&checksum);
        IPV4
    } else {
        // The Fragment Header stays, without an offset and without more: the IPv4 packet may be cut, too.
        let len = u16::try_from(FRAGMENT_HEADER + message.len()).ok()?;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        packet[IPV6 + 2..IPV6 + 4].fill(0);
        IPV6 + FRAGMENT_HEADER
    };
    packet.get_mut(header..header + message.len())?.copy_from_slice(&message);
    Some(header + message.len())
}

/// How a super-packet is to be cut.
fn gso(vnet: &VirtioHeader, packet: &[u8]) -> Option<Gso> {
    let (ip, protocol) = match packet {
        [first, ..] if first >> 4 == 4 => (usize::from(first & 0xf) * 4, *packet.get(9)?),
        _ => (IPV6, *packet.get(6)?),
    };
    let l4 = match (vnet.gso_type, protocol) {
        (GsoType::TcpV4 | GsoType::TcpV6, TCP) => usize::from(packet.get(ip + 12)? >> 4) * 4,
        (GsoType::UdpL4, UDP) => 8,
        _ => return None,
    };
    Some(Gso { headers: ip + l4, size: usize::from(vnet.gso_size).max(1) })
}

/// What is left open of an IPv4 packet after it was left open of the IPv6 packet that it was: the sum of the pseudo-header is
/// written into it. `None` if nothing is.
fn partial(frame: &mut [u8], vnet: &VirtioHeader) -> Option<VirtioHeader> {
    if !vnet.needs_csum {
        return None;
    }
    let header = usize::from(frame.first()? & 0xf) * 4;
    let protocol = *frame.get(9)?;
    let at = header
        + match protocol {
            TCP => 16,
            UDP => 6,
            _ => return None,
        };
    let address = |at: usize| {
        let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes).to_ipv6_mapped())
    };
    let sum = pseudo(address(12)?, address(16)?, protocol, frame.len() - header);
    frame.get_mut(at..at + 2)?.copy_from_slice(&sum.partial_field());
    // Both had no Ethernet header counted in front of them, the IPv6 packet but its own.
    let shrunk = u16::try_from(IPV6 + ETHERNET - header).ok()?;
    Some(VirtioHeader {
        gso_type: match vnet.gso_type {
            GsoType::TcpV6 => GsoType::TcpV4,
            other => other,
        },
        hdr_len: vnet.hdr_len.saturating_sub(shrunk),
        csum_start: vnet.csum_start.saturating_sub(shrunk),
        ..*vnet
    })
}
