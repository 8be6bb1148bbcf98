// SPDX-License-Identifier: Apache-2.0

//! A TAP device, in a namespace mostly.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use clat_tun::{Tun, VirtioHeader, MAX_HEAD};
use nix::errno::Errno;

use super::{Event, Link};
use crate::frame::{Out, MAX_FRAME};
use crate::read_budget::ReadBudget;

/// Frames that are taken at once.
const BATCH: usize = 64;

/// The link.
#[derive(Debug)]
pub struct Tap {
    tun: Rc<Tun>,
    buf: Vec<u8>,
    budget: ReadBudget,
    dropped: u64,
}

impl Tap {
    /// A link by a TAP device.
    #[must_use]
    pub fn new(tun: Tun) -> Self {
        Self {
            tun: Rc::new(tun),
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

    fn receive(&mut self, each: &mut dyn FnMut(&VirtioHeader, &[u8])) -> io::Result<Event> {
        let mut count = 0;
        for _ in 0..self.budget.most(BATCH) {
            match self.tun.recv_behind_head(&mut self.buf) {
                Ok((vnet, at)) => {
                    count += 1;
                    each(&vnet, &self.buf[at]);
                }
                // Empty; or down, which may pass.
                Err(Errno::EAGAIN | Errno::EIO) => break,
                Err(Errno::EBADMSG | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.budget.found(count);
        Ok(Event::Frames)
    }

    fn send(&mut self, out: &mut Out) -> io::Result<()> {
        for (vnet, frame) in out.iter() {
            self.dropped += u64::from(self.tun.send(vnet, frame).is_err());
        }
        out.clear();
        Ok(())
    }

    fn direct(&self) -> Option<Rc<Tun>> {
        Some(Rc::clone(&self.tun))
    }

    fn is_full(&self) -> bool {
        false
    }

    fn takes_super_packets(&self) -> bool {
        self.tun.vnet_header_len() > 0
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
