// SPDX-License-Identifier: Apache-2.0

//! Classic BPF programs: which packets a packet socket receives, and which socket of a fanout group
//! receives them.

use std::net::Ipv6Addr;

use clat_sys::classic_bpf::{
    jump, sock_filter, step, ADD_X, A_TO_X, JUMP_ALWAYS, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL,
    JUMP_IF_GREATER, LOAD_BYTE, LOAD_HALF_AT_X, LOAD_WORD, LOAD_X_IPV4_LENGTH, MULTIPLY, RETURN,
    RETURN_A, SHIFT_RIGHT, X_TO_A,
};
use clat_xlat::Prefix;

use crate::path::Direction;

/// SKF_AD_OFF (linux/filter.h), the offset of ancillary data; below, those of protocol and packet
/// type.
const ANCILLARY: u32 = 0xffff_f000;
const PROTOCOL: u32 = ANCILLARY;
const PACKET_TYPE: u32 = ANCILLARY + 4;

/// SKF_NET_OFF (linux/filter.h), the offset of the IP header behind any link header.
const NETWORK: u32 = 0xfff0_0000;

const ETH_P_IPV6: u32 = 0x86dd;
const PACKET_HOST: u32 = 0;
const PACKET_OUTGOING: u32 = 4;
const TCP: u32 = 6;
const UDP: u32 = 17;
const ICMPV6: u32 = 58;

/// Accepts IPv6 packets to `v6` with this host's link-layer address, as the kernel's IPv6 does.
///
/// Offsets count from the start of the frame: before Linux 6.16, SKF_NET_OFF does not reach into
/// the fragments of a socket buffer, where iwlwifi leaves the IP header.
#[must_use]
pub fn destination(link_header: usize, v6: Ipv6Addr) -> Vec<sock_filter> {
    // 0 or 14.
    let link_header = u32::try_from(link_header).unwrap_or_default();
    let mut filter = Vec::new();
    require(&mut filter, LOAD_WORD, PROTOCOL, ETH_P_IPV6, ETH_P_IPV6);
    require(&mut filter, LOAD_WORD, PACKET_TYPE, PACKET_HOST, PACKET_HOST);
    require_address(&mut filter, link_header + 24, v6);
    accept(filter)
}

/// Accepts no packet.
#[must_use]
pub fn nothing() -> Vec<sock_filter> {
    vec![step(RETURN, 0)]
}

/// For a fanout group: a hash of an IPv6 packet without link header, over the last 32 bits of its
/// source (the IPv4 address in a /96) and the ports of TCP and UDP. Ports of fragments, and behind
/// extension headers, are not used.
#[must_use]
pub fn flow() -> Vec<sock_filter> {
    vec![
        step(LOAD_WORD, 20),
        step(A_TO_X, 0),
        step(LOAD_BYTE, 6),
        jump(JUMP_IF_EQUAL, TCP, 1, 0),
        jump(JUMP_IF_EQUAL, UDP, 0, 3),
        step(LOAD_WORD, 40),
        step(ADD_X, 0),
        step(JUMP_ALWAYS, 1),
        step(X_TO_A, 0),
        // Knuth's multiplicative hash; the upper half of the product depends on all bits.
        step(MULTIPLY, 0x9e37_79b1),
        step(SHIFT_RIGHT, 16),
        step(RETURN_A, 0),
    ]
}

/// Accepts neighbour solicitations (135) and advertisements (136) for `target` without extension
/// headers, behind a link header of `link_header` bytes.
#[must_use]
pub fn neighbours(link_header: usize, target: Ipv6Addr) -> Vec<sock_filter> {
    let link_header = u32::try_from(link_header).unwrap_or_default();
    let mut filter = Vec::new();
    require(&mut filter, LOAD_BYTE, link_header + 6, ICMPV6, ICMPV6);
    require(&mut filter, LOAD_BYTE, link_header + 40, 135, 136);
    require_address(&mut filter, link_header + 48, target);
    accept(filter)
}

/// Accepts IPv6 packets with hop limit 255, which no router has forwarded. For a raw socket.
#[must_use]
pub fn of_the_link() -> Vec<sock_filter> {
    let mut filter = Vec::new();
    require(&mut filter, LOAD_BYTE, NETWORK + 7, 255, 255);
    accept(filter)
}

/// Accepts UDP over IPv4 to this port. For a socket without link headers.
#[must_use]
pub fn udp4_to(port: u16) -> Vec<sock_filter> {
    let mut filter = Vec::new();
    require(&mut filter, LOAD_BYTE, 9, UDP, UDP);
    filter.push(step(LOAD_X_IPV4_LENGTH, 0));
    require(&mut filter, LOAD_HALF_AT_X, 2, port.into(), port.into());
    accept(filter)
}

/// Accepts packets that the host sends.
#[must_use]
pub fn outgoing() -> Vec<sock_filter> {
    let mut filter = Vec::new();
    require(&mut filter, LOAD_WORD, PACKET_TYPE, PACKET_OUTGOING, PACKET_OUTGOING);
    accept(filter)
}

/// Accepts the IPv6 packets of a CLAT, from `v6` to `prefix` or back. For a socket without link
/// headers.
#[must_use]
pub fn of_clat(way: Direction, v6: Ipv6Addr, prefix: &Prefix) -> Vec<sock_filter> {
    let (own, other) = match way {
        Direction::Egress => (8, 24),
        Direction::Ingress => (24, 8),
    };
    let mut filter = Vec::new();
    require(&mut filter, LOAD_WORD, PROTOCOL, ETH_P_IPV6, ETH_P_IPV6);
    require_address(&mut filter, own, v6);
    let host = u128::MAX.checked_shr(prefix.bits().into()).unwrap_or(0);
    let first = prefix.addr().to_bits();
    for (at, shift) in (other..).step_by(4).zip([96, 64, 32, 0]) {
        let word = |address: u128| u32::try_from(address >> shift & 0xffff_ffff).unwrap_or(0);
        require(&mut filter, LOAD_WORD, at, word(first), word(first | host));
    }
    accept(filter)
}

/// Rejects the packet unless the loaded value is in `from..=to`.
fn require(filter: &mut Vec<sock_filter>, load: u16, at: u32, from: u32, to: u32) {
    filter.extend([
        step(load, at),
        // If it is too low, skip the next test, to the rejection.
        jump(JUMP_IF_AT_LEAST, from, 0, 1),
        jump(JUMP_IF_GREATER, to, 0, 1),
        step(RETURN, 0),
    ]);
}

fn require_address(filter: &mut Vec<sock_filter>, at: u32, address: Ipv6Addr) {
    for (at, word) in (at..).step_by(4).zip(address.octets().chunks_exact(4)) {
        let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
        require(filter, LOAD_WORD, at, word, word);
    }
}

fn accept(mut filter: Vec<sock_filter>) -> Vec<sock_filter> {
    filter.push(step(RETURN, u32::MAX));
    filter
}
