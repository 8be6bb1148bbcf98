// SPDX-License-Identifier: Apache-2.0

//! platd's network, and checks of all that it sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use clat_plat::frame::Out;
use clat_plat::network::Network;
use clat_plat::settings::{DualStack, Settings};
use clat_tun::VirtioHeader;

pub struct Plat {
    pub network: Network,
    pub now: Instant,
    out: Out,
}

#[allow(dead_code)] // each target has its own needs
impl Plat {
    pub fn new() -> Self {
        let now = Instant::now();
        let settings = Settings {
            dual_stack: Some(DualStack::default()),
            resolvers: vec![([192, 0, 2, 1], 53).into()],
            ..Settings::default()
        };
        Self { network: Network::new(settings, now), now, out: Out::default() }
    }

    /// A frame from a guest, addressed to the router unless it is multicast.
    pub fn frame(&mut self, frame: &mut [u8]) {
        if frame.len() >= 6 && frame[0] & 1 == 0 {
            frame[..6].copy_from_slice(&self.network.settings().mac.0);
        }
        self.network.input(frame, &VirtioHeader::default(), self.now, &mut self.out);
        self.check();
    }

    /// A UDP packet from a guest. (Checksums are not verified while fuzzing.)
    pub fn udp(&mut self, (src, dst): (IpAddr, IpAddr), port: u16, payload: &[u8]) {
        let len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
        let mut frame = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..]].concat();
        match (src, dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend_from_slice(&len.to_be_bytes());
                frame.extend_from_slice(&[17, 64]);
                frame.extend_from_slice(&src.octets());
                frame.extend_from_slice(&dst.octets());
            }
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend_from_slice(&[8, 0, 0x45, 0]);
                frame.extend_from_slice(&(20 + len).to_be_bytes());
                frame.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
                frame.extend_from_slice(&src.octets());
                frame.extend_from_slice(&dst.octets());
            }
            _ => return,
        }
        frame.extend_from_slice(&port.to_be_bytes());
        frame.extend_from_slice(&port.to_be_bytes());
        frame.extend_from_slice(&len.to_be_bytes());
        frame.extend_from_slice(&[1, 1]);
        frame.extend_from_slice(payload);
        self.frame(&mut frame);
    }

    pub fn poll(&mut self) {
        self.network.poll(self.now, &mut self.out);
        self.check();
    }

    /// Answers every question by `answer`.
    pub fn resolve(&mut self, mut answer: impl FnMut(&[u8]) -> Vec<u8>) {
        for query in self.network.take_queries() {
            let answer = answer(&query.message);
            self.network.dns_answer(query.token, &answer, self.now, &mut self.out);
            self.check();
        }
    }

    /// Checks that lengths are right, and that no answer exceeds the link's MTU.
    fn check(&mut self) {
        for (_, frame) in self.out.iter() {
            let packet = &frame[14..];
            assert!(packet.len() <= 1500);
            match [frame[12], frame[13]] {
                [0x86, 0xdd] => {
                    let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                    assert_eq!(40 + len, packet.len());
                    let mut dst = [0; 16];
                    dst.copy_from_slice(&packet[24..40]);
                    assert!(!Ipv6Addr::from(dst).is_unspecified());
                }
                [8, 0] => {
                    let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                    assert_eq!(len, packet.len());
                    let mut dst = [0; 4];
                    dst.copy_from_slice(&packet[16..20]);
                    assert!(!Ipv4Addr::from(dst).is_unspecified());
                }
                protocol => assert_eq!(protocol, [8, 6]),
            }
        }
        self.out.clear();
    }
}
