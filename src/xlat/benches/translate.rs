// SPDX-License-Identifier: Apache-2.0

//! Time per packet in each direction, beside a plain copy of the same bytes in the same run.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use clat_xlat::{Addresses, Local, Packet, Prefix, Translator, Verdict, HEADROOM, TAILROOM};
use common::*;
use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};

/// Sizes of packets as IPv4; as IPv6 they are 20 bytes longer.
const SIZES: [usize; 3] = [64, 576, 1460];

fn run_bench(c: &mut Criterion) {
    let neutral = Local::neutral(LOCAL4, LOCAL6, &Prefix::WELL_KNOWN, [7, 1, 9, 3, 4, 8, 2, 6]);
    let prefixes = vec![Prefix::WELL_KNOWN];
    let addresses = Addresses { local: Some(neutral), prefixes, ..Addresses::default() };
    let kinds: [(&str, u8); 4] = [("tcp", TCP), ("udp", UDP), ("udp-zero", UDP), ("echo", ICMP)];

    let mut group = c.benchmark_group("xlat");
    for (kind, protocol) in kinds {
        for size in SIZES {
            let body = match kind {
                "tcp" => tcp(size - 40),
                "echo" => icmp(8, 0, [0; 4], &data(size - 28)),
                _ => udp(size - 28),
            };
            let v4 = V4 { df: true, protocol, ..V4::default() };
            let v4 = if kind == "udp-zero" { v4.raw(&body) } else { v4.build(&body) };
            bench_one::<4>(&mut group, &addresses, &format!("4to6/{kind}"), size, &v4);

            if kind != "udp-zero" {
                let mut body = body;
                let protocol = if protocol == ICMP { ICMPV6 } else { protocol };
                if protocol == ICMPV6 {
                    body[0] = 128;
                }
                let v6 = V6 { dst: neutral.v6, protocol, ..V6::default() }.build(&body);
                bench_one::<6>(&mut group, &addresses, &format!("6to4/{kind}"), size, &v6);
            }
        }
    }
    for size in SIZES {
        let packet = V4::default().build(&udp(size - 28));
        let mut buf = vec![0; size];
        group.bench_function(BenchmarkId::new("copy", size), |b| {
            b.iter(|| buf.copy_from_slice(black_box(&packet)));
        });
    }
    let packet = V4::default().build(&udp(548));
    let mut buf = vec![0; HEADROOM + packet.len() + TAILROOM];
    group.bench_function("restore", |b| {
        b.iter(|| {
            buf[HEADROOM..HEADROOM + 64].copy_from_slice(&packet[..64]);
            black_box(Packet::new(&mut buf, HEADROOM..HEADROOM + packet.len()).unwrap());
        });
    });
    group.finish();
}

/// The direction is known, as for a reader of a TUN device or an uplink. Each round restores the
/// headers, 64 bytes, which is all that translation changes. That is part of every figure; its own
/// cost is shown as `restore`.
fn bench_one<const FROM: u8>(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    addresses: &Addresses,
    name: &str,
    size: usize,
    packet: &[u8],
) {
    let mut t = Translator::new(config(), addresses.clone(), 1).expect("right addresses");
    let mut buf = vec![0; HEADROOM + packet.len() + TAILROOM];
    let range = HEADROOM..HEADROOM + packet.len();
    buf[range.clone()].copy_from_slice(packet);
    group.bench_function(BenchmarkId::new(name, size), |b| {
        b.iter(|| {
            buf[HEADROOM..HEADROOM + 64].copy_from_slice(&packet[..64]);
            let mut p = Packet::new(&mut buf, range.clone()).unwrap();
            let p = black_box(&mut p);
            let mut verdict = if FROM == 4 { t.to_ipv6(p) } else { t.to_ipv4(p) };
            match &mut verdict {
                Verdict::Forward { frames, .. } => {
                    black_box(frames.next().map(|frame| frame.bytes));
                }
                other => panic!("{other:?}"),
            }
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(600));
    targets = run_bench
}
criterion_main!(benches);
