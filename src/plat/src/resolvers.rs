//! The resolvers of the host, and how they are asked.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::Context;

use crate::network::Query;

/// The sockets by which resolvers are asked.
pub(crate) struct Resolvers {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    /// Tokens by resolver and identification.
    asked: HashMap<(SocketAddr, u16), u64>,
}

impl Resolvers {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a DNS socket")?;
        v4.set_nonblocking(true)?;
        // A host without IPv6 has none.
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok();
        if let Some(v6) = &v6 {
            v6.set_nonblocking(true)?;
        }
        Ok(Self { v4, v6, asked: HashMap::new() })
    }

    pub(crate) fn v4(&self) -> &UdpSocket {
        &self.v4
    }

    pub(crate) fn v6(&self) -> Option<&UdpSocket> {
        self.v6.as_ref()
    }

    pub(crate) fn ask(&mut self, query: &Query) {
        let socket = match (query.resolver.is_ipv4(), &self.v6) {
            (true, _) => &self.v4,
            (false, Some(v6)) => v6,
            (false, None) => return,
        };
        let &[a, b, ..] = query.message.as_slice() else { return };
        if self.asked.len() > 4096 {
            self.asked.clear();
        }
        self.asked.insert((query.resolver, u16::from_be_bytes([a, b])), query.token);
        if let Err(e) = socket.send_to(&query.message, query.resolver) {
            log::debug!("cannot ask {}: {e}", query.resolver);
        }
    }

    /// The next answer: its token, and the message.
    pub(crate) fn answer<'b>(&mut self, v6: bool, buf: &'b mut [u8]) -> Option<(u64, &'b [u8])> {
        let socket = if v6 { self.v6.as_ref()? } else { &self.v4 };
        loop {
            let (len, from) = match socket.recv_from(buf) {
                Ok(received) => received,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                // An error of something sent earlier.
                Err(_) => continue,
            };
            if len < 12 {
                continue;
            }
            let id = u16::from_be_bytes([buf[0], buf[1]]);
            if let Some(token) = self.asked.remove(&(from, id)) {
                return Some((token, &buf[..len]));
            }
        }
    }
}
