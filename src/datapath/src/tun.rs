// SPDX-License-Identifier: Apache-2.0

//! Reads batches from the TUN device, and sends batches to it.

use std::io::IoSlice;

use clat_tun::{Tun, VirtioHeader};
use clat_xlat::TAILROOM;
use nix::errno::Errno;

use crate::batch::{CAPACITY, FRONT, STRIDE};
use crate::coalesce::Coalescer;
use crate::path::{Full, Output, Pending};
use crate::tally::Tally;

/// A batch ends at this many bytes, so that they are still in the CPU's cache when they are sent.
pub(crate) const BATCH_BYTES: usize = 128 << 10;

impl Pending {
    /// Reads a batch of packets.
    ///
    /// # Errors
    /// The error of the first read: `EAGAIN` if none waits, `EIO` if the device is down, `EBADFD`
    /// if it no longer exists.
    pub fn read(&mut self, tun: &Tun, tally: &mut Tally) -> Result<(), Errno> {
        let batch = &mut self.batch;
        let mut bytes = 0;
        while batch.len() < self.read_size && bytes < BATCH_BYTES {
            let slot = batch.slot(batch.len());
            match tun.recv(&mut slot[FRONT..STRIDE - TAILROOM]) {
                Ok((vnet, len)) => {
                    batch.push(vnet, len);
                    bytes += len;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EBADMSG) => tally.receive += 1,
                Err(errno) if batch.is_empty() => return Err(errno),
                // The next read will return the same error.
                Err(_) => break,
            }
        }
        // A read that finds nothing costs as much as one that finds a packet. So read no more than
        // the last time, unless all reads found a packet.
        let len = batch.len();
        self.read_size = if len == self.read_size { (2 * len).min(CAPACITY) } else { len };
        Ok(())
    }
}

impl Output for &Tun {
    fn takes_partial_checksums(&self) -> bool {
        self.vnet_header_len() > 0
    }

    fn send_batch(
        &mut self,
        coalescer: &mut Coalescer,
        memory: &mut [u8],
        lost: &mut u64,
    ) -> Result<(), Full> {
        while let Some(message) = coalescer.waiting().first() {
            let mut pieces = [IoSlice::new(&[]); CAPACITY];
            let places = coalescer.pieces(message);
            for (piece, place) in pieces.iter_mut().zip(places) {
                *piece = IoSlice::new(&memory[place.clone()]);
            }
            match self.send_pieces(&message.vnet, &pieces[..places.len()]) {
                Ok(()) => {}
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(Full::Tun),
                Err(_) => *lost += message.count as u64,
            }
            coalescer.remove(1);
        }
        Ok(())
    }

    fn send(&mut self, packet: &[u8]) -> Result<(), Errno> {
        Tun::send(self, &VirtioHeader::default(), packet)
    }
}
