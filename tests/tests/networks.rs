// SPDX-License-Identifier: Apache-2.0

//! A network made by other people's programs: radvd's advertisements, unbound's DNS64, tayga's
//! NAT64, and an internet with IPv4 alone behind them.

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;

use anyhow::{ensure, Context, Result};
use clat_tests::wire::uninterrupted;
use clat_tests::{
    can_run, eventually, Controller, Daemon, Lab, Mode, Netns, Offloads, PREFIX, SERVER4,
};

const NEEDS: &[&str] =
    &["ip", "ethtool", "sysctl", "ping", "traceroute", "radvd", "unbound", "tayga", "dnsmasq"];

/// The router's address on the phone's link, where its DNS64 is.
const ROUTER: &str = "2001:db8:1::1";
/// Its address on the internet.
const OUTSIDE: &str = "198.51.100.1";

/// The programs on the router, and the name server on the internet.
struct Network {
    _daemons: [Daemon; 4],
}

impl Network {
    /// Takes all addresses away that the lab has set by hand, and the prefix from the internet.
    fn new(lab: &Lab, has_pref64: bool) -> Result<Self> {
        for line in [
            "ip -6 addr flush dev up0 scope global",
            "ip -6 route flush dev up0 default",
            "sysctl -qw net.ipv6.conf.up0.accept_ra=1",
        ] {
            lab.phone.run(line)?;
        }
        for line in [
            &format!("ip -6 route del {PREFIX} via 2001:db8:ff::2"),
            &format!("ip addr add {OUTSIDE}/24 dev in0"),
            "ip route add default via 198.51.100.2",
            "sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0",
        ] {
            lab.router.run(line)?;
        }
        for line in [
            "ip -6 addr flush dev net0 scope global",
            "ip addr add 198.51.100.2/24 dev net0",
            &format!("ip addr add {SERVER4}/32 dev lo"),
            &format!("ip route add default via {OUTSIDE}"),
            "sysctl -qw net.ipv4.icmp_ratelimit=0",
        ] {
            lab.internet.run(line)?;
        }
        Ok(Self {
            _daemons: [tayga(lab)?, name_server(lab)?, unbound(lab)?, radvd(lab, has_pref64)?],
        })
    }
}

/// A program of the router, with a configuration of its own.
fn configured(lab: &Lab, program: &str, options: &[&str], conf: &str) -> Result<Daemon> {
    let file = lab.dir().join(format!("{program}.conf"));
    fs::write(&file, conf)?;
    let file = file.display().to_string();
    let argv = [&[program], options, &[&file]].concat();
    lab.router.spawn(&argv, &lab.dir().join(format!("{program}.log")))
}

/// NAT64, with an IPv4 address of the pool for each IPv6 host.
fn tayga(lab: &Lab) -> Result<Daemon> {
    let conf = format!(
        "tun-device nat64\nipv4-addr 192.168.255.1\nipv6-addr 2001:db8:ff::64\nprefix {PREFIX}\n\
         dynamic-pool 192.168.255.0/24\ndata-dir {}\n",
        lab.dir().display()
    );
    for line in [
        "ip tuntap add nat64 mode tun",
        "sysctl -qw net.ipv6.conf.nat64.accept_dad=0",
        "ip link set nat64 up",
        &format!("ip -6 route add {PREFIX} dev nat64"),
        "ip route add 192.168.255.0/24 dev nat64",
    ] {
        lab.router.run(line)?;
    }
    configured(lab, "tayga", &["-d", "-c"], &conf)
}

/// What the internet says of `ipv4only.arpa` (RFC 7050 §8.2).
fn name_server(lab: &Lab) -> Result<Daemon> {
    let options = "--listen-address=198.51.100.2 --local=/arpa/ \
                   --host-record=ipv4only.arpa,192.0.0.170 --host-record=ipv4only.arpa,192.0.0.171";
    lab.internet.dnsmasq(options, &lab.dir().join("dnsmasq.log"))
}

/// DNS64 by what the internet's name server says.
fn unbound(lab: &Lab) -> Result<Daemon> {
    let conf = format!(
        "server:\n interface: {ROUTER}\n access-control: ::/0 allow\n chroot: \"\"\n \
         username: \"\"\n pidfile: \"\"\n use-syslog: no\n logfile: \"\"\n verbosity: 1\n \
         module-config: \"dns64 iterator\"\n dns64-prefix: {PREFIX}\n\
         remote-control:\n control-enable: no\n\
         forward-zone:\n name: \".\"\n forward-addr: 198.51.100.2\n"
    );
    let mut unbound = configured(lab, "unbound", &["-d", "-c"], &conf)?;
    unbound.wait_for("start of service")?;
    Ok(unbound)
}

/// Router advertisements.
fn radvd(lab: &Lab, has_pref64: bool) -> Result<Daemon> {
    let pref64 = if has_pref64 { format!(" nat64prefix {PREFIX} {{ }};\n") } else { String::new() };
    let conf = format!(
        "interface ph0 {{\n AdvSendAdvert on;\n prefix 2001:db8:1::/64 {{ }};\n \
         RDNSS {ROUTER} {{ }};\n{pref64}}};\n"
    );
    let pid = lab.dir().join("radvd.pid").display().to_string();
    configured(lab, "radvd", &["--nodaemon", "-m", "stderr", "-p", &pid, "-C"], &conf)
}

