// SPDX-License-Identifier: Apache-2.0

//! A CLAT for a namespace, between a TUN device there and the network. It translates IPv4 packets
//! to IPv6 packets from an address in the network's prefix, so that the network itself stays
//! IPv6-only. The path is clatd's: [`clat_datapath`].

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Instant;

use clat_datapath::batch::{FRONT, STRIDE};
use clat_datapath::coalesce::Coalescer;
use clat_datapath::path::{ClatPath, Direction, Full, Output, Pending};
use clat_tun::{Tun, VirtioHeader};
use clat_xlat::{Addresses, AddressesError, Config, Local, Translator, TAILROOM};
use nix::errno::Errno;

use crate::frame::{Mac, ETHERNET};
use crate::settings::Settings;

/// The CLAT's IPv4 address (RFC 7335).
pub const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 4);
/// Most bytes that translation adds to a packet (RFC 7915 §4.1).
const GROWTH: u16 = 28;
/// The Ethernet address of its frames.
pub const MAC: Mac = Mac([0x02, 0, 0, 0, 0x04, 0x66]);

/// MTU of the CLAT's device.
#[must_use]
pub fn mtu(settings: &Settings) -> u16 {
    settings.mtu - GROWTH
}

/// A CLAT on `tun` in this network, in two halves: up and down.
///
/// # Errors
/// If no host can have an address in the guest's prefix.
pub fn new(tun: Tun, settings: &Settings) -> Result<(Up, Down), AddressesError> {
    let random = fastrand::u64(..).to_be_bytes();
    let local = Local::neutral(V4, settings.prefix, &settings.prefix64, random);
    let config = Config {
        // No limit: packets from the network fit the link, and reassembled ones, which may be
        // longer, fit the device.
        mtu4: u16::MAX.into(),
        mtu6: settings.mtu.into(),
        // The other end is one hop away, on a link whose MTU is known.
        lowest_ipv6_mtu: settings.mtu.into(),
        ..Config::default()
    };
    let addresses =
        Addresses { local: Some(local), prefixes: vec![settings.prefix64], ..Addresses::default() };
    let uso = tun.take_offloads().unwrap_or(false);
    let tun = Rc::new(tun);
    let translator = || Translator::new(config, addresses.clone(), fastrand::u16(..));
    let half = |translator| Half {
        tun: Rc::clone(&tun),
        path: ClatPath::new(translator, V4, uso),
        pending: Pending::default(),
    };
    Ok((Up(half(translator()?)), Down { half: half(translator()?), local }))
}

struct Half {
    tun: Rc<Tun>,
    path: ClatPath,
    pending: Pending,
}

/// The direction from IPv4 to the network.
pub struct Up(Half);

impl Up {
    /// The device.
    #[must_use]
    pub fn tun(&self) -> &Tun {
        &self.0.tun
    }

    /// Reads a batch of packets and passes each as IPv6 to `each`.
    ///
    /// # Errors
    /// If the device no longer exists.
    pub fn recv(&mut self, now: Instant, each: impl FnMut(&VirtioHeader, &[u8])) -> io::Result<()> {
        let Half { tun, path, pending } = &mut self.0;
        match pending.read(tun, path.tally()) {
            Ok(()) => {}
            Err(Errno::EAGAIN | Errno::EIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let mut tun = Device { tun, sent: false };
        // The network is never full.
        let _ = path.forward(Direction::Egress, pending, &mut Network(each), &mut tun, now);
        Ok(())
    }
}

/// The direction from the network to IPv4.
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

    /// Translates an IPv6 packet in pieces and writes it. Offsets in `vnet` include an Ethernet
    /// header. Returns whether it was written, or kept until its other fragments come.
    pub fn send(&mut self, vnet: &VirtioHeader, parts: [&[u8]; 3], now: Instant) -> bool {
        let Half { tun, path, pending } = &mut self.half;
        let room = &mut pending.batch.slot(0)[FRONT..STRIDE - TAILROOM];
        let mut len = 0;
        for part in parts {
            let Some(place) = room.get_mut(len..len + part.len()) else { return false };
            place.copy_from_slice(part);
            len += part.len();
        }
        let ethernet = u16::try_from(ETHERNET).unwrap_or_default();
        let vnet = VirtioHeader {
            hdr_len: vnet.hdr_len.saturating_sub(ethernet),
            csum_start: vnet.csum_start.saturating_sub(ethernet),
            ..*vnet
        };
        pending.batch.push(vnet, len);
        let held = path.tally().held();
        let mut tun = Device { tun, sent: false };
        // The device is never full: it drops packets instead.
        let _ = path.forward(Direction::Ingress, pending, &mut tun, &mut Nobody, now);
        tun.sent || path.tally().held() > held
    }
}

/// The network: a function that takes packets.
struct Network<F>(F);

impl<F: FnMut(&VirtioHeader, &[u8])> Output for Network<F> {
    fn send_batch(
        &mut self,
        coalescer: &mut Coalescer,
        memory: &mut [u8],
        _lost: &mut u64,
    ) -> Result<(), Full> {
        for message in coalescer.waiting() {
            let Some((first, more)) = coalescer.pieces(message).split_first() else { continue };
            // Behind the first piece there is room for the longest packet.
            let mut end = first.end;
            for piece in more {
                memory.copy_within(piece.clone(), end);
                end += piece.len();
            }
            self.0(&message.vnet, &memory[first.start..end]);
        }
        coalescer.remove(coalescer.waiting().len());
        Ok(())
    }

    fn send(&mut self, packet: &[u8]) -> Result<(), Errno> {
        self.0(&VirtioHeader::default(), packet);
        Ok(())
    }
}

/// The TUN device. Packets for which it has no room are dropped, as by a router.
struct Device<'t> {
    tun: &'t Tun,
    /// Whether it has taken a packet.
    sent: bool,
}

impl Output for Device<'_> {
    fn takes_partial_checksums(&self) -> bool {
        self.tun.takes_partial_checksums()
    }

    fn send_batch(
        &mut self,
        coalescer: &mut Coalescer,
        memory: &mut [u8],
        lost: &mut u64,
    ) -> Result<(), Full> {
        let (waiting, before) = (coalescer.waiting().len(), *lost);
        if self.tun.send_batch(coalescer, memory, lost).is_err() {
            *lost += coalescer.waiting().len() as u64;
            coalescer.remove(coalescer.waiting().len());
        }
        self.sent |= waiting > 0 && *lost == before;
        Ok(())
    }

    fn send(&mut self, packet: &[u8]) -> Result<(), Errno> {
        self.tun.send(&VirtioHeader::default(), packet)?;
        self.sent = true;
        Ok(())
    }
}

/// An output for ICMP errors about the network's own packets. There are none: it sends no packet
/// that cannot be translated.
struct Nobody;

impl Output for Nobody {
    fn send_batch(&mut self, _: &mut Coalescer, _: &mut [u8], _: &mut u64) -> Result<(), Full> {
        Ok(())
    }

    fn send(&mut self, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::EHOSTUNREACH)
    }
}
