//! The network itself: what a router, a DHCP server and a DNS server answer. No I/O, and time is an argument.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use crate::frame::Out;
use crate::settings::Settings;

/// Whose a frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The network's: it has been answered, or dropped.
    Yes,
    /// Not the network's: the flows may have it. It goes by IPv6 (or IPv4, with `dual_stack`) to somewhere outside, its
    /// Ethernet destination is the router, and it fits the MTU.
    NotForUs,
}

/// A question for a resolver of the host. What sends it keeps the token, and comes back with
/// [`Network::dns_answer`] or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Whom to ask.
    pub resolver: SocketAddr,
    /// What to bring back.
    pub token: u64,
    /// The message.
    pub message: Vec<u8>,
    /// Whether TCP is wanted: an answer over UDP was truncated.
    pub tcp: bool,
}

/// The network's state.
#[derive(Debug)]
pub struct Network {
    settings: Settings,
    queries: Vec<Query>,
}

impl Network {
    /// A network that begins to advertise itself with the first [`Network::poll`].
    #[must_use]
    pub fn new(settings: Settings, _now: Instant) -> Self {
        Self { settings, queries: Vec::new() }
    }

    /// Its settings as they are now.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes a frame of a guest, and puts what is to be answered into `out`.
    pub fn input(&mut self, _frame: &[u8], _now: Instant, _out: &mut Out) -> Handled {
        Handled::NotForUs
    }

    /// Does what is due: advertisements, questions that nobody answered.
    pub fn poll(&mut self, _now: Instant, _out: &mut Out) {}

    /// When [`Network::poll`] is wanted next; never while `None`.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        None
    }

    /// Takes the questions that are to be asked.
    pub fn take_queries(&mut self) -> Vec<Query> {
        std::mem::take(&mut self.queries)
    }

    /// Takes a resolver's answer to the question with `token`.
    pub fn dns_answer(&mut self, _token: u64, _message: &[u8], _now: Instant, _out: &mut Out) {}

    /// Changes the advertised prefix to another /64: the old one is deprecated at once, with lifetimes of zero, and is
    /// served as long as guests use it.
    pub fn renumber(&mut self, prefix: Ipv6Addr, _now: Instant, _out: &mut Out) {
        self.settings.prefix = prefix;
    }
}
