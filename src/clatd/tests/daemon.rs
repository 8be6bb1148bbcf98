// SPDX-License-Identifier: Apache-2.0

//! The daemon itself: what it sets up, what it survives, what ends it, and every kind of packet.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::fs;
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::Duration;

use clat_datapath::socket::{join_anycast, NeighbourSocket, PacketSocket, RawSocket};
use clat_packet::checksum::Sum;
use clat_tun::{Options, Tun, VirtioHeader};
use common::*;
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{sendto, MsgFlags, SockaddrIn};

#[test]
fn privileges_are_gone() {
    let Some(_network) = Network::new() else { return };
    let mut clatd = Clatd::start("privileges", tun(Options::default()), None);
    clatd.ready();
    let user = nix::unistd::User::from_name("clat").unwrap();
    let user = user.or_else(|| nix::unistd::User::from_name("nobody").unwrap()).unwrap();
    let ids = |id: u32| [id; 4].map(|id| id.to_string()).join(" ");
    assert_eq!(clatd.status("Uid:"), ids(user.uid.as_raw()));
    assert_eq!(clatd.status("Gid:"), ids(user.gid.as_raw()));
    assert_eq!(clatd.status("Groups:"), "");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(clatd.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(clatd.status("NoNewPrivs:"), "1");
    assert_eq!(clatd.status("Seccomp:"), "2");
    for standard in [0, 1] {
        let link = format!("/proc/{}/fd/{standard}", clatd.child.id());
        assert_eq!(fs::read_link(link).unwrap().to_str(), Some("/dev/null"), "{standard}");
    }
    clatd.stop();
}

/// Its traffic is counted for its user, not for root.
#[test]
fn sockets_belong_to_its_user() {
    let Some(_network) = Network::new() else { return };
    let mut clatd = Clatd::start("owner", tun(Options::default()), None);
    clatd.ready();
    let uid = clatd.status("Uid:").split(' ').next().unwrap().to_owned();
    assert_ne!(uid, "0");
    // proc(5), net/packet and net/raw6: the column of the user.
    for (file, at) in [("packet", 7), ("raw6", 7)] {
        let all = fs::read_to_string(format!("/proc/{}/net/{file}", clatd.child.id())).unwrap();
        let users: Vec<&str> =
            all.lines().skip(1).map(|line| line.split_whitespace().nth(at).unwrap()).collect();
        assert!(!users.is_empty() && users.iter().all(|user| *user == uid), "{file}: {all}");
    }
    clatd.stop();
}

#[test]
fn the_device_is_set_up() {
    let Some(_network) = Network::new() else { return };
    run("ip link set up0 mtu 1400");
    let mut clatd = Clatd::start("device", tun(Options::default()), None);
    clatd.ready();
    let shown = run("ip addr show dev v4-up0");
    assert!(shown.contains("inet 192.0.0.4/32"), "{shown}");
    assert!(shown.contains("mtu 1372") && shown.contains(",UP"), "{shown}");
    clatd.stop();
    until("the device to go", || if_nametoindex("v4-up0").is_err().then_some(()));
}

#[test]
fn signals_and_counters() {
    let Some(_network) = Network::new() else { return };
    let mut clatd = Clatd::start("signals", tun(Options::default()), None);
    clatd.ready();
    for _ in 0..3 {
        assert!(clatd.counters().starts_with("clatd-up0: counters egress4="));
    }
    clatd.stop();
}

#[test]
fn neighbours_find_it() {
    let Some(network) = Network::new() else { return };
    let mut clatd = Clatd::start("neighbours", tun(Options::default()), None);
    clatd.ready();
    // Switches with MLD snooping learn it, too.
    let groups = fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
    assert!(groups.contains("up0             ff0200000000000000000001ff00c1a7"), "{groups}");
    network.in_peer(|| {
        let socket = UdpSocket::bind("[2001:db8:1::1]:0").unwrap();
        socket.send_to(b"who is it?", (V6, 9)).unwrap();
    });
    until("a resolved neighbour", || {
        let seen = network.run_peer(&format!("ip -6 neigh show {V6} dev down0"));
        seen.contains("lladdr").then_some(())
    });
    clatd.stop();
}

/// As a proxy, the kernel would wait up to proxy_delay, here a quarter of an hour.
#[test]
fn neighbours_find_it_at_once() {
    let Some(network) = Network::new() else { return };
    run("echo 90000 > /proc/sys/net/ipv6/neigh/up0/proxy_delay");
    let mut clatd = Clatd::start("at-once", tun(Options::default()), None);
    clatd.ready();
    for time in ["while it is probed for", "and ever after"] {
        network.run_peer("ip -6 neigh flush dev down0");
        network.in_peer(|| {
            let socket = UdpSocket::bind("[2001:db8:1::1]:0").unwrap();
            socket.send_to(b"who is it?", (V6, 9)).unwrap();
        });
        until(time, || {
            let seen = network.run_peer(&format!("ip -6 neigh show {V6} dev down0"));
            seen.contains("REACHABLE").then_some(())
        });
        thread::sleep(Duration::from_millis(1200));
    }
    clatd.stop();
}

#[test]
fn a_duplicate_ends_it() {
    let Some(network) = Network::new() else { return };
    network.run_peer(&format!("ip addr add {V6}/64 dev down0 nodad"));
    let mut clatd = Clatd::start("duplicate", tun(Options::default()), None);
    let status = clatd.wait();
    let log = clatd.log();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains(&format!("{V6} is in use by another node")), "{log}");
}

