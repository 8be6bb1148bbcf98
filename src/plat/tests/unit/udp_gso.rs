// SPDX-License-Identifier: Apache-2.0

//! Which datagrams are sent in one UDP_SEGMENT call.

use proptest::prelude::*;

use super::*;

/// Datagrams of these destinations' ports, sizes and lengths, in a batch of one flow.
fn datagrams(all: &[(u16, usize, usize)]) -> Vec<Datagram> {
    let mut end = 0;
    let datagram = |&(port, size, len): &(u16, usize, usize)| {
        end += len;
        let to = SocketAddr::from(([192, 0, 2, 1], port));
        Datagram {
            id: Id { slot: 0, generation: 0 },
            ends: Ends::from(to),
            hops: 64,
            class: 0,
            cut: false,
            size,
            at: end - len..end,
        }
    };
    all.iter().map(datagram).collect()
}

fn gso_runs(mut rest: &[Datagram]) -> Vec<&[Datagram]> {
    let mut runs = Vec::new();
    while !rest.is_empty() {
        let (together, others) = rest.split_at(gso_run(rest));
        runs.push(together);
        rest = others;
    }
    runs
}

#[test]
fn what_is_sent_together() {
    let many = [(1, 2, 2); GSO_SEGMENTS + 1];
    let long = [(1, 1400, 1400); GSO_SEGMENTS];
    for (all, wanted) in [
        (&[(1, 9, 9), (1, 9, 9), (1, 5, 5), (1, 9, 9)][..], &[3, 1][..]),
        (&[(1, 9, 9), (2, 9, 9), (2, 9, 9)], &[1, 2]),
        (&[(1, 9, 9), (1, 10, 10)], &[1, 1]),
        (&[(1, 0, 0), (1, 0, 0), (1, 9, 9), (1, 0, 0)], &[1, 1, 1, 1]),
        // GSO packets of the guest join full segments of their size.
        (&[(1, 9, 27), (1, 9, 18), (1, 9, 9), (1, 9, 20), (1, 9, 9)], &[4, 1]),
        (&[(1, 9, 9), (1, 4, 8)], &[1, 1]),
        (&many, &[GSO_SEGMENTS, 1]),
        (&long, &[GSO_BYTES / 1400, GSO_SEGMENTS - GSO_BYTES / 1400]),
    ] {
        let all = datagrams(all);
        assert_eq!(gso_runs(&all).iter().map(|t| t.len()).collect::<Vec<_>>(), wanted);
    }
}

proptest! {
    /// The kernel segments at multiples of the size, which gives the datagrams as they were.
    #[test]
    fn segments_are_the_datagrams_sent(all in prop::collection::vec(
        (0u16..3, 1usize..4, 0usize..9)
            .prop_map(|(port, size, len)| (port, size.min(len), len)),
        0..40,
    )) {
        let cut = |size: usize, len| {
            (0..len).step_by(size.max(1)).map(move |at| size.min(len - at)).collect::<Vec<_>>()
        };
        let all = datagrams(&all);
        let runs = gso_runs(&all);
        prop_assert_eq!(runs.iter().map(|t| t.len()).sum::<usize>(), all.len());
        for run in runs {
            prop_assert!(run.iter().all(|d| d.ends == run[0].ends));
            let len = run.iter().map(|d| d.at.len()).sum();
            let each = run.iter().flat_map(|d| cut(d.size, d.at.len())).collect::<Vec<_>>();
            prop_assert_eq!(cut(run[0].size, len), each);
        }
    }
}
