// SPDX-License-Identifier: Apache-2.0

//! Links: how a guest's Ethernet frames reach the network and back.

mod clat;
mod frames;
mod impairment;
mod in_process;
mod server;
mod stream;
mod switch;
mod tap;

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use clat_tun::VirtioHeader;

use crate::frame::Mac;
use crate::settings::Label;

pub use clat::Clat;
pub use frames::{Datagrams, Packets};
pub use impairment::Impairment;
pub use in_process::InProcess;
pub(crate) use server::Server;
pub use stream::Stream;
pub use switch::{Answer, Request, Switch, Terms};
pub use tap::Tap;

/// The result of [`Link::receive`], beside frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Frames only, if any.
    Frames,
    /// A guest has connected. Frames of the same call are its own.
    Came,
    /// The guest has left, and why: one line for people.
    Left(String),
    /// The nodes are others than before; the present ones by their names.
    Nodes(Vec<(Label, Mac)>),
}

/// A link to one guest, to a bridge with several behind it, or to nodes, that exchanges Ethernet
/// frames with the network.
///
/// No function blocks.
pub trait Link {
    /// Readable when [`Link::receive`] has something to do. Another descriptor after each
    /// [`Event::Came`] and [`Event::Left`], unless [`Link::fd_stays`].
    fn fd(&self) -> BorrowedFd<'_>;

    /// Whether [`Link::fd`] is always the same.
    fn fd_stays(&self) -> bool {
        false
    }

    /// Writable when a full link has room again; `None` if only another try can tell.
    fn send_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }

    /// Receives a batch of frames, and passes each to `each` with what is left for its receiver to
    /// complete.
    ///
    /// # Errors
    /// If the link itself has failed; a guest's misbehaviour is an [`Event::Left`].
    fn receive(
        &mut self,
        now: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event>;

    /// Takes a frame for the guest in pieces: sent now, or by [`Link::flush`].
    fn send(&mut self, now: Instant, vnet: &VirtioHeader, parts: &[&[u8]]);

    /// Sends frames that [`Link::send`] has taken, after those that wait. Frames without room, or
    /// without guest, are dropped and counted.
    ///
    /// # Errors
    /// If the link itself has failed.
    fn flush(&mut self, _now: Instant) -> io::Result<()> {
        Ok(())
    }

    /// When [`Link::receive`] and [`Link::flush`] are due even without a ready descriptor; `None`:
    /// never.
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Whether there is a guest, as far as known.
    fn has_guest(&self) -> bool {
        true
    }

    /// Whether the guest has not yet taken earlier frames. Senders that can wait should do so until
    /// [`Link::send_fd`] is writable (or for a millisecond), and then call [`Link::flush`].
    fn is_full(&self) -> bool {
        false
    }

    /// Whether frames may be GSO packets and have partial checksums.
    fn takes_super_packets(&self) -> bool {
        false
    }

    /// Number of frames dropped.
    fn dropped(&self) -> u64;
}

/// Whether the call may succeed later.
fn is_only_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
