// SPDX-License-Identifier: Apache-2.0

//! Forwarding allocates no memory: all of it is allocated at the start.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use allocation_counter::measure;
use clat_datapath::forward::{Forwarder, Progress};
use clat_datapath::next_hop::NextHopCache;
use clat_datapath::path::{ClatPath, Direction};
use clat_datapath::socket::{join_anycast, PacketSocket, RawSocket};
use clat_datapath::uplink::Uplink;
use clat_tun::Options;
use clat_xlat::{Addresses, Config, Local, Translator};
use clatd::link::configure;
use common::*;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{poll, PollFd, PollFlags};

const ROUNDS: u32 = 3;

#[test]
fn no_memory_is_taken() {
    let Some(network) = Network::new() else { return };
    // A permanent neighbour entry: after a change, the kernel would be asked again.
    run("ping -n -c 1 -w 5 2001:db8:1::1");
    run("ip -6 neigh change 2001:db8:1::1 dev up0 nud permanent");
    let (index, v6) = (if_nametoindex("up0").unwrap(), V6.parse().unwrap());
    let (v4, prefix) = ("192.0.0.4".parse().unwrap(), "64:ff9b::/96".parse().unwrap());
    let device = tun(Options::default());
    let packet = PacketSocket::open(index, v6).unwrap();
    let raw = RawSocket::open("up0", 0).unwrap();
    join_anycast(raw.as_fd(), index, v6).unwrap();
    configure(device.name(), v4, 1472).unwrap();
    let uso = device.take_offloads().unwrap();
    route();
    let prefixes = vec![prefix];
    let local = Some(Local { v4, v6 });
    let addresses = Addresses { local, prefixes, ..Default::default() };
    let config = Config { mtu4: 65535, mtu6: 1500, router6: v6, ..Default::default() };
    let uplink = Uplink::new(packet, raw, NextHopCache::new(v6, prefix, 1500));
    let translator = Translator::new(config, addresses, 1).unwrap();
    let mut forwarder = Forwarder::new(ClatPath::new(translator, v4, uso), device, uplink);

    let (round, done) = (AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                udp_echo(&network);
                tcp_echo(&network);
                round.fetch_add(1, Ordering::Relaxed);
            }
            done.store(true, Ordering::Relaxed);
        });
        let (mut polls, mut taken) = (0, 0);
        while !done.load(Ordering::Relaxed) {
            let tun = PollFd::new(forwarder.tun().as_fd(), PollFlags::POLLIN);
            let packet = PollFd::new(forwarder.uplink().packet_socket().as_fd(), PollFlags::POLLIN);
            poll(&mut [tun, packet], 20u8).unwrap();
            for direction in [Direction::Egress, Direction::Ingress] {
                let mut polled = Err(Errno::EAGAIN);
                let memory = measure(|| polled = forwarder.poll(direction, Instant::now()));
                assert!(matches!(
                    polled,
                    Ok(Progress::Done | Progress::Full(_)) | Err(Errno::EAGAIN)
                ));
                // In the first round, the next hop is looked up.
                if round.load(Ordering::Relaxed) > 0 {
                    polls += u32::from(polled.is_ok());
                    taken += memory.count_total;
                }
            }
        }
        assert!(polls > 100, "{polls}");
        assert_eq!(taken, 0, "in {polls} polls");
    });
}
