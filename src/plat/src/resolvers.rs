// SPDX-License-Identifier: Apache-2.0

//! The resolvers of the host, and how they are asked: each question from a socket of its own, whose
//! port others cannot guess (RFC 5452 §9.2).

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::dns_stream::DnsStream;
use crate::fairness::Shares;
use crate::frame::Mac;
use crate::host_sockets::tcp_connect;
use crate::network::Query;

/// Questions that are under way at a time; beyond them the oldest goes, of the guest that has most.
pub(crate) const MOST: usize = 256;
/// How long an answer is waited for. The network has asked again by then.
const PATIENCE: Duration = Duration::from_secs(3);

enum Transport {
    Udp(UdpSocket),
    Tcp(DnsStream),
}

/// A question that was asked.
struct Asked {
    guest: Mac,
    transport: Transport,
    token: u64,
    since: Instant,
}

/// What a socket has to say of a question, by its token.
#[derive(Clone, Copy)]
pub(crate) enum Told<'a> {
    /// A message, which may be the answer. It says whether the question still waits for one.
    Message(u64, &'a [u8]),
    /// The resolver cannot be reached, or has hung up.
    Failed(u64),
}

/// The questions that were asked.
pub(crate) struct Resolvers {
    /// By a number that grows.
    asked: BTreeMap<u32, Asked>,
    /// The same, by the guests that want to know.
    shares: Shares<u32, ()>,
    next: u32,
    buf: Box<[u8]>,
}

impl Default for Resolvers {
    fn default() -> Self {
        // As long as what a guest has announced to take, which is asked for in its name.
        let buf = vec![0; u16::MAX.into()].into();
        Self { asked: BTreeMap::new(), shares: Shares::default(), next: 0, buf }
    }
}

impl Resolvers {
    /// Asks: the number of the question, and its socket to be watched. `waits_for` knows by its
    /// token whether an answer to another question is still waited for.
    ///
    /// # Errors
    /// What the host said.
    pub(crate) fn ask(
        &mut self,
        query: &Query,
        waits_for: impl Fn(u64) -> bool,
        now: Instant,
    ) -> io::Result<(u32, BorrowedFd<'_>)> {
        if self.asked.len() >= MOST {
            let shares = &mut self.shares;
            self.asked.retain(|number, asked| {
                let waits = waits_for(asked.token);
                if !waits {
                    shares.remove(asked.guest, *number);
                }
                waits
            });
        }
        if self.asked.len() >= MOST {
            if let Some((_, oldest, ())) = self.shares.to_evict() {
                self.remove(oldest);
            }
        }
        let transport = if query.tcp {
            let mut stream = DnsStream::new(tcp_connect(query.resolver, u8::MAX, 0)?);
            stream.send(&query.message)?;
            Transport::Tcp(stream)
        } else {
            let any: SocketAddr = if query.resolver.is_ipv4() {
                (Ipv4Addr::UNSPECIFIED, 0).into()
            } else {
                (Ipv6Addr::UNSPECIFIED, 0).into()
            };
            let socket = UdpSocket::bind(any)?;
            socket.set_nonblocking(true)?;
            // Nobody else is heard.
            socket.connect(query.resolver)?;
            socket.send(&query.message)?;
            Transport::Udp(socket)
        };
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let asked = Asked { guest: query.guest, transport, token: query.token, since: now };
        self.shares.insert(query.guest, number, ());
        let asked = self.asked.entry(number).or_insert(asked);
        Ok((number, asked.transport.as_fd()))
    }

    /// The socket of a question is ready. What it has to say is told, and whether more is wanted
    /// comes back.
    pub(crate) fn event(&mut self, number: u32, tell: &mut dyn FnMut(Told<'_>) -> bool) {
        let Some(asked) = self.asked.get_mut(&number) else { return };
        if !asked.read(&mut self.buf, tell) {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u32) {
        if let Some(asked) = self.asked.remove(&number) {
            self.shares.remove(asked.guest, number);
        }
    }

    /// Closes what was waited for long enough.
    pub(crate) fn poll(&mut self, now: Instant) {
        while let Some((number, asked)) = self.asked.first_key_value() {
            if asked.since + PATIENCE > now {
                break;
            }
            self.remove(*number);
        }
    }

    /// When [`Self::poll`] is wanted.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.asked.first_key_value().map(|(_, asked)| asked.since + PATIENCE)
    }
}

impl Asked {
    /// Reads what there is; whether more is wanted.
    fn read(&mut self, buf: &mut [u8], tell: &mut dyn FnMut(Told<'_>) -> bool) -> bool {
        match &mut self.transport {
            Transport::Udp(socket) => loop {
                match socket.recv(buf) {
                    // Somebody may have guessed the port, but not the question: another may follow.
                    Ok(len) if tell(Told::Message(self.token, &buf[..len])) => {}
                    Ok(_) => return false,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                    Err(_) => return tell(Told::Failed(self.token)),
                }
            },
            Transport::Tcp(stream) => match stream.flush().and_then(|()| stream.next(usize::MAX)) {
                Ok(None) if !stream.is_over() => true,
                Ok(Some(message)) => tell(Told::Message(self.token, &message)),
                Ok(None) | Err(_) => tell(Told::Failed(self.token)),
            },
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Udp(socket) => socket.as_fd(),
            Self::Tcp(stream) => stream.stream().as_fd(),
        }
    }
}
