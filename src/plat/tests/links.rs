// SPDX-License-Identifier: Apache-2.0

//! The sockets of guests, with guests that behave and guests that do not.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

use clat_plat::frame::{Mac, MAX_FRAME};
use clat_plat::link::{Answer, Datagrams, Event, Link, Packets, Request, Stream, Switch, Terms};
use clat_tun::{handover, VirtioHeader};
use nix::sys::socket::{connect, recv, send, socket};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use proptest::collection::vec;
use proptest::prelude::*;

/// A temporary directory, and a name in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("plat.sock");
    (dir, path)
}

/// The result of one call to `receive`.
fn receive(link: &mut impl Link) -> (Event, Vec<Vec<u8>>) {
    let mut frames = Vec::new();
    let event = link
        .receive(Instant::now(), &mut |_, frame| frames.push(frame.to_vec()))
        .expect("receives");
    (event, frames)
}

/// All frames received until there are `count`.
fn gather(link: &mut impl Link, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for _ in 0..1000 {
        let (event, more) = receive(link);
        assert_eq!(event, Event::Frames);
        frames.extend(more);
        if frames.len() >= count {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    frames
}

/// Sends all of them.
fn give(link: &mut impl Link, frames: &[Vec<u8>]) -> std::io::Result<()> {
    let now = Instant::now();
    frames.iter().for_each(|frame| link.send(now, &VirtioHeader::default(), &[frame]));
    link.flush(now)
}

/// A frame that can be recognised.
fn frame(number: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![number; len];
    frame[len - 1] = 0xee;
    frame
}

fn on_the_wire(frames: &[Vec<u8>]) -> Vec<u8> {
    let with_length = |frame: &Vec<u8>| {
        let length = u32::try_from(frame.len()).expect("short");
        [length.to_be_bytes().to_vec(), frame.clone()].concat()
    };
    frames.iter().flat_map(with_length).collect()
}

fn plugged_in() -> (tempfile::TempDir, Stream, UnixStream) {
    let (dir, path) = place();
    let mut link = Stream::listen(&path).expect("listens");
    let guest = UnixStream::connect(&path).expect("connects");
    guest.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    assert_eq!(receive(&mut link), (Event::Came, vec![]));
    (dir, link, guest)
}

#[test]
fn a_stream_cut_anywhere_gives_the_same_frames() {
    let (_dir, mut link, mut guest) = plugged_in();
    let frames = [frame(1, 14), frame(2, 60), frame(3, 1514), frame(4, 15)];
    let bytes = on_the_wire(&frames);
    for cut in 0..bytes.len() {
        let mut received = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            guest.write_all(part).expect("writes");
            let (event, more) = receive(&mut link);
            assert_eq!(event, Event::Frames);
            received.extend(more);
        }
        assert_eq!(received, frames, "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes in any pieces give frames up to the first invalid length, and then the end of the
    /// connection.
    #[test]
    fn any_stream(
        lengths in vec(prop_oneof![8 => 14..200_u32, 1 => any::<u32>(), 1 => 0..14_u32], 0..30),
        bytes in vec(any::<u8>(), 0..40),
        pieces in vec(1..500_usize, 1..20),
    ) {
        let all: Vec<u8> = lengths
            .iter()
            .flat_map(|length| {
                [&length.to_be_bytes()[..], &vec![7; *length as usize % 200]].concat()
            })
            .chain(bytes)
            .collect();
        let (mut expected, mut rest, mut lies) = (Vec::new(), &all[..], false);
        while let Some((length, more)) = rest.split_first_chunk() {
            let length = u32::from_be_bytes(*length) as usize;
            lies = !(14..=MAX_FRAME).contains(&length);
            if lies || more.len() < length {
                break;
            }
            expected.push(more[..length].to_vec());
            rest = &more[length..];
        }
        let (_dir, mut link, mut guest) = plugged_in();
        let (mut received, mut left, mut rest) = (Vec::new(), false, &all[..]);
        for piece in pieces.iter().cycle() {
            if rest.is_empty() || left {
                break;
            }
            let (now, later) = rest.split_at(rest.len().min(*piece));
            guest.write_all(now).expect("writes");
            let (event, more) = receive(&mut link);
            received.extend(more);
            left = matches!(event, Event::Left(_));
            rest = later;
        }
        prop_assert_eq!((received, left), (expected, lies));
    }
}

#[test]
fn a_stream_takes_the_longest_frames_by_the_dozen() {
    let (_dir, mut link, mut guest) = plugged_in();
    let frames: Vec<_> = (0..12).map(|number| frame(number, MAX_FRAME)).collect();
    let bytes = on_the_wire(&frames);
    let writer = thread::spawn(move || guest.write_all(&bytes).map(|()| guest));
    assert_eq!(gather(&mut link, frames.len()), frames);
    writer.join().expect("ends").expect("writes");
}

#[test]
fn a_length_that_lies_ends_the_connection_and_nothing_else() {
    for length in [0, 1, 13, u32::try_from(MAX_FRAME).expect("short") + 1, u32::MAX] {
        let (dir, mut link, mut guest) = plugged_in();
        let good = [frame(7, 20)];
        guest.write_all(&on_the_wire(&good)).expect("writes");
        guest.write_all(&length.to_be_bytes()).expect("writes");
        let (event, frames) = receive(&mut link);
        let Event::Left(why) = event else { panic!("{length}: {event:?}") };
        assert!(why.contains(&format!("{length} bytes")) && !why.contains('\n'), "{why}");
        assert_eq!(frames, good, "what came before counts");
        assert_eq!(guest.read(&mut [0; 8]).expect("reads"), 0, "hung up on");

        let mut next = UnixStream::connect(dir.path().join("plat.sock")).expect("connects");
        assert_eq!(receive(&mut link).0, Event::Came);
        next.write_all(&on_the_wire(&good)).expect("writes");
        assert_eq!(receive(&mut link), (Event::Frames, good.to_vec()), "and from the beginning");
    }
}

#[test]
fn the_next_guest_of_a_stream_waits_until_the_first_has_left() {
    let (dir, mut link, mut first) = plugged_in();
    let mut second = UnixStream::connect(dir.path().join("plat.sock")).expect("connects");
    second.write_all(&on_the_wire(&[frame(2, 14)])).expect("writes");
    assert_eq!(receive(&mut link), (Event::Frames, vec![]));
    first.write_all(&on_the_wire(&[frame(1, 14)])[..9]).expect("writes");
    drop(first);
    assert_eq!(receive(&mut link), (Event::Frames, vec![]), "half a frame");
    assert!(matches!(receive(&mut link), (Event::Left(_), frames) if frames.is_empty()));
    assert_eq!(receive(&mut link).0, Event::Came);
    assert_eq!(receive(&mut link), (Event::Frames, vec![frame(2, 14)]));
}

#[test]
fn a_stream_keeps_order_for_a_guest_that_reads_late_and_drops_whole_frames() {
    let (_dir, mut link, mut guest) = plugged_in();
    let mut sent = 0;
    while link.dropped() == 0 {
        let frames: Vec<_> = (0..64).map(|_| frame(9, 1514)).collect();
        give(&mut link, &frames).expect("sends");
        sent += 64;
        assert!(sent < 10_000, "memory grows without end");
    }
    assert!(link.is_full());
    let expected = sent - usize::try_from(link.dropped()).expect("few");
    let reader = thread::spawn(move || {
        for _ in 0..expected {
            let mut length = [0; 4];
            guest.read_exact(&mut length).expect("reads");
            let mut got = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("short")];
            guest.read_exact(&mut got).expect("reads");
            assert_eq!(got, frame(9, 1514));
        }
        guest
    });
    while link.is_full() {
        give(&mut link, &[]).expect("sends");
        thread::sleep(Duration::from_millis(1));
    }
    let mut guest = reader.join().expect("whole frames in order");
    give(&mut link, &[frame(5, 30)]).expect("sends");
    let mut next = [0; 34];
    guest.read_exact(&mut next).expect("reads");
    assert_eq!(next[..], on_the_wire(&[frame(5, 30)]));
}

#[test]
fn sending_to_nobody_or_to_one_who_left_is_counted_and_no_error() {
    let (_dir, mut link, guest) = plugged_in();
    drop(guest);
    give(&mut link, &[frame(1, 60)]).expect("the guest is gone, the link is not");
    assert!(matches!(receive(&mut link).0, Event::Left(_)));
    give(&mut link, &[frame(1, 60), frame(2, 60)]).expect("sends");
    assert_eq!(link.dropped(), 2);
}

#[test]
fn names_are_for_the_owner_and_free_again_afterwards() {
    fn check<L: Link>(listen: impl Fn(&Path) -> std::io::Result<L>) {
        let (_dir, path) = place();
        let link = listen(&path).expect("listens");
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        drop(link);
        assert!(!path.exists());

        // As left by a killed process.
        let leftover = UnixListener::bind(&path).expect("binds");
        let error = listen(&path).err().expect("taken").to_string();
        assert!(error.contains("another program") || error.contains("something else"), "{error}");
        drop(leftover);
        listen(&path).expect("replaces what nobody listens at");

        fs::write(&path, "a file of somebody's").expect("writes");
        let error = listen(&path).err().expect("taken").to_string();
        assert!(error.contains("plat.sock") && error.contains("choose another"), "{error}");
        assert_eq!(fs::read(&path).expect("is there"), b"a file of somebody's");

        let missing = path.with_file_name("missing").join("plat.sock");
        assert!(listen(&missing).is_err());
        assert!(listen(Path::new(&"x".repeat(200))).is_err());
    }
    check(Stream::listen);
    check(Packets::listen);
    check(Datagrams::bind);
}

#[test]
fn a_packet_socket_has_a_frame_in_each_message() {
    let (_dir, path) = place();
    let mut link = Packets::listen(&path).expect("listens");
    let guest = || {
        let guest = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None);
        let guest = guest.expect("a socket");
        let address = UnixAddr::new(&path).expect("an address");
        connect(guest.as_raw_fd(), &address).expect("connects");
        guest
    };
    let first = guest();
    assert_eq!(receive(&mut link).0, Event::Came);
    let frames = [frame(1, 14), frame(2, 1514), frame(3, 9000)];
    for message in [&frames[0], &frame(9, 13), &frames[1], &frames[2]] {
        send(first.as_raw_fd(), message, MsgFlags::empty()).expect("sends");
    }
    assert_eq!(receive(&mut link), (Event::Frames, frames.to_vec()));
    assert_eq!(link.dropped(), 1, "too short for a frame");

    give(&mut link, &frames).expect("sends");
    let mut message = [0; 10_000];
    for frame in &frames {
        let len = recv(first.as_raw_fd(), &mut message, MsgFlags::empty()).expect("receives");
        assert_eq!(message[..len], frame[..]);
    }

    let many: Vec<_> = (0..2000).map(|_| frame(4, 1514)).collect();
    give(&mut link, &many).expect("sends");
    assert!(link.is_full() && link.dropped() > 1, "not without end");

    drop(first);
    assert!(matches!(receive(&mut link).0, Event::Left(_)));
    assert!(!link.is_full());
    let _second = guest();
    assert_eq!(receive(&mut link).0, Event::Came);
}

#[test]
fn a_datagram_guest_is_whoever_sent_last() {
    let (dir, path) = place();
    let mut link = Datagrams::bind(&path).expect("binds");
    give(&mut link, &[frame(1, 14)]).expect("sends");
    assert_eq!(link.dropped(), 1, "nobody is there yet");

    let name = dir.path().join("guest.sock");
    let guest = |name: &Path| {
        let guest = UnixDatagram::bind(name).expect("binds");
        guest.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        guest.connect(&path).expect("connects");
        guest
    };
    let first = guest(&name);
    first.send(&frame(1, 60)).expect("sends");
    first.send(&frame(2, 13)).expect("sends");
    first.send(&frame(3, 60)).expect("sends");
    assert_eq!(receive(&mut link), (Event::Came, vec![frame(1, 60)]));
    assert_eq!(receive(&mut link), (Event::Frames, vec![frame(3, 60)]));
    give(&mut link, &[frame(4, 60)]).expect("sends");
    let mut message = [0; 2000];
    assert_eq!(first.recv(&mut message).expect("receives"), 60);
    assert_eq!(message[..60], frame(4, 60));

    let many: Vec<_> = (0..2000).map(|_| frame(5, 1514)).collect();
    give(&mut link, &many).expect("sends");
    assert!(link.is_full() && link.dropped() > 2, "not without end");

    // It starts once more, under the same name.
    drop(first);
    fs::remove_file(&name).expect("removes");
    let again = guest(&name);
    // Waiting frames come first, as from any queue.
    while link.is_full() {
        give(&mut link, &[]).expect("sends");
        again.set_nonblocking(true).expect("a mode");
        while let Ok(len) = again.recv(&mut message) {
            assert_eq!(message[..len], frame(5, 1514));
        }
        again.set_nonblocking(false).expect("a mode");
    }
    give(&mut link, &[frame(6, 60)]).expect("sends");
    assert_eq!(again.recv(&mut message).expect("receives"), 60);
    assert_eq!(message[..60], frame(6, 60));

    // Closed for good.
    drop(again);
    fs::remove_file(&name).expect("removes");
    give(&mut link, &[frame(7, 60)]).expect("no error of the link's");
    let other = guest(&dir.path().join("other.sock"));
    other.send(&frame(8, 60)).expect("sends");
    assert_eq!(receive(&mut link), (Event::Came, vec![frame(8, 60)]));
    give(&mut link, &[frame(9, 60)]).expect("sends");
    assert_eq!(other.recv(&mut message).expect("receives"), 60);
}

/// A client of a switch, and the answer to what it says first, if it gets one.
fn ask_switch(switch: &mut Switch, path: &Path, words: &[u8]) -> (OwnedFd, Option<Answer>) {
    let client = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .expect("a socket");
    connect(client.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("connects");
    receive(switch);
    // One that is hung up on does not hear it.
    let _ = send(client.as_raw_fd(), words, MsgFlags::MSG_NOSIGNAL);
    receive(switch);
    let mut message = [0; 4096];
    let len = recv(client.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT);
    let answer = serde_json::from_slice(&message[..len.unwrap_or(0)]).ok();
    (client, answer)
}

/// Requests that make no sense, names that are taken, what is no device, and too many clients.
#[test]
fn a_switch_survives_its_clients() {
    let (_dir, path) = place();
    let terms = Terms {
        ifname: "plat0".to_owned(),
        mtu: 1500,
        plain: false,
        dns: true,
        search: Vec::new(),
    };
    let mut switch = Switch::listen(&path, terms, Mac([2, 0, 0, 0, 0, 1])).expect("listens");
    let join = |name: &str| serde_json::to_vec(&Request::Join(name.parse().ok())).expect("JSON");
    let over = [b"{\"join\":\"".as_slice(), &[b'x'; 5000], b"\"}"].concat();
    for words in [&b"x"[..], b"{}", b"{\"join\":\"../a\"}", b"\xff", &over] {
        let (_, answer) = ask_switch(&mut switch, &path, words);
        assert!(matches!(answer, Some(Answer::Error(_))), "{answer:?}");
    }
    for device in [None, Some(fs::File::open("/dev/null").expect("opens"))] {
        let (client, answer) = ask_switch(&mut switch, &path, &join("a"));
        assert!(matches!(answer, Some(Answer::Joined(_))), "{answer:?}");
        let (_, answer) = ask_switch(&mut switch, &path, &join("A"));
        assert!(matches!(answer, Some(Answer::Error(_))), "{answer:?}");
        let fds: Vec<_> = device.iter().map(AsFd::as_fd).collect();
        handover::send(client.as_raw_fd(), b"d", &fds).expect("sends");
        receive(&mut switch);
        assert_eq!(recv(client.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT), Ok(0));
    }
    let all: Vec<_> = (0..70).map(|_| ask_switch(&mut switch, &path, &join(""))).collect();
    let joined = all.iter().filter(|(_, answer)| matches!(answer, Some(Answer::Joined(_))));
    assert_eq!(joined.count(), 64);
    assert!(matches!(all[69].1, Some(Answer::Error(_))), "{:?}", all[69].1);
    drop(all);
    assert_eq!(receive(&mut switch), (Event::Nodes(vec![]), vec![]));
    let (_, answer) = ask_switch(&mut switch, &path, &join("node1"));
    assert!(matches!(answer, Some(Answer::Joined(_))), "{answer:?}");
    assert!(!switch.has_guest());
}
