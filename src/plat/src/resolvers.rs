// SPDX-License-Identifier: Apache-2.0

//! Questions to the host's resolvers, each from its own socket, whose port others cannot guess (RFC
//! 5452 §9.2).

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::dns_stream::DnsStream;
use crate::fairness::Shares;
use crate::frame::Mac;
use crate::host_sockets::{bind, tcp_connect};
use crate::network::Query;
use crate::settings::Outbound;

/// Most open questions. Beyond that, the oldest one of the guest with most is dropped.
pub(crate) const MOST: usize = 256;
/// Timeout of an answer. The network has asked again by then.
const PATIENCE: Duration = Duration::from_secs(3);

enum Transport {
    Udp(UdpSocket),
    Tcp(DnsStream),
}

/// An open question.
struct Asked {
    guest: Mac,
    transport: Transport,
    token: u64,
    since: Instant,
}

/// What a question's socket has returned, by the question's token.
#[derive(Clone, Copy)]
pub(crate) enum Told<'a> {
    /// A message that may be the answer. The callback returns whether the question is still open.
    Message(u64, &'a [u8]),
    /// The resolver cannot be reached, or has closed the connection.
    Failed(u64),
}

/// The open questions.
pub(crate) struct Resolvers {
    /// By growing number.
    asked: BTreeMap<u32, Asked>,
    /// The same by guest.
    shares: Shares<u32, ()>,
    next: u32,
    buf: Box<[u8]>,
}

impl Default for Resolvers {
    fn default() -> Self {
        // As long as the EDNS size that a guest has announced, which its question passes on.
        let buf = vec![0; u16::MAX.into()].into();
        Self { asked: BTreeMap::new(), shares: Shares::default(), next: 0, buf }
    }
}

impl Resolvers {
    /// Asks a question; returns its number, and its socket to watch. `waits_for` tells by its token
    /// whether another question is still open.
    ///
    /// # Errors
    /// The host's error.
    pub(crate) fn ask(
        &mut self,
        query: &Query,
        outbound: &Outbound,
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
            let mut stream = DnsStream::new(tcp_connect(query.resolver, u8::MAX, 0, outbound)?);
            stream.send(&query.message)?;
            Transport::Tcp(stream)
        } else {
            let resolver = query.resolver;
            let kind = Type::DGRAM.nonblocking().cloexec();
            let socket = Socket::new(Domain::for_address(resolver), kind, Some(Protocol::UDP))?;
            let own = Outbound::default();
            bind(
                &socket,
                if resolver.ip().is_loopback() { &own } else { outbound },
                resolver.is_ipv6(),
            )?;
            let socket = UdpSocket::from(socket);
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

    /// Handles the readiness of a question's socket: calls `tell` with the result, which returns
    /// whether more is wanted.
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

    /// Closes questions that have timed out.
    pub(crate) fn poll(&mut self, now: Instant) {
        while let Some((number, asked)) = self.asked.first_key_value() {
            if asked.since + PATIENCE > now {
                break;
            }
            self.remove(*number);
        }
    }

    /// When [`Self::poll`] is due.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.asked.first_key_value().map(|(_, asked)| asked.since + PATIENCE)
    }
}

impl Asked {
    /// Reads messages; returns whether more are wanted.
    fn read(&mut self, buf: &mut [u8], tell: &mut dyn FnMut(Told<'_>) -> bool) -> bool {
        match &mut self.transport {
            Transport::Udp(socket) => loop {
                match socket.recv(buf) {
                    // The message may be forged; the real answer may follow.
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
