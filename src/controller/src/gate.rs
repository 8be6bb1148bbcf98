// SPDX-License-Identifier: Apache-2.0

//! A gate in front of the binder library's server on a Unix socket. The library has one limit for
//! all callers together, accepts messages of 64 MiB and parses what anybody sends. The gate checks
//! a caller's user id before reading a byte, and limits each user separately, so that one user does
//! not affect others. The library gets the accepted sockets themselves, so that it sees the
//! kernel's credentials of the caller.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{getsockopt, listen, shutdown, sockopt::PeerCredentials, Backlog, Shutdown};
use rsbinder::rpc::transport::UnixTransport;
use rsbinder::rpc::{PeerIdentity, RpcError, RpcServer, RpcTransport};

type RpcResult<T> = Result<T, RpcError>;

/// Most connections of one user. Each costs a thread and up to [`MAX_MESSAGE`]: together 128 KiB.
const MAX_CONNECTIONS: usize = 8;

/// Bytes of the largest message, with header. The interface needs far less than 4 KiB.
const MAX_MESSAGE: usize = 16 * 1024;

/// Most connections of one user that wait for another of theirs to end. Further ones are refused.
const MAX_WAITING: usize = 64;

/// How long one waits before the longest idle connection of the same user is closed for it.
const MAX_WAIT: Duration = Duration::from_millis(20);

/// Time without messages after which a connection is idle.
const IDLE: Duration = Duration::from_millis(100);

/// Burst size and interval of messages of one user, on all connections together.
const BURST: u32 = 200;
const PACE: Duration = Duration::from_millis(1);

/// Most connections waiting in the kernel for the gate, of all users together.
const BACKLOG: i32 = 16;

/// How often waiting connections are checked, in milliseconds. There is no timer while none waits.
const LOOK: u8 = 10;

/// Accepts connections until dropped, which closes all of them.
pub struct Gate {
    shared: Arc<Shared>,
    listener: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl Gate {
    /// Gives the users `callers` access to `server`, which needs no loop of its own.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn open(
        listener: UnixListener,
        server: Arc<RpcServer>,
        callers: &[u32],
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            server,
            began: Instant::now(),
            ended: AtomicBool::new(false),
            callers: Mutex::new(callers.iter().map(|&uid| (uid, Caller::default())).collect()),
        });
        let thread = {
            let (shared, listener) = (Arc::clone(&shared), Arc::clone(&listener));
            thread::Builder::new().name("gate".into()).spawn(move || shared.accept(&listener))?
        };
        Ok(Self { shared, listener, thread: Some(thread) })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the loop.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.close_all();
        self.shared.server.terminate();
    }
}

struct Shared {
    server: Arc<RpcServer>,
    began: Instant,
    ended: AtomicBool,
    /// By user id; other users may not call.
    callers: Mutex<HashMap<u32, Caller>>,
}

/// One user.
#[derive(Default)]
struct Caller {
    open: Vec<Arc<Connection>>,
    waiting: VecDeque<(Instant, UnixStream)>,
    /// When the next message would be due if they were evenly spread.
    due: Option<Instant>,
}

