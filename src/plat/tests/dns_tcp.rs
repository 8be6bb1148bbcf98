// SPDX-License-Identifier: Apache-2.0

//! Questions over TCP, in pieces of any size.
#![allow(clippy::unwrap_used)] // helpers are tests too

#[allow(dead_code)] // what flows must hold to
mod invariants;

use proptest::collection::vec;
use proptest::prelude::*;

/// A question for a name of one label.
fn question(id: u16, label: &[u8], kind: u8) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, u8::try_from(label.len()).unwrap()]);
    message.extend(label);
    message.extend([0, 0, kind, 0, 1]);
    message
}

fn stream(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for message in messages {
        stream.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        stream.extend(message);
    }
    stream
}

/// The same question twice: nothing is lost on a stream, so both want an answer.
#[test]
fn each_question_has_its_answer() {
    let messages = vec![question(7, b"twice", 28); 40];
    assert_eq!(invariants::answers(&stream(&messages), &[]).len(), 40);
}

/// A message that is no question closes the connection, since it would never be answered.
#[test]
fn what_is_no_question_ends_the_connection() {
    let mut response = question(7, b"answer", 1);
    response[2] |= 0x80;
    let messages = [question(1, b"a", 1), response, question(2, b"a", 1)];
    let first = u16::try_from(messages[0].len() + 2).unwrap();
    let answers = invariants::answers(&stream(&messages), &[first]);
    assert_eq!((answers.len(), &answers[0][..2]), (1, &[0, 1][..]));
}

proptest! {
    #[test]
    fn questions_may_be_cut_anywhere(
        asked in vec(
            (0..4_u16, vec(b'a'..b'd', 1..4), proptest::sample::select(&[1_u8, 12, 28, 255][..])),
            0..40,
        ),
        cuts in vec(0..1000_u16, 0..20),
        other in vec(any::<u8>(), 0..50),
        damage in proptest::option::of((any::<proptest::sample::Index>(), any::<u8>())),
    ) {
        let mut messages: Vec<_> =
            asked.iter().map(|(id, label, kind)| question(*id, label, *kind)).collect();
        messages.push(b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x08ipv4only\x04arpa\0\0\x1c\0\x01".to_vec());
        let count = messages.len();
        let mut stream = stream(&messages);
        prop_assert_eq!(invariants::answers(&stream, &cuts).len(), count);
        invariants::dns_over_tcp(&stream, &cuts);
        stream.extend(other);
        if let Some((at, byte)) = damage {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        invariants::dns_over_tcp(&stream, &cuts);
    }
}
