// SPDX-License-Identifier: Apache-2.0

//! The subjects: each is a guest's namespace, and a program that carries its traffic in a namespace
//! that represents the host.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::wire::uninterrupted;
use clat_tests::{program, Daemon, Netns};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::{sysconf, SysconfVar};

/// The server, and its address as seen by a guest of platd, through NAT64.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SERVER64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc633, 0x6401);
/// Ports of iperf3, and of ours.
pub(crate) const IPERF: u16 = 5201;
pub(crate) const TCP: u16 = 5001;
const UDP: u16 = 5002;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Platd,
    Pasta,
    Slirp,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Platd, Self::Pasta, Self::Slirp];

    /// The guest's device; pasta's has the name of the host's.
    fn device(self) -> &'static str {
        match self {
            Self::Platd => "plat0",
            Self::Pasta => "h0",
            Self::Slirp => "tap0",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Platd => "platd",
            Self::Pasta => "pasta",
            Self::Slirp => "slirp4netns",
        }
    }
}

/// Queue length of a guest's device, which drops packets beyond it. The kernel's default of 1000 is
/// less than a guest has in flight.
const QUEUE: u32 = 20_000;

/// Limits of socket buffers in bytes, as in passt's README. With less, pasta offers guests a window
/// that its sockets cannot hold, and discards data.
const BUFFERS: u64 = 16 << 20;

