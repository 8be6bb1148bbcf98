// SPDX-License-Identifier: Apache-2.0

//! A socket with a name, at which one guest after the other plugs in.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    bind, connect, listen, socket, AddressFamily, Backlog, SockFlag, SockType, UnixAddr,
};
use nix::sys::stat::{umask, Mode};

use super::is_only_for_now;

/// The name of a socket in the file system; gone when dropped.
#[derive(Debug)]
pub(super) struct Name(PathBuf);

impl Name {
    /// A socket of this kind under this name, for its owner alone. What a process that is gone left
    /// there is replaced.
    pub(super) fn bind(path: &Path, kind: SockType) -> io::Result<(OwnedFd, Self)> {
        let failed = |e: io::Error| {
            io::Error::new(e.kind(), format!("cannot listen at {}: {e}", path.display()))
        };
        let address = UnixAddr::new(path).map_err(|e| failed(e.into()))?;
        let make = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Unix, kind, flags, None)
        };
        clear_the_way(path, || connect(make()?.as_raw_fd(), &address)).map_err(failed)?;
        let fd = make().map_err(|e| failed(e.into()))?;
        let others = umask(Mode::from_bits_truncate(0o177));
        let bound = bind(fd.as_raw_fd(), &address);
        umask(others);
        bound.map_err(|e| failed(e.into()))?;
        Ok((fd, Self(path.to_owned())))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Whoever replaced it, or took the right to, does not want it gone.
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes a socket that nobody listens at, and nothing else.
fn clear_the_way(path: &Path, try_it: impl FnOnce() -> nix::Result<()>) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::other("there is something else by that name; choose another"));
        }
        Ok(_) => {}
    }
    if try_it() == Err(Errno::ECONNREFUSED) {
        return fs::remove_file(path);
    }
    Err(io::Error::other("another program listens there; end it, or choose another name"))
}

/// Listens, and has one guest at a time. The next waits until it has left. Of either kind that has
/// connections: the library calls both a stream.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    guest: Option<UnixStream>,
    _name: Name,
}

impl Server {
    pub(crate) fn listen(path: &Path, kind: SockType) -> io::Result<Self> {
        let (listener, name) = Name::bind(path, kind)?;
        listen(&listener, Backlog::new(1)?)?;
        Ok(Self { listener: listener.into(), guest: None, _name: name })
    }

    /// The guest's socket, else the one where it will come.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.guest.as_ref().map_or(self.listener.as_fd(), AsFd::as_fd)
    }

    pub(crate) fn guest(&self) -> Option<&UnixStream> {
        self.guest.as_ref()
    }

    /// Lets the next guest in, if it is there.
    pub(crate) fn accept(&mut self) -> io::Result<bool> {
        match self.listener.accept() {
            Ok((guest, _)) => {
                guest.set_nonblocking(true)?;
                self.guest = Some(guest);
                Ok(true)
            }
            // It may have thought better of it.
            Err(e) if e.kind() == ErrorKind::ConnectionAborted || is_only_for_now(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Sees the guest off.
    pub(crate) fn hang_up(&mut self) {
        self.guest = None;
    }
}
