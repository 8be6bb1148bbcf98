// SPDX-License-Identifier: Apache-2.0

//! The host's sockets as flows need them. None of them blocks.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;

use super::key::Id;
use super::tcp::Stream;
use crate::icmp_error::IcmpError;

/// Opens sockets and watches them: readiness goes to [`super::Engine::handle_ready`] with the id
/// under which a socket is watched.
pub trait Sockets {
    /// A TCP connection.
    type Connection: Connection;
    /// A UDP or ping socket.
    type Datagrams: Datagrams;

    /// Begins a connection with a traffic class, and with the hop limit if that is small. Once it
    /// is writable, it is open or has failed.
    ///
    /// # Errors
    /// The host's error.
    fn connect(&self, remote: SocketAddr, hops: u8, class: u8) -> io::Result<Self::Connection>;

    /// A connection inside this process, and its other end.
    ///
    /// # Errors
    /// The host's error.
    fn pair(&self) -> io::Result<(Self::Connection, UnixStream)>;

    /// A socket for datagrams to any destination of a family.
    ///
    /// # Errors
    /// The host's error.
    fn udp(&self, ipv6: bool) -> io::Result<Self::Datagrams>;

    /// A socket for echo requests to any destination of a family. The kernel fills in identifiers
    /// and checksums.
    ///
    /// # Errors
    /// The host's error: not every user may open one.
    fn echo(&self, ipv6: bool) -> io::Result<Self::Datagrams>;

    /// Watches a connection, edge-triggered, for becoming readable or writable.
    ///
    /// # Errors
    /// The host's error.
    fn watch_connection(&self, connection: &Self::Connection, id: Id) -> io::Result<()>;

    /// Watches a socket, level-triggered, for datagrams and errors.
    ///
    /// # Errors
    /// The host's error.
    fn watch_datagrams(&self, socket: &Self::Datagrams, id: Id) -> io::Result<()>;

    /// Stops watching a connection.
    ///
    /// # Errors
    /// The host's error.
    fn forget_connection(&self, connection: &Self::Connection) -> io::Result<()>;

    /// Stops watching a socket.
    ///
    /// # Errors
    /// The host's error.
    fn forget(&self, socket: &Self::Datagrams) -> io::Result<()>;
}

/// What a socket is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Data can be read, or the end.
    pub readable: bool,
    /// Data can be written.
    pub writable: bool,
    /// There is an error.
    pub failed: bool,
    /// Both directions are closed.
    pub hung_up: bool,
}

/// A connection.
pub trait Connection: Stream {
    /// Takes the pending error, if there is one.
    ///
    /// # Errors
    /// That error.
    fn take_error(&self) -> io::Result<()>;

    /// Makes closing reset the connection.
    fn reset_on_close(&self);

    /// An ICMP error about the attempt to connect, reported only if its hop limit was small.
    fn report(&self, buf: &mut [u8]) -> Option<Report>;

    /// Sets the DSCP (RFC 2474), the upper six bits of a traffic class; the host sets ECN.
    ///
    /// # Errors
    /// The host's error.
    fn set_class(&mut self, class: u8) -> io::Result<()>;
}

/// A socket for datagrams, or for echo messages.
pub trait Datagrams {
    /// Whether it is an IPv6 socket.
    fn is_ipv6(&self) -> bool;

    /// Whether the host supports UDP_SEGMENT.
    fn supports_gso(&self) -> bool;

    /// Sends datagrams of `size` bytes each, the last of which may be shorter, in one UDP_SEGMENT
    /// call. Returns the number of bytes sent.
    ///
    /// # Errors
    /// The host's error.
    fn send_gso(&self, ends: Ends, pieces: &[IoSlice<'_>], size: u16) -> Result<usize, Errno>;

    /// Sends the first of these datagrams, and as many of the following as the same call takes.
    /// Returns how many.
    ///
    /// # Errors
    /// The host's error for the first one.
    fn send_some(&self, datagrams: &[(Ends, &[u8])]) -> Result<usize, Errno>;

    /// Receives a datagram, or several as one (UDP_GRO).
    ///
    /// # Errors
    /// `EAGAIN` if there is none; else an error about something sent earlier.
    fn recv(&self, buf: &mut [u8]) -> Result<Received, Errno>;

    /// Sets whether the host and routers may fragment packets that are too long. If not, sending
    /// these fails with `EMSGSIZE`, and a report has the path MTU.
    ///
    /// # Errors
    /// The host's error.
    fn let_cut(&self, cut: bool) -> io::Result<()>;

    /// Sets the traffic class (IPv4's TOS) of packets sent: DSCP (RFC 2474) and ECN (RFC 3168).
    ///
    /// # Errors
    /// The host's error.
    fn set_class(&self, class: u8) -> io::Result<()>;

    /// Whether hop limits `a` and `b` need different options.
    fn hops_differ(a: u8, b: u8) -> bool;

    /// Sets the hop limit of packets sent.
    ///
    /// # Errors
    /// The host's error.
    fn set_hops(&self, hops: u8) -> io::Result<()>;

    /// The next report of the error queue; `buf` gets the quoted data. `Ok(None)` for a report
    /// without meaning.
    ///
    /// # Errors
    /// If there is none.
    fn report(&self, buf: &mut [u8]) -> Result<Option<Report>, Errno>;

    /// Clears the pending error, which a report tells.
    fn clear_error(&self);
}

/// The destination of a datagram, and the source address; without one, the host chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// The other end.
    pub remote: SocketAddr,
    /// Our address.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Ends {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// A datagram received, or several.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The sender, if known.
    pub from: Option<SocketAddr>,
    /// The destination among the host's addresses; known for forwarded ports.
    pub local: Option<IpAddr>,
    /// Bytes of all datagrams.
    pub len: usize,
    /// Bytes of each datagram; the last may be shorter.
    pub size: usize,
    /// The traffic class (IPv4's TOS) of all.
    pub class: u8,
}

/// A report of the host about a packet that a socket has sent.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The error.
    pub error: IcmpError,
    /// Whether the packet was not sent, being longer than the path MTU known to the host.
    pub too_long: bool,
    /// The packet's destination (the port may be missing if it was not sent).
    pub remote: Option<SocketAddr>,
    /// The router or host that sent the ICMP error.
    pub router: Option<IpAddr>,
    /// Bytes of the quoted data at the start of the buffer.
    pub len: usize,
}
