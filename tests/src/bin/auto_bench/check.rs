// SPDX-License-Identifier: Apache-2.0

//! What works and what does not, in a word.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{bail, Result};
use clat_packet::ra::{self, ON_LINK};
use clat_tests::packet::{proto, udp, V4};
use clat_tests::wire::{send_raw, Sniffer};
use clat_tests::{Lab, Offloads, SERVER4, SERVER6};

use crate::host::Subject;
use crate::row::{advertisement, first_packet, on_network, pref64, Before, Bench, NETWORK};
use crate::traffic::{with_echo, Never};

const PORT: u16 = 9;
/// Longer than a packet takes.
const SOON: Duration = Duration::from_secs(2);

/// One question.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// The host's address, set by hand, where the router lets nobody make one.
    address: Option<&'static str>,
    ask: fn(&Bench<'_>) -> Result<String>,
}

impl Check {
    /// Once, in a new lab.
    pub(crate) fn ask(&self, subject: Subject, root: Option<&Path>) -> Result<String> {
        let before = if self.address.is_some() { Before::Nothing } else { Before::Clat };
        on_network(subject, root, Offloads::Default, before, self.address, self.ask)
    }
}

const fn check(name: &'static str, ask: fn(&Bench<'_>) -> Result<String>) -> Check {
    Check { name, address: None, ask }
}

pub(crate) const CHECKS: &[Check] = &[
    check("`ping -s 4000`", |bench| {
        let ping = format!("ping -n -c 3 -i 0.2 -W 1 -s 4000 {SERVER4}");
        Ok(works(bench.lab.phone.run(&ping).is_ok()))
    }),
    check("4000 bytes of UDP up", |bench| {
        let server = server(bench.lab)?;
        let client = Lab::udp(&bench.lab.phone, ([0; 4], 0))?;
        client.send_to(&[7; 4000], (SERVER4, PORT))?;
        Ok(works(server.recv(&mut [0; 4096]).is_ok_and(|len| len == 4000)))
    }),
    check("UDP without checksum up", |bench| {
        let server = server(bench.lab)?;
        send_by_hand(bench.lab, 0, |datagram| datagram[6..8].fill(0))?;
        Ok(works(server.recv(&mut [0; 64]).is_ok()))
    }),
    check("TOS 0xb9 up arrives as", |bench| {
        let sniffer = Sniffer::new(&bench.lab.internet, "net0")?;
        send_by_hand(bench.lab, 0xb9, |_| {})?;
        let to: IpAddr = SERVER6.into();
        let seen = sniffer.wait(SOON, |seen| seen.dst == to && seen.proto == proto::UDP)?;
        Ok(format!("0x{:02x}", seen.class))
    }),
    check("another node says that it has our address", |bench| {
        let before = source(bench.lab)?;
        // A neighbour advertisement with Override, from another Ethernet address (RFC 4861 §4.4).
        let head = [136, 0, 0, 0, 0x20, 0, 0, 0];
        let at = [2, 1, 2, 0, 0, 0, 0x56, 0x78];
        bench.router.send(&[&head[..], &before.octets(), &at].concat())?;
        thread::sleep(SOON);
        let after = source(bench.lab)?;
        Ok(if after == before { "kept" } else { "another taken" }.to_owned())
    }),
    Check {
        address: Some("2001:db8:1::5/64"),
        ..check("prefix without A flag, address by hand", |bench| {
            let on_link = ra::prefix_information(NETWORK.parse()?, 64, ON_LINK, 1800, 1800);
            bench.router.send(&advertisement(&[&on_link, &pref64(1800)?]))?;
            with_echo(bench.lab, || match first_packet(bench.lab, SERVER4.into()) {
                Err(e) if e.is::<Never>() => Ok(works(false)),
                first => first.map(|_| works(true)),
            })
        })
    },
    check("in memory", |bench| {
        Ok(format!("{:.1} MiB", bench.host.memory()? as f64 / f64::from(1 << 20)))
    }),
];

fn works(is: bool) -> String {
    if is { "works" } else { "fails" }.to_owned()
}

/// A server on the internet that does not wait for long.
fn server(lab: &Lab) -> Result<UdpSocket> {
    let server = Lab::udp(&lab.internet, (SERVER6, PORT))?;
    server.set_read_timeout(Some(SOON))?;
    Ok(server)
}

/// The CLAT's IPv6 address, as the internet sees it.
fn source(lab: &Lab) -> Result<Ipv6Addr> {
    let server = server(lab)?;
    let client = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
    client.send_to(b"here", (SERVER4, PORT))?;
    match server.recv_from(&mut [0; 64])?.1.ip() {
        IpAddr::V6(v6) => Ok(v6),
        IpAddr::V4(v4) => bail!("{v4}: it went by IPv4"),
    }
}

/// Sends a datagram with this type of service from the CLAT's IPv4 address, changed before.
fn send_by_hand(lab: &Lab, tos: u8, change: impl FnOnce(&mut [u8])) -> Result<()> {
    let socket = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((SERVER4, PORT))?;
    let IpAddr::V4(own) = socket.local_addr()?.ip() else { bail!("no IPv4") };
    let mut datagram = udp(own.into(), 4000, SERVER4.into(), PORT, b"by hand");
    change(&mut datagram);
    let header = V4 { tos, ..V4::new(own, SERVER4, proto::UDP) };
    send_raw(&lab.phone, &header.packet(&datagram))
}
