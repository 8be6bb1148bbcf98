// SPDX-License-Identifier: Apache-2.0

//! A carrier inside this process: its guest is smoltcp on a device of `clat_tun::device`, its
//! network are sockets of this host.
#![allow(clippy::unwrap_used)] // helpers are tests too

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clat_plat::driver::{Driver, Extras};
use clat_plat::link::InProcess;
use clat_plat::settings::Settings;
use clat_tun::device::{self, Device, Devices, Flags};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    recvmsg, sendmsg, setsockopt, sockopt, ControlMessage, ControlMessageOwned, MsgFlags,
    SockaddrIn,
};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy;
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv6Packet, Icmpv6Repr, IpCidr, IpProtocol, Ipv6Packet,
    NdiscPrefixInfoFlags, NdiscRepr, UdpPacket,
};

mod port;

use port::Port;

const TUN: Flags = Flags { tun: true, tap: false, no_packet_info: true };
const TAP: Flags = Flags { tun: false, tap: true, no_packet_info: true };
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// This host's mapped address, and the same inside the prefix.
const HOST: [u8; 4] = [192, 0, 2, 2];
const HOST6: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc000, 0x202);
const PATIENCE: Duration = Duration::from_secs(20);

/// A carrier in a thread; it ends with the device.
fn carrier(flags: Flags) -> (Device, JoinHandle<anyhow::Error>) {
    let devices = Devices::default();
    let device = devices.open();
    device.set_iff("", flags).unwrap();
    let interface = devices.interface(device.name()).unwrap();
    let thread = thread::spawn(move || {
        let mut driver = driver(interface);
        loop {
            if let Err(end) = driver.poll(None, &mut |_| {}) {
                return end;
            }
        }
    });
    (device, thread)
}

fn driver(interface: device::Interface) -> Driver {
    let settings = Settings { map_host: vec![HOST.into()], ..Settings::default() };
    let link = InProcess::new(interface, &settings);
    Driver::new(settings, Box::new(link), Extras::default()).unwrap()
}

fn wait(event: BorrowedFd<'_>, millis: u16) {
    let _ = poll(&mut [PollFd::new(event, PollFlags::POLLIN)], PollTimeout::from(millis));
}

struct Guest {
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Guest {
    /// A guest that has configured itself from the first router advertisement.
    fn new(device: Device) -> Self {
        let (router, prefix) = solicit(&device);
        let mut port = Port(device);
        let address = match port.0.flags() {
            Flags { tap: true, .. } => HardwareAddress::Ethernet(EthernetAddress(MAC)),
            _ => HardwareAddress::Ip,
        };
        let mut interface =
            Interface::new(Config::new(address), &mut port, smoltcp::time::Instant::now());
        let own = Ipv6Addr::from(prefix.to_bits() | 9);
        interface.update_ip_addrs(|all| {
            for address in [own, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9)] {
                all.push(IpCidr::new(address.into(), 64)).unwrap();
            }
        });
        interface.routes_mut().add_default_ipv6_route(router).unwrap();
        Self { port, interface, sockets: SocketSet::new(vec![]) }
    }

    /// Runs it until `done` returns a value.
    fn until<T>(&mut self, mut done: impl FnMut(&mut SocketSet<'static>) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = smoltcp::time::Instant::now();
            self.interface.poll(now, &mut self.port, &mut self.sockets);
            if let Some(result) = done(&mut self.sockets) {
                self.interface.poll(now, &mut self.port, &mut self.sockets);
                return result;
            }
            assert!(Instant::now() < deadline, "nothing came");
            wait(self.port.0.event().unwrap(), 10);
        }
    }

    fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 16]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(self.interface.context(), (HOST6, port), 50_000).unwrap();
        self.sockets.add(socket)
    }
}

