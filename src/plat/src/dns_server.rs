// SPDX-License-Identifier: Apache-2.0

//! Guests' questions over TCP (RFC 7766): what is left of their connections behind the flows, a
//! pair of sockets each.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::dns_stream::DnsStream;
use crate::fairness;
use crate::frame::Mac;
use crate::network::{is_question, MAX_QUESTION};

/// Connections at a time; beyond them the one that has idled longest goes, of the guest that has
/// most.
const MOST: usize = 128;
/// How long a connection may idle (RFC 7766 §6.2.3: some seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one connection that wait for their answers; it is not read further meanwhile.
const PIPELINED: usize = 16;
/// Nor while so many bytes of answers were not taken.
const BACKLOG: usize = 1 << 16;

/// Takes a guest's question.
type Each<'a> = &'a mut dyn FnMut(Mac, Vec<u8>);

struct Connection {
    guest: Mac,
    messages: DnsStream<UnixStream>,
    unanswered: usize,
    last: Instant,
}

impl Connection {
    /// Reads questions as far as that is decent.
    fn read(&mut self, each: Each<'_>) -> io::Result<()> {
        self.messages.flush()?;
        while self.unanswered < PIPELINED && self.messages.waiting() < BACKLOG {
            let Some(question) = self.messages.next(MAX_QUESTION)? else { break };
            // It would wait for its answer for ever.
            if !is_question(&question) {
                return Err(ErrorKind::InvalidData.into());
            }
            self.unanswered += 1;
            each(self.guest, question);
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.messages.is_over() && self.unanswered == 0 && self.messages.waiting() == 0
    }
}

/// The connections, by a number that grows.
#[derive(Default)]
pub struct DnsServer {
    connections: BTreeMap<u32, Connection>,
    next: u32,
    /// No connection has idled too long before that.
    idle: Option<Instant>,
}

impl DnsServer {
    /// Takes a guest's connection; its number, and its socket to be watched.
    pub fn accept(&mut self, guest: Mac, stream: UnixStream, now: Instant) -> (u32, &UnixStream) {
        if self.connections.len() >= MOST {
            let all = self.connections.iter().map(|(n, c)| (c.guest, (c.last, *n), *n));
            if let Some((number, _)) = fairness::to_evict(all) {
                self.connections.remove(&number);
            }
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let messages = DnsStream::new(stream);
        let connection = Connection { guest, messages, unanswered: 0, last: now };
        self.idle.get_or_insert(now + IDLE);
        let connection = self.connections.entry(number).or_insert(connection);
        (number, connection.messages.stream())
    }

    /// A connection has something to read, or takes more: the questions that are there.
    pub fn event(&mut self, number: u32, now: Instant, each: Each<'_>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.last = now;
        if connection.read(each).is_err() || connection.is_done() {
            self.connections.remove(&number);
        }
    }

    /// Sends an answer, and reads what had to wait for that.
    pub fn answer(&mut self, number: u32, answer: &[u8], now: Instant, each: Each<'_>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.unanswered = connection.unanswered.saturating_sub(1);
        if connection.messages.send(answer).is_err() {
            self.connections.remove(&number);
            return;
        }
        self.event(number, now, each);
    }

    /// Closes what has idled too long.
    pub fn poll(&mut self, now: Instant) {
        if self.idle.is_some_and(|at| at <= now) {
            self.connections.retain(|_, connection| now < connection.last + IDLE);
            self.idle = self.connections.values().map(|connection| connection.last + IDLE).min();
        }
    }

    /// When [`Self::poll`] is wanted.
    pub fn next_timer(&self) -> Option<Instant> {
        self.idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever opens more connections than others loses its own.
    #[test]
    fn a_guest_has_its_connections_beside_another() {
        let (greedy, modest) = (Mac([4; 6]), Mac([2; 6]));
        let mut now = Instant::now();
        let mut server = DnsServer::default();
        let mut connect = |guest| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            now += Duration::from_millis(1);
            (server.accept(guest, theirs, now).0, ours)
        };
        let kept: Vec<_> = (0..20).map(|_| connect(modest)).collect();
        let first = connect(greedy);
        let _more: Vec<_> = (0..1000).map(|_| connect(greedy)).collect();
        assert_eq!(server.connections.len(), MOST);
        assert!(kept.iter().all(|(number, _)| server.connections.contains_key(number)));
        assert!(!server.connections.contains_key(&first.0));
    }
}
