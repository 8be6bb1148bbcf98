//! Real traffic through a running CLAT: every scenario once with veths as they come and once with all offloads off,
//! since a veth never looks at a checksum that it was told is still to be computed.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clat_tests::packet::{self, proto, Seen, V4, V6};
use clat_tests::wire::{send_raw, uninterrupted, Sniffer};
use clat_tests::{can_run, Clat, Lab, Mode, Offloads, SERVER4, SERVER6};
use nix::sys::socket::{setsockopt, sockopt};

/// Long enough for a busy machine, short enough to fail in one sitting.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes two tests of each scenario.
macro_rules! scenarios {
    ($($name:ident)*) => { $(mod $name {
        #[test]
        fn default_offloads() -> anyhow::Result<()> {
            super::run(super::Offloads::Default, super::$name)
        }

        #[test]
        fn no_offloads() -> anyhow::Result<()> {
            super::run(super::Offloads::Off, super::$name)
        }
    })* };
}

scenarios! {
    tcp_both_ways udp udp_without_checksum echo large_echo large_udp largest_udp small_hop_udp small_hop_tcp
    traceroute_udp traceroute_icmp port_unreachable_outside port_unreachable_inside ipv4_options_udp ipv4_options_tcp
    destination_options_inward tos_both_ways udp_segment_both_ways other_protocols udplite_both_ways foreign_source
}

fn run(offloads: Offloads, scenario: fn(&Lab, &Clat<'_>) -> Result<()>) -> Result<()> {
    if !can_run(&["ip", "ethtool", "ping", "traceroute", "ip6tables"]) {
        return Ok(());
    }
    let lab = Lab::new(offloads)?;
    let clat = Clat::new(&lab, Mode::Daemon)?;
    let result = scenario(&lab, &clat);
    if let (Err(_), Some(controller)) = (&result, &clat.controller) {
        eprintln!("controller said: {}", controller.daemon.log());
        eprintln!("{}", controller.ctl(&["dump"]).unwrap_or_default());
    }
    result
}

/// Checksums of captured packets are only there to be looked at where nothing was left to hardware.
fn assert_whole(lab: &Lab, seen: &Seen) {
    assert!(
        lab.offloads() == Offloads::Default || seen.fragment || seen.checksum_ok(),
        "wrong checksum: {seen:?}"
    );
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect()
}

// --- TCP

/// Sends `len` bytes from `from` to `to` and compares what arrives.
fn transfer(mut from: TcpStream, mut to: TcpStream, len: usize) -> Result<()> {
    from.set_write_timeout(Some(PATIENCE))?;
    to.set_read_timeout(Some(PATIENCE))?;
    let data = pattern(len);
    let expected = data.clone();
    let sender = thread::spawn(move || -> Result<()> {
        from.write_all(&data).context("sender")?;
        Ok(())
    });
    let mut got = Vec::with_capacity(len);
    let read = to.read_to_end(&mut got).context("receiver");
    sender.join().expect("sender")?;
    read?;
    ensure!(got == expected, "{} of {len} bytes arrived, or other ones", got.len());
    Ok(())
}

fn connection(lab: &Lab, port: u16) -> Result<(TcpStream, TcpStream)> {
    let listener: TcpListener = Lab::listen(&lab.internet, (SERVER6, port))?;
    let client = Lab::connect(&lab.phone, (SERVER4, port))?;
    Ok((client, listener.accept()?.0))
}

fn tcp_both_ways(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let (client, server) = connection(lab, 80)?;
    assert_eq!(client.local_addr()?.ip(), clat.v4);
    assert_eq!(server.peer_addr()?.ip(), clat.v6);
    transfer(client, server, 8 << 20)?;
    let (client, server) = connection(lab, 80)?;
    transfer(server, client, 8 << 20)
}

fn small_hop_tcp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    lab.narrow(1300)?;
    let (client, server) = connection(lab, 81)?;
    transfer(client, server, 1 << 20).context("up")?;
    let (client, server) = connection(lab, 82)?;
    transfer(server, client, 1 << 20).context("down")
}

// --- UDP

/// A server and a client that have met, so that either may speak.
fn pair(lab: &Lab) -> Result<(UdpSocket, UdpSocket)> {
    let server = Lab::udp(&lab.internet, (SERVER6, 5000))?;
    let client = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
    client.connect((SERVER4, 5000))?;
    client.send(b"hello")?;
    let (_, peer) = uninterrupted(|| server.recv_from(&mut [0; 16])).context("hello")?;
    server.connect(peer)?;
    Ok((client, server))
}