/// The Ethernet address in what `ip -o link` says of an interface.
fn mac(line: &str) -> String {
    line.split_once("link/ether ").unwrap().1.split_whitespace().next().unwrap().to_owned()
}

/// Sends a neighbour discovery message for the CLAT's address from the peer's link-local address.
fn advertise(network: &Network, kind: u8, flags: u8, to: &str) {
    let mac = mac(&network.run_peer("ip -o link show dev down0"));
    let mac = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap());
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(V6.parse::<Ipv6Addr>().unwrap().octets());
    // The source link-layer address of a solicitation, the target link-layer address of an
    // advertisement.
    message.extend([if kind == 135 { 1 } else { 2 }, 1]);
    message.extend(mac);
    let mut packet = vec![0x60, 0, 0, 0, 0, 32, 58, 255];
    let from: Ipv6Addr = "2001:db8:1::1".parse().unwrap();
    for address in [from, to.parse().unwrap()] {
        packet.extend(address.octets());
    }
    packet.extend(&message);
    let sum = Sum::pseudo_header(&packet, 58, message.len()) + Sum::of(&message);
    packet[42..44].copy_from_slice(&sum.field());
    network.in_peer(|| {
        let index = if_nametoindex("down0").unwrap();
        RawSocket::open("down0", 0).unwrap().send_on(&packet, index).unwrap();
    });
}

/// At any time, not only during duplicate address detection.
#[test]
fn an_advertisement_of_another_ends_it() {
    let Some(network) = Network::new() else { return };
    let mut clatd = Clatd::start("foreign-na", tun(Options::default()), None);
    clatd.ready();
    thread::sleep(Duration::from_millis(1500));
    advertise(&network, 136, 0x20, "ff02::1");
    let status = clatd.wait();
    let log = clatd.log();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains(&format!("{V6} is in use by another node")), "{log}");
}

/// RFC 4861 §7.2.4: the source of the answer is the solicited address. RFC 9131: routers get
/// unsolicited advertisements.
#[test]
fn neighbours_are_answered_from_the_address() {
    let Some(network) = Network::new() else { return };
    let seen = network.in_peer(|| {
        let seen = NeighbourSocket::open(if_nametoindex("down0").unwrap(), V6.parse().unwrap());
        seen.unwrap()
    });
    run("echo 0 > /proc/sys/net/ipv6/neigh/up0/proxy_delay");
    let mut clatd = Clatd::start("unicast-ns", tun(Options::default()), None);
    clatd.ready();
    let v6: Ipv6Addr = V6.parse().unwrap();
    // Waits for an advertisement to this address and with these flags.
    let mut buf = [0; 1500];
    let mut advertisement = |to: &str, flags: u8| {
        let to: Ipv6Addr = to.parse().unwrap();
        until(&format!("an advertisement to {to}"), || {
            let len = seen.recv(&mut buf).ok()?;
            let is_one = len >= 72 && buf[40] == 136;
            // The kernel sends none itself: it would at once, but is told not to wait.
            assert!(!is_one || buf[8..24] == v6.octets(), "{:x?}", &buf[..len]);
            (is_one && buf[24..40] == to.octets() && buf[44] == flags).then_some(())
        });
    };
    advertisement("ff02::2", 0);
    // Once no duplicate was found.
    advertisement("ff02::2", 0x20);
    // The peer's kernel sends packets to the address itself; with a permanent entry it does not
    // solicit.
    let mac = mac(&run("ip -o link show dev up0"));
    network.run_peer(&format!("ip neigh replace {V6} lladdr {mac} dev down0 nud permanent"));
    for _ in 0..3 {
        for to in [V6, "ff02::1:ff00:c1a7"] {
            advertise(&network, 135, 0, to);
            advertisement("2001:db8:1::1", 0x60);
        }
    }
    // Wait for a second one.
    thread::sleep(Duration::from_millis(100));
    let more = seen.recv(&mut buf).unwrap_or(0);
    assert!(more == 0 || buf[40] == 135, "a second answer: {:x?}", &buf[..more]);
    clatd.stop();
}

