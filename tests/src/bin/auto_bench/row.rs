// SPDX-License-Identifier: Apache-2.0

//! What the network does, and how long it takes until IPv4 is as it has to be.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use clat_packet::ra::{self, AUTONOMOUS, ON_LINK};
use clat_tests::{
    change, eventually, Daemon, Lab, Offloads, Router, Uplink, PREFIX, SERVER4, SERVER6,
};
use clat_xlat::Prefix;

use crate::host::{Host, Subject};
use crate::traffic::{outage, upload_stall, with_echo, with_echo_at, Never, PORT};

/// Far longer than a CLAT takes that comes at all.
const PATIENCE: Duration = Duration::from_secs(20);
/// The link's prefix, and another.
pub(crate) const NETWORK: &str = "2001:db8:1::";
const NETWORK2: &str = "2001:db8:11::";
const LIFETIME: u32 = 1800;

/// A host on a network.
pub(crate) struct Bench<'l> {
    pub(crate) lab: &'l Lab,
    pub(crate) router: &'l Router,
    pub(crate) host: &'l Host<'l>,
}

/// What there is before the change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Before {
    /// Nobody has advertised anything.
    Nothing,
    /// An address and a default route.
    Address,
    /// A CLAT.
    Clat,
}

/// Time until IPv4 is as it has to be.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    before: Before,
    offloads: Offloads,
    take: fn(&Bench<'_>) -> Result<Duration>,
}

impl Row {
    /// Once, in a new lab.
    pub(crate) fn take(&self, subject: Subject, root: Option<&Path>) -> Result<Duration> {
        on_network(subject, root, self.offloads, self.before, None, self.take)
    }
}

/// Runs it with a host on a new network, once the host has what it has before the change.
pub(crate) fn on_network<T>(
    subject: Subject,
    root: Option<&Path>,
    offloads: Offloads,
    before: Before,
    address: Option<&str>,
    run: impl FnOnce(&Bench<'_>) -> Result<T>,
) -> Result<T> {
    let lab = Lab::on(Uplink::Ethernet, offloads)?;
    lab.phone.run("ip -6 addr flush dev up0 scope global")?;
    lab.phone.run("ip -6 route flush dev up0 default")?;
    if before == Before::Nothing {
        // Duplicates are looked for, as on any host.
        lab.phone.run("sysctl -qw net.ipv6.conf.up0.accept_dad=1")?;
    }
    // Its addresses come back with the link, and nodes hear of another Ethernet address.
    lab.router.run("sysctl -qw net.ipv6.conf.ph0.keep_addr_on_down=1")?;
    lab.router.run("sysctl -qw net.ipv6.conf.ph0.ndisc_notify=1")?;
    let router = Router::new(&lab.router, "ph0")?;
    let host = Host::start(&lab, subject, root, address)?;
    let bench = Bench { lab: &lab, router: &router, host: &host };
    // From then on it listens.
    let begun = Instant::now();
    while !router.is_solicited()? {
        ensure!(begun.elapsed() < PATIENCE, "no solicitation");
    }
    // That it never comes is no result.
    let begin = |server: IpAddr| {
        let first = with_echo(&lab, || first_packet(&lab, server));
        first.map_err(|e| anyhow!("{server}, before the change: {e}"))
    };
    if before >= Before::Address {
        router.send(&advertisement(&[&slaac(NETWORK, LIFETIME)?]))?;
        begin(SERVER6.into())?;
    }
    if before >= Before::Clat {
        router.send(&with_clat()?)?;
        begin(SERVER4.into())?;
    }
    run(&bench)
}

/// A router advertisement with these options.
pub(crate) fn advertisement(options: &[&[u8]]) -> Vec<u8> {
    [&ra::header(64, 0, 1800)[..], &options.concat()].concat()
}

fn slaac(prefix: &str, lifetime: u32) -> Result<[u8; 32]> {
    let flags = ON_LINK | AUTONOMOUS;
    Ok(ra::prefix_information(prefix.parse()?, 64, flags, lifetime, lifetime))
}

pub(crate) fn pref64(lifetime: u16) -> Result<[u8; 16]> {
    let prefix: Prefix = PREFIX.parse().ok().context("a prefix")?;
    ra::pref64(prefix.addr(), prefix.bits(), lifetime).context("a length")
}

/// All that the host needs.
fn with_clat() -> Result<Vec<u8>> {
    Ok(advertisement(&[&slaac(NETWORK, LIFETIME)?, &pref64(1800)?]))
}

/// Sends datagrams until one comes back.
pub(crate) fn first_packet(lab: &Lab, to: IpAddr) -> Result<Duration> {
    let begun = Instant::now();
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    lab.phone.enter(|| {
        while begun.elapsed() < PATIENCE {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(2)))?;
            let sent = socket.connect((to, PORT)).and_then(|()| socket.send(b"here"));
            if sent.is_ok() && socket.recv(&mut [0; 64]).is_ok() {
                return Ok(begun.elapsed());
            }
            thread::sleep(Duration::from_micros(500));
        }
        bail!(Never)
    })
}