impl Shared {
    fn callers(&self) -> MutexGuard<'_, HashMap<u32, Caller>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        while !self.ended.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let wait = if self.anybody_waits() { LOOK.into() } else { PollTimeout::NONE };
                    let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], wait);
                }
                Err(e) => {
                    log::warn!("cannot accept a connection: {e}");
                    // Out of descriptors or memory; a connection that ends frees some.
                    thread::sleep(Duration::from_millis(20));
                }
            }
            self.make_room();
        }
    }

    fn anybody_waits(&self) -> bool {
        self.callers().values().any(|caller| !caller.waiting.is_empty())
    }

    /// Admits a connection, makes it wait, or refuses it.
    fn admit(self: &Arc<Self>, stream: UnixStream) {
        // A caller without credentials is no known user.
        let uid = getsockopt(&stream, PeerCredentials).map_or(u32::MAX, |peer| peer.uid());
        let mut callers = self.callers();
        let Some(caller) = callers.get_mut(&uid) else {
            drop(callers);
            return refuse(stream, &format!("uid {uid} may not use the CLAT controller"));
        };
        if caller.open.len() < MAX_CONNECTIONS && caller.waiting.is_empty() {
            if let Some(connection) = caller.open(stream, self.now()) {
                drop(callers);
                self.serve(uid, connection);
            }
        } else if caller.waiting.len() < MAX_WAITING {
            caller.waiting.push_back((Instant::now(), stream));
        } else {
            drop(callers);
            refuse(stream, &format!("uid {uid} has too many connections to the CLAT controller"));
        }
    }

    fn serve(self: &Arc<Self>, uid: u32, connection: Arc<Connection>) {
        let shared = Arc::clone(self);
        self.server.serve_connection(Box::new(Guarded { uid, connection, shared }));
    }

    /// Closes the longest idle connections of users who have connections that have waited long
    /// enough.
    fn make_room(&self) {
        let now = self.now();
        for caller in self.callers().values() {
            let in_need =
                caller.waiting.front().is_some_and(|(since, _)| since.elapsed() >= MAX_WAIT);
            if !in_need || caller.open.iter().any(|one| one.is_going.load(Ordering::Relaxed)) {
                continue;
            }
            let mut idle: Vec<_> = caller.open.iter().filter(|one| one.idle(now) >= IDLE).collect();
            idle.sort_by_key(|one| one.last.load(Ordering::Relaxed));
            for one in idle.into_iter().take(caller.waiting.len()) {
                one.is_going.store(true, Ordering::Relaxed);
                let _ = one.transport.shutdown();
            }
        }
    }

    /// Handles the end of a connection: the one of the same user that has waited longest is next.
    fn ended(self: &Arc<Self>, uid: u32, connection: &Arc<Connection>) {
        let mut callers = self.callers();
        let Some(caller) = callers.get_mut(&uid) else { return };
        caller.open.retain(|one| !Arc::ptr_eq(one, connection));
        if self.ended.load(Ordering::SeqCst) {
            return;
        }
        let next = loop {
            let Some((_, stream)) = caller.waiting.pop_front() else { return };
            if let Some(next) = caller.open(stream, self.now()) {
                break next;
            }
        };
        drop(callers);
        self.serve(uid, next);
    }

    /// How long a user's next message has to wait.
    fn delay(&self, uid: u32) -> Duration {
        self.callers().get_mut(&uid).map_or(Duration::ZERO, |caller| caller.delay(Instant::now()))
    }

    fn close_all(&self) {
        for caller in self.callers().values_mut() {
            caller.waiting.clear();
            for connection in &caller.open {
                let _ = connection.transport.shutdown();
            }
        }
    }

    /// Milliseconds since the gate was opened.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Caller {
    fn delay(&mut self, now: Instant) -> Duration {
        let due = self.due.map_or(now, |due| due.max(now));
        self.due = Some(due + PACE);
        due.saturating_duration_since(now).saturating_sub(PACE * BURST)
    }

    /// Adds a connection, unless it has ended already.
    fn open(&mut self, stream: UnixStream, now: u64) -> Option<Arc<Connection>> {
        let connection = Arc::new(Connection {
            transport: UnixTransport::from_stream(stream).ok()?,
            messages: Mutex::default(),
            last: AtomicU64::new(now),
            is_at_work: AtomicBool::new(false),
            is_going: AtomicBool::new(false),
        });
        self.open.push(Arc::clone(&connection));
        Some(connection)
    }
}

/// Sends the reason as text, for people and for our client, which reads it when the library fails
/// to parse it.
fn refuse(mut stream: UnixStream, why: &str) {
    log::warn!("refused a connection: {why}");
    if stream.set_nonblocking(true).is_ok() {
        let _ = writeln!(stream, "{why}");
    }
}

/// One connection served by the library.
struct Connection {
    transport: UnixTransport,
    messages: Mutex<Messages>,
    /// When a complete message was last received or sent, by [`Shared::now`].
    last: AtomicU64,
    /// Set between a message and its answer, when the caller does not keep us waiting.
    is_at_work: AtomicBool,
    /// It was told to end.
    is_going: AtomicBool,
}

