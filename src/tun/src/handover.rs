// SPDX-License-Identifier: Apache-2.0

//! Passes descriptors from one process to another over a Unix socket (SCM_RIGHTS, unix(7)).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{recvmsg, sendmsg, ControlMessage, ControlMessageOwned, MsgFlags};

use crate::sys;

/// Most descriptors in one message.
const MOST: usize = 8;

/// Sends `data`, which must not be empty, and descriptors. `socket` is the descriptor number of a
/// socket inherited from the parent.
///
/// # Errors
/// The kernel's error.
pub fn send(socket: RawFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(socket, &[IoSlice::new(data)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives a message into `buf`. Returns its length (0 if the other end is closed) and its
/// descriptors, close-on-exec.
///
/// # Errors
/// The kernel's error.
pub fn receive(socket: impl AsFd, buf: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut control = cmsg_space!([RawFd; MOST]);
    let mut iov = [IoSliceMut::new(buf)];
    let fd = socket.as_fd().as_raw_fd();
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(fd, &mut iov, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for cmsg in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = cmsg {
            fds.extend(received.into_iter().map(sys::own));
        }
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_arrives() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut keep, give) = UnixStream::pair().unwrap();
        send(here.as_raw_fd(), b"x", &[give.as_fd()]).unwrap();
        drop((here, give));
        let mut buf = [0; 8];
        let (n, fds) = receive(&there, &mut buf).unwrap();
        assert_eq!((n, fds.len()), (1, 1));
        nix::unistd::write(&fds[0], b"hello").unwrap();
        drop(fds);
        let mut text = String::new();
        keep.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(receive(&there, &mut buf).unwrap().0, 0);
    }
}