#[test]
fn no_answer_no_duplicate() {
    let Some(_network) = Network::new() else { return };
    let mut clatd = Clatd::start("alone", tun(Options::default()), None);
    clatd.ready();
    thread::sleep(Duration::from_millis(1500));
    clatd.stop();
}

#[test]
fn an_address_outside_the_uplink_is_refused() {
    let Some(_network) = Network::new() else { return };
    run("ip addr flush dev up0 scope global");
    let mut clatd = Clatd::start("outside", tun(Options::default()), None);
    let (status, log) = (clatd.wait(), clatd.log());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("cannot be on up0: it must be inside a /64 of up0"), "{log}");
}

#[test]
fn a_removed_device_ends_it() {
    let Some(_network) = Network::new() else { return };
    let mut clatd = Clatd::start("removed", tun(Options::default()), None);
    clatd.ready();
    run("ip link del v4-up0");
    let (status, log) = (clatd.wait(), clatd.log());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("cannot read v4-up0"), "{log}");
}

#[test]
fn an_uplink_may_go_down_but_not_away() {
    let Some(_network) = Network::new() else { return };
    let mut clatd = Clatd::start("down", tun(Options::default()), None);
    clatd.ready();
    run("ip link set up0 down");
    until("a log line about it", || clatd.log().contains("up0 is down").then_some(()));
    run("ip link set up0 up");
    clatd.counters();
    run("ip link del up0");
    let (status, log) = (clatd.wait(), clatd.log());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("up0 is gone"), "{log}");
}

#[test]
fn other_descriptors_are_refused() {
    let program = env!("CARGO_BIN_EXE_clatd");
    let options = format!("-i lo -p 64:ff9b:: -4 192.0.0.4 -6 {V6}");
    for (fds, expected) in [
        ("-t 3 3</dev/null", "is not a TUN device"),
        ("-t 3 3<&-", "--tunfd 3 is not open"),
        ("-t 3 -r 4 3</dev/null", "--write-sock"),
    ] {
        let script = format!("exec {program} {options} {fds} 2>&1");
        let done = Command::new("sh").args(["-c", &script]).output().unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        assert!(!done.status.success() && text.contains(expected), "{fds}: {text}");
    }
}

/// Sockets as opened by a caller that passes them.
fn sockets() -> (OwnedFd, OwnedFd) {
    let index = if_nametoindex("up0").unwrap();
    let v6: Ipv6Addr = V6.parse().unwrap();
    let packet = PacketSocket::open(index, v6).unwrap();
    let raw = RawSocket::open("up0", 0).unwrap();
    join_anycast(raw.as_fd(), index, v6).unwrap();
    let raw = raw.as_fd().try_clone_to_owned().unwrap();
    (packet.as_fd().try_clone_to_owned().unwrap(), raw)
}

#[test]
fn every_kind_of_device_and_socket() {
    let Some(network) = Network::new() else { return };
    for handed_over in [false, true] {
        for (packet_info, vnet_header) in
            [(false, true), (false, false), (true, false), (true, true)]
        {
            let what = format!("fds-{handed_over}-pi-{packet_info}-vnet-{vnet_header}");
            let tun = tun(Options { packet_info, vnet_header });
            let sockets = handed_over.then(|| {
                run("ip addr add 192.0.0.4/32 dev v4-up0; ip link set v4-up0 mtu 1472 up");
                sockets()
            });
            let mut clatd = Clatd::start(&what, tun, sockets);
            clatd.ready();
            route();
            eprintln!("{what}");
            ping();
            udp_echo(&network);
            tcp_echo(&network);
            unroute();
            let line = clatd.stop();
            assert!(!line.contains("reassembly") && !line.contains("offload"), "{what}: {line}");
            until("the device to go", || if_nametoindex("v4-up0").is_err().then_some(()));
        }
    }
}

