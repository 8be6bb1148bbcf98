// SPDX-License-Identifier: Apache-2.0

//! Forwards packets between a TUN device and the sockets of an uplink.

use std::time::Instant;

use clat_tun::Tun;
use clat_xlat::Counters;
use nix::errno::Errno;

use crate::batch::CAPACITY;
use crate::path::{ClatPath, Direction, Full, Pending};
use crate::tally::Tally;
use crate::tun::BATCH_BYTES;
use crate::uplink::Uplink;

/// How [`Forwarder::poll`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All packets read have been forwarded.
    Done,
    /// The output is full; nothing is read until it has room.
    Full(Full),
}

/// Both ends of a CLAT, and the path between them.
#[derive(Debug)]
pub struct Forwarder {
    path: ClatPath,
    tun: Tun,
    uplink: Uplink,
    egress: Pending,
    ingress: Pending,
}

impl Forwarder {
    /// Connects both ends.
    #[must_use]
    pub fn new(path: ClatPath, tun: Tun, uplink: Uplink) -> Self {
        Self { path, tun, uplink, egress: Pending::default(), ingress: Pending::default() }
    }

    /// The TUN device.
    #[must_use]
    pub fn tun(&self) -> &Tun {
        &self.tun
    }

    /// The uplink.
    #[must_use]
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// Counters of translation and of everything else.
    #[must_use]
    pub fn counters(&mut self) -> (Counters, Tally) {
        self.path.tally().overrun += self.uplink.packet_socket().overruns();
        self.path.counters()
    }

    /// Forwards what is left of the last batch in this direction, and then another batch.
    ///
    /// # Errors
    /// The error of reading: `EAGAIN` if no packet waits, `ENETDOWN` if the uplink is down (packets
    /// read so far are lost).
    pub fn poll(&mut self, direction: Direction, now: Instant) -> Result<Progress, Errno> {
        if let Err(full) = self.forward(direction, now) {
            return Ok(Progress::Full(full));
        }
        match direction {
            Direction::Egress => {
                self.egress.read(&self.tun, self.path.tally())?;
                self.uplink.begin(now);
                self.path.set_mtu6(self.uplink.mtu6());
            }
            Direction::Ingress => self.receive()?,
        }
        let forwarded = self.forward(direction, now);
        if self.uplink.went_down() {
            return Err(Errno::ENETDOWN);
        }
        Ok(forwarded.map_or_else(Progress::Full, |()| Progress::Done))
    }

    fn forward(&mut self, direction: Direction, now: Instant) -> Result<(), Full> {
        let Self { path, tun, uplink, egress, ingress } = self;
        let mut tun = &*tun;
        match direction {
            Direction::Egress => path.forward(direction, egress, uplink, &mut tun, now),
            Direction::Ingress => path.forward(direction, ingress, &mut tun, uplink, now),
        }
    }

    fn receive(&mut self) -> Result<(), Errno> {
        let Pending { batch, read_size, .. } = &mut self.ingress;
        match self.uplink.packet_socket().recv(batch, *read_size) {
            Ok(()) => {}
            Err(Errno::EINTR) => return Ok(()),
            // The packet is lost; the next one may be readable.
            Err(Errno::EINVAL) => {
                self.path.tally().receive += 1;
                return Ok(());
            }
            Err(errno) => return Err(errno),
        }
        let bytes: usize = (0..batch.len()).map(|i| batch.packet(i).1.len()).sum();
        *read_size = (BATCH_BYTES * batch.len() / bytes.max(1)).clamp(2, CAPACITY);
        Ok(())
    }
}
