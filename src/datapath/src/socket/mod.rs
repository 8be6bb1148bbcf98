// SPDX-License-Identifier: Apache-2.0

//! The sockets of the uplink.

mod anycast;
mod neighbour;
mod packet;
mod raw;

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use clat_sys::classic_bpf::sock_filter;
use clat_sys::{packet_socket, socket};
use clat_xlat::Prefix;
use nix::libc::{self, c_int};

use crate::filter;
use crate::path::Direction;

pub use anycast::AnycastAddress;
pub use neighbour::NeighbourSocket;
pub use packet::{configure_packet_socket, open_packet_socket, PacketSocket};
pub use raw::{join_anycast, join_solicited_node, open_raw_socket, path_mtu, RawSocket};

/// Size of the receive and send queues in bytes. A burst must not be lost while the other direction
/// is served; dropping what is too much for the link is up to its queueing discipline.
const QUEUE: c_int = 8 << 20;

const ETH_P_ALL: u16 = 0x0003;
const ETH_P_IPV6: u16 = 0x86dd;
/// Not in `libc` for every C library (asm-generic/socket.h).
const SO_LOCK_FILTER: c_int = 44;
const SO_COOKIE: c_int = 57;

/// Locks the filter of a socket: it can be neither removed nor replaced (SO_LOCK_FILTER).
///
/// # Errors
/// The kernel's error.
pub fn lock_filter(fd: impl AsFd) -> io::Result<()> {
    Ok(socket::set_int(fd, libc::SOL_SOCKET, SO_LOCK_FILTER, 1)?)
}

/// The kernel's unique number of a socket, which is never reused (SO_COOKIE).
///
/// # Errors
/// The kernel's error.
pub fn socket_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = [0; 8];
    socket::get_bytes(fd, libc::SOL_SOCKET, SO_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// A socket that becomes readable when the host sends a packet by the interface `index`.
///
/// # Errors
/// The kernel's error.
pub fn outgoing(index: u32) -> io::Result<OwnedFd> {
    tap(index, &filter::outgoing())
}

/// A socket that becomes readable when a packet of a CLAT, from `v6` to `prefix` or back, passes
/// its uplink `index`, wherever it is translated. It misses what the daemon sends past the queueing
/// discipline.
///
/// # Errors
/// The kernel's error.
pub fn passing(index: u32, way: Direction, v6: Ipv6Addr, prefix: &Prefix) -> io::Result<OwnedFd> {
    tap(index, &filter::of_clat(way, v6, prefix))
}

/// A socket that receives what `program` accepts, in both directions and without link headers.
fn tap(index: u32, program: &[sock_filter]) -> io::Result<OwnedFd> {
    let fd = packet_socket(libc::SOCK_DGRAM)?;
    socket::set_program(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)?;
    packet_socket::bind(&fd, index, ETH_P_ALL)?;
    Ok(fd)
}

/// A socket that becomes readable when the interface `index` has received a packet to `v6`: the
/// same packets that a [`PacketSocket`] receives.
///
/// # Errors
/// What the kernel said; `EAFNOSUPPORT` for an interface that is neither Ethernet nor raw IP.
pub fn incoming(index: u32, v6: Ipv6Addr) -> io::Result<OwnedFd> {
    let fd = packet_socket(libc::SOCK_RAW)?;
    configure_packet_socket(fd.as_fd(), index, v6)?;
    Ok(fd)
}

/// A packet socket that receives nothing yet: its protocol is 0.
fn packet_socket(kind: c_int) -> io::Result<OwnedFd> {
    Ok(socket::open(libc::AF_PACKET, kind | libc::SOCK_NONBLOCK, 0)?)
}

/// Sets the size of a queue by `force`, which needs a capability and ignores the system's limit, or
/// else by `ask`.
fn set_queue(fd: impl AsFd, force: c_int, ask: c_int) -> io::Result<()> {
    if socket::set_int(&fd, libc::SOL_SOCKET, force, QUEUE).is_err() {
        socket::set_int(&fd, libc::SOL_SOCKET, ask, QUEUE)?;
    }
    Ok(())
}

fn set_send_queue(fd: impl AsFd) -> io::Result<()> {
    set_queue(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)
}