#[test]
fn without_offloads() {
    let Some(network) = Network::new() else { return };
    let off = "tx off rx off tso off gso off gro off";
    run(&format!("ethtool -K up0 {off} >/dev/null"));
    network.run_peer(&format!("ethtool -K down0 {off} >/dev/null"));
    let mut clatd = Clatd::start("offloads", tun(Options::default()), None);
    clatd.ready();
    route();
    ping();
    udp_echo(&network);
    tcp_echo(&network);
    clatd.stop();
}

#[test]
fn a_foreign_source_stays_inside() {
    let Some(_network) = Network::new() else { return };
    let mut clatd = Clatd::start("foreign", tun(Options::default()), None);
    clatd.ready();
    run("ip addr add 198.51.100.7/32 dev lo; ip route add 203.0.113.0/24 dev v4-up0");
    let socket = UdpSocket::bind("198.51.100.7:0").unwrap();
    socket.send_to(b"let me out", "203.0.113.1:9").unwrap();
    until("the drop", || clatd.counters().contains("drop.foreign-source=1").then_some(()));
    assert!(clatd.stop().contains("egress4=0/0"));
}

/// Destination options behind a Fragment Header, whose end only the whole datagram shows (RFC 8200
/// §4.5).
#[test]
fn extensions_behind_a_fragment_header() {
    let Some(network) = Network::new() else { return };
    let mut clatd = Clatd::start("extensions", tun(Options::default()), None);
    clatd.ready();
    route();
    let client = UdpSocket::bind("192.0.0.4:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();

    let sent = data(2500);
    let length = u16::try_from(8 + sent.len()).unwrap();
    let mut udp = Vec::new();
    for field in [9, client.local_addr().unwrap().port(), length, 0] {
        udp.extend(field.to_be_bytes());
    }
    udp.extend(&sent);
    let header = |len: usize| {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, 44, 60];
        header[4..6].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        for address in ["64:ff9b::cb00:7101", V6] {
            header.extend(address.parse::<Ipv6Addr>().unwrap().octets());
        }
        header
    };
    let sum = (Sum::pseudo_header(&header(0), 17, udp.len()) + Sum::of(&udp)).nonzero_field();
    udp[6..8].copy_from_slice(&sum);
    // PadN, then UDP follows.
    let whole = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat();
    let (count, size) = (whole.len().div_ceil(1000), 1000);
    let fragments = whole.chunks(size).enumerate().map(|(i, chunk)| {
        let place = u16::try_from(i * size).unwrap() | u16::from(i + 1 < count);
        let mut packet = header(chunk.len() + 8);
        packet.extend([60, 0]);
        packet.extend(place.to_be_bytes());
        packet.extend([1, 2, 3, 4]);
        packet.extend(chunk);
        packet
    });
    let fragments: Vec<_> = fragments.collect();
    network.in_peer(|| {
        let socket = RawSocket::open("down0", 0).unwrap();
        for fragment in fragments.iter().rev() {
            socket.send(fragment).unwrap();
        }
    });
    let mut buf = vec![0; 5000];
    let received = client.recv_from(&mut buf);
    let (got, from) = received.unwrap_or_else(|e| panic!("{e}: {}", clatd.counters()));
    assert_eq!((from.to_string().as_str(), &buf[..got]), ("203.0.113.1:9", &sent[..]));
    let line = clatd.stop();
    assert!(!line.contains("extension"), "held fragments are no drops: {line}");
}

