// SPDX-License-Identifier: Apache-2.0

//! Links: how a guest's Ethernet frames come to the network, and go back.

mod clat;
mod frames;
mod impairment;
mod in_process;
mod server;
mod stream;
mod tap;

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use clat_tun::VirtioHeader;

pub use clat::Clat;
pub use frames::{Datagrams, Packets};
pub use impairment::Impairment;
pub use in_process::InProcess;
pub(crate) use server::Server;
pub use stream::Stream;
pub use tap::Tap;

/// What [`Link::receive`] met. Frames are given to its caller beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing but frames, if any.
    Frames,
    /// A guest plugged in. Frames that were given by the same call are its own.
    Came,
    /// The guest is gone, and why: one line for people.
    Left(String),
}

/// A link: one guest, or a bridge with several behind it, that exchanges Ethernet frames with the
/// network.
///
/// Nothing here blocks.
pub trait Link {
    /// What becomes readable when [`Link::receive`] has something to do. Another after each
    /// [`Event::Came`] and [`Event::Left`], unless [`Link::fd_stays`].
    fn fd(&self) -> BorrowedFd<'_>;

    /// Whether [`Link::fd`] is always the same.
    fn fd_stays(&self) -> bool {
        false
    }

    /// What becomes writable when a link that is full has room again; `None` where nothing tells,
    /// and only trying does.
    fn send_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }

    /// Takes a batch of what has come, and gives each whole frame to `each`, with what was left to
    /// its receiver to complete.
    ///
    /// # Errors
    /// When the link as such is broken; a guest's misbehaviour is an [`Event::Left`].
    fn receive(
        &mut self,
        now: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event>;

    /// Takes a frame for the guest, in pieces: at once, or with [`Link::flush`].
    fn send(&mut self, now: Instant, vnet: &VirtioHeader, parts: &[&[u8]]);

    /// Sends what [`Link::send`] has taken, behind what waits from before. What finds no room, or
    /// no guest, is dropped and counted.
    ///
    /// # Errors
    /// When the link as such is broken.
    fn flush(&mut self, now: Instant) -> io::Result<()>;

    /// When [`Link::receive`] and [`Link::flush`] have something to do though no descriptor says
    /// so; never, while `None`.
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Whether there is someone at the other end, as far as this side can tell.
    fn has_guest(&self) -> bool {
        true
    }

    /// Whether the guest does not take what it got already: who can wait should, until
    /// [`Link::send_fd`] is writable (or for a millisecond), and then call [`Link::flush`].
    fn is_full(&self) -> bool;

    /// Whether frames may be longer than the MTU and their checksums partial, for the other side to
    /// cut and complete.
    fn takes_super_packets(&self) -> bool {
        false
    }

    /// Frames that were not sent.
    fn dropped(&self) -> u64;
}

/// Whether the same call may do better later.
fn is_only_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