impl Connection {
    /// How long no complete message has come from the caller.
    fn idle(&self, now: u64) -> Duration {
        // A connection for callbacks ends with its session.
        let is_ours = self.is_at_work.load(Ordering::Relaxed) || self.messages().is_callback;
        let since = if is_ours { now } else { self.last.load(Ordering::Relaxed) };
        Duration::from_millis(now.saturating_sub(since))
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The transport by which the library reads and writes a connection.
struct Guarded {
    uid: u32,
    connection: Arc<Connection>,
    shared: Arc<Shared>,
}

impl Guarded {
    fn transport(&self) -> &UnixTransport {
        &self.connection.transport
    }

    fn sent(&self, result: RpcResult<()>) -> RpcResult<()> {
        self.connection.is_at_work.store(false, Ordering::Relaxed);
        self.connection.last.store(self.shared.now(), Ordering::Relaxed);
        result
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.shared.ended(self.uid, &self.connection);
    }
}

/// No descriptors are passed: the library's own refusal of them stays in force.
impl RpcTransport for Guarded {
    fn send_frame(&self, _: &[u8]) -> RpcResult<()> {
        Err(RpcError::Protocol("only the wire of Android 13 and later"))
    }

    fn recv_frame(&self) -> RpcResult<Vec<u8>> {
        Err(RpcError::Protocol("only the wire of Android 13 and later"))
    }

    fn send_raw(&self, buf: &[u8]) -> RpcResult<()> {
        self.sent(self.transport().send_raw(buf))
    }

    fn send_raw_draining(
        &self,
        buf: &[u8],
        fds: &[BorrowedFd<'_>],
        drain: &mut dyn FnMut() -> RpcResult<()>,
    ) -> RpcResult<()> {
        if !fds.is_empty() {
            return Err(RpcError::Protocol("no descriptors pass here"));
        }
        self.sent(self.transport().send_raw_draining(buf, fds, drain))
    }

    /// The library reads a message's body by one call, into memory that is not touched before the
    /// bytes arrive.
    fn recv_raw(&self, buf: &mut [u8]) -> RpcResult<usize> {
        if buf.len() > MAX_MESSAGE {
            return Err(RpcError::FrameTooLarge { declared: buf.len(), max: MAX_MESSAGE });
        }
        let connection = &self.connection;
        connection.is_at_work.store(false, Ordering::Relaxed);
        let len = self.transport().recv_raw(buf)?;
        let (is_new, is_whole) = {
            let mut messages = connection.messages();
            let is_new = messages.is_new();
            messages.take(&buf[..len]).map_err(RpcError::Protocol)?;
            (is_new, messages.is_whole())
        };
        if is_new || is_whole {
            thread::sleep(self.shared.delay(self.uid));
        }
        if is_whole {
            connection.last.store(self.shared.now(), Ordering::Relaxed);
            connection.is_at_work.store(true, Ordering::Relaxed);
        }
        Ok(len)
    }

    fn peer_identity(&self) -> PeerIdentity {
        self.transport().peer_identity()
    }

    fn describe(&self) -> &str {
        self.transport().describe()
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> RpcResult<()> {
        self.transport().set_read_timeout(timeout)
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> RpcResult<()> {
        self.transport().set_write_timeout(timeout)
    }

    fn peer_closed(&self) -> Option<bool> {
        self.transport().peer_closed()
    }

    fn shutdown_handle(&self) -> Option<Box<dyn FnOnce() + Send>> {
        self.transport().shutdown_handle()
    }

    fn shutdown(&self) -> RpcResult<()> {
        self.transport().shutdown()
    }
}

/// Finds message boundaries in a caller's data (AOSP, RpcWireFormat.h, from Android 13 on), as far
/// as the limits need.
struct Messages {
    state: State,
    head: [u8; Messages::MOST],
    /// Bytes of `head` received.
    have: usize,
    /// Bytes to skip.
    skip: usize,
    /// Whether this connection is for calls of the server.
    is_callback: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// RpcConnectionHeader.
    Connection,
    /// RpcWireHeader.
    Header,
    /// The part of RpcWireTransaction with its flags.
    Transaction,
}

impl Default for Messages {
    fn default() -> Self {
        let head = [0; Self::MOST];
        Self { state: State::Connection, head, have: 0, skip: 0, is_callback: false }
    }
}

impl Messages {
    const HEADER: usize = 16;
    /// The header and, for a transaction, its address, code and flags.
    const MOST: usize = Self::HEADER + 16;
    /// RPC_CONNECTION_OPTION_INCOMING.
    const INCOMING: u8 = 1;
    /// RpcOutgoingConnectionInit.
    const INIT: usize = 8;
    /// RPC_COMMAND_TRANSACT.
    const TRANSACT: u32 = 0;
    /// FLAG_ONEWAY of IBinder.
    const ONEWAY: u32 = 1;

    fn is_new(&self) -> bool {
        self.state == State::Connection && self.have == 0
    }

    /// Whether the data ends with a complete message.
    fn is_whole(&self) -> bool {
        self.state == State::Header && self.have == 0 && self.skip == 0
    }

    /// Takes the next bytes. After an error about a limit, further data has no meaning.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let want = if self.state == State::Transaction { Self::MOST } else { Self::HEADER };
            let (more, rest) = bytes.split_at(bytes.len().min(want - self.have));
            self.head[self.have..self.have + more.len()].copy_from_slice(more);
            self.have += more.len();
            bytes = rest;
            if self.have == want {
                self.header()?;
            }
        }
        Ok(())
    }

    /// Decides what follows a complete header.
    fn header(&mut self) -> Result<(), &'static str> {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| self.head[at + i]));
        match self.state {
            State::Connection => {
                self.is_callback = self.head[4] & Self::INCOMING != 0;
                let id = usize::from(u16::from_le_bytes([self.head[14], self.head[15]]));
                self.skip = id + if self.is_callback { 0 } else { Self::INIT };
            }
            State::Header => {
                let body = word(4) as usize;
                if body > MAX_MESSAGE - Self::HEADER {
                    return Err("a message is too long");
                }
                if word(0) == Self::TRANSACT && body >= Self::MOST - Self::HEADER {
                    self.state = State::Transaction;
                    return Ok(());
                }
                self.skip = body;
            }
            State::Transaction => {
                // The library queues oneway calls that arrive out of order.
                if word(28) & Self::ONEWAY != 0 {
                    return Err("no call of this interface is oneway");
                }
                self.skip = word(4) as usize + Self::HEADER - Self::MOST;
            }
        }
        self.state = State::Header;
        self.have = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The begin of a new session, and a call with this body and these flags.
    fn session(body: usize, flags: u32) -> Vec<u8> {
        let mut bytes = vec![0; Messages::HEADER + Messages::INIT];
        bytes.extend(Messages::TRANSACT.to_le_bytes());
        bytes.extend(u32::try_from(body).expect("small").to_le_bytes());
        bytes.extend([0; 8]);
        let mut body = vec![0; body];
        if body.len() >= 16 {
            body[12..16].copy_from_slice(&flags.to_le_bytes());
        }
        bytes.extend(body);
        bytes
    }

    #[test]
    fn messages_are_found_however_they_come() {
        for body in [0, 15, 16, 17, 100] {
            let bytes = session(body, 0);
            for size in 1..=bytes.len() {
                let mut messages = Messages::default();
                assert!(!messages.is_whole());
                for part in bytes.chunks(size) {
                    messages.take(part).expect("within the limits");
                }
                assert!(messages.is_whole(), "{body} {size}");
            }
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        assert!(Messages::default().take(&session(MAX_MESSAGE - 16, 0)).is_ok());
        assert!(Messages::default().take(&session(MAX_MESSAGE - 15, 0)).is_err());
        assert!(Messages::default().take(&session(100, Messages::ONEWAY)).is_err());
        assert!(Messages::default().take(&session(100, 0x11)).is_err());
        assert!(Messages::default().take(&session(100, 0x10)).is_ok());
    }

    #[test]
    fn messages_are_taken_evenly_after_a_burst() {
        let (mut caller, now) = (Caller::default(), Instant::now());
        for _ in 0..=BURST {
            assert_eq!(caller.delay(now), Duration::ZERO);
        }
        assert_eq!([1, 2, 3].map(|n| caller.delay(now) == PACE * n), [true; 3]);
        assert_eq!(caller.delay(now + PACE * (BURST + 4)), Duration::ZERO);
    }
}
