// SPDX-License-Identifier: Apache-2.0

//! Loss and delay on a link with both ends here. The time is an argument.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// GSO packets are long: counting frames is not enough.
#[test]
fn what_is_under_way_is_bounded() {
    const LEN: usize = 1 << 16;
    let mut queue = DelayQueue::default();
    let (now, vnet) = (Instant::now(), VirtioHeader::default());
    let pushed = |queue: &mut DelayQueue, len| queue.push(now + SECOND, vnet, vec![0; len]);
    assert_eq!((0..10_000).filter(|_| pushed(&mut queue, LEN)).count(), 4096);
    assert!(pushed(&mut queue, 0) && !pushed(&mut queue, LEN));
    assert!(queue.pop(now).is_none() && queue.pop(now + SECOND).is_some());
    assert!(pushed(&mut queue, LEN) && !pushed(&mut queue, LEN));
    while queue.pop(now + SECOND).is_some() {}
    assert_eq!((queue.bytes, queue.next()), (0, None));
}

/// A link with both ends here.
#[derive(Default)]
struct Loopback {
    up: Vec<Vec<u8>>,
    down: std::rc::Rc<std::cell::RefCell<Vec<Vec<u8>>>>,
}

impl Link for Loopback {
    fn fd(&self) -> BorrowedFd<'_> {
        panic!("nobody waits for it")
    }

    fn receive(
        &mut self,
        _: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        self.up.drain(..).for_each(|frame| each(&VirtioHeader::default(), &frame));
        Ok(Event::Frames)
    }

    fn send(&mut self, _: Instant, _: &VirtioHeader, parts: &[&[u8]]) {
        self.down.borrow_mut().push(parts.concat());
    }

    fn flush(&mut self, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn is_full(&self) -> bool {
        false
    }

    fn dropped(&self) -> u64 {
        0
    }
}

/// In both directions, in order, neither early nor late.
#[test]
fn a_delay_is_that_of_each_frame() {
    let down = std::rc::Rc::default();
    let up = vec![vec![1], vec![2]];
    let inner = Loopback { up, down: std::rc::Rc::clone(&down) };
    let impairment = Impairment { delay: SECOND, loss: 0.0 };
    let mut link = impairment.around(Box::new(inner));
    let start = Instant::now();
    let received = |link: &mut Box<dyn Link>, now| {
        let mut frames = Vec::new();
        link.receive(now, &mut |_, frame| frames.push(frame.to_vec())).unwrap();
        link.flush(now).unwrap();
        frames
    };
    link.send(start, &VirtioHeader::default(), &[&[3], &[4]]);
    assert!(received(&mut link, start).is_empty() && down.borrow().is_empty());
    let end = start + SECOND;
    assert_eq!(link.poll_timeout(), Some(end));
    let almost = end - Duration::from_millis(1);
    assert!(received(&mut link, almost).is_empty() && down.borrow().is_empty());
    assert_eq!(received(&mut link, end), [[1], [2]]);
    assert_eq!(*down.borrow(), [[3, 4]]);
    assert_eq!(link.poll_timeout(), None);
}

#[test]
fn loss_is_its_share() {
    let down = std::rc::Rc::default();
    let inner = Loopback { up: vec![vec![0]; 1000], down: std::rc::Rc::clone(&down) };
    let mut link = Impairment { loss: 0.2, delay: Duration::ZERO }.around(Box::new(inner));
    let (now, mut up) = (Instant::now(), 0);
    link.receive(now, &mut |_, _| up += 1).unwrap();
    for _ in 0..1000 {
        link.send(now, &VirtioHeader::default(), &[&[0]]);
    }
    link.flush(now).unwrap();
    let sent = down.borrow().len();
    assert!((650..950).contains(&up) && (650..950).contains(&sent), "{up} {sent}");
    assert_eq!(link.dropped(), 1000 - sent as u64);
    assert!(!link.takes_super_packets());
}