/// RFC 7915 §4.4: the sender of a discarded packet gets an ICMP error, within a rate.
#[test]
fn rfc_7915_4_4_errors_are_sent_and_limited() {
    const RAW: i32 = 255;
    let Some(_network) = Network::new() else { return };
    let mut clatd = Clatd::start("errors", tun(Options::default()), None);
    clatd.ready();
    route();
    let open = |protocol| clat_sys::socket::open(libc::AF_INET, libc::SOCK_RAW, protocol).unwrap();
    let (errors, raw) = (UdpSocket::from(open(libc::IPPROTO_ICMP)), open(RAW));
    errors.set_read_timeout(Some(PATIENCE)).unwrap();
    // The first fragment of UDP without a checksum; the kernel fills in IP's length and checksum.
    let mut packet = vec![0x45, 0, 0, 0, 0, 9, 0x20, 0, 64, 17, 0, 0];
    packet.extend([192, 0, 0, 4, 203, 0, 113, 1]);
    packet.extend([0, 9, 0, 9, 0, 99, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let to = SockaddrIn::new(203, 0, 113, 1, 0);
    let send = || sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    send();
    let mut buf = [0; 2000];
    let len = errors.recv(&mut buf).unwrap_or_else(|e| panic!("{e}: {}", clatd.counters()));
    assert_eq!(buf[12..20], [192, 0, 0, 8, 192, 0, 0, 4]);
    assert_eq!(buf[20..22], [3, 13], "administratively prohibited");
    assert_eq!(buf[len - 16..len], packet[20..]);
    until("the limit", || {
        (0..200).for_each(|_| assert_eq!(send(), packet.len()));
        clatd.counters().contains("drop.rate-limited=").then_some(())
    });
    assert!(clatd.stop().contains("reply.udp-zero-checksum-fragment="));
}

/// RFC 4443 §2.4 (c): an error quotes a packet as its sender has sent it.
#[test]
fn rfc_4443_2_4_errors_quote_fragments_as_they_came() {
    let Some(network) = Network::new() else { return };
    let mut clatd = Clatd::start("quotes", tun(Options::default()), None);
    clatd.ready();
    // A routing header with segments left, behind a Fragment Header with reserved bits.
    let whole = [&[17, 0, 4, 1, 0, 0, 0, 0][..], &data(1600)].concat();
    let fragments: Vec<_> = [(0, &whole[..800], 7_u16), (800, &whole[800..], 0)]
        .into_iter()
        .map(|(offset, payload, flags)| {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, 44, 60];
            let length = u16::try_from(payload.len() + 8).unwrap();
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            for address in ["64:ff9b::cb00:7101", V6] {
                packet.extend(address.parse::<Ipv6Addr>().unwrap().octets());
            }
            packet.extend([43, 0]);
            packet.extend((offset | flags).to_be_bytes());
            packet.extend([1, 2, 3, 4]);
            packet.extend(payload);
            packet
        })
        .collect();
    let quoted = network.in_peer(|| {
        let icmp = clat_sys::socket::open(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6);
        let icmp = UdpSocket::from(icmp.unwrap());
        icmp.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = RawSocket::open("down0", 0).unwrap();
        for fragment in &fragments {
            socket.send(fragment).unwrap();
        }
        let mut buf = [0; 2000];
        loop {
            let len = icmp.recv(&mut buf).unwrap();
            if buf[0] == 4 {
                return buf[..len].to_vec();
            }
        }
    });
    assert_eq!(quoted[..2], [4, 0]);
    assert_eq!(quoted[4..8], 51_u32.to_be_bytes(), "segments left");
    assert_eq!(quoted[8..], fragments[0]);
    clatd.stop();
}

#[test]
fn nothing_wakes_it_when_idle() {
    let Some(_network) = Network::new() else { return };
    let tun = tun(Options::default());
    // Keep both sides from sending on their own.
    run("echo 1 > /proc/sys/net/ipv6/conf/v4-up0/disable_ipv6");
    let mut clatd = Clatd::start("idle", tun, None);
    clatd.ready();
    until("two quiet seconds", || {
        let before = clatd.status("voluntary_ctxt_switches:");
        thread::sleep(Duration::from_secs(2));
        (clatd.status("voluntary_ctxt_switches:") == before).then_some(())
    });
    clatd.stop();
}

/// An uplink without link headers, as a phone's modem: a TUN device whose far end is this test.
#[test]
fn a_raw_ip_uplink() {
    if !namespace() {
        return;
    }
    let plain = Options { packet_info: false, vnet_header: false };
    let modem = Tun::create("up0", plain).unwrap();
    run("ip addr add 2001:db8:1::2/64 dev up0 nodad
         ip link set up0 up
         ip -6 route add default dev up0");
    let mut clatd = Clatd::start("rawip", tun(Options::default()), None);
    clatd.ready();
    route();
    let client = UdpSocket::bind("192.0.0.4:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"hello", "203.0.113.1:53").unwrap();

    let mut buf = [0; 2000];
    let v6: Ipv6Addr = V6.parse().unwrap();
    let len = until("the translated packet", || {
        let (_, len) = modem.recv(&mut buf).ok()?;
        // The kernel sends packets as well, but not from this address.
        (buf[8..24] == v6.octets() && buf[6] == 17).then_some(len)
    });
    assert_eq!((len, &buf[48..len]), (53, &b"hello"[..]));
    // Send it back: with addresses and ports exchanged, the checksum stays valid.
    let (mut back, sent) = (buf, buf);
    back[8..24].copy_from_slice(&sent[24..40]);
    back[24..40].copy_from_slice(&sent[8..24]);
    back[40..42].copy_from_slice(&sent[42..44]);
    back[42..44].copy_from_slice(&sent[40..42]);
    modem.send(&VirtioHeader::default(), &back[..len]).unwrap();
    let (got, from) = client.recv_from(&mut buf).unwrap();
    assert_eq!((from.to_string().as_str(), &buf[..got]), ("203.0.113.1:53", &b"hello"[..]));
    clatd.stop();
}

/// A supervisor starts the daemon again on the same device.
#[test]
fn a_second_life() {
    let Some(_network) = Network::new() else { return };
    let tun = tun(Options::default());
    for _ in 0..3 {
        let copy = Tun::from_fd(tun.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let mut clatd = Clatd::start("life", copy, None);
        clatd.ready();
        // Killed, without cleaning up.
        clatd.child.kill().unwrap();
        clatd.wait();
    }
}

#[test]
fn garbage_does_not_end_it() {
    let Some(network) = Network::new() else { return };
    let mut clatd = Clatd::start("garbage", tun(Options::default()), None);
    clatd.ready();
    let v6: Ipv6Addr = V6.parse().unwrap();
    network.in_peer(|| {
        let socket = RawSocket::open("down0", 0).unwrap();
        // A fixed generator: the same packets each time.
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state.to_be_bytes()[0]
        };
        let kinds = [0, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 132, 135, 136];
        for round in 0..3000 {
            let len = 40 + usize::from(next()) * usize::from(next() % 4 + 1);
            let mut packet: Vec<u8> = (0..len).map(|_| next()).collect();
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&u16::try_from(len - 40).unwrap().to_be_bytes());
            packet[6] = kinds[round % kinds.len()];
            packet[8..24]
                .copy_from_slice(&"64:ff9b::cb00:7101".parse::<Ipv6Addr>().unwrap().octets());
            packet[24..40].copy_from_slice(&v6.octets());
            // A full queue is no failure.
            let _ = socket.send(&packet);
        }
    });
    let line = until("the garbage to arrive", || {
        let line = clatd.counters();
        (!line.contains("drops=0")).then_some(line)
    });
    assert!(line.contains(" drop."), "{line}");
    clatd.stop();
}

/// AOSP's clatd sends a solicitation with its caller's sockets: some networks solicit an address
/// only after that. And the filter of a socket that the daemon has taken over cannot be removed.
#[test]
fn sockets_of_the_caller() {
    let Some(network) = Network::new() else { return };
    let seen = network.in_peer(|| {
        let seen = NeighbourSocket::open(if_nametoindex("down0").unwrap(), V6.parse().unwrap());
        seen.unwrap()
    });
    let tun = tun(Options::default());
    run("ip addr add 192.0.0.4/32 dev v4-up0; ip link set v4-up0 mtu 1472 up");
    let (read, write) = sockets();
    let copy = read.try_clone().unwrap();
    let detach = |fd: &OwnedFd| {
        clat_sys::socket::set_int(fd, nix::libc::SOL_SOCKET, nix::libc::SO_DETACH_FILTER, 0)
    };
    let mut clatd = Clatd::start("callers-sockets", tun, Some((read, write)));
    clatd.ready();
    let mut buf = [0; 1500];
    until("a solicitation", || {
        seen.recv(&mut buf).ok()?;
        (buf[40] == 135 && buf[8..24] == [0; 16]).then_some(())
    });
    assert_eq!(detach(&copy), Err(Errno::EPERM));
    clatd.stop();
}
