//! Tells when routes may have changed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};

/// linux/rtnetlink.h
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// A subscription to changes of IPv6 routes and of interfaces, in the network namespace of the thread that made it. Its
/// descriptor becomes readable with each; what changed is for the reader to look up, since the kernel may drop
/// messages.
pub struct Watch(Socket);

impl Watch {
    /// Subscribes. Changes from here on are not missed.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn new() -> io::Result<Self> {
        Self::of(&[RTNLGRP_LINK, RTNLGRP_IPV6_ROUTE])
    }

    /// Subscribes to changes of neighbours as well. There are many.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn with_neighbours() -> io::Result<Self> {
        Self::of(&[RTNLGRP_LINK, RTNLGRP_IPV6_ROUTE, RTNLGRP_NEIGH])
    }

    fn of(groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Takes away all that was told, so that the descriptor is no longer readable; says whether there was anything.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn drain(&self) -> io::Result<bool> {
        let mut some = false;
        let mut message = [0; 64];
        loop {
            // Cut short, for nobody reads it.
            match self.0.recv(&mut &mut message[..], 0) {
                Ok(_) => some = true,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(some),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // It dropped some.
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => some = true,
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
