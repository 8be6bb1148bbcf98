//! Guests' questions over TCP (RFC 7766): what is left of their connections behind the flows, a pair of sockets each.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::messages::Messages;
use crate::network::{is_question, MAX_QUESTION};

/// Connections at a time; beyond them the oldest goes.
const MOST: usize = 128;
/// How long a connection may idle (RFC 7766 §6.2.3: some seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one connection that wait for their answers; it is not read further meanwhile.
const PIPELINED: usize = 16;
/// Nor while so many bytes of answers were not taken.
const BACKLOG: usize = 1 << 16;

struct Connection {
    messages: Messages<UnixStream>,
    unanswered: usize,
    last: Instant,
}

impl Connection {
    /// Reads questions as far as that is decent.
    fn read(&mut self, each: &mut dyn FnMut(Vec<u8>)) -> io::Result<()> {
        self.messages.flush()?;
        while self.unanswered < PIPELINED && self.messages.waiting() < BACKLOG {
            let Some(question) = self.messages.next(MAX_QUESTION)? else { break };
            // It would wait for its answer for ever.
            if !is_question(&question) {
                return Err(ErrorKind::InvalidData.into());
            }
            self.unanswered += 1;
            each(question);
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.messages.is_over() && self.unanswered == 0 && self.messages.waiting() == 0
    }
}

/// The connections, by a number that grows.
#[derive(Default)]
pub(crate) struct DnsServer {
    connections: BTreeMap<u32, Connection>,
    next: u32,
}

impl DnsServer {
    /// Takes a connection; its number, and its socket to be watched.
    pub(crate) fn accept(&mut self, stream: UnixStream, now: Instant) -> (u32, &UnixStream) {
        if self.connections.len() >= MOST {
            self.connections.pop_first();
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let connection = Connection { messages: Messages::new(stream), unanswered: 0, last: now };
        let connection = self.connections.entry(number).or_insert(connection);
        (number, connection.messages.stream())
    }

    /// A connection has something to read, or takes more: the questions that are there.
    pub(crate) fn event(&mut self, number: u32, now: Instant, each: &mut dyn FnMut(Vec<u8>)) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.last = now;
        if connection.read(each).is_err() || connection.is_done() {
            self.connections.remove(&number);
        }
    }

    /// Sends an answer, and reads what had to wait for that.
    pub(crate) fn answer(
        &mut self,
        number: u32,
        answer: &[u8],
        now: Instant,
        each: &mut dyn FnMut(Vec<u8>),
    ) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.unanswered = connection.unanswered.saturating_sub(1);
        if connection.messages.send(answer).is_err() {
            self.connections.remove(&number);
            return;
        }
        self.event(number, now, each);
    }

    /// Closes what has idled too long.
    pub(crate) fn poll(&mut self, now: Instant) {
        self.connections.retain(|_, connection| now < connection.last + IDLE);
    }

    /// When [`Self::poll`] is wanted.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.connections.values().map(|connection| connection.last + IDLE).min()
    }
}