/// Whether radvd is 2.20 or newer; Debian 12's is not.
fn radvd_has_pref64() -> Result<bool> {
    let said = Command::new("radvd").arg("--version").output()?;
    let said = [said.stdout, said.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let version = said.split_whitespace().nth(1).context("no version of radvd")?;
    let (major, minor) = version.split_once('.').context("no version of radvd")?;
    Ok((major.parse::<u32>()?, minor.parse::<u32>()?) >= (2, 20))
}

#[test]
fn radvd_unbound_and_tayga() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    for mode in [Mode::Offload, Mode::Daemon] {
        by(mode, false, &format!("DNS64 at {ROUTER}"))?;
        if radvd_has_pref64()? {
            by(mode, true, "PREF64 of router fe80::")?;
        }
    }
    Ok(())
}

/// Uses a network whose prefix is found there.
fn by(mode: Mode, has_pref64: bool, source: &str) -> Result<()> {
    let lab = Lab::new(Offloads::Default)?;
    let controller = Controller::new(&lab, mode, &["--auto", "--uplink", "up0"])?;
    let _network = Network::new(&lab, has_pref64)?;
    let ping = format!("ping -n -c 1 -W 1 {SERVER4}");
    eventually("IPv4", || Ok(lab.phone.run(&ping).is_ok()))?;
    ensure!(controller.status("up0")?["nat64Prefix"] == PREFIX);
    eventually(source, || {
        let status: serde_json::Value =
            serde_json::from_str(&controller.ctl(&["status", "--json"])?)?;
        Ok(status["uplinks"][0]["source"].as_str().is_some_and(|said| said.starts_with(source)))
    })?;

    pings(&lab.phone, SERVER4, 1444)?;
    traceroutes(&lab)?;
    let outside = datagrams(&lab)?;
    // tayga keeps the address, so that the internet can begin, too. Answers come without DF,
    // and longer ones in fragments (RFC 7915 §4).
    pings(&lab.internet, outside, 1200)?;
    transfers(&lab)?;
    // What the NAT64 learns of a narrower IPv4 path reaches the sender.
    lab.router.run("ip link set in0 mtu 1300")?;
    lab.internet.run("ip link set net0 mtu 1300")?;
    transfers(&lab)
}

/// Short ones and those of `long` bytes. None in fragments: tayga drops those of ICMP.
fn pings(from: &Netns, to: Ipv4Addr, long: u32) -> Result<()> {
    for size in [56, long] {
        let said = from.run(&format!("ping -n -c 3 -i 0.2 -W 3 -s {size} {to}"))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    Ok(())
}

/// Router and NAT64, which answer by IPv6, then the router's IPv4 side and the server.
fn traceroutes(lab: &Lab) -> Result<()> {
    for how in ["", "-U", "-I"] {
        let said = lab.phone.run(&format!("traceroute -n -w 5 {how} {SERVER4}"))?;
        let hops: Vec<_> =
            said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        ensure!(hops == ["192.0.0.8", "192.0.0.8", OUTSIDE, "192.0.2.1"], "{said}");
    }
    Ok(())
}

/// Short and long datagrams there and back; returns the address that the internet sees.
fn datagrams(lab: &Lab) -> Result<Ipv4Addr> {
    let server = Lab::udp(&lab.internet, (SERVER4, 5000))?;
    let client = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
    let mut seen = None;
    for len in [1, 1200, 4000] {
        let sent: Vec<u8> = (0..=255).cycle().take(len).collect();
        client.send_to(&sent, (SERVER4, 5000))?;
        let mut buffer = [0; 8192];
        let (got, from) = uninterrupted(|| server.recv_from(&mut buffer))?;
        ensure!(buffer[..got] == sent, "{len} bytes up: {got}");
        server.send_to(&sent, from)?;
        let got = uninterrupted(|| client.recv(&mut buffer))?;
        ensure!(buffer[..got] == sent, "{len} bytes down: {got}");
        seen = Some(from.ip());
    }
    seen.context("no datagram")?.to_string().parse().context("an IPv4 address")
}

/// A mebibyte there, and the same back.
fn transfers(lab: &Lab) -> Result<()> {
    let listener = Lab::listen(&lab.internet, (SERVER4, 80))?;
    let client = Lab::connect(&lab.phone, (SERVER4, 80))?;
    let (server, _) = listener.accept()?;
    let sent: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    for (mut from, mut to) in [(&client, &server), (&server, &client)] {
        let mut got = vec![0; sent.len()];
        thread::scope(|scope| -> Result<()> {
            let sending = scope.spawn(|| from.write_all(&sent));
            to.read_exact(&mut got)?;
            Ok(sending.join().map_err(|_| anyhow::anyhow!("it panicked"))??)
        })?;
        ensure!(got == sent, "other bytes");
    }
    Ok(())
}
