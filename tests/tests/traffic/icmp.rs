// SPDX-License-Identifier: Apache-2.0

//! Pings, traceroutes and unreachable ports.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{ensure, Result};
use clat_tests::wire::uninterrupted;
use clat_tests::{Clat, Lab, SERVER4, SERVER6};

pub(crate) fn echo(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let said = lab.phone.run("ping -n -c 3 -i 0.2 -W 3 192.0.2.1")?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(())
}

pub(crate) fn large_echo(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let said = lab.phone.run("ping -n -c 3 -i 0.2 -W 3 -s 4000 192.0.2.1")?;
    ensure!(
        said.contains(" 0% packet loss") && said.contains("4008 bytes from 192.0.2.1"),
        "{said}"
    );
    Ok(())
}

fn traceroute(lab: &Lab, how: &str) -> Result<()> {
    let said = lab.phone.run(&format!("traceroute -n -w 5 {how} 192.0.2.1"))?;
    let hops: Vec<&str> =
        said.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
    ensure!(hops == ["192.0.0.8", "192.0.2.1"], "{said}");
    Ok(())
}

pub(crate) fn traceroute_udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    traceroute(lab, "-U")?;
    traceroute(lab, "")
}

pub(crate) fn traceroute_icmp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    traceroute(lab, "-I")
}

fn refused(socket: &UdpSocket) -> Result<()> {
    // The error comes back on the next call after it has arrived.
    let error = match uninterrupted(|| socket.recv(&mut [0; 16])) {
        Ok(n) => anyhow::bail!("{n} bytes instead of a refusal"),
        Err(e) => e,
    };
    ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

pub(crate) fn port_unreachable_outside(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let client = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
    client.connect((SERVER4, 9))?;
    client.send(b"anyone there?")?;
    refused(&client)
}

pub(crate) fn port_unreachable_inside(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let server = Lab::udp(&lab.internet, (SERVER6, 5000))?;
    server.connect((clat.v6, 9))?;
    server.send(b"anyone there?")?;
    refused(&server)
}
