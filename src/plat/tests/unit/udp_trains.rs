// SPDX-License-Identifier: Apache-2.0

//! Which datagrams are sent as one train.

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

fn trains(mut rest: &[Datagram]) -> Vec<&[Datagram]> {
    let mut trains = Vec::new();
    while !rest.is_empty() {
        let (together, others) = rest.split_at(train(rest));
        trains.push(together);
        rest = others;
    }
    trains
}

#[test]
fn what_makes_a_train() {
    let many = [(1, 2, 2); TRAIN + 1];
    let long = [(1, 1400, 1400); TRAIN];
    for (all, wanted) in [
        (&[(1, 9, 9), (1, 9, 9), (1, 5, 5), (1, 9, 9)][..], &[3, 1][..]),
        (&[(1, 9, 9), (2, 9, 9), (2, 9, 9)], &[1, 2]),
        (&[(1, 9, 9), (1, 10, 10)], &[1, 1]),
        (&[(1, 0, 0), (1, 0, 0), (1, 9, 9), (1, 0, 0)], &[1, 1, 1, 1]),
        // Trains of the guest's join whole ones of their size.
        (&[(1, 9, 27), (1, 9, 18), (1, 9, 9), (1, 9, 20), (1, 9, 9)], &[4, 1]),
        (&[(1, 9, 9), (1, 4, 8)], &[1, 1]),
        (&many, &[TRAIN, 1]),
        (&long, &[TRAIN_BYTES / 1400, TRAIN - TRAIN_BYTES / 1400]),
    ] {
        let all = datagrams(all);
        assert_eq!(trains(&all).iter().map(|t| t.len()).collect::<Vec<_>>(), wanted);
    }
}

proptest! {
    /// The kernel, which cuts a train at multiples of its size, makes of it what came.
    #[test]
    fn a_train_is_cut_into_what_it_was(all in prop::collection::vec(
        (0u16..3, 1usize..4, 0usize..9)
            .prop_map(|(port, size, len)| (port, size.min(len), len)),
        0..40,
    )) {
        let cut = |size: usize, len| {
            (0..len).step_by(size.max(1)).map(move |at| size.min(len - at)).collect::<Vec<_>>()
        };
        let all = datagrams(&all);
        let trains = trains(&all);
        prop_assert_eq!(trains.iter().map(|t| t.len()).sum::<usize>(), all.len());
        for train in trains {
            prop_assert!(train.iter().all(|d| d.ends == train[0].ends));
            let len = train.iter().map(|d| d.at.len()).sum();
            let each = train.iter().flat_map(|d| cut(d.size, d.at.len())).collect::<Vec<_>>();
            prop_assert_eq!(cut(train[0].size, len), each);
        }
    }
}
