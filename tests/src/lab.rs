// SPDX-License-Identifier: Apache-2.0

//! The lab's network: a phone with IPv6 only, a router, and an internet that has the addresses in
//! the prefixes.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::link::{Offloads, RawLink};
use crate::netns::{unique, Netns, PREFIX as NAMES};

/// The prefix of the first uplink's network.
///
/// Not the well-known one, in which tayga refuses documentation addresses.
pub const PREFIX: &str = "2001:db8:64::/96";
/// The prefix of the second uplink's network.
pub const PREFIX2: &str = "64:ff9b::/96";
/// A server on the IPv4 internet.
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Its address inside [`PREFIX`].
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0xc000, 0x201);
/// The phone's own IPv6 address on its first uplink.
pub const UPLINK6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

/// Timeout of the lab's sockets.
const PATIENCE: Duration = Duration::from_secs(10);

/// The kind of the phone's IPv6 uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Uplink {
    /// Ethernet, like Wi-Fi: a veth.
    Ethernet,
    /// Raw IP, like a modem: a TUN device.
    RawIp,
}

/// Three connected namespaces, removed when dropped.
#[derive(Debug)]
pub struct Lab {
    /// Dropped before the namespaces.
    _raw: Option<RawLink>,
    /// The host of the CLAT.
    pub phone: Netns,
    /// Forwards IPv6 only.
    pub router: Netns,
    /// The host of the servers.
    pub internet: Netns,
    uplink: Uplink,
    offloads: Offloads,
    dir: PathBuf,
}

impl Lab {
    /// Builds it, with one Ethernet uplink `up0`.
    ///
    /// # Errors
    /// Errors of `ip`, `sysctl` or `ethtool`.
    pub fn new(offloads: Offloads) -> Result<Self> {
        Self::on(Uplink::Ethernet, offloads)
    }

