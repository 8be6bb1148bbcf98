// SPDX-License-Identifier: Apache-2.0

//! GSO packets.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use clat_xlat::{Gso, Packet, Reason, Rule, Translator, Verdict, HEADROOM, TAILROOM};
use common::*;

/// Translates a TCP packet to be segmented to `size` bytes.
fn run_gso(t: &mut Translator, input: &[u8], headers: usize, size: usize) -> Out {
    let mut buf = vec![0; HEADROOM + input.len() + TAILROOM];
    buf[HEADROOM..HEADROOM + input.len()].copy_from_slice(input);
    let packet = Packet::new(&mut buf, HEADROOM..HEADROOM + input.len()).unwrap();
    let out = match t.translate(&mut packet.with_gso(Gso { headers, size })) {
        Verdict::Forward { rule, mut frames } => {
            let frame = frames.next().unwrap().bytes.to_vec();
            assert!(frames.next().is_none());
            Out::Forward(rule, vec![frame])
        }
        Verdict::Reply { reason, error } => Out::Reply(reason, error.to_vec()),
        Verdict::Drop(reason) => Out::Drop(reason),
    };
    out
}

#[test]
fn limits_are_those_of_the_longest_packet() {
    let mut t = translator();
    let packet = V4 { df: true, protocol: TCP, ..V4::default() }.build(&tcp(10_000));
    // 40 + 20 + 1440 bytes are what the link takes.
    let Out::Forward(rule, frames) = run_gso(&mut t, &packet, 40, 1440) else { panic!("stopped") };
    assert_eq!((rule, frames[0].len()), (Rule::To6, packet.len() + 20));
    assert!(!check(&frames[0]).fragment_header);
    let (reason, error) = run_gso(&mut t, &packet, 40, 1441).reply();
    assert_eq!((reason, be16(&error, 26)), (Reason::TooBigForIpv6, 1480));
}

#[test]
fn each_packet_is_counted() {
    let mut t = translator();
    let packet = V4 { df: true, protocol: TCP, ..V4::default() }.build(&tcp(10_001));
    run_gso(&mut t, &packet, 40, 1000).one();
    assert_eq!((t.counters().packets46, t.counters().bytes46), (11, 10_001 + 11 * 40));
    let packet = V6 { protocol: TCP, ..V6::default() }.build(&tcp(2000));
    run_gso(&mut t, &packet, 60, 1000).one();
    assert_eq!((t.counters().packets64, t.counters().bytes64), (2, 2000 + 2 * 60));
}

/// DF is that of each segment, and no identification is used twice (RFC 7915 §5.1).
#[test]
fn small_packets_have_no_df_however_many() {
    let mut t = translator();
    let packet = V6 { protocol: TCP, ..V6::default() }.build(&tcp(4000));
    let first = check(&run_gso(&mut t, &packet, 60, 1220).one());
    let next = check(&run_gso(&mut t, &packet, 60, 1220).one());
    assert!(!first.df && !next.df);
    assert_eq!(next.id, first.id + 4);
    assert!(check(&run_gso(&mut t, &packet, 60, 1221).one()).df);
}
