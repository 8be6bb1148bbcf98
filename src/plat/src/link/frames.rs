//! One frame a message: datagram sockets (QEMU's `-netdev dgram`), and packet sockets with connections.

use std::collections::VecDeque;
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

/// Frames that wait for room. The kernel queues ten datagrams (net.unix.max_dgram_qlen), and a train of segments is longer.
const WAITING: usize = 1024;

/// Gives each frame to `send` as a message, behind those that wait; what finds no room waits. Tells how many were dropped.
fn send_each(
    waiting: &mut VecDeque<Vec<u8>>,
    out: &Out,
    send: impl Fn(&[u8]) -> Result<usize, Errno>,
) -> Result<u64, Errno> {
    // Longer than the socket's buffer: no later try would do better.
    let taken = |frame: &[u8]| match send(frame) {
        Ok(_) | Err(Errno::EMSGSIZE) => Ok(true),
        Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => Ok(false),
        Err(e) => Err(e),
    };
    while let Some(frame) = waiting.front() {
        if !taken(frame)? {
            break;
        }
        waiting.pop_front();
    }
    let mut dropped = 0;
    for (_, frame) in out.iter() {
        if waiting.is_empty() && taken(frame)? {
            continue;
        }
        if waiting.len() < WAITING {
            waiting.push_back(frame.to_vec());
        } else {
            dropped += 1;
        }
    }
    Ok(dropped)
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
    waiting: VecDeque<Vec<u8>>,
    dropped: u64,
}

impl Packets {
    /// Listens at `path`, for the owner of the process alone.
    ///
    /// # Errors
    /// When that name cannot be had: it is taken, too long, or the directory is missing.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let server = Server::listen(path, SockType::SeqPacket)?;
        Ok(Self {
            server,
            input: vec![0; MAX_FRAME + 1].into(),
            waiting: VecDeque::new(),
            dropped: 0,
        })
    }

    fn leave(&mut self, why: String) -> Event {
        self.server.hang_up();
        self.waiting.clear();
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
        let all = out.len() as u64;
        self.dropped += match self.server.guest() {
            None => all,
            // Errors show when receiving.
            Some(guest) => {
                send_each(&mut self.waiting, out, |frame| send(guest.as_raw_fd(), frame, FLAGS))
                    .unwrap_or(all)
            }
        };
        out.clear();
        Ok(())
    }

    fn has_guest(&self) -> bool {
        self.server.guest().is_some()
    }

    fn is_full(&self) -> bool {
        !self.waiting.is_empty()
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
    waiting: VecDeque<Vec<u8>>,
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
        Ok(Self {
            socket: socket.into(),
            input,
            guest: None,
            waiting: VecDeque::new(),
            dropped: 0,
            _name: name,
        })
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
                self.waiting.clear();
            }
            each(&VirtioHeader::default(), &self.input[..len]);
            if is_new {
                return Ok(Event::Came);
            }
        }
        Ok(Event::Frames)
    }

    fn send(&mut self, out: &mut Out) -> io::Result<()> {
        let all = out.len() as u64;
        let mut dropped = all;
        if let Some(guest) = &self.guest {
            let guest = UnixAddr::new(guest)?;
            let send = |frame: &[u8]| sendto(self.socket.as_raw_fd(), frame, &guest, FLAGS);
            dropped = send_each(&mut self.waiting, out, send).unwrap_or_else(|e| {
                log::info!("the guest is gone: {}", e.desc());
                self.guest = None;
                self.waiting.clear();
                all
            });
        }
        self.dropped += dropped;
        out.clear();
        Ok(())
    }

    fn has_guest(&self) -> bool {
        self.guest.is_some()
    }

    fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn takes_super_packets(&self) -> bool {
        false
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
