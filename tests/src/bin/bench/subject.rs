// SPDX-License-Identifier: Apache-2.0

//! The subjects of the bench, running in a lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clat_tests::wire::uninterrupted;
use clat_tests::{compile_bpf, Clat, Daemon, Lab, Mode, PREFIX, SERVER4, SERVER6};
use nix::sys::socket::{setsockopt, sockopt};

/// A subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Native,
    Direct,
    Offload,
    Daemon,
    AospPrograms,
    NetworkManager,
    Constants,
    Tayga,
    Aosp,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Native,
        Self::Direct,
        Self::Offload,
        Self::Constants,
        Self::AospPrograms,
        Self::NetworkManager,
        Self::Daemon,
        Self::Aosp,
        Self::Tayga,
    ];

    /// Its name on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Direct => "direct",
            Self::Offload => "offload",
            Self::Daemon => "daemon",
            Self::AospPrograms => "aosp-programs",
            Self::NetworkManager => "networkmanager",
            Self::Constants => "constants",
            Self::Tayga => "tayga",
            Self::Aosp => "aosp",
        }
    }

    /// Whether it is BPF programs that are not ours, which bpftool loads.
    pub(crate) fn is_foreign_programs(self) -> bool {
        matches!(self, Self::AospPrograms | Self::NetworkManager | Self::Constants)
    }

    /// Its name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native IPv6",
            Self::Direct => "clat, directly",
            Self::Offload => "clat, offload",
            Self::Daemon => "clat, daemon only",
            Self::AospPrograms => "AOSP's programs",
            Self::NetworkManager => "NetworkManager's programs",
            Self::Constants => "constants, on the uplink",
            Self::Tayga => "tayga",
            Self::Aosp => "AOSP's clatd",
        }
    }
}

/// Peers whose paths have to be given.
#[derive(clap::Args)]
pub(crate) struct Peers {
    /// AOSP's clatd, or another that takes its options (-i -m -p -4 -6 -t)
    #[arg(long, value_name = "PATH")]
    aosp_clatd: Option<PathBuf>,
    /// AOSP's programs: its bpf/progs/clatd.c, compiled with map definitions that libbpf knows.
    /// Where they leave packets to a daemon, ours is there
    #[arg(long, value_name = "OBJECT")]
    aosp_programs: Option<PathBuf>,
    /// NetworkManager's programs: its src/core/bpf/clat.bpf.c, compiled
    #[arg(long, value_name = "OBJECT")]
    nm_object: Option<PathBuf>,
}

impl Peers {
    /// The path of a peer.
    fn path(&self, kind: Kind) -> Option<&Path> {
        match kind {
            Kind::Aosp => self.aosp_clatd.as_deref(),
            Kind::AospPrograms => self.aosp_programs.as_deref(),
            Kind::NetworkManager => self.nm_object.as_deref(),
            _ => None,
        }
    }

    /// Whether it is available; only peers need a path.
    pub(crate) fn have(&self, kind: Kind) -> bool {
        let is_peer = matches!(kind, Kind::Aosp | Kind::AospPrograms | Kind::NetworkManager);
        !is_peer || self.path(kind).is_some()
    }
}

/// A subject in its lab.
pub(crate) struct Subject<'l> {
    pub(crate) kind: Kind,
    pub(crate) lab: &'l Lab,
    pub(crate) server: IpAddr,
    clat: Option<Clat<'l>>,
    _iperf: Daemon,
}

impl<'l> Subject<'l> {
    pub(crate) fn new(lab: &'l Lab, kind: Kind, peers: &Peers) -> Result<Self> {
        let clat = match kind {
            Kind::Native => None,
            Kind::Direct => Some(Clat::ours(lab, PREFIX, Mode::Direct)?),
            Kind::Offload => Some(Clat::ours(lab, PREFIX, Mode::Offload)?),
            Kind::Daemon => Some(Clat::ours(lab, PREFIX, Mode::Daemon)?),
            Kind::Tayga => Some(Clat::tayga(lab, PREFIX)?),
            Kind::AospPrograms => {
                let object = peers.path(kind).context("no --aosp-programs")?;
                Some(Clat::aosp_programs(lab, PREFIX, object)?)
            }
            Kind::NetworkManager => {
                let object = peers.path(kind).context("no --nm-object")?;
                Some(Clat::on_uplink(lab, PREFIX, object)?)
            }
            Kind::Constants => {
                let object = lab.dir().join("constants.o");
                let source = "tests/src/bin/bench/constants.c".as_ref();
                compile_bpf(source, &["-Ibpf_progs"], &object)?;
                Some(Clat::on_uplink(lab, PREFIX, &object)?)
            }
            Kind::Aosp => {
                let clatd = peers.path(kind).context("no --aosp-clatd")?;
                Some(Clat::aosp(lab, PREFIX, clatd)?)
            }
        };
        let server = if clat.is_some() { IpAddr::V4(SERVER4) } else { IpAddr::V6(SERVER6) };
        let log = lab.dir().join("iperf3.log");
        let mut iperf = lab.internet.spawn(&["iperf3", "-s", "--forceflush"], &log)?;
        iperf.wait_for("listening")?;
        Ok(Self { kind, lab, server, clat, _iperf: iperf })
    }

    /// Process ids of the translator and its controller; none for native IPv6.
    pub(crate) fn processes(&self) -> Vec<i32> {
        self.clat.as_ref().map(Clat::processes).unwrap_or_default()
    }

    /// Two connected sockets: the phone's, the server's.
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
