// SPDX-License-Identifier: Apache-2.0

//! Datagrams with their control messages: recvmsg(2), of which nix does not know all kinds.

use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, iovec, msghdr, sockaddr_storage, socklen_t};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// Receives a datagram without blocking, with its control messages (cmsg(3)) in `control`: its
/// length, its sender, and those.
///
/// # Errors
/// `EAGAIN` if none waits; else the kernel's error.
pub fn receive<'c>(
    socket: impl AsFd,
    buf: &mut [u8],
    control: &'c mut [u8],
) -> nix::Result<(usize, Option<SockaddrStorage>, ControlMessages<'c>)> {
    // Where the kernel has written no more, there is a message of length 0, which is none.
    control.fill(0);
    let mut place = iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: integers and pointers, for which zeros are valid.
    let (mut address, mut header): (sockaddr_storage, msghdr) = unsafe { zeroed() };
    header.msg_name = std::ptr::from_mut(&mut address).cast();
    header.msg_namelen = socklen_t::try_from(size_of::<sockaddr_storage>()).unwrap_or_default();
    header.msg_iov = &mut place;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() as _;
    // SAFETY: the header has the address, one iovec and the control buffer, all of the lengths
    // given and borrowed mutably during the call.
    let len = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &mut header, libc::MSG_DONTWAIT) };
    let len = usize::try_from(Errno::result(len)?).unwrap_or_default();
    // SAFETY: `address` is as long as any, and has the kernel's bytes in front of zeros.
    let address = unsafe {
        SockaddrStorage::from_raw(std::ptr::from_ref(&address).cast(), Some(header.msg_namelen))
    };
    Ok((len, address, ControlMessages(control)))
}

/// Control messages: level, type and data.
#[derive(Debug)]
pub struct ControlMessages<'c>(&'c [u8]);

impl<'c> Iterator for ControlMessages<'c> {
    type Item = (c_int, c_int, &'c [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // struct cmsghdr as the kernel has it: a size_t and two integers.
        const WORD: usize = size_of::<usize>();
        let (len, rest) = self.0.split_first_chunk::<WORD>()?;
        let len = usize::from_ne_bytes(*len);
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let data = rest.get(..len.checked_sub(WORD + 8)?)?;
        self.0 = self.0.get(len.next_multiple_of(WORD)..).unwrap_or_default();
        Some((c_int::from_ne_bytes(*level), c_int::from_ne_bytes(*kind), data))
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_datagram_has_its_class_and_its_destination() {
        let [to, from] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        to.set_nonblocking(true).unwrap();
        for option in [libc::IP_RECVTOS, libc::IP_PKTINFO] {
            crate::socket::set_int(&to, libc::IPPROTO_IP, option, 1).unwrap();
        }
        crate::socket::set_int(&from, libc::IPPROTO_IP, libc::IP_TOS, 0xb9).unwrap();
        let (mut buf, mut control) = ([0; 16], [0; 128]);
        assert_eq!(receive(&to, &mut buf, &mut control).map(|_| ()), Err(Errno::EAGAIN));
        from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
        let (len, address, messages) = receive(&to, &mut buf, &mut control).unwrap();
        assert_eq!(&buf[..len], b"hello");
        let address = *address.unwrap().as_sockaddr_in().unwrap();
        assert_eq!(address.port(), from.local_addr().unwrap().port());
        let mut found: Vec<_> = messages.map(|(_, kind, data)| (kind, data.to_vec())).collect();
        found.sort();
        assert_eq!(found[0], (libc::IP_TOS, vec![0xb9]));
        assert_eq!((found[1].0, &found[1].1[4..8]), (libc::IP_PKTINFO, &[127, 0, 0, 1][..]));
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let len = (size_of::<usize>() + 8 + 4).to_ne_bytes();
        let whole = [&len[..], &[0; 8], &[7; 4]].concat();
        assert_eq!(ControlMessages(&whole).count(), 1);
        for end in 0..whole.len() {
            assert_eq!(ControlMessages(&whole[..end]).count(), 0, "{end}");
        }
        let short = [&3usize.to_ne_bytes()[..], &[0; 24]].concat();
        assert_eq!(ControlMessages(&short).count(), 0);
    }
}
