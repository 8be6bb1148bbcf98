// SPDX-License-Identifier: Apache-2.0

//! Ports of the host that belong to the guest (`--forward`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};

use crate::host_sockets::HostDatagrams;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// UDP, or else TCP.
    pub udp: bool,
    /// Where the host listens: at all its addresses, of both families, without an address.
    pub host: Option<IpAddr>,
    /// At this port.
    pub port: u16,
    /// The guest's port.
    pub guest: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "write it like tcp:8080:80, udp:5353:53 or tcp:[::1]:8080:80 \
             (protocol, host's port, guest's port)"
                .to_owned()
        };
        let (protocol, rest) = text.split_once(':').ok_or_else(wrong)?;
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return Err(wrong()),
        };
        let (host, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (host, port) = match (host.parse(), host.parse::<SocketAddr>()) {
            (Ok(port), _) => (None, port),
            (_, Ok(at)) => (Some(at.ip()), at.port()),
            _ => return Err(wrong()),
        };
        let guest = guest.parse().map_err(|_| wrong())?;
        if port == 0 || guest == 0 {
            return Err(wrong());
        }
        Ok(Self { udp, host, port, guest })
    }
}

/// A port that is open.
#[derive(Debug)]
pub enum Open {
    /// A listener, and the guest's port.
    Tcp(TcpListener, u16),
    /// A socket until the guest is known, and the guest's port.
    Udp(Option<HostDatagrams>, u16),
}

impl Forward {
    /// Opens the port.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(&self) -> anyhow::Result<Vec<Open>> {
        if let Some(host) = self.host {
            return Ok(vec![self.open_at(host)?]);
        }
        let mut open = vec![self.open_at(Ipv4Addr::UNSPECIFIED.into())?];
        match self.open_at(Ipv6Addr::UNSPECIFIED.into()) {
            Ok(v6) => open.push(v6),
            // A host without IPv6 has no such address.
            Err(e) => log::debug!("{e:#}"),
        }
        Ok(open)
    }

    fn open_at(&self, host: IpAddr) -> anyhow::Result<Open> {
        let at = SocketAddr::new(host, self.port);
        let (name, kind, protocol) = if self.udp {
            ("UDP", Type::DGRAM, Protocol::UDP)
        } else {
            ("TCP", Type::STREAM, Protocol::TCP)
        };
        let bind = || {
            let socket = Socket::new(Domain::for_address(at), kind.cloexec(), Some(protocol))?;
            if at.is_ipv6() {
                // IPv4 has a socket of its own.
                socket.set_only_v6(true)?;
            }
            if !self.udp {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&at.into())?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        let socket = bind().with_context(|| format!("cannot forward {name} port {at}"))?;
        if self.udp {
            return Ok(Open::Udp(Some(HostDatagrams::at_port(socket.into())?), self.guest));
        }
        socket.listen(128).with_context(|| format!("cannot forward {name} port {at}"))?;
        Ok(Open::Tcp(socket.into(), self.guest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let forward: Forward = "tcp:8080:80".parse().unwrap();
        assert_eq!(
            (forward.udp, forward.host, forward.port, forward.guest),
            (false, None, 8080, 80)
        );
        let forward: Forward = "udp:[::1]:53:5353".parse().unwrap();
        assert_eq!(
            (forward.udp, forward.host, forward.port, forward.guest),
            (true, Some("::1".parse().unwrap()), 53, 5353)
        );
        for wrong in ["", "tcp", "tcp:1", "sctp:1:2", "tcp:0:1", "tcp:1:70000", "tcp:a:1", "tcp::1"]
        {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }
}
