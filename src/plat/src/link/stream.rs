// SPDX-License-Identifier: Apache-2.0

//! Frames on a stream socket, each after its length in 4 bytes, big-endian: the protocol of QEMU's
//! `-netdev stream` and of passt.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use clat_tun::VirtioHeader;
use nix::sys::socket::SockType;

use super::server::Server;
use super::{is_only_for_now, Event, Link};
use crate::frame::{Out, ETHERNET, MAX_FRAME};

/// Bytes of the length field.
const PREFIX: usize = 4;
/// Most bytes of one read: several GSO packets.
const INPUT: usize = 4 * (PREFIX + MAX_FRAME);
/// Most bytes waiting for a guest that does not read.
const BACKLOG: usize = 1 << 20;
/// Most frames in one call (IOV_MAX is 1024, and each takes two).
const BATCH: usize = 256;

/// A stream socket: a named one, or a connected one.
#[derive(Debug)]
pub struct Stream {
    server: Server,
    /// Received bytes that are no complete frame yet; this many at the front.
    input: Box<[u8]>,
    filled: usize,
    /// Frames for the guest.
    out: Out,
    output: Output,
}

impl Stream {
    /// Listens at `path`, accessible to this user only.
    ///
    /// # Errors
    /// If the name is in use or too long, or the directory is missing.
    pub fn listen(path: &Path) -> io::Result<Self> {
        Ok(Self::new(Server::listen(path, SockType::Stream)?))
    }

    /// A link to one guest, by an existing connection.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn connected(guest: UnixStream) -> io::Result<Self> {
        Ok(Self::new(Server::connected(guest)?))
    }

    fn new(server: Server) -> Self {
        let (out, output) = (Out::default(), Output::default());
        Self { server, input: vec![0; INPUT].into(), filled: 0, out, output }
    }

    fn leave(&mut self, why: String) -> Event {
        self.server.hang_up();
        self.filled = 0;
        self.output.forget();
        Event::Left(why)
    }
}

impl Link for Stream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.server.fd()
    }

    fn receive(
        &mut self,
        _: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        let Some(mut guest) = self.server.guest() else {
            return Ok(if self.server.accept()? { Event::Came } else { Event::Frames });
        };
        match guest.read(&mut self.input[self.filled..]) {
            Ok(0) => return Ok(self.leave("it hung up".to_owned())),
            Ok(n) => self.filled += n,
            Err(e) if is_only_for_now(&e) => {}
            Err(e) => return Ok(self.leave(e.to_string())),
        }
        match whole_frames(&self.input[..self.filled], each) {
            Ok(taken) => {
                // Move the beginning of a frame to the front, so that there is room for all of it.
                self.input.copy_within(taken..self.filled, 0);
                self.filled -= taken;
                Ok(Event::Frames)
            }
            Err(length) => Ok(self.leave(format!(
                "it announced a frame of {length} bytes, where {ETHERNET} to {MAX_FRAME} are \
                 possible: a guest has to put 4 bytes of length before each frame"
            ))),
        }
    }

    fn send(&mut self, _: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        self.out.push_parts(vnet, parts);
    }

    fn flush(&mut self, _: Instant) -> io::Result<()> {
        let sent = match self.server.guest() {
            Some(guest) => self.output.send(guest, &self.out),
            None => {
                self.output.dropped += self.out.len() as u64;
                Ok(())
            }
        };
        self.out.clear();
        sent
    }

    fn has_guest(&self) -> bool {
        self.server.guest().is_some()
    }

    fn is_full(&self) -> bool {
        self.output.waits()
    }

    fn dropped(&self) -> u64 {
        self.output.dropped
    }
}

/// Passes the complete frames at the front of `bytes` to `each`, and returns their bytes. An
/// impossible length is an error.
fn whole_frames(bytes: &[u8], each: &mut dyn FnMut(&VirtioHeader, &[u8])) -> Result<usize, u32> {
    let mut taken = 0;
    while let Some((length, rest)) = bytes[taken..].split_first_chunk() {
        let length = u32::from_be_bytes(*length);
        let len = usize::try_from(length).unwrap_or(usize::MAX);
        if !(ETHERNET..=MAX_FRAME).contains(&len) {
            return Err(length);
        }
        let Some(frame) = rest.get(..len) else { break };
        each(&VirtioHeader::default(), frame);
        taken += PREFIX + len;
    }
    Ok(taken)
}

/// Data for the guest.
#[derive(Debug, Default)]
struct Output {
    /// Data not sent, from `sent` on; may begin inside a frame.
    backlog: Vec<u8>,
    sent: usize,
    dropped: u64,
}

impl Output {
    fn waits(&self) -> bool {
        self.sent < self.backlog.len()
    }

    fn forget(&mut self) {
        self.backlog.clear();
        self.sent = 0;
    }

    fn send(&mut self, mut guest: &UnixStream, out: &Out) -> io::Result<()> {
        if self.waits() {
            let waiting = &self.backlog[self.sent..];
            self.sent += written(guest.write(waiting), waiting.len())?;
            if !self.waits() {
                self.forget();
            }
        }
        let frames: Vec<_> = out.iter().map(|(_, frame)| (length(frame), frame)).collect();
        for batch in frames.chunks(BATCH) {
            let mut done = 0;
            if !self.waits() {
                let parts = batch
                    .iter()
                    .flat_map(|(length, frame)| [IoSlice::new(length), IoSlice::new(frame)]);
                let parts: Vec<_> = parts.collect();
                let all = parts.iter().map(|part| part.len()).sum();
                done = written(guest.write_vectored(&parts), all)?;
            }
            self.keep(batch, done);
        }
        Ok(())
    }

    /// Keeps what follows the first `done` bytes of these frames. A frame without room is dropped
    /// as a whole.
    fn keep(&mut self, frames: &[([u8; PREFIX], &[u8])], mut done: usize) {
        for (length, frame) in frames {
            let size = PREFIX + frame.len();
            let room = BACKLOG.saturating_sub(self.backlog.len() - self.sent);
            if done < size {
                if done == 0 && size > room {
                    self.dropped += 1;
                } else {
                    // Rare, and there is less to move than was sent before.
                    if self.sent > BACKLOG {
                        self.backlog.drain(..self.sent);
                        self.sent = 0;
                    }
                    self.backlog.extend(length.iter().chain(*frame).skip(done));
                }
            }
            done = done.saturating_sub(size);
        }
    }
}

/// The length field of a frame.
fn length(frame: &[u8]) -> [u8; PREFIX] {
    u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// Bytes written; all of them if the guest has left, which [`Link::receive`] reports.
fn written(result: io::Result<usize>, all: usize) -> io::Result<usize> {
    match result {
        Err(e) if is_only_for_now(&e) => Ok(0),
        Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(all),
        other => other,
    }
}
