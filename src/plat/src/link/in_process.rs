// SPDX-License-Identifier: Apache-2.0

//! A TUN or TAP device inside this process: no `/dev/net/tun`, no namespace, no socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use clat_tun::device::{Interface, Kind};
use clat_tun::VirtioHeader;
use nix::errno::Errno;

use super::{Event, Link};
use crate::frame::{Mac, Out, ETHERNET};
use crate::settings::Settings;

/// Most frames received at a time.
const BATCH: usize = 64;
/// The Ethernet address of the user of a TUN device.
const STATION: Mac = Mac([0x02, 0, 0, 0, 0x04, 0x65]);

/// The link: the network's side of a device.
#[derive(Debug)]
pub struct InProcess {
    interface: Interface,
    /// The Ethernet addresses for packets without.
    addresses: [u8; 12],
    /// Frames for the guest.
    out: Out,
    full: bool,
    dropped: u64,
}

impl InProcess {
    /// A link to the network's side of a device, for a network with these settings. Frames to a TUN
    /// device lose their Ethernet header; it has no neighbours that would need to be resolved.
    #[must_use]
    pub fn new(interface: Interface, settings: &Settings) -> Self {
        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&settings.mac.0);
        addresses[6..].copy_from_slice(&STATION.0);
        Self { interface, addresses, out: Out::default(), full: false, dropped: 0 }
    }
}

impl Link for InProcess {
    fn fd(&self) -> BorrowedFd<'_> {
        self.interface.as_fd()
    }

    fn send_fd(&self) -> Option<BorrowedFd<'_>> {
        // The event reports frames, not room.
        None
    }

    fn receive(
        &mut self,
        _: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        for _ in 0..BATCH {
            let Some(written) = self.interface.recv()? else { break };
            match self.interface.kind() {
                Kind::Tap => each(&VirtioHeader::default(), &written.frame),
                Kind::Tun => {
                    let protocol = written.protocol.to_be_bytes();
                    let frame = [&self.addresses[..], &protocol, &written.frame].concat();
                    each(&VirtioHeader::default(), &frame);
                }
            }
        }
        Ok(Event::Frames)
    }

    fn send(&mut self, _: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        self.out.push_parts(vnet, parts);
    }

    fn flush(&mut self, _: Instant) -> io::Result<()> {
        self.full = false;
        for (_, frame) in self.out.iter() {
            let sent = match self.interface.kind() {
                Kind::Tap => self.interface.send(frame),
                Kind::Tun => self.interface.send(frame.get(ETHERNET..).unwrap_or_default()),
            };
            match sent {
                Ok(true) => {}
                Ok(false) => {
                    self.full = true;
                    self.dropped += 1;
                }
                // ARP on a TUN device.
                Err(Errno::EINVAL | Errno::EMSGSIZE) => self.dropped += 1,
                Err(errno) => return Err(errno.into()),
            }
        }
        self.out.clear();
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.full
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
