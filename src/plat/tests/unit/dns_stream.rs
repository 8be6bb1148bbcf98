// SPDX-License-Identifier: Apache-2.0

//! Messages that arrive in pieces, and a reader that does not read.

use std::os::unix::net::UnixStream;

use super::*;

#[test]
fn cut_anywhere() {
    let bytes = [0, 3, 1, 2, 3, 0, 0, 0, 1, 9];
    for cut in 0..=bytes.len() {
        let (mut other, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut messages = DnsStream::new(stream);
        let mut got = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            other.write_all(part).unwrap();
            while let Some(message) = messages.next(3).unwrap() {
                got.push(message);
            }
        }
        assert_eq!(got, [vec![1, 2, 3], vec![], vec![9]]);
        assert!(!messages.is_over());
        messages.send(&[7, 8]).unwrap();
        let mut answer = [0; 4];
        other.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0, 2, 7, 8]);
        other.write_all(&[0, 4]).unwrap();
        assert!(messages.next(3).is_err(), "too long to be read");
    }
}

#[test]
fn the_end_and_a_reader_that_sleeps() {
    let (other, stream) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut messages = DnsStream::new(stream);
    let mut sent = 0;
    while messages.waiting() == 0 {
        messages.send(&[5; 60_000]).unwrap();
        sent += 60_002;
    }
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; sent];
        (&other).read_exact(&mut all).unwrap();
    });
    while messages.waiting() > 0 {
        messages.flush().unwrap();
    }
    reader.join().unwrap();
    assert_eq!(messages.next(1).unwrap(), None);
    assert!(messages.is_over());
}
