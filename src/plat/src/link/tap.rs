// SPDX-License-Identifier: Apache-2.0

//! A TAP device, usually in a namespace.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use clat_tun::{Tun, VirtioHeader, MAX_HEAD};
use nix::errno::Errno;

use super::{Event, Link};
use crate::frame::MAX_FRAME;
use crate::read_budget::ReadBudget;

/// Most frames received at a time.
const BATCH: usize = 64;

/// The link.
#[derive(Debug)]
pub struct Tap {
    tun: Tun,
    buf: Vec<u8>,
    budget: ReadBudget,
    dropped: u64,
}

impl Tap {
    /// A link to a TAP device.
    #[must_use]
    pub fn new(tun: Tun) -> Self {
        Self {
            tun,
            buf: vec![0; MAX_HEAD + MAX_FRAME + 1],
            budget: ReadBudget::default(),
            dropped: 0,
        }
    }
}

impl Link for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }

    fn fd_stays(&self) -> bool {
        true
    }

    fn receive(
        &mut self,
        _: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        let mut count = 0;
        for _ in 0..self.budget.most(BATCH) {
            match self.tun.recv_behind_head(&mut self.buf) {
                Ok((vnet, at)) => {
                    count += 1;
                    each(&vnet, &self.buf[at]);
                }
                // Empty; or down, which may end.
                Err(Errno::EAGAIN | Errno::EIO) => break,
                Err(Errno::EBADMSG | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.budget.found(count);
        Ok(Event::Frames)
    }

    fn send(&mut self, _: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        // No frame has more pieces.
        let piece = |i: usize| IoSlice::new(parts.get(i).copied().unwrap_or_default());
        let sent = self.tun.send_pieces(vnet, &[piece(0), piece(1), piece(2)]);
        self.dropped += u64::from(sent.is_err());
    }

    fn takes_super_packets(&self) -> bool {
        self.tun.vnet_header_len() > 0
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
