// SPDX-License-Identifier: Apache-2.0

//! Ports of the host given to the guest (`--forward`).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use anyhow::{ensure, Context};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::host_sockets::HostDatagrams;

/// A `--forward` option: ports at one address of the host, or at all of both families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// UDP; else TCP.
    pub udp: bool,
    /// The host's address; `None` for all, of both families.
    pub host: Option<IpAddr>,
    /// The host's ports, each with the guest's.
    pub ports: Vec<(u16, u16)>,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            "write it like 8080:80, tcp:8000-8010, udp:5353:53 or tcp:[::1]:8080,8443:80,443 \
             (protocol, host's address, host's ports, guest's ports)"
                .to_owned()
        })
    }
}

fn parse(text: &str) -> Option<Forward> {
    let (udp, rest) = match text.split_once(':') {
        Some(("tcp", rest)) => (false, rest),
        Some(("udp", rest)) => (true, rest),
        _ => (false, text),
    };
    let (host, rest) = if let Some(rest) = rest.strip_prefix('[') {
        let (host, rest) = rest.split_once("]:")?;
        (Some(IpAddr::V6(host.parse().ok()?)), rest)
    } else {
        let (first, more) = rest.split_once(':').unwrap_or((rest, ""));
        match first.parse::<Ipv4Addr>() {
            Ok(host) => (Some(host.into()), more),
            Err(_) => (None, rest),
        }
    };
    let (host_ports, guest_ports) = rest.split_once(':').unwrap_or((rest, rest));
    let (host_ports, guest_ports) = (ports(host_ports)?, ports(guest_ports)?);
    if host_ports.len() != guest_ports.len() {
        return None;
    }
    Some(Forward { udp, host, ports: host_ports.into_iter().zip(guest_ports).collect() })
}

/// Ports and ranges of ports, separated by commas.
fn ports(text: &str) -> Option<Vec<u16>> {
    let mut ports = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        if first == 0 || last < first {
            return None;
        }
        ports.extend(first..=last);
    }
    Some(ports)
}

/// One port, at one address of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Port {
    /// UDP; else TCP.
    pub udp: bool,
    /// The host's address and port; an unspecified address means all of its family.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.udp { "udp" } else { "tcp" };
        write!(f, "{protocol}:{}:{}", self.host, self.guest)
    }
}

/// An open port.
#[derive(Debug)]
pub enum Open {
    /// A listener.
    Tcp(TcpListener),
    /// A socket.
    Udp(HostDatagrams),
}

impl Forward {
    /// Its ports: each at one address, or at all addresses of each family.
    #[must_use]
    pub fn ports(&self) -> Vec<Vec<Port>> {
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let hosts = self.host.map_or(any.to_vec(), |host| vec![host]);
        let at = |(port, guest): &(u16, u16)| {
            let port = |host: &IpAddr| Port {
                udp: self.udp,
                host: SocketAddr::new(*host, *port),
                guest: *guest,
            };
            hosts.iter().map(port).collect()
        };
        self.ports.iter().map(at).collect()
    }

    /// Opens the ports.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(&self) -> anyhow::Result<Vec<(Port, Open)>> {
        let mut open = Vec::new();
        for port in self.ports().into_iter().flatten() {
            match port.open() {
                Ok(socket) => open.push((port, socket)),
                // A host without IPv6 has no such address.
                Err(e) if self.host.is_none() && port.host.is_ipv6() => log::debug!("{e:#}"),
                Err(e) => return Err(e),
            }
        }
        Ok(open)
    }
}

impl Port {
    fn open(&self) -> anyhow::Result<Open> {
        let Self { udp, host, .. } = *self;
        let (name, kind, protocol) = if udp {
            ("UDP", Type::DGRAM, Protocol::UDP)
        } else {
            ("TCP", Type::STREAM, Protocol::TCP)
        };
        let bind = || {
            let socket = Socket::new(Domain::for_address(host), kind.cloexec(), Some(protocol))?;
            if host.is_ipv6() {
                // IPv4 has its own socket.
                socket.set_only_v6(true)?;
            }
            if !udp {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&host.into())?;
            if !udp {
                socket.listen(128)?;
            }
            io::Result::Ok(socket)
        };
        let socket = bind().with_context(|| format!("cannot forward {name} port {host}"))?;
        self.from_socket(socket.into())
    }

    /// A port that another process has opened.
    ///
    /// # Errors
    /// If the socket is not that port's.
    pub fn from_socket(&self, socket: OwnedFd) -> anyhow::Result<Open> {
        let socket = Socket::from(socket);
        let kind = if self.udp { Type::DGRAM } else { Type::STREAM };
        ensure!(
            socket.r#type()? == kind && socket.local_addr()?.as_socket() == Some(self.host),
            "the socket is another than {self}"
        );
        if self.udp {
            return Ok(Open::Udp(HostDatagrams::at_port(socket.into())?));
        }
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Open::Tcp(listener))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let loopback = |ip: &str| Some(ip.parse().unwrap());
        for (text, udp, host, ports) in [
            ("tcp:8080:80", false, None, &[(8080, 80)][..]),
            ("8080:80", false, None, &[(8080, 80)]),
            ("22", false, None, &[(22, 22)]),
            ("udp:[::1]:53:5353", true, loopback("::1"), &[(53, 5353)]),
            ("127.0.0.1:8080:80", false, loopback("127.0.0.1"), &[(8080, 80)]),
            ("127.0.0.1:8080", false, loopback("127.0.0.1"), &[(8080, 8080)]),
            ("tcp:8000-8002:9000-9002", false, None, &[(8000, 9000), (8001, 9001), (8002, 9002)]),
            ("udp:53,5353:5,7-7", true, None, &[(53, 5), (5353, 7)]),
        ] {
            let forward: Forward = text.parse().unwrap();
            assert_eq!(forward, Forward { udp, host, ports: ports.to_vec() }, "{text}");
            for port in forward.ports().concat() {
                let again: Forward = port.to_string().parse().unwrap();
                assert_eq!(again.ports(), [[port]], "{port}");
            }
        }
        for wrong in [
            "",
            "tcp",
            "sctp:1:2",
            "tcp:0:1",
            "tcp:1:70000",
            "tcp:a:1",
            "tcp::1",
            "1:",
            "tcp:1-3:1-2",
            "3-1",
            "[::1]",
            "[::1]:",
            "::1:80:80",
            "1.2.3.4",
            "1,,2",
            "80:80:80",
        ] {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }
}