fn pass(from: &UdpSocket, to: &UdpSocket, len: usize) -> Result<()> {
    let data = pattern(len);
    from.send(&data).with_context(|| format!("send {len}"))?;
    let mut buf = vec![0; 1 << 16];
    let n = uninterrupted(|| to.recv(&mut buf)).with_context(|| format!("receive {len}"))?;
    ensure!(buf[..n] == data, "{n} of {len} bytes, or other ones");
    Ok(())
}

fn udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    for len in [0, 1, 2, 511, 1200, 1400] {
        pass(&client, &server, len).context("up")?;
        pass(&server, &client, len).context("down")?;
    }
    Ok(())
}

fn large_udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    pass(&client, &server, 8000).context("up")?;
    pass(&server, &client, 8000).context("down")
}

fn largest_udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    pass(&client, &server, 65507).context("up")?;
    pass(&server, &client, 65507).context("down")
}

fn udp_without_checksum(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let server = Lab::udp(&lab.internet, (SERVER6, 5001))?;
    let mut datagram = packet::udp(clat.v4.into(), 4001, SERVER4.into(), 5001, b"no checksum");
    datagram[6..8].fill(0);
    let sniffer = Sniffer::new(&lab.internet, "net0")?;
    send_raw(&lab.phone, &V4::new(clat.v4, SERVER4, proto::UDP).packet(&datagram))?;
    let seen =
        sniffer.wait(PATIENCE, |s| s.proto == proto::UDP && packet::word(&s.payload, 2) == 5001)?;
    // Made by the CLAT and not by the sender's kernel, so it is there whatever the offloads.
    assert!(seen.checksum_ok(), "{seen:?}");
    let mut buf = [0; 64];
    let (n, peer) = uninterrupted(|| server.recv_from(&mut buf))?;
    assert_eq!(&buf[..n], b"no checksum");
    assert_eq!(peer, SocketAddr::new(clat.v6.into(), 4001));
    Ok(())
}

fn small_hop_udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    lab.narrow(1300)?;
    let (client, server) = pair(lab)?;
    for (from, to, way, mtu) in [(&client, &server, "up", 1280), (&server, &client, "down", 1300)] {
        // The first is what finds the narrow hop, and is lost on it.
        from.send(&pattern(1400))?;
        let learnt = || from_mtu(from).is_ok_and(|known| known == mtu);
        for _ in 0..100 {
            if learnt() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        ensure!(learnt(), "{way}: path MTU is {:?}, not {mtu}", from_mtu(from));
        // The socket reports the error once; after it the kernel cuts to size.
        let _ = from.take_error();
        pass(from, to, 1400).context(way)?;
    }
    Ok(())
}

/// What the kernel believes a connected socket's path to carry.
fn from_mtu(socket: &UdpSocket) -> Result<i32> {
    if socket.local_addr()?.is_ipv4() {
        return Ok(nix::sys::socket::getsockopt(socket, sockopt::IpMtu)?);
    }
    // nix has no IPV6_MTU: the largest payload that is not cut, by trying with "do not fragment".
    setsockopt(socket, sockopt::Ipv6DontFrag, &true)?;
    let fits = |mtu: usize| {
        // To the discard port of the peer: refused there, at worst.
        match socket.send(&pattern(mtu - 48)) {
            Err(e) => e.raw_os_error() != Some(nix::libc::EMSGSIZE),
            Ok(_) => true,
        }
    };
    let mtu = if fits(1301) { 1301 } else { 1300 };
    setsockopt(socket, sockopt::Ipv6DontFrag, &false)?;
    Ok(mtu)
}

fn udp_segment_both_ways(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    for (from, to, way) in [(&client, &server, "up"), (&server, &client, "down")] {
        setsockopt(from, sockopt::UdpGsoSegment, &1200)?;
        let train = pattern(1200 * 20 + 333);
        from.send(&train)?;
        let mut got: Vec<u8> = Vec::new();
        let mut buf = vec![0; 1 << 16];
        while got.len() < train.len() {
            let n = uninterrupted(|| to.recv(&mut buf))
                .with_context(|| format!("{way}, {} bytes in", got.len()))?;
            ensure!(n <= 1200, "{way}: a datagram of {n}");
            got.extend(&buf[..n]);
        }
        ensure!(got == train, "{way}: other bytes");
    }
    Ok(())
}