/// Waits until IPv4 has a route, or none.
fn until_route(lab: &Lab, is_there: bool) -> Result<Duration> {
    let begun = Instant::now();
    lab.phone.enter(|| {
        while begun.elapsed() < PATIENCE {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            if socket.connect((SERVER4, PORT)).is_ok() == is_there {
                return Ok(begun.elapsed());
            }
            thread::sleep(Duration::from_micros(200));
        }
        bail!(Never)
    })
}

/// Runs `during` while the router answers solicitations.
fn answering<T>(router: &Router, during: impl FnOnce() -> Result<T>) -> Result<T> {
    let message = with_clat()?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                // What is lost by a link that goes down is solicited again.
                if router.is_solicited().is_ok_and(|is| is) {
                    let _ = router.send(&message);
                }
            }
        });
        let done = during();
        ended.store(true, Ordering::Relaxed);
        done
    })
}

/// Takes the carrier away for a while; returns the time from its return on.
fn bounce(bench: &Bench<'_>) -> Result<Duration> {
    bench.lab.router.run("ip link set ph0 down")?;
    thread::sleep(Duration::from_millis(300));
    bench.lab.router.run("ip link set ph0 up")?;
    first_packet(bench.lab, SERVER4.into())
}

/// The router's IPv4 addresses, the server's among them.
const NATIVE: [&str; 2] = ["192.0.2.129/25 dev ph0", "192.0.2.1/32 dev lo"];

/// Adds them to the router, or takes them away.
fn native(bench: &Bench<'_>, what: &str) -> Result<()> {
    NATIVE
        .iter()
        .try_for_each(|line| bench.lab.router.run(&format!("ip addr {what} {line}")).map(drop))
}

/// Gives the host native IPv4, and waits until it has it.
fn dhcp_server(bench: &Bench<'_>) -> Result<Daemon> {
    let Bench { lab, .. } = bench;
    let options = "--port=0 --interface=ph0 --no-ping --dhcp-authoritative \
                   --dhcp-range=192.0.2.140,192.0.2.200,255.255.255.128 \
                   --dhcp-option=3,192.0.2.129 --dhcp-leasefile=/dev/null";
    let server = lab.router.dnsmasq(options, &lab.dir().join("dhcp.log"))?;
    let route = || lab.phone.run(&format!("ip route get {SERVER4}"));
    eventually("native IPv4", || Ok(route().is_ok_and(|by| by.contains("via 192.0.2.129"))))?;
    Ok(server)
}

const fn row(name: &'static str, before: Before, take: fn(&Bench<'_>) -> Result<Duration>) -> Row {
    Row { name, before, offloads: Offloads::Default, take }
}

/// A veth passes GSO packets larger than its MTU.
const fn upload(name: &'static str, take: fn(&Bench<'_>) -> Result<Duration>) -> Row {
    Row { offloads: Offloads::Off, ..row(name, Before::Clat, take) }
}

