// SPDX-License-Identifier: Apache-2.0

//! DNS messages on a stream, each after its length in 2 bytes, big-endian (RFC 1035 §4.2.2).

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

/// Bytes of the length field.
const PREFIX: usize = 2;

/// A non-blocking stream of messages.
#[derive(Debug)]
pub(crate) struct DnsStream<S = TcpStream> {
    stream: S,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The peer will send no more.
    ended: bool,
}

impl<S: Read + Write> DnsStream<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, input: Vec::new(), output: Vec::new(), ended: false }
    }

    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// Whether the peer has ended its direction, and all messages were returned.
    pub(crate) fn is_over(&self) -> bool {
        self.ended
    }

    /// Bytes that the peer has not taken.
    pub(crate) fn waiting(&self) -> usize {
        self.output.len()
    }

    /// The next message; `None` until it is complete.
    ///
    /// # Errors
    /// If the stream has failed, or a message is longer than `most`.
    pub(crate) fn next(&mut self, most: usize) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((length, rest)) = self.input.split_first_chunk() {
                let len = usize::from(u16::from_be_bytes(*length));
                if len > most {
                    return Err(ErrorKind::InvalidData.into());
                }
                if let Some(message) = rest.get(..len) {
                    let message = message.to_vec();
                    self.input.drain(..PREFIX + len);
                    return Ok(Some(message));
                }
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(n) => self.input.extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Sends a message after those that wait, as far as the stream takes it now.
    ///
    /// # Errors
    /// When the stream broke.
    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let Ok(length) = u16::try_from(message.len()) else { return Ok(()) };
        self.output.extend_from_slice(&length.to_be_bytes());
        self.output.extend_from_slice(message);
        self.flush()
    }

    /// Sends waiting messages, as far as the stream takes them now.
    ///
    /// # Errors
    /// When the stream broke.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                // It is not connected yet, or full.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    break
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "../tests/unit/dns_stream.rs"]
mod tests;
