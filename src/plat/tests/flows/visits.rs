// SPDX-License-Identifier: Apache-2.0

//! Forwarded ports whose guest listens at another place than is tried first.

use clat_plat::flow::wire;
use clat_plat::settings::DualStack;

use crate::lab::{at_port, host_udp, packet, Lab, GUEST, MAC, PORT};

/// A guest's refusal.
fn refusal(datagram: &[u8]) -> Vec<u8> {
    let from = wire::parse(datagram).unwrap().src;
    let (kind, code) = if from.to_ipv4_mapped().is_some() { (3, 3) } else { (1, 4) };
    let message = [&[kind, code, 0, 0, 0, 0, 0, 0], datagram].concat();
    packet(from.to_canonical(), wire::ICMP6, &message)
}

/// Datagrams go to the next place after each refusal, and after the last to the first again: the
/// guest may begin to listen at any of them at any time.
#[test]
fn a_refused_udp_port_goes_round() {
    let (socket, _) = host_udp();
    let (visitor, _) = host_udp();
    let port = socket.local_addr().unwrap();
    let mut lab = Lab::new();
    let ipv4 = DualStack::default().guest.to_ipv6_mapped();
    let places = [(GUEST, MAC), (ipv4, MAC)];
    lab.step(|engine, cx| engine.udp_forward(cx.now, MAC, (GUEST, PORT), at_port(socket))).unwrap();
    for (place, _) in places.iter().chain(&places) {
        visitor.send_to(b"hello", port).unwrap();
        lab.events();
        let got = lab.got().remove(0);
        assert_eq!(wire::parse(&got).unwrap().dst, *place);
        lab.send(&[refusal(&got)]);
        assert!(lab.engine.has_refused());
        lab.step(|engine, cx| engine.try_elsewhere(cx, &places));
    }
    assert_eq!(lab.engine.load().0, 1);
}
