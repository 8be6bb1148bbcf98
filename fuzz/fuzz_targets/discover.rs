// SPDX-License-Identifier: Apache-2.0

//! Messages of anybody on the link and of any resolver, each after two bytes of length. The first
//! byte of a message is its kind.
#![no_main]

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use clat_discover::{Host, Message, Uplink};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut now = Instant::now();
    let mut uplink = Uplink::new(None, now);
    let resolver: SocketAddr = "[2001:db8::53]:53".parse().expect("an address");
    let host = Host { has_link: true, has_link_local: true, has_ipv6: true, ..Host::default() };
    uplink.handle_host(Host { resolvers: vec![resolver], ..host }, now);
    let mut rest = data;
    while let Some((&[a, b, kind], more)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([a & 0x0f, b]));
        let (message, more) = more.split_at(len.min(more.len()));
        rest = more;
        let mut asked = Vec::new();
        while let Some(sent) = uplink.poll_transmit(now) {
            if let Message::Question(_, question) = sent {
                asked = question;
            }
        }
        if kind & 1 == 0 {
            let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, u16::from(kind >> 4));
            uplink.handle_icmp(router, 255, message, now);
        } else {
            // Makes it an answer to the question; else it would be ignored.
            let mut answer = message.to_vec();
            if let (Some(id), Some(head)) = (asked.get(..2), answer.get_mut(..2)) {
                head.copy_from_slice(id);
            }
            if kind & 2 == 0 && answer.len() >= 12 && asked.len() >= 12 {
                let records = answer.split_off(12);
                answer[4..6].copy_from_slice(&asked[4..6]);
                answer.extend_from_slice(&asked[12..31]);
                answer.extend_from_slice(&records);
            }
            uplink.handle_dns(resolver, &answer, now);
        }
        let _ = uplink.verdict(now);
        now += Duration::from_millis(u64::from(kind) * 50);
        uplink.handle_timeout(now);
    }
});