// --- ICMP

fn echo(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let said = lab.phone.run("ping -n -c 3 -i 0.2 -W 3 192.0.2.1")?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(())
}

fn large_echo(lab: &Lab, _: &Clat<'_>) -> Result<()> {
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

fn traceroute_udp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    traceroute(lab, "-U")?;
    traceroute(lab, "")
}

fn traceroute_icmp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
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

fn port_unreachable_outside(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    let client = Lab::udp(&lab.phone, (Ipv4Addr::UNSPECIFIED, 0))?;
    client.connect((SERVER4, 9))?;
    client.send(b"anyone there?")?;
    refused(&client)
}

fn port_unreachable_inside(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let server = Lab::udp(&lab.internet, (SERVER6, 5000))?;
    server.connect((clat.v6, 9))?;
    server.send(b"anyone there?")?;
    refused(&server)
}

// --- headers

fn ipv4_options_udp(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let server = Lab::udp(&lab.internet, (SERVER6, 5002))?;
    let mut header = V4::new(clat.v4, SERVER4, proto::UDP);
    // Record route with room for one address, padded.
    header.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    let datagram = packet::udp(clat.v4.into(), 4002, SERVER4.into(), 5002, b"options");
    send_raw(&lab.phone, &header.packet(&datagram))?;
    let mut buf = [0; 64];
    let n = uninterrupted(|| server.recv(&mut buf))?;
    assert_eq!(&buf[..n], b"options");
    Ok(())
}

fn ipv4_options_tcp(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let _listener = Lab::listen(&lab.internet, (SERVER6, 83))?;
    let sniffer = Sniffer::new(&lab.phone, clat.dev)?;
    let mut header = V4::new(clat.v4, SERVER4, proto::TCP);
    header.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    let syn = packet::tcp(clat.v4.into(), 4003, SERVER4.into(), 83, 2, &[]);
    send_raw(&lab.phone, &header.packet(&syn))?;
    let answer =
        sniffer.wait(PATIENCE, |s| s.src == IpAddr::V4(SERVER4) && s.proto == proto::TCP)?;
    assert_eq!(answer.payload[13] & 0x12, 0x12, "not a SYN with ACK: {answer:?}");
    Ok(())
}

fn destination_options_inward(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let client = Lab::udp(&lab.phone, (clat.v4, 4004))?;
    let mut payload = vec![proto::UDP, 0, 1, 4, 0, 0, 0, 0]; // PadN
    payload.extend(packet::udp(SERVER6.into(), 5004, clat.v6.into(), 4004, b"inward"));
    let packet = V6::new(SERVER6, clat.v6, proto::DESTINATION_OPTIONS).packet(&payload);
    send_raw(&lab.internet, &packet)?;
    let mut buf = [0; 64];
    let (n, peer) = uninterrupted(|| client.recv_from(&mut buf))?;
    assert_eq!(&buf[..n], b"inward");
    assert_eq!(peer, SocketAddr::new(SERVER4.into(), 5004));
    Ok(())
}

fn tos_both_ways(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let (client, server) = pair(lab)?;
    let outside = Sniffer::new(&lab.internet, "net0")?;
    let inside = Sniffer::new(&lab.phone, clat.dev)?;
    setsockopt(&client, sockopt::IpTos, &0xb9)?;
    setsockopt(&server, sockopt::Ipv6TClass, &0xb9)?;
    client.send(b"up")?;
    let up = outside.wait(PATIENCE, |s| s.src == IpAddr::V6(clat.v6) && s.proto == proto::UDP)?;
    assert_eq!(up.class, 0xb9);
    assert_whole(lab, &up);
    server.send(b"down")?;
    let down = inside.wait(PATIENCE, |s| s.src == IpAddr::V4(SERVER4) && s.proto == proto::UDP)?;
    assert_eq!(down.class, 0xb9);
    assert_whole(lab, &down);
    Ok(())
}

