// SPDX-License-Identifier: Apache-2.0

//! Ports of the host that belong to the guest (`--forward`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr;

use anyhow::Context;

use crate::host_sockets::HostDatagrams;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// UDP, or else TCP.
    pub udp: bool,
    /// Where the host listens.
    pub host: SocketAddr,
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
        let host = match host.parse() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            Err(_) => host.parse().map_err(|_| wrong())?,
        };
        let guest = guest.parse().map_err(|_| wrong())?;
        if host.port() == 0 || guest == 0 {
            return Err(wrong());
        }
        Ok(Self { udp, host, guest })
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
    pub fn open(&self) -> anyhow::Result<Open> {
        let host = self.host;
        if self.udp {
            let socket =
                UdpSocket::bind(host).with_context(|| format!("cannot forward UDP port {host}"))?;
            Ok(Open::Udp(Some(HostDatagrams::at_port(socket)?), self.guest))
        } else {
            let listener = TcpListener::bind(host)
                .with_context(|| format!("cannot forward TCP port {host}"))?;
            listener.set_nonblocking(true)?;
            Ok(Open::Tcp(listener, self.guest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let forward: Forward = "tcp:8080:80".parse().unwrap();
        assert_eq!((forward.udp, forward.host.port(), forward.guest), (false, 8080, 80));
        let forward: Forward = "udp:[::1]:53:5353".parse().unwrap();
        assert_eq!(
            (forward.udp, forward.host, forward.guest),
            (true, "[::1]:53".parse().unwrap(), 5353)
        );
        for wrong in ["", "tcp", "tcp:1", "sctp:1:2", "tcp:0:1", "tcp:1:70000", "tcp:a:1", "tcp::1"]
        {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }
}