pub(crate) const ROWS: &[Row] = &[
    row("PREF64 advertised → IPv4 route", Before::Address, |bench| {
        bench.router.send(&with_clat()?)?;
        until_route(bench.lab, true)
    }),
    row("PREF64 advertised → first packet", Before::Address, |bench| {
        with_echo(bench.lab, || {
            bench.router.send(&with_clat()?)?;
            first_packet(bench.lab, SERVER4.into())
        })
    }),
    row("PREF64 and /64 advertised → first packet", Before::Nothing, |bench| {
        with_echo(bench.lab, || {
            bench.router.send(&with_clat()?)?;
            first_packet(bench.lab, SERVER4.into())
        })
    }),
    row("of that after IPv6's first", Before::Nothing, |bench| {
        with_echo(bench.lab, || {
            bench.router.send(&with_clat()?)?;
            let first = thread::scope(|scope| {
                let v6 = scope.spawn(|| first_packet(bench.lab, SERVER6.into()));
                let v4 = first_packet(bench.lab, SERVER4.into());
                let v6 = v6.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                Ok::<_, anyhow::Error>([v4?, v6?])
            });
            let [v4, v6] = first?;
            Ok(v4.saturating_sub(v6))
        })
    }),
    row("PREF64 withdrawn → no route", Before::Clat, |bench| {
        bench.router.send(&advertisement(&[&pref64(0)?]))?;
        until_route(bench.lab, false)
    }),
    row("renumbered by its router", Before::Clat, |bench| {
        outage(bench.lab, SERVER4, || {
            let router = &bench.lab.router;
            router.run(&format!("ip -6 addr add {NETWORK2}1/64 dev ph0 nodad"))?;
            bench.router.send(&advertisement(&[
                &slaac(NETWORK, 0)?,
                &slaac(NETWORK2, LIFETIME)?,
                &pref64(1800)?,
            ]))?;
            // Nobody has to be that quick.
            thread::sleep(Duration::from_secs(1));
            router.run(&format!("ip -6 addr del {NETWORK}1/64 dev ph0")).map(drop)
        })
    }),
    upload("upload, router's MTU 1500 → 1400", |bench| {
        upload_stall(bench.lab, SERVER4, || {
            let options: [&[u8]; 3] = [&slaac(NETWORK, LIFETIME)?, &pref64(1800)?, &ra::mtu(1400)];
            bench.router.send(&advertisement(&options))?;
            bench.lab.router.run("ip link set ph0 mtu 1400").map(drop)
        })
    }),
    upload("upload, link's MTU 1500 → 1400", |bench| {
        upload_stall(bench.lab, SERVER4, || change::set_link_mtu(bench.lab, 1400))
    }),
    row("router's Ethernet address changed", Before::Clat, |bench| {
        outage(bench.lab, SERVER4, || {
            bench.lab.router.run("ip link set ph0 address 02:00:00:00:00:99").map(drop)
        })
    }),
    row("carrier lost for 0.3 s and back → first packet", Before::Clat, |bench| {
        with_echo(bench.lab, || answering(bench.router, || bounce(bench)))
    }),
    row("uplink made anew → first packet", Before::Clat, |bench| {
        let Bench { lab, host, .. } = bench;
        lab.phone.run("ip link del up0")?;
        let [phone, router] = [lab.phone.name(), lab.router.name()];
        lab.router.run(&format!("ip link add ph0 type veth peer name up0 netns {phone}"))?;
        lab.router.run("sysctl -qw net.ipv6.conf.ph0.accept_dad=0")?;
        lab.router.run("ip link set ph0 up")?;
        lab.router.run(&format!("ip -6 addr add {NETWORK}1/64 dev ph0 nodad"))?;
        let again = Router::new(&lab.router, "ph0").context(router.to_owned())?;
        with_echo(lab, || {
            answering(&again, || {
                if let Host::Ours(_) = host {
                    lab.phone.run("ip link set up0 up")?;
                }
                first_packet(lab, SERVER4.into())
            })
        })
    }),
    row("DHCPv4 comes", Before::Clat, |bench| {
        let _client = bench.host.dhcp_client()?;
        native(bench, "add")?;
        let mut server = None;
        with_echo_at(&bench.lab.router, SERVER4, || {
            outage(bench.lab, SERVER4, || {
                server = Some(dhcp_server(bench)?);
                Ok(())
            })
        })
    }),
    row("DHCPv4 goes, carrier lost for 0.3 s → first packet", Before::Clat, |bench| {
        let _client = bench.host.dhcp_client()?;
        native(bench, "add")?;
        drop(dhcp_server(bench)?);
        native(bench, "del")?;
        with_echo(bench.lab, || answering(bench.router, || bounce(bench)))
    }),
    row("killed, and started again after 0.1 s", Before::Clat, |bench| {
        answering(bench.router, || outage(bench.lab, SERVER4, || bench.host.kill()))
    }),
];