/// Sends `data` by `protocol` both ways, each end watched at the other.
fn protocol_both_ways(
    lab: &Lab,
    clat: &Clat<'_>,
    protocol: u8,
    make: impl Fn(IpAddr, IpAddr) -> Vec<u8>,
) -> Result<()> {
    let outside = Sniffer::new(&lab.internet, "net0")?;
    let inside = Sniffer::new(&lab.phone, clat.dev)?;
    let up = make(clat.v4.into(), SERVER4.into());
    send_raw(&lab.phone, &V4::new(clat.v4, SERVER4, protocol).packet(&up))?;
    let seen = outside
        .wait(PATIENCE, |s| s.src == IpAddr::V6(clat.v6) && s.proto == protocol)
        .with_context(|| format!("protocol {protocol} up"))?;
    assert_eq!((seen.dst, &seen.payload), (SERVER6.into(), &up), "protocol {protocol} up");
    assert!(seen.checksum_ok(), "{seen:?}");

    let down = make(SERVER6.into(), clat.v6.into());
    send_raw(&lab.internet, &V6::new(SERVER6, clat.v6, protocol).packet(&down))?;
    let seen = inside
        .wait(PATIENCE, |s| s.src == IpAddr::V4(SERVER4) && s.proto == protocol)
        .with_context(|| format!("protocol {protocol} down"))?;
    assert_eq!((seen.dst, &seen.payload), (clat.v4.into(), &down), "protocol {protocol} down");
    assert!(seen.checksum_ok(), "{seen:?}");
    Ok(())
}

fn other_protocols(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    for protocol in [proto::GRE, proto::ESP, proto::SCTP, proto::UNASSIGNED] {
        protocol_both_ways(lab, clat, protocol, |_, _| pattern(64))?;
    }
    Ok(())
}

fn udplite_both_ways(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    protocol_both_ways(lab, clat, proto::UDPLITE, |src, dst| {
        packet::udplite(src, 4005, dst, 5005, &pattern(63))
    })
}

fn foreign_source(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let foreign = Ipv4Addr::new(10, 9, 9, 9);
    lab.phone.run("ip addr add 10.9.9.9/32 dev lo")?;
    let outside = Sniffer::new(&lab.internet, "net0")?;
    let at_router = Sniffer::new(&lab.router, "ph0")?;
    let client = Lab::udp(&lab.phone, (foreign, 0))?;
    for _ in 0..3 {
        client.send_to(b"from elsewhere", (SERVER4, 5000))?;
    }
    send_raw(&lab.phone, &V4::new(foreign, SERVER4, proto::GRE).packet(b"from elsewhere"))?;
    // What is ours comes later and does arrive: by then the others would have.
    let own = Lab::udp(&lab.phone, (clat.v4, 0))?;
    own.send_to(b"ours", (SERVER4, 5001))?;
    for sniffer in [&outside, &at_router] {
        let first =
            sniffer.wait(PATIENCE, |s| s.dst == IpAddr::V6(SERVER6) && s.proto != proto::ICMPV6)?;
        assert_eq!(first.src, IpAddr::V6(clat.v6), "a foreign source got out: {first:?}");
        assert_eq!(packet::word(&first.payload, 2), 5001, "{first:?}");
    }
    Ok(())
}

/// The lab itself: IPv6 through it works, and the phone has no IPv4 before there is a CLAT.
#[test]
fn native_ipv6_passes_and_ipv4_fails() -> Result<()> {
    if !can_run(&["ip", "ethtool", "ping"]) {
        return Ok(());
    }
    for offloads in [Offloads::Default, Offloads::Off] {
        let lab = Lab::new(offloads)?;
        lab.phone.run("ping -6 -n -c 2 -i 0.2 -W 3 2001:db8:64::192.0.2.1")?;
        ensure!(lab.phone.run("ping -n -c 1 -W 1 192.0.2.1").is_err(), "IPv4 without a CLAT");
        let listener = Lab::listen(&lab.internet, (SERVER6, 80))?;
        let client = Lab::connect(&lab.phone, (SERVER6, 80))?;
        transfer(client, listener.accept()?.0, 4 << 20)?;
        lab.narrow(1300)?;
        let client = Lab::connect(&lab.phone, (SERVER6, 80))?;
        transfer(listener.accept()?.0, client, 1 << 20)?;
        let unused = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xcb00, 0x7109);
        lab.phone.run(&format!("ping -6 -n -c 1 -W 3 {unused}"))?;
    }
    Ok(())
}
