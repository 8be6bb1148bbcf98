// SPDX-License-Identifier: Apache-2.0

//! A named socket, which serves one guest after another.

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

/// The name of a socket in the file system, removed when dropped.
#[derive(Debug)]
pub(crate) struct Name(PathBuf);

impl Name {
    /// Binds a socket of this kind to this name, accessible to this user only. Replaces a socket
    /// that nobody listens on.
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
        // It may have been replaced, or the permission to remove it dropped.
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes a socket that nobody listens on, and nothing else.
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

/// A server for one guest at a time, of both kinds with connections: the library calls both a
/// stream.
#[derive(Debug)]
pub(crate) enum Server {
    /// By a name; the next guest waits until the present one has left.
    Named {
        /// The listener.
        listener: UnixListener,
        /// The present guest.
        guest: Option<UnixStream>,
        /// Given up for a guest, so that one gets in though flows have all other descriptors: who
        /// waits for one would be told of it without end.
        place: Option<OwnedFd>,
        /// Gone with the listener.
        _name: Name,
    },
    /// By one existing connection.
    Given {
        /// The guest's socket.
        guest: UnixStream,
        /// It was closed.
        is_over: bool,
    },
}

impl Server {
    pub(crate) fn listen(path: &Path, kind: SockType) -> io::Result<Self> {
        let (listener, name) = Name::bind(path, kind)?;
        listen(&listener, Backlog::new(1)?)?;
        let place = Some(listener.try_clone()?);
        Ok(Self::Named { listener: listener.into(), guest: None, place, _name: name })
    }

    pub(crate) fn connected(guest: UnixStream) -> io::Result<Self> {
        guest.set_nonblocking(true)?;
        Ok(Self::Given { guest, is_over: false })
    }

    /// The guest's socket, or else the listener.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Named { listener, guest, .. } => {
                guest.as_ref().map_or(listener.as_fd(), AsFd::as_fd)
            }
            Self::Given { guest, .. } => guest.as_fd(),
        }
    }

    pub(crate) fn guest(&self) -> Option<&UnixStream> {
        match self {
            Self::Named { guest, .. } => guest.as_ref(),
            Self::Given { guest, is_over } => Some(guest).filter(|_| !is_over),
        }
    }

    /// Accepts the next guest, if there is one.
    pub(crate) fn accept(&mut self) -> io::Result<bool> {
        let Self::Named { listener, guest, place, .. } = self else { return Ok(false) };
        *place = None;
        let accepted = listener.accept();
        if accepted.is_err() {
            *place = listener.as_fd().try_clone_to_owned().ok();
        }
        match accepted {
            Ok((next, _)) => {
                next.set_nonblocking(true)?;
                *guest = Some(next);
                Ok(true)
            }
            // It may have disconnected before it was accepted.
            Err(e) if e.kind() == ErrorKind::ConnectionAborted || is_only_for_now(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Gives the guest away, so that the next one can connect.
    pub(super) fn give(&mut self) -> Option<UnixStream> {
        let Self::Named { guest, .. } = self else { return None };
        let given = guest.take();
        self.hang_up();
        given
    }

    /// Disconnects the guest.
    pub(crate) fn hang_up(&mut self) {
        match self {
            Self::Named { listener, guest, place, .. } => {
                *guest = None;
                *place = listener.as_fd().try_clone_to_owned().ok();
            }
            Self::Given { is_over, .. } => *is_over = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use clat_sandbox::attempt::{attempt, attempted};
    use nix::sys::resource::{getrlimit, setrlimit, Resource};

    use super::*;

    /// Without this process's other tests, which need descriptors.
    #[test]
    fn one_gets_in_without_a_descriptor_to_spare() {
        if attempted().is_none() {
            let test = "link::server::tests::one_gets_in_without_a_descriptor_to_spare";
            let alone = attempt(test, "it").unwrap();
            assert!(alone.status.success(), "{alone:?}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut server = Server::listen(&path, SockType::Stream).unwrap();
        let _visitors = [(); 2].map(|()| UnixStream::connect(&path).unwrap());
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        let mut all = Vec::new();
        while let Ok(another) = server.fd().try_clone_to_owned() {
            all.push(another);
        }
        for _ in 0..2 {
            assert!(server.accept().unwrap());
            assert!(server.guest().is_some());
            server.hang_up();
        }
        assert!(!server.accept().unwrap());
    }
}