/// Solicits a router advertisement; returns its sender and prefix.
fn solicit(device: &Device) -> (Ipv6Addr, Ipv6Addr) {
    let ethernet = if device.flags().tap { 14 } else { 0 };
    let header = [&[0x33, 0x33, 0, 0, 0, 2][..], &MAC, &[0x86, 0xdd]].concat();
    let mut solicitation = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    solicitation.extend(source.octets());
    solicitation.extend(routers.octets());
    solicitation.extend([133, 0, 0, 0, 0, 0, 0, 0]);
    Icmpv6Packet::new_unchecked(&mut solicitation[40..]).fill_checksum(&source, &routers);
    let frame = [&header[..ethernet], &solicitation].concat();
    device.write(&frame).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut frame = [0; 2000];
        let len = match device.read(&mut frame) {
            Err(Errno::EAGAIN) => {
                assert!(Instant::now() < deadline, "no router");
                wait(device.event().unwrap(), 1000);
                continue;
            }
            read => read.unwrap(),
        };
        let packet = Ipv6Packet::new_checked(&frame[ethernet..len]).unwrap();
        let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        let checksums = phy::ChecksumCapabilities::default();
        let (src, dst) = (packet.src_addr(), packet.dst_addr());
        if let Ok(Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            prefix_info: Some(prefix), ..
        })) = Icmpv6Repr::parse(&src, &dst, &icmp, &checksums)
        {
            assert!(prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF));
            return (src, prefix.prefix);
        }
    }
}

#[test]
fn tcp_both_ways() {
    for flags in [TAP, TUN] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let (device, thread) = carrier(flags);
        let repeat = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let mut guest = Guest::new(device);
        let handle = guest.connect(port);
        let (mut sent, mut got) = (0, Vec::new());
        guest.until(|sockets| {
            let socket = sockets.get_mut::<tcp::Socket>(handle);
            if socket.can_send() && sent < data.len() {
                sent += socket.send_slice(&data[sent..]).unwrap();
                if sent == data.len() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        got.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            (got.len() == data.len()).then_some(())
        });
        assert!(got == data, "what came back is not what went");
        repeat.join().unwrap();
        drop(guest);
        let end = thread.join().unwrap();
        assert!(format!("{end:#}").starts_with("the link "), "{end:#}");
    }
}

#[test]
fn a_refused_connection_is_reset() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new(carrier(TAP).0);
    let handle = guest.connect(port);
    guest.until(|sockets| {
        let state = sockets.get::<tcp::Socket>(handle).state();
        (state == tcp::State::Closed).then_some(())
    });
}

#[test]
fn datagrams() {
    for flags in [TAP, TUN] {
        let host = UdpSocket::bind("127.0.0.1:0").unwrap();
        host.set_nonblocking(true).unwrap();
        let port = host.local_addr().unwrap().port();
        let mut guest = Guest::new(carrier(flags).0);
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 16384]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(5000).unwrap();
        let handle = guest.sockets.add(socket);
        for size in [0, 1, 1200, 1452] {
            let socket = guest.sockets.get_mut::<udp::Socket>(handle);
            socket.send_slice(&vec![7; size], (HOST6, port)).unwrap();
            let mut message = [0; 2000];
            // It may have to resolve its router first.
            let (len, peer) = guest.until(|_| host.recv_from(&mut message).ok());
            assert_eq!(len, size);
            host.send_to(&message[..len], peer).unwrap();
            let (len, from) = guest.until(|sockets| {
                let (data, from) = sockets.get_mut::<udp::Socket>(handle).recv().ok()?;
                Some((data.len(), from.endpoint))
            });
            assert_eq!((len, from), (size, (HOST6, port).into()));
        }
    }
}

/// An IPv6 packet of the guest's, to the host.
fn datagram(ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let own = Ipv6Addr::new(0x2001, 0xdb8, 0x464, 0, 0, 0, 0, 9);
    let len = u16::try_from(8 + data.len()).unwrap();
    let mut packet = [&[0x60, 0, 0, 0][..], &len.to_be_bytes(), &[17, 64]].concat();
    packet.extend([own, HOST6].iter().flat_map(Ipv6Addr::octets));
    packet.extend([ports.0, ports.1, len, 0].iter().flat_map(|word| word.to_be_bytes()));
    packet.extend(data);
    UdpPacket::new_unchecked(&mut packet[40..]).fill_checksum(&own.into(), &HOST6.into());
    packet
}

