// SPDX-License-Identifier: Apache-2.0

//! The resolvers of the host, and how they are asked.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::dns_stream::DnsStream;
use crate::fairness;
use crate::frame::Mac;
use crate::host_sockets::tcp_connect;
use crate::network::Query;

/// Connections to resolvers at a time; beyond them the oldest goes, of the guest that has most.
const CONNECTIONS: usize = 64;
/// Questions that are remembered, those that nobody waits for any longer among them: some times as
/// many as are waited for.
const ASKED: usize = 4096;
/// How long one is waited for. Somebody else has been asked by then.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection for one question.
struct Connection {
    guest: Mac,
    messages: DnsStream,
    token: u64,
    since: Instant,
}

/// The sockets by which resolvers are asked.
pub(crate) struct Resolvers {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    /// Tokens by resolver and identification.
    asked: HashMap<(SocketAddr, u16), u64>,
    /// By a number that grows.
    connections: BTreeMap<u32, Connection>,
    next: u32,
}

impl Resolvers {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a DNS socket")?;
        v4.set_nonblocking(true)?;
        // A host without IPv6 has none.
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok();
        if let Some(v6) = &v6 {
            v6.set_nonblocking(true)?;
        }
        Ok(Self { v4, v6, asked: HashMap::new(), connections: BTreeMap::new(), next: 0 })
    }

    pub(crate) fn v4(&self) -> &UdpSocket {
        &self.v4
    }

    pub(crate) fn v6(&self) -> Option<&UdpSocket> {
        self.v6.as_ref()
    }

    /// Asks over UDP. `waited_for` knows by its token whether a question still is.
    pub(crate) fn ask(&mut self, query: &Query, waited_for: impl Fn(u64) -> bool) {
        let socket = match (query.resolver.is_ipv4(), &self.v6) {
            (true, _) => &self.v4,
            (false, Some(v6)) => v6,
            (false, None) => return,
        };
        let &[a, b, ..] = query.message.as_slice() else { return };
        if self.asked.len() >= ASKED {
            self.asked.retain(|_, token| waited_for(*token));
        }
        self.asked.insert((query.resolver, u16::from_be_bytes([a, b])), query.token);
        if let Err(e) = socket.send_to(&query.message, query.resolver) {
            log::debug!("cannot ask {}: {e}", query.resolver);
        }
    }

    /// The next answer: its token, and the message.
    pub(crate) fn answer<'b>(&mut self, v6: bool, buf: &'b mut [u8]) -> Option<(u64, &'b [u8])> {
        let socket = if v6 { self.v6.as_ref()? } else { &self.v4 };
        loop {
            let (len, from) = match socket.recv_from(buf) {
                Ok(received) => received,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                // An error of something sent earlier.
                Err(_) => continue,
            };
            if len < 12 {
                continue;
            }
            let id = u16::from_be_bytes([buf[0], buf[1]]);
            if let Some(token) = self.asked.remove(&(from, id)) {
                return Some((token, &buf[..len]));
            }
        }
    }

    /// Asks over TCP: the number of the connection, and its socket to be watched.
    pub(crate) fn connect(&mut self, query: &Query, now: Instant) -> Option<(u32, &TcpStream)> {
        let stream = match tcp_connect(query.resolver, u8::MAX) {
            Ok(stream) => stream,
            Err(e) => {
                log::debug!("cannot ask {}: {e}", query.resolver);
                return None;
            }
        };
        let mut messages = DnsStream::new(stream);
        messages.send(&query.message).ok()?;
        if self.connections.len() >= CONNECTIONS {
            let all = self.connections.iter().map(|(number, c)| (c.guest, *number, *number));
            if let Some((oldest, _)) = fairness::to_evict(all) {
                self.connections.remove(&oldest);
            }
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let (guest, token) = (query.guest, query.token);
        let connection = Connection { guest, messages, token, since: now };
        let connection = self.connections.entry(number).or_insert(connection);
        Some((number, connection.messages.stream()))
    }

    /// A connection is ready: its token and the answer, if that is there. It ends with that, or
    /// when it breaks.
    pub(crate) fn event(&mut self, number: u32) -> Option<(u64, Vec<u8>)> {
        let connection = self.connections.get_mut(&number)?;
        let messages = &mut connection.messages;
        let answer = messages.flush().and_then(|()| messages.next(usize::MAX));
        match answer {
            Ok(None) if !messages.is_over() => None,
            answer => {
                let token = connection.token;
                self.connections.remove(&number);
                answer.ok().flatten().map(|answer| (token, answer))
            }
        }
    }

    /// Closes what was waited for long enough.
    pub(crate) fn poll(&mut self, now: Instant) {
        self.connections.retain(|_, connection| now < connection.since + PATIENCE);
    }

    /// When [`Self::poll`] is wanted.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.connections.values().next().map(|connection| connection.since + PATIENCE)
    }
}