/// The machine's previous limits, restored when dropped.
struct BufferLimits([(&'static str, u64); 2]);

impl BufferLimits {
    fn raise() -> Result<Self> {
        let mut before = [("/proc/sys/net/core/rmem_max", 0), ("/proc/sys/net/core/wmem_max", 0)];
        for (path, limit) in &mut before {
            *limit = fs::read_to_string(*path)?.trim().parse().context(*path)?;
            fs::write(*path, BUFFERS.max(*limit).to_string()).context(*path)?;
        }
        Ok(Self(before))
    }
}

impl Drop for BufferLimits {
    fn drop(&mut self) {
        for (path, limit) in self.0 {
            let _ = fs::write(path, limit.to_string());
        }
    }
}

/// Forgets closed connections at once: otherwise the kernel would search for a port among tens of
/// thousands.
const FORGET: &str = "sysctl -qw net.ipv4.tcp_max_tw_buckets=0";

/// The host and the server, with a veth between.
pub(crate) struct Hosts {
    pub(crate) host: Netns,
    pub(crate) server: Netns,
    _iperf: Daemon,
    _limits: BufferLimits,
}

impl Hosts {
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let (host, server) = (Netns::new(900, "host")?, Netns::new(900, "server")?);
        host.run(&format!("ip link add h0 type veth peer name s0 netns {}", server.name()))?;
        for (ns, dev, end) in [(&host, "h0", 2), (&server, "s0", 1)] {
            ns.run(&format!("ip addr add 198.51.100.{end}/24 dev {dev}"))?;
            ns.run(&format!("ip addr add 2001:db8:5::{end}/64 dev {dev} nodad"))?;
            ns.run(&format!("ip link set {dev} up"))?;
            ns.run(FORGET)?;
        }
        host.run("ip route add default via 198.51.100.1")?;
        host.run("ip route add default via 2001:db8:5::1")?;
        let iperf = server.spawn(&["iperf3", "-s"], &dir.join("iperf3.log"))?;
        Ok(Self { host, server, _iperf: iperf, _limits: BufferLimits::raise()? })
    }
}

/// One guest, and its carrier.
pub(crate) struct Subject<'h> {
    pub(crate) kind: Kind,
    pub(crate) mtu: u16,
    pub(crate) guest: Netns,
    pub(crate) hosts: &'h Hosts,
    carrier: Daemon,
}

impl<'h> Subject<'h> {
    pub(crate) fn new(hosts: &'h Hosts, kind: Kind, mtu: u16, dir: &Path) -> Result<Self> {
        let number = 901 + u32::from(mtu > 1500) * 10 + kind as u32;
        let guest = Netns::new(number, "guest")?;
        guest.run(FORGET)?;
        let (mtu_text, path) = (mtu.to_string(), format!("/run/netns/{}", guest.name()));
        let platd;
        let argv: Vec<&str> = match kind {
            Kind::Platd => {
                platd = program("platd")?;
                let platd = platd.to_str().context("a path that is no text")?;
                vec![platd, "--netns", &path, "--mtu", &mtu_text, "--dns", "198.51.100.1"]
            }
            Kind::Pasta => {
                let mut argv =
                    vec!["pasta", "--foreground", "--quiet", "--config-net", "--no-map-gw"];
                argv.extend(["--runas", "0", "--mtu", &mtu_text, "--netns-only", "--netns", &path]);
                argv
            }
            Kind::Slirp => {
                let mtu = &*format!("--mtu={mtu}").leak();
                vec!["slirp4netns", "--configure", mtu, "--netns-type=path", &path, "tap0"]
            }
        };
        let carrier = hosts.host.spawn(&argv, &dir.join(format!("{}-{mtu}.log", kind.name())))?;
        let subject = Self { kind, mtu, guest, hosts, carrier };
        subject.wait().with_context(|| format!("{argv:?}: {}", subject.carrier.log()))?;
        subject.guest.run(&format!("ip link set {} txqueuelen {QUEUE}", kind.device()))?;
        Ok(subject)
    }

    /// Waits until the guest reaches the server.
    fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            // There may be no route yet, or the answer may be lost.
            let reached = self.guest.enter(|| {
                let to = SocketAddr::new(self.server(), IPERF);
                Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok())
            })?;
            if reached {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the guest does not reach the server");
            sleep(Duration::from_millis(100));
        }
    }

    /// The server's address for the guest.
    pub(crate) fn server(&self) -> IpAddr {
        match self.kind {
            Kind::Platd => SERVER64.into(),
            Kind::Pasta | Kind::Slirp => SERVER.into(),
        }
    }

    /// Sockets of the guest, each connected to one of the server.
    pub(crate) fn sockets(&self, count: usize) -> Result<(Vec<UdpSocket>, UdpSocket)> {
        let server = self.hosts.server.enter(|| Ok(UdpSocket::bind((SERVER, UDP))?))?;
        let clients = self.guest.enter(|| {
            let any: IpAddr = match self.server() {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let client = || -> Result<_> {
                let client = UdpSocket::bind((any, 0))?;
                client.connect((self.server(), UDP))?;
                Ok(client)
            };
            (0..count).map(|_| client()).collect::<Result<Vec<_>>>()
        })?;
        for socket in clients.iter().chain([&server]) {
            setsockopt(socket, sockopt::RcvBufForce, &(64 << 20))?;
        }
        Ok((clients, server))
    }

    /// Two connected sockets: the guest's, the server's.
    pub(crate) fn pair(&self) -> Result<(UdpSocket, UdpSocket)> {
        let (mut clients, server) = self.sockets(1)?;
        let client = clients.pop().context("no socket")?;
        client.send(b"hello")?;
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (_, peer) = uninterrupted(|| server.recv_from(&mut [0; 16])).context("hello")?;
        server.connect(peer)?;
        Ok((client, server))
    }

    /// Seconds of CPU that the carrier itself has used.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
        let mut ticks = 0.0;
        for pid in self.pids() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // utime and stime, behind a name that may contain anything (proc_pid_stat(5)).
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
            ticks +=
                fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<f64>).sum::<f64>();
        }
        Ok(ticks / f64::from(u32::try_from(per_second)?))
    }

    /// Megabytes of memory of the carrier alone (Pss, proc_pid_smaps(5)).
    pub(crate) fn memory(&self) -> f64 {
        let pss = self.pids().into_iter().filter_map(|pid| {
            let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            line.trim().strip_suffix(" kB")?.parse::<f64>().ok()
        });
        pss.sum::<f64>() * 1024.0 / 1e6
    }

    /// The carrier and its children.
    fn pids(&self) -> Vec<i32> {
        let mut pids = vec![self.carrier.pid()];
        for n in 0.. {
            let Some(pid) = pids.get(n) else { break };
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = fs::read_to_string(path).unwrap_or_default();
            pids.extend(children.split_whitespace().flat_map(str::parse::<i32>));
        }
        pids
    }
}
