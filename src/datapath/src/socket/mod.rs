//! The sockets of the uplink, and every `unsafe` of this crate.

mod mmsg;
mod neighbour;
mod packet;
mod raw;

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::libc::{self, c_int, sock_filter};

pub use neighbour::NeighbourSocket;
pub use packet::{configure_packet_socket, open_packet_socket, PacketSocket};
pub use raw::{join_anycast, open_raw_socket, path_mtu, RawSocket};

/// What may wait to be received, and to be sent, in bytes. A burst must not be lost while the other direction is
/// served; what is too much for the link is the queue's to drop, not ours.
const QUEUE: usize = 8 << 20;

const ETH_P_IPV6: u16 = 0x86dd;
/// Not in `libc` for every C library (asm-generic/socket.h).
const SO_COOKIE: c_int = 57;

/// Takes over a descriptor that the caller of this program has left open for it; close-on-exec from now on.
///
/// # Errors
/// `EBADF` when there is none of that number.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // A copy is ours alone whatever the number stood for; the original is closed, so that no second owner remains.
    let copy = fcntl(number, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD_CLOEXEC has just made it, nobody else has it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    nix::unistd::close(number)?;
    Ok(copy)
}

/// Makes this process one that no other of its user may look into (PR_SET_DUMPABLE).
///
/// # Errors
/// What the kernel said.
pub fn become_undumpable() -> io::Result<()> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    Ok(())
}

/// Keeps this process from ever gaining a privilege (PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// What the kernel said.
pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}

/// Sets the mark of what a socket sends (SO_MARK).
///
/// # Errors
/// What the kernel said.
pub fn set_mark(fd: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    set(&fd, libc::SOL_SOCKET, libc::SO_MARK, &mark)
}

/// The kernel's number of a socket (SO_COOKIE), which no other socket ever gets.
///
/// # Errors
/// What the kernel said.
pub fn socket_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0;
    get(&fd, libc::SOL_SOCKET, SO_COOKIE, &mut cookie)?;
    Ok(cookie)
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = Errno::result(unsafe { libc::socket(family, kind, protocol) })?;
    // SAFETY: the kernel has just made it, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A packet socket that hears nothing yet: its protocol is 0.
fn packet_socket(kind: c_int) -> io::Result<OwnedFd> {
    socket(libc::AF_PACKET, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn len_of<T>() -> libc::socklen_t {
    // Only ever small structures.
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

fn set<T>(fd: &impl AsFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads at most as many bytes as the value has.
    let done = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (value as *const T).cast(),
            len_of::<T>(),
        )
    };
    Errno::result(done)?;
    Ok(())
}

fn get<T>(fd: &impl AsFd, level: c_int, name: c_int, value: &mut T) -> io::Result<()> {
    let mut len = len_of::<T>();
    // SAFETY: the kernel writes at most `len` bytes to a value of that size; it is only used for integers and
    // structures of such, for which any bytes are a value.
    let done = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, (value as *mut T).cast(), &mut len)
    };
    Errno::result(done)?;
    Ok(())
}

fn set_send_queue(fd: &impl AsFd) -> io::Result<()> {
    let queue = c_int::try_from(QUEUE).unwrap_or(c_int::MAX);
    if set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &queue).is_err() {
        set(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &queue)?;
    }
    Ok(())
}

fn link_address(index: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: integers and arrays of such, for which all zeroes are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().unwrap_or_default();
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.try_into().unwrap_or_default();
    address
}

fn bind_packet(fd: &impl AsFd, index: u32, protocol: u16) -> io::Result<()> {
    let address = link_address(index, protocol);
    // SAFETY: the address is valid for the length given, for the call.
    let done = unsafe {
        libc::bind(
            fd.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            len_of::<libc::sockaddr_ll>(),
        )
    };
    Errno::result(done)?;
    Ok(())
}

/// The interface that a packet socket is bound to: index, ARPHRD type, link address.
fn bound_to(fd: &impl AsFd) -> io::Result<libc::sockaddr_ll> {
    let mut address = link_address(0, 0);
    let mut len = len_of::<libc::sockaddr_ll>();
    // SAFETY: the kernel writes at most `len` bytes to a structure of that size.
    let done =
        unsafe { libc::getsockname(fd.as_fd().as_raw_fd(), (&raw mut address).cast(), &mut len) };
    Errno::result(done)?;
    if c_int::from(address.sll_family) != libc::AF_PACKET {
        return Err(Errno::EAFNOSUPPORT.into());
    }
    Ok(address)
}

fn ethernet_address(address: &libc::sockaddr_ll) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = address.sll_addr;
    [a, b, c, d, e, f]
}

fn attach_filter(fd: &impl AsFd, filter: &[sock_filter]) -> io::Result<()> {
    set_program(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, filter)
}

/// Sets an option to a program of classic BPF.
fn set_program(
    fd: &impl AsFd,
    level: c_int,
    name: c_int,
    program: &[sock_filter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| Errno::EINVAL)?,
        // The kernel only reads it.
        filter: program.as_ptr().cast_mut(),
    };
    set(fd, level, name, &program)
}
