// SPDX-License-Identifier: Apache-2.0

//! The host's side of a connection.

use std::io::{self, IoSliceMut};
use std::time::Duration;

/// A byte stream to the peer: a non-blocking socket.
pub trait Stream {
    /// Reads available data into `room`. 0 is the end.
    ///
    /// # Errors
    /// As a socket's: `WouldBlock` if there is none.
    fn read(&mut self, room: &mut [IoSliceMut<'_>]) -> io::Result<usize>;
    /// Writes what fits.
    ///
    /// # Errors
    /// As a socket's: `WouldBlock` if nothing fits.
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;
    /// Ends the direction to the peer.
    fn shutdown(&mut self);
    /// Whether [`Stream::peer`] returns something.
    fn has_peer(&self) -> bool {
        false
    }
    /// The state of the peer; `None` if only its acceptance of data is known.
    fn peer(&self) -> Option<PeerState> {
        None
    }
    /// Starts or stops probing whether the peer is alive.
    fn set_probing(&mut self, probing: bool) {
        let _ = probing;
    }
}

/// The peer's state as known to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// Time since the peer was last heard.
    pub unheard: Duration,
    /// The round-trip time to the peer.
    pub rtt: Duration,
    /// Whether it has acknowledged all data written.
    pub has_all: bool,
}

/// The stream has failed.
#[derive(Debug)]
pub(super) struct Broken;
