// SPDX-License-Identifier: Apache-2.0

//! The other end of a connection.

use std::io::{self, IoSliceMut};
use std::time::Duration;

/// A stream of bytes to the other end: a non-blocking socket.
pub trait Stream {
    /// Reads what there is into `room`. 0 is the end.
    ///
    /// # Errors
    /// As a socket's: `WouldBlock` when there is nothing.
    fn read(&mut self, room: &mut [IoSliceMut<'_>]) -> io::Result<usize>;
    /// Writes what fits.
    ///
    /// # Errors
    /// As a socket's: `WouldBlock` when nothing fits.
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;
    /// Says that nothing more will be written.
    fn shutdown(&mut self);
    /// Whether [`Stream::peer`] knows something.
    fn has_peer(&self) -> bool {
        false
    }
    /// What is known of the other end; `None` where there is nothing to be known beyond that it
    /// takes what is written.
    fn peer(&self) -> Option<PeerState> {
        None
    }
    /// Asks the other end whether it is there, or no longer.
    fn set_probing(&mut self, probing: bool) {
        let _ = probing;
    }
}

/// The other end as its stream knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// How long nothing was heard of it.
    pub unheard: Duration,
    /// A round trip there.
    pub rtt: Duration,
    /// Whether it has acknowledged all that was written.
    pub has_all: bool,
}

/// The stream has ended by force.
#[derive(Debug)]
pub(super) struct Broken;