    /// Builds it, with one uplink `up0` of that kind.
    ///
    /// # Errors
    /// Errors of `ip`, `sysctl`, `ethtool` or the TUN devices.
    pub fn on(uplink: Uplink, offloads: Offloads) -> Result<Self> {
        let number = unique();
        let dir = std::env::temp_dir().join(format!("{NAMES}{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let mut lab = Self {
            _raw: None,
            phone: Netns::new(number, "phone")?,
            router: Netns::new(number, "router")?,
            internet: Netns::new(number, "internet")?,
            uplink,
            offloads,
            dir,
        };
        // No rate limit of ICMP errors, which would make traceroute unreliable.
        lab.router.run("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.icmp.ratelimit=0")?;
        lab.internet.run("sysctl -qw net.ipv6.icmp.ratelimit=0 net.ipv6.ip_nonlocal_bind=1")?;
        lab.phone.run("sysctl -qew net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000")?;

        lab.link(&lab.router, "in0", &lab.internet, "net0")?;
        lab.router.run("ip -6 addr add 2001:db8:ff::1/64 dev in0 nodad")?;
        lab.internet.run("ip -6 addr add 2001:db8:ff::2/64 dev net0 nodad")?;
        lab.internet.run("ip -6 route add default via 2001:db8:ff::1")?;
        for prefix in [PREFIX, PREFIX2] {
            // AnyIP: every address of the prefix is local.
            lab.internet.run(&format!("ip -6 route add local {prefix} dev lo"))?;
            lab.router.run(&format!("ip -6 route add {prefix} via 2001:db8:ff::2"))?;
        }
        // The server's address: the kernel sends ICMP errors only from addresses of interfaces.
        lab.internet.run(&format!("ip -6 addr add {SERVER6}/128 dev lo nodad"))?;
        lab._raw = lab.connect_phone(0, uplink)?;
        Ok(lab)
    }

    /// Connects the phone a second time, by an Ethernet uplink `up1`.
    ///
    /// # Errors
    /// The error of `ip`.
    pub fn second_uplink(&self) -> Result<()> {
        self.connect_phone(1, Uplink::Ethernet).map(drop)
    }

    /// Connects the phone a third time, by an Ethernet uplink `up2`.
    ///
    /// # Errors
    /// The error of `ip`.
    pub fn third_uplink(&self) -> Result<()> {
        self.connect_phone(2, Uplink::Ethernet).map(drop)
    }

    /// Removes the first uplink, an Ethernet one, and creates another with its name.
    ///
    /// # Errors
    /// The error of `ip`.
    pub fn remake_uplink(&self) -> Result<()> {
        self.phone.run("ip link del up0")?;
        self.connect_phone(0, Uplink::Ethernet).map(drop)
    }

    fn connect_phone(&self, n: u8, uplink: Uplink) -> Result<Option<RawLink>> {
        let (up, ph, net) = (format!("up{n}"), format!("ph{n}"), u32::from(n) + 1);
        let raw = match uplink {
            Uplink::Ethernet => self.link(&self.phone, &up, &self.router, &ph).map(|()| None)?,
            Uplink::RawIp => {
                let ends = [(&self.phone, &*up), (&self.router, &*ph)];
                let raw = RawLink::new(ends[0], ends[1], self.offloads)?;
                for (ns, dev) in ends {
                    ns.run(&format!("ip link set {dev} up"))?;
                }
                Some(raw)
            }
        };
        self.router.run(&format!("ip -6 addr add 2001:db8:{net}::1/64 dev {ph} nodad"))?;
        self.phone.run(&format!("ip -6 addr add 2001:db8:{net}::2/64 dev {up} nodad"))?;
        self.phone.run(&format!(
            "ip -6 route add default via 2001:db8:{net}::1 dev {up} metric {}",
            100 + u32::from(n)
        ))?;
        Ok(raw)
    }

    fn link(&self, a: &Netns, dev_a: &str, b: &Netns, dev_b: &str) -> Result<()> {
        crate::netns::host(&format!(
            "ip link add {dev_a} netns {} type veth peer name {dev_b} netns {}",
            a.name(),
            b.name()
        ))?;
        for (ns, dev) in [(a, dev_a), (b, dev_b)] {
            if self.offloads == Offloads::Off {
                ns.run(&format!("ethtool -K {dev} rx off tx off tso off gso off gro off"))?;
            }
            ns.run(&format!("sysctl -qw net.ipv6.conf.{dev}.accept_dad=0"))?;
            ns.run(&format!("ip link set {dev} up"))?;
        }
        Ok(())
    }

    /// Gives the router's routes in both directions this MTU in bytes.
    ///
    /// Locked on the routes, not set on the devices: a veth drops packets larger than its peer's
    /// MTU, about which a router has to send an error.
    ///
    /// # Errors
    /// The error of `ip`.
    pub fn narrow(&self, mtu: u32) -> Result<()> {
        self.router
            .run(&format!("ip -6 route replace {PREFIX} via 2001:db8:ff::2 mtu lock {mtu}"))?;
        self.router.run("ip -6 route del 2001:db8:1::/64 dev ph0")?;
        self.router.run(&format!("ip -6 route add 2001:db8:1::/64 dev ph0 mtu lock {mtu}"))?;
        Ok(())
    }

    /// The kind of `up0`.
    #[must_use]
    pub fn uplink(&self) -> Uplink {
        self.uplink
    }

    /// The offloads of its links.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// A folder, removed with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A UDP socket in `ns`, bound to `addr`, with a timeout.
    ///
    /// # Errors
    /// If it cannot be had.
    pub fn udp(ns: &Netns, addr: impl Into<SocketAddr>) -> Result<UdpSocket> {
        let addr = addr.into();
        let socket = ns.enter(|| UdpSocket::bind(addr).with_context(|| format!("bind {addr}")))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// A listening TCP socket in `ns`.
    ///
    /// # Errors
    /// If it cannot be had.
    pub fn listen(ns: &Netns, addr: impl Into<SocketAddr>) -> Result<TcpListener> {
        let addr = addr.into();
        ns.enter(|| TcpListener::bind(addr).with_context(|| format!("bind {addr}")))
    }

    /// A TCP connection out of `ns`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn connect(ns: &Netns, addr: impl Into<SocketAddr>) -> Result<TcpStream> {
        let addr = addr.into();
        let connect = || TcpStream::connect_timeout(&addr, PATIENCE).context(addr.to_string());
        let stream = ns.enter(connect)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
