// SPDX-License-Identifier: Apache-2.0

//! Any bytes: nothing panics, and output is well-formed (checked by the guest's parser).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clat_plat::network::Handled;
use clat_plat::settings::{DualStack, Settings};
use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_oneof, proptest, Just, Strategy};
use smoltcp::wire::IpProtocol;

use crate::guest::{
    packet, udp4, udp6, Lab, ALL_NODES, DNS, ELSEWHERE, GLOBAL, GUEST4, LINK_LOCAL, ROUTER, ROUTER4,
};

fn lab() -> Lab {
    Lab::new(Settings {
        dual_stack: Some(DualStack::default()),
        resolvers: vec![(DNS, 53).into()],
        ..Settings::default()
    })
}

fn addr6() -> impl Strategy<Value = Ipv6Addr> {
    let known = [LINK_LOCAL, GLOBAL, ROUTER, DNS, ALL_NODES, ELSEWHERE, Ipv6Addr::UNSPECIFIED];
    prop_oneof![proptest::sample::select(known.to_vec()), any::<Ipv6Addr>()]
}

fn addr4() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![Just(GUEST4), Just(ROUTER4), Just(Ipv4Addr::BROADCAST), any::<Ipv4Addr>()]
}

fn pair() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        (addr6(), addr6()).prop_map(|(src, dst)| (src.into(), dst.into())),
        (addr4(), addr4()).prop_map(|(src, dst)| (src.into(), dst.into())),
    ]
}

fn protocol() -> impl Strategy<Value = IpProtocol> {
    prop_oneof![proptest::sample::select(&[0_u8, 1, 6, 17, 43, 44, 58, 59, 60][..]), any::<u8>()]
        .prop_map(IpProtocol::from)
}

proptest! {
    #[test]
    fn any_frame(bytes in vec(any::<u8>(), 0..200)) {
        lab().send(&bytes);
    }

    #[test]
    fn any_packet(
        (src, dst) in pair(),
        hops in any::<u8>(),
        protocol in protocol(),
        payload in vec(any::<u8>(), 0..200),
    ) {
        let mut lab = lab();
        let (handled, got) = lab.send(&packet(src, dst, hops, protocol, &payload));
        prop_assert!(got.len() <= 1);
        if handled == Handled::NotForUs {
            prop_assert!(got.is_empty() && hops > 1 && !dst.is_loopback() && !dst.is_multicast());
            prop_assert!(!src.is_loopback() && !src.is_multicast() && !src.is_unspecified());
        }
        // No answer is larger than allowed, and all are for the guest.
        for got in got {
            prop_assert!(got.whole.len() <= 1280);
            prop_assert!(got.dst == src || got.dst.is_multicast() || dst.is_ipv4());
        }
    }

    #[test]
    fn any_neighbour_discovery(kind in 133..138_u8, rest in vec(any::<u8>(), 0..64)) {
        let message = [&[kind, 0, 0, 0][..], &rest].concat();
        for dst in [ROUTER, ALL_NODES] {
            lab().send(&packet(LINK_LOCAL.into(), dst.into(), 255, IpProtocol::Icmpv6, &message));
        }
    }

    #[test]
    fn any_dhcp_message(kind in 0..14_u8, bytes in vec(any::<u8>(), 0..300)) {
        let message = [&[kind][..], &bytes].concat();
        let servers = "ff02::1:2".parse().unwrap();
        let mut lab = lab();
        lab.send(&udp6((LINK_LOCAL, 546), (servers, 547), &message));
        let mut message = vec![1, 1, 6, 0];
        message.resize(236, 0);
        message.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
        message.extend_from_slice(&bytes);
        lab.send(&udp4((GUEST4, 68), (Ipv4Addr::BROADCAST, 67), &message));
    }

    #[test]
    fn any_question_and_answer(
        asked in vec(any::<u8>(), 0..100),
        kind in proptest::sample::select(&[1_u8, 12, 28, 255][..]),
        answers in vec(vec(any::<u8>(), 0..100), 4),
    ) {
        let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let name = [1, b'a', 0, 0, kind, 0, 1];
        let mut lab = lab();
        lab.send(&udp6((GLOBAL, 4000), (DNS, 53), &asked));
        lab.send(&udp6((GLOBAL, 4000), (DNS, 53), &[&header[..], &asked].concat()));
        lab.send(&udp6((GLOBAL, 4000), (DNS, 53), &[&header[..], &name].concat()));
        for records in answers {
            for query in lab.network.take_queries() {
                // The question, then anything.
                let mut message = query.message[..query.message.len().min(19)].to_vec();
                prop_assert_eq!(message.len() > 12, true);
                message[2] |= 0x80;
                message[7] = 1;
                message.extend_from_slice(&records);
                lab.resolved(query.token, &message);
            }
        }
    }
}
