// SPDX-License-Identifier: Apache-2.0

//! The DNS server's side of guests' TCP connections (RFC 7766): a socket pair connects each to its
//! flow.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::dns_stream::DnsStream;
use crate::fairness;
use crate::frame::Mac;
use crate::network::{is_question, MAX_QUESTION};

/// Most connections at a time. Beyond that, the one that has been idle longest is closed, of the
/// guest with most.
const MOST: usize = 128;
/// Idle time of a connection (RFC 7766 §6.2.3: some seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Most questions of one connection waiting for answers; it is not read further meanwhile.
const PIPELINED: usize = 16;
/// Most bytes of answers that the guest has not read; beyond that it is not read either.
const BACKLOG: usize = 1 << 16;

/// Called with each question and its guest.
type Each<'a> = &'a mut dyn FnMut(Mac, Vec<u8>);

struct Connection {
    guest: Mac,
    messages: DnsStream<UnixStream>,
    unanswered: usize,
    last: Instant,
}

impl Connection {
    /// Reads questions within these limits.
    fn read(&mut self, each: Each<'_>) -> io::Result<()> {
        self.messages.flush()?;
        while self.unanswered < PIPELINED && self.messages.waiting() < BACKLOG {
            let Some(question) = self.messages.next(MAX_QUESTION)? else { break };
            // It would never be answered.
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

/// Connections, by growing numbers.
#[derive(Default)]
pub struct DnsServer {
    connections: BTreeMap<u32, Connection>,
    next: u32,
    /// No connection is idle for too long before this time.
    idle: Option<Instant>,
}

impl DnsServer {
    /// Takes a guest's connection; returns its number, and its socket to watch.
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

    /// Handles the readiness of a connection: sends answers and reads questions.
    pub fn event(&mut self, number: u32, now: Instant, each: Each<'_>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.last = now;
        if connection.read(each).is_err() || connection.is_done() {
            self.connections.remove(&number);
        }
    }

    /// Sends an answer, and reads questions that had to wait for that.
    pub fn answer(&mut self, number: u32, answer: &[u8], now: Instant, each: Each<'_>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.unanswered = connection.unanswered.saturating_sub(1);
        if connection.messages.send(answer).is_err() {
            self.connections.remove(&number);
            return;
        }
        self.event(number, now, each);
    }

    /// Closes connections that have been idle for too long.
    pub fn poll(&mut self, now: Instant) {
        if self.idle.is_some_and(|at| at <= now) {
            self.connections.retain(|_, connection| now < connection.last + IDLE);
            self.idle = self.connections.values().map(|connection| connection.last + IDLE).min();
        }
    }

    /// When [`Self::poll`] is due.
    pub fn next_timer(&self) -> Option<Instant> {
        self.idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was used since is looked at again, and closed in its own time.
    #[test]
    fn a_connection_that_idles_is_closed() {
        let start = Instant::now();
        let mut server = DnsServer::default();
        let [kept, used] = [(); 2].map(|()| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            (server.accept(Mac([2; 6]), theirs, start).0, ours)
        });
        let later = start + IDLE / 2;
        server.event(used.0, later, &mut |_, _| {});
        for (now, left) in [(later, 2), (start + IDLE, 1), (later + IDLE, 0)] {
            server.poll(now);
            assert_eq!(server.connections.len(), left);
            assert!(server.connections.contains_key(&used.0) || left == 0);
            assert_eq!(server.next_timer().is_none(), left == 0);
        }
        drop(kept);
    }

    /// A guest that opens more connections than others loses its own.
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