/// Datagrams that arrive together leave together, flow by flow, though they arrive in turn: the
/// host's kernel gets one buffer per flow. In the other direction such a buffer is received as one,
/// and the guest gets the datagrams.
#[test]
fn datagrams_as_gso() {
    const FLOWS: u16 = 4;
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    setsockopt(&host, sockopt::UdpGroSegment, &true).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = host.local_addr().unwrap().port();
    let devices = Devices::default();
    let device = devices.open();
    device.set_iff("", TUN).unwrap();
    let mut driver = driver(devices.interface(device.name()).unwrap());
    // Each flow has its own length; the last datagram is shorter.
    let size = |flow| 100 + usize::from(flow);
    let data = |flow, number| {
        let len = if number == 9 { 50 } else { size(flow) };
        vec![u8::try_from(flow * 16 + number).unwrap(); len]
    };
    for number in 0..10 {
        for flow in 0..FLOWS {
            device.write(&datagram((4000 + flow, port), &data(flow, number))).unwrap();
        }
    }
    for _ in 0..3 {
        driver.poll(Some(Instant::now()), &mut |_| {}).unwrap();
    }
    let mut buf = vec![0; 1 << 16];
    let mut control = nix::cmsg_space!(i32);
    for _ in 0..FLOWS {
        let mut iov = [IoSliceMut::new(&mut buf)];
        let (fd, flags) = (host.as_raw_fd(), MsgFlags::empty());
        let message = recvmsg::<SockaddrIn>(fd, &mut iov, Some(&mut control), flags).unwrap();
        let (peer, len) = (message.address.unwrap(), message.bytes);
        let each = message.cmsgs().unwrap().find_map(|cmsg| match cmsg {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let flow = u16::from(buf[0] / 16);
        assert_eq!(each, Some(size(flow)));
        let all: Vec<u8> = (0..10).flat_map(|number| data(flow, number)).collect();
        assert!(buf[..len] == all, "flow {flow}: {:?}", &buf[..len]);
        let gso_size = u16::try_from(size(flow)).unwrap();
        let cmsg = [ControlMessage::UdpGsoSegments(&gso_size)];
        let sent = sendmsg(fd, &[IoSlice::new(&all)], &cmsg, flags, Some(&peer)).unwrap();
        assert_eq!(sent, all.len());
    }
    host.set_nonblocking(true).unwrap();
    assert!(host.recv(&mut buf).is_err(), "more came than was sent");
    let mut back = vec![0; usize::from(FLOWS)];
    let deadline = Instant::now() + PATIENCE;
    while back.iter().sum::<u16>() < 10 * FLOWS {
        assert!(Instant::now() < deadline, "{back:?}");
        driver.poll(Some(Instant::now()), &mut |_| {}).unwrap();
        while let Ok(len) = device.read(&mut buf) {
            let packet = Ipv6Packet::new_checked(&buf[..len]).unwrap();
            if packet.next_header() != IpProtocol::Udp {
                continue;
            }
            let udp = UdpPacket::new_checked(packet.payload()).unwrap();
            assert!(udp.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
            let flow = udp.dst_port() - 4000;
            let number = &mut back[usize::from(flow)];
            assert_eq!((packet.src_addr(), udp.src_port()), (HOST6, port));
            assert_eq!(udp.payload(), data(flow, *number), "flow {flow}, number {number}");
            *number += 1;
        }
    }
    let stats = driver.carrier().engine().stats();
    assert_eq!((stats.gso_up, stats.gro_down), (FLOWS.into(), FLOWS.into()));
}

/// The router answers echo always; the host only where it allows ping sockets.
#[test]
fn echo() {
    let mut guest = Guest::new(carrier(TAP).0);
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(7)).unwrap();
    let handle = guest.sockets.add(socket);
    let allowed = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::empty(),
        nix::sys::socket::SockProtocol::Icmp,
    )
    .is_ok();
    let router = Ipv6Addr::new(0x2001, 0xdb8, 0x464, 0, 0, 0, 0, 1);
    for target in [Some(router), allowed.then_some(HOST6)].into_iter().flatten() {
        let request = Icmpv6Repr::EchoRequest { ident: 7, seq_no: 1, data: b"0123456789" };
        let own = Ipv6Addr::new(0x2001, 0xdb8, 0x464, 0, 0, 0, 0, 9);
        let mut bytes = vec![0; request.buffer_len()];
        let mut packet = Icmpv6Packet::new_unchecked(&mut bytes);
        request.emit(&own, &target, &mut packet, &phy::ChecksumCapabilities::default());
        guest.sockets.get_mut::<icmp::Socket>(handle).send_slice(&bytes, target.into()).unwrap();
        let (reply, from) = guest.until(|sockets| {
            let (data, from) = sockets.get_mut::<icmp::Socket>(handle).recv().ok()?;
            Some((data.to_vec(), from))
        });
        assert_eq!((reply[0], &reply[8..], from), (129, &b"0123456789"[..], target.into()));
    }
}
