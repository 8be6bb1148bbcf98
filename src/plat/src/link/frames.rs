// SPDX-License-Identifier: Apache-2.0

//! One frame per message: datagram sockets (QEMU's `-netdev dgram`), and packet sockets, which have
//! connections.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Instant;

use clat_tun::VirtioHeader;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::ucred;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    connect, recv, recvmsg, send, sendto, setsockopt, sockopt, ControlMessageOwned, MsgFlags,
    SockType, UnixAddr, UnixCredentials,
};
use rustix::process::{pidfd_open, Pid, PidfdFlags};

use super::server::{Name, Server};
use super::{Event, Link};
use crate::frame::{Out, ETHERNET, MAX_FRAME};

/// Most frames received at a time.
const BATCH: usize = 64;
const FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// Most frames waiting for room. The kernel queues ten datagrams (net.unix.max_dgram_qlen); a GSO
/// packet becomes more.
const WAITING: usize = 1024;

/// Sends each frame as a message by `send`, after those that wait; what has no room waits. Returns
/// how many were dropped.
fn send_each(
    waiting: &mut VecDeque<Vec<u8>>,
    out: &Out,
    send: impl Fn(&[u8]) -> Result<usize, Errno>,
) -> Result<u64, Errno> {
    // Longer than the socket's buffer; a later try would fail, too.
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

/// Whether these bytes can be a frame.
fn is_frame(message: &[u8]) -> bool {
    (ETHERNET..=MAX_FRAME).contains(&message.len())
}

/// A packet socket (SOCK_SEQPACKET): a named one, to which a guest connects, or a connected one.
#[derive(Debug)]
pub struct Packets {
    server: Server,
    input: Box<[u8]>,
    /// Frames for the guest.
    out: Out,
    waiting: VecDeque<Vec<u8>>,
    dropped: u64,
}

impl Packets {
    /// Listens at `path`, accessible to this user only.
    ///
    /// # Errors
    /// If the name is in use or too long, or the directory is missing.
    pub fn listen(path: &Path) -> io::Result<Self> {
        Ok(Self::new(Server::listen(path, SockType::SeqPacket)?))
    }

    /// A link to one guest, by an existing connection.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn connected(guest: UnixStream) -> io::Result<Self> {
        Ok(Self::new(Server::connected(guest)?))
    }

    fn new(server: Server) -> Self {
        Self {
            server,
            input: vec![0; MAX_FRAME + 1].into(),
            out: Out::default(),
            waiting: VecDeque::new(),
            dropped: 0,
        }
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

    fn receive(
        &mut self,
        _: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        let Some(guest) = self.server.guest() else {
            return Ok(if self.server.accept()? { Event::Came } else { Event::Frames });
        };
        for _ in 0..BATCH {
            match recv(guest.as_raw_fd(), &mut self.input, MsgFlags::MSG_DONTWAIT) {
                // An empty message looks the same, and is no frame.
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

    fn send(&mut self, _: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        self.out.push_parts(vnet, parts);
    }

    fn flush(&mut self, _: Instant) -> io::Result<()> {
        let (out, all) = (&self.out, self.out.len() as u64);
        self.dropped += match self.server.guest() {
            None => all,
            // Receiving reports errors.
            Some(guest) => {
                send_each(&mut self.waiting, out, |frame| send(guest.as_raw_fd(), frame, FLAGS))
                    .unwrap_or(all)
            }
        };
        self.out.clear();
        Ok(())
    }

    fn has_guest(&self) -> bool {
        self.server.guest().is_some()
    }

    fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// Tokens of an inner [`Epoll`].
const FRAMES: u64 = 0;
const PROCESS: u64 = 1;

/// The sender of the last frame from a named socket.
#[derive(Debug)]
struct Guest {
    address: UnixAddr,
    /// The sending process; `None` if it is not visible in this PID namespace.
    pid: Option<Pid>,
    uid: u32,
    /// Readable when that process has ended; if `None`, only a failing send shows that the guest
    /// has left.
    process: Option<OwnedFd>,
    /// Whether it was logged that its socket does not accept our frames.
    refuses: bool,
}

/// A named datagram socket. The guest has a named one, too, and is the sender of the last frame.
///
/// The kernel does not report that the other end of such a socket is closed, but tells the sending
/// process, whose end is reported.
#[derive(Debug)]
pub struct Datagrams {
    socket: UnixDatagram,
    /// For checking whether a guest's socket exists.
    probe: UnixDatagram,
    /// Readable when the socket is, or when the guest's process has ended.
    both: Epoll,
    input: Box<[u8]>,
    /// Room for the sender's credentials, but not for descriptors.
    control: Vec<u8>,
    guest: Option<Guest>,
    /// Frames for the guest.
    out: Out,
    waiting: VecDeque<Vec<u8>>,
    dropped: u64,
    _name: Name,
}

/// Why an existing guest is not answered, and what to do.
fn refusal(guest: &Guest, errno: Errno) -> String {
    let socket = guest.address.path().unwrap_or(Path::new("its socket")).display();
    if errno == Errno::EPERM {
        return format!("cannot answer the guest: {socket} is connected to another socket");
    }
    format!(
        "cannot answer the guest: {socket} is not writable for this user: change its mode, or have \
         root start platd with --runas {}",
        guest.uid
    )
}

impl Datagrams {
    /// Receives at `path`, accessible to this user only.
    ///
    /// # Errors
    /// If the name is in use or too long, or the directory is missing.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let (socket, name) = Name::bind(path, SockType::Datagram)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        both.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, FRAMES))?;
        Ok(Self {
            socket: socket.into(),
            probe: UnixDatagram::unbound()?,
            both,
            input: vec![0; MAX_FRAME + 1].into(),
            control: cmsg_space!(ucred),
            guest: None,
            out: Out::default(),
            waiting: VecDeque::new(),
            dropped: 0,
            _name: name,
        })
    }

    /// The next message: its length, its sender's address, and process and user.
    fn take(&mut self) -> nix::Result<(usize, Option<UnixAddr>, Option<UnixCredentials>)> {
        let mut iov = [IoSliceMut::new(&mut self.input)];
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        let message = recvmsg::<UnixAddr>(fd, &mut iov, Some(&mut self.control), flags)?;
        // Unknown for a message that brings descriptors.
        let sender = message.cmsgs().ok().and_then(|mut all| match all.next() {
            Some(ControlMessageOwned::ScmCredentials(sender)) => Some(sender),
            _ => None,
        });
        let address = message.address.filter(|address| !address.is_unnamed());
        Ok((message.bytes, address, sender))
    }

    /// Notes the sender of a frame. `true` for another guest than before.
    fn meet(&mut self, address: UnixAddr, sender: Option<UnixCredentials>) -> bool {
        let pid = sender.and_then(|sender| Pid::from_raw(sender.pid()));
        let known = self.guest.as_ref().filter(|guest| guest.address == address);
        if known.is_some_and(|guest| pid.is_none() || guest.pid == pid) {
            return false;
        }
        let is_new = known.is_none();
        if is_new {
            self.waiting.clear();
        }
        let opened = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        if matches!(opened, Some(Err(rustix::io::Errno::SRCH))) && !self.is_there(&address) {
            // That was its last frame: it has ended meanwhile.
            self.guest = None;
            return false;
        }
        let process = opened.and_then(Result::ok).filter(|process| {
            self.both.add(process, EpollEvent::new(EpollFlags::EPOLLIN, PROCESS)).is_ok()
        });
        let uid = sender.map_or(0, |sender| sender.uid());
        self.guest = Some(Guest { address, pid, uid, process, refuses: false });
        is_new
    }

    /// Whether a socket of this name exists.
    fn is_there(&self, address: &UnixAddr) -> bool {
        // EPERM: it is connected to another socket.
        matches!(connect(self.probe.as_raw_fd(), address), Ok(()) | Err(Errno::EPERM))
    }

    /// Checks whether the guest is still there, when there are no frames.
    fn look_after(&mut self) -> Event {
        let mut events = [EpollEvent::empty()];
        let ended =
            self.both.wait(&mut events, EpollTimeout::ZERO) == Ok(1) && events[0].data() == PROCESS;
        let Some(guest) = self.guest.as_mut().filter(|_| ended) else { return Event::Frames };
        guest.process = None;
        let address = guest.address;
        // Another process may have the same socket.
        if self.is_there(&address) {
            return Event::Frames;
        }
        self.leave("its process has ended")
    }

    fn leave(&mut self, why: &str) -> Event {
        self.guest = None;
        self.waiting.clear();
        Event::Left(why.to_owned())
    }
}

impl Link for Datagrams {
    fn fd(&self) -> BorrowedFd<'_> {
        self.both.0.as_fd()
    }

    fn send_fd(&self) -> Option<BorrowedFd<'_>> {
        // A datagram socket is always writable.
        None
    }

    fn receive(
        &mut self,
        _: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        for n in 0..BATCH {
            let (len, from, sender) = match self.take() {
                Ok(received) => received,
                Err(Errno::EAGAIN) if n == 0 => return Ok(self.look_after()),
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(e) => return Err(e.into()),
            };
            if !is_frame(&self.input[..len]) {
                self.dropped += 1;
                continue;
            }
            let is_new = from.is_some_and(|from| self.meet(from, sender));
            each(&VirtioHeader::default(), &self.input[..len]);
            if is_new {
                return Ok(Event::Came);
            }
        }
        Ok(Event::Frames)
    }

    fn send(&mut self, _: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        self.out.push_parts(vnet, parts);
    }

    fn flush(&mut self, _: Instant) -> io::Result<()> {
        let (out, all) = (&self.out, self.out.len() as u64);
        self.dropped += match &mut self.guest {
            None => all,
            Some(guest) => {
                let (fd, address) = (self.socket.as_raw_fd(), guest.address);
                let send = |frame: &[u8]| sendto(fd, frame, &address, FLAGS);
                match send_each(&mut self.waiting, out, send) {
                    Ok(dropped) => dropped,
                    Err(e @ (Errno::EACCES | Errno::EPERM)) => {
                        self.waiting.clear();
                        if !std::mem::replace(&mut guest.refuses, true) {
                            log::warn!("{}", refusal(guest, e));
                        }
                        all
                    }
                    Err(e) => {
                        log::info!("the guest has left: {}", e.desc());
                        self.leave(e.desc());
                        all
                    }
                }
            }
        };
        self.out.clear();
        Ok(())
    }

    fn has_guest(&self) -> bool {
        self.guest.is_some()
    }

    fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
