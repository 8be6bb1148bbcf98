// SPDX-License-Identifier: Apache-2.0

//! The other end of a connection.

use std::io::{self, IoSliceMut};

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
}

/// The stream has ended by force.
#[derive(Debug)]
pub(super) struct Broken;
