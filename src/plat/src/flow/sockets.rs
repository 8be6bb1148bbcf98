// SPDX-License-Identifier: Apache-2.0

//! What flows need of the host's sockets. None of them blocks.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;

use super::key::Id;
use super::tcp::Stream;
use crate::icmp_error::IcmpError;

/// Where sockets come from, and who tells when they are ready: by [`super::Engine::handle_ready`],
/// for the flow by whose name they are watched.
pub trait Sockets {
    /// A TCP connection.
    type Connection: Connection;
    /// A UDP or ping socket.
    type Datagrams: Datagrams;

    /// A connection that is being opened, with a hop limit that matters if it is a small one, and a
    /// traffic class. Once it is writable it is open, or has failed.
    ///
    /// # Errors
    /// What the host said.
    fn connect(&self, remote: SocketAddr, hops: u8, class: u8) -> io::Result<Self::Connection>;

    /// A connection inside this process, and its other end.
    ///
    /// # Errors
    /// What the host said.
    fn pair(&self) -> io::Result<(Self::Connection, UnixStream)>;

    /// A socket for datagrams to any destination of a family.
    ///
    /// # Errors
    /// What the host said.
    fn udp(&self, ipv6: bool) -> io::Result<Self::Datagrams>;

    /// A socket for echo requests to any destination of a family. It fills in identifiers and
    /// checksums.
    ///
    /// # Errors
    /// What the host said: not everybody may.
    fn echo(&self, ipv6: bool) -> io::Result<Self::Datagrams>;

    /// Tells from now on when a connection becomes readable or writable: once each time.
    ///
    /// # Errors
    /// What the host said.
    fn watch_connection(&self, connection: &Self::Connection, id: Id) -> io::Result<()>;

    /// Tells from now on when there are datagrams, or errors of such: as long as there are any.
    ///
    /// # Errors
    /// What the host said.
    fn watch_datagrams(&self, socket: &Self::Datagrams, id: Id) -> io::Result<()>;

    /// Tells nothing of a connection any more.
    ///
    /// # Errors
    /// What the host said.
    fn forget_connection(&self, connection: &Self::Connection) -> io::Result<()>;

    /// Tells nothing of a socket any more.
    ///
    /// # Errors
    /// What the host said.
    fn forget(&self, socket: &Self::Datagrams) -> io::Result<()>;
}

/// What a socket is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Something can be read, or the end.
    pub readable: bool,
    /// Something can be written.
    pub writable: bool,
    /// There is an error.
    pub failed: bool,
    /// Both directions are closed.
    pub hung_up: bool,
}

/// A connection.
pub trait Connection: Stream {
    /// Takes what has gone wrong, if anything has.
    ///
    /// # Errors
    /// What that is.
    fn take_error(&self) -> io::Result<()>;

    /// Has the other end told by a reset when this one is dropped.
    fn reset_on_close(&self);

    /// What a router or a host has told of the attempt to connect, if its hop limit was a small
    /// one.
    fn report(&self, buf: &mut [u8]) -> Option<Report>;

    /// Sets the DSCP (RFC 2474), the upper six bits of a traffic class; ECN is the host's own.
    ///
    /// # Errors
    /// What the host said.
    fn set_class(&mut self, class: u8) -> io::Result<()>;
}

/// A socket for datagrams, or for echo messages.
pub trait Datagrams {
    /// Whether it is one of IPv6.
    fn is_ipv6(&self) -> bool;

    /// Whether the host cuts trains of datagrams.
    fn cuts_trains(&self) -> bool;

    /// Sends a train, in pieces: datagrams of `size` bytes each, the last of which may be shorter.
    /// Says how many bytes went.
    ///
    /// # Errors
    /// What the host said.
    fn send_train(&self, ends: Ends, pieces: &[IoSlice<'_>], size: u16) -> Result<usize, Errno>;

    /// Sends the first of these datagrams, and behind it as many as go by the same call. Says how
    /// many went.
    ///
    /// # Errors
    /// What the host said of the first.
    fn send_some(&self, datagrams: &[(Ends, &[u8])]) -> Result<usize, Errno>;

    /// Takes a datagram, or a train of such.
    ///
    /// # Errors
    /// `EAGAIN` when there is none; else that of something sent earlier.
    fn recv(&self, buf: &mut [u8]) -> Result<Received, Errno>;

    /// Whether the host, and routers, may cut what is too long for the path. If not, sending such
    /// is `EMSGSIZE`, and a report has the path's MTU.
    ///
    /// # Errors
    /// What the host said.
    fn let_cut(&self, cut: bool) -> io::Result<()>;

    /// Sets the traffic class (IPv4's TOS) of what is sent: DSCP (RFC 2474) and ECN (RFC 3168).
    ///
    /// # Errors
    /// What the host said.
    fn set_class(&self, class: u8) -> io::Result<()>;

    /// Whether hop limits `a` and `b` need different settings.
    fn hops_differ(a: u8, b: u8) -> bool;

    /// Sets the hop limit of what is sent.
    ///
    /// # Errors
    /// What the host said.
    fn set_hops(&self, hops: u8) -> io::Result<()>;

    /// The next report about something sent; `buf` gets as much of that as is known. `Ok(None)` is
    /// one that means nothing.
    ///
    /// # Errors
    /// When there is none.
    fn report(&self, buf: &mut [u8]) -> Result<Option<Report>, Errno>;

    /// Forgets an error that is told by a report.
    fn clear_error(&self);
}

/// Where a datagram goes, and from which of the host's addresses: without one, the host chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// The other end.
    pub remote: SocketAddr,
    /// This one's address.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Ends {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// What was received.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Who sent it, where that is known.
    pub from: Option<SocketAddr>,
    /// To which of the host's addresses, where that is known: of a port of the owner's.
    pub local: Option<IpAddr>,
    /// Bytes of all.
    pub len: usize,
    /// Bytes of each datagram of a train but the last; those of all where it is one datagram.
    pub size: usize,
}

/// Something that the host has learned about what a socket sent.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// What it is.
    pub error: IcmpError,
    /// Whether it never left: it was too long for what the host knows of the path.
    pub too_long: bool,
    /// Where the packet went, or would have gone (the port may be missing then).
    pub remote: Option<SocketAddr>,
    /// Who told.
    pub router: Option<IpAddr>,
    /// Bytes of what was sent, at the start of the buffer.
    pub len: usize,
}
