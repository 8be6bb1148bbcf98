//! Who is benched, up and running in a lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use anyhow::{Context, Result};
use clat_tests::wire::uninterrupted;
use clat_tests::{Clat, Daemon, Lab, Mode, PREFIX, SERVER4, SERVER6};
use nix::sys::socket::{setsockopt, sockopt};

/// Who.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Native,
    Offload,
    Daemon,
    Tayga,
    Aosp,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Native, Self::Offload, Self::Daemon, Self::Tayga, Self::Aosp];

    /// For the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Offload => "offload",
            Self::Daemon => "daemon",
            Self::Tayga => "tayga",
            Self::Aosp => "aosp",
        }
    }

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native IPv6",
            Self::Offload => "clat, offload",
            Self::Daemon => "clat, daemon only",
            Self::Tayga => "tayga",
            Self::Aosp => "AOSP's clatd",
        }
    }
}

/// One of them in its lab.
pub(crate) struct Subject<'l> {
    pub(crate) kind: Kind,
    pub(crate) lab: &'l Lab,
    pub(crate) server: IpAddr,
    clat: Option<Clat<'l>>,
    _iperf: Daemon,
}

impl<'l> Subject<'l> {
    pub(crate) fn new(lab: &'l Lab, kind: Kind, aosp: Option<&Path>) -> Result<Self> {
        let clat = match kind {
            Kind::Native => None,
            Kind::Offload => Some(Clat::ours(lab, PREFIX, Mode::Offload)?),
            Kind::Daemon => Some(Clat::ours(lab, PREFIX, Mode::Daemon)?),
            Kind::Tayga => Some(Clat::tayga(lab, PREFIX)?),
            Kind::Aosp => Some(Clat::aosp(lab, PREFIX, aosp.context("no --aosp-clatd")?)?),
        };
        let server = if clat.is_some() { IpAddr::V4(SERVER4) } else { IpAddr::V6(SERVER6) };
        let log = lab.dir().join("iperf3.log");
        let mut iperf = lab.internet.spawn(&["iperf3", "-s", "--forceflush"], &log)?;
        iperf.wait_for("listening")?;
        Ok(Self { kind, lab, server, clat, _iperf: iperf })
    }

    /// Process ids of the translator and its controller; none of the native way.
    pub(crate) fn processes(&self) -> Vec<i32> {
        self.clat.as_ref().map(Clat::processes).unwrap_or_default()
    }

    /// Two sockets that talk to one another: the phone's, the server's.
    pub(crate) fn pair(&self) -> Result<(UdpSocket, UdpSocket)> {
        let server = Lab::udp(&self.lab.internet, (SERVER6, 5000))?;
        let any: IpAddr = match self.server {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let client = Lab::udp(&self.lab.phone, (any, 0))?;
        client.connect((self.server, 5000))?;
        client.send(b"hello")?;
        let (_, peer) = uninterrupted(|| server.recv_from(&mut [0; 16])).context("hello")?;
        server.connect(peer)?;
        for socket in [&client, &server] {
            setsockopt(socket, sockopt::RcvBufForce, &(64 << 20))?;
        }
        Ok((client, server))
    }
}
