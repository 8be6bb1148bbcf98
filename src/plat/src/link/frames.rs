//! One frame a message: datagram sockets (QEMU's `-netdev dgram`), and packet sockets with connections.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use clat_tun::VirtioHeader;
use nix::errno::Errno;
use nix::sys::socket::{recv, send, sendto, MsgFlags, SockType, UnixAddr};

use super::server::{Name, Server};
use super::{is_only_for_now, Event, Link};
use crate::frame::{Out, ETHERNET, MAX_FRAME};

/// Frames that are taken at once.
const BATCH: usize = 64;
const FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// Gives each frame to `send` as a message, and tells how many the other side took before it had no room.
fn send_each(out: &Out, send: impl Fn(&[u8]) -> Result<usize, Errno>) -> Result<usize, Errno> {
    let mut done = 0;
    for (_, frame) in out.iter() {
        match send(frame) {
            // Longer than the socket's buffer: no later try would do better.
            Ok(_) | Err(Errno::EMSGSIZE) => done += 1,
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Whether these bytes can be a frame at all.
fn is_frame(message: &[u8]) -> bool {
    (ETHERNET..=MAX_FRAME).contains(&message.len())
}

/// A packet socket (SOCK_SEQPACKET) with a name: a guest connects to it.
#[derive(Debug)]
pub struct Packets {
    server: Server,
    input: Box<[u8]>,
    full: bool,
    dropped: u64,
}

impl Packets {
    /// Listens at `path`, for the owner of the process alone.
    ///
    /// # Errors
    /// When that name cannot be had: it is taken, too long, or the directory is missing.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let server = Server::listen(path, SockType::SeqPacket)?;
        Ok(Self { server, input: vec![0; MAX_FRAME + 1].into(), full: false, dropped: 0 })
    }

    fn leave(&mut self, why: String) -> Event {
        self.server.hang_up();
        self.full = false;
        Event::Left(why)
    }
}

impl Link for Packets {
    fn fd(&self) -> BorrowedFd<'_> {
        self.server.fd()
    }

    fn receive(&mut self, each: &mut dyn FnMut(&VirtioHeader, &[u8])) -> io::Result<Event> {
        let Some(guest) = self.server.guest() else {
            return Ok(if self.server.accept()? { Event::Came } else { Event::Frames });
        };
        for _ in 0..BATCH {
            match recv(guest.as_raw_fd(), &mut self.input, MsgFlags::MSG_DONTWAIT) {
                // An empty message looks the same, and is no frame either.
                Ok(0) => return Ok(self.leave("it hung up".to_owned())),
                Ok(n) if is_frame(&self.input[..n]) => {
                    each(&VirtioHeader::default(), &self.input[..n]);
                }
                Ok(_) => self.dropped += 1,
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(e) => return Ok(self.leave(e.desc().to_owned())),
            }
        }
        Ok(Event::Frames)
    }

    fn send(&mut self, out: &mut Out) -> io::Result<()> {
        self.full = false;
        let mut done = 0;
        if let Some(guest) = self.server.guest() {
            // Errors show when receiving.
            let send = |frame: &[u8]| send(guest.as_raw_fd(), frame, FLAGS);
            done = send_each(out, send).unwrap_or(0);
            self.full = done < out.len();
        }
        self.dropped += (out.len() - done) as u64;
        out.clear();
        Ok(())
    }

    fn has_guest(&self) -> bool {
        self.server.guest().is_some()
    }

    fn is_full(&self) -> bool {
        self.full
    }

    fn takes_super_packets(&self) -> bool {
        false
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// A datagram socket with a name. The guest has one with a name too, and is whoever sent a frame last; that it is gone
/// shows only when it does not take what it is sent.
#[derive(Debug)]
pub struct Datagrams {
    socket: UnixDatagram,
    input: Box<[u8]>,
    guest: Option<PathBuf>,
    full: bool,
    dropped: u64,
    _name: Name,
}

impl Datagrams {
    /// Receives at `path`, for the owner of the process alone.
    ///
    /// # Errors
    /// When that name cannot be had: it is taken, too long, or the directory is missing.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let (socket, name) = Name::bind(path, SockType::Datagram)?;
        let input = vec![0; MAX_FRAME + 1].into();
        Ok(Self { socket: socket.into(), input, guest: None, full: false, dropped: 0, _name: name })
    }
}

impl Link for Datagrams {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send_fd(&self) -> Option<BorrowedFd<'_>> {
        // It is always writable.
        None
    }

    fn receive(&mut self, each: &mut dyn FnMut(&VirtioHeader, &[u8])) -> io::Result<Event> {
        for _ in 0..BATCH {
            let (len, from) = match self.socket.recv_from(&mut self.input) {
                Ok(received) => received,
                Err(e) if is_only_for_now(&e) => break,
                Err(e) => return Err(e),
            };
            if !is_frame(&self.input[..len]) {
                self.dropped += 1;
                continue;
            }
            let from = from.as_pathname().map(Path::to_owned);
            let is_new = from.is_some() && from != self.guest;
            if is_new {
                self.guest = from;
                self.full = false;
            }
            each(&VirtioHeader::default(), &self.input[..len]);
            if is_new {
                return Ok(Event::Came);
            }
        }
        Ok(Event::Frames)
    }

    fn send(&mut self, out: &mut Out) -> io::Result<()> {
        let mut done = 0;
        if let Some(guest) = &self.guest {
            let guest = UnixAddr::new(guest)?;
            let send = |frame: &[u8]| sendto(self.socket.as_raw_fd(), frame, &guest, FLAGS);
            done = send_each(out, send).unwrap_or_else(|e| {
                log::info!("the guest is gone: {}", e.desc());
                self.guest = None;
                0
            });
        }
        self.full = self.guest.is_some() && done < out.len();
        self.dropped += (out.len() - done) as u64;
        out.clear();
        Ok(())
    }

    fn has_guest(&self) -> bool {
        self.guest.is_some()
    }

    fn is_full(&self) -> bool {
        self.full
    }

    fn takes_super_packets(&self) -> bool {
        false
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
