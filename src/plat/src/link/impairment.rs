// SPDX-License-Identifier: Apache-2.0

//! What goes wrong between a guest and the network: adapters that stack, each a link around
//! another.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use clat_tun::VirtioHeader;

use super::{Event, Link};

/// Frames that may be under way in one direction at a time, and their bytes.
const UNDER_WAY: usize = 100_000;
const UNDER_WAY_BYTES: usize = 256 << 20;

/// What happens to frames between the guest and the network.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// The share that is lost in each direction, 0 to 1.
    pub loss: f64,
    /// How long each is under way.
    pub delay: Duration,
}

impl Impairment {
    /// The same link with this happening to it.
    #[must_use]
    pub fn around(self, link: Box<dyn Link>) -> Box<dyn Link> {
        let mut link = link;
        if self.delay > Duration::ZERO {
            link = Box::new(Delayed::new(link, self.delay));
        }
        if self.loss > 0.0 {
            link = Box::new(Lossy { link, share: self.loss, lost: 0 });
        }
        link
    }
}

/// A link that loses frames.
struct Lossy {
    link: Box<dyn Link>,
    share: f64,
    /// Of those to the guest.
    lost: u64,
}

impl Link for Lossy {
    fn receive(
        &mut self,
        now: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        let share = self.share;
        self.link.receive(now, &mut |vnet, frame| {
            if fastrand::f64() >= share {
                each(vnet, frame);
            }
        })
    }

    fn send(&mut self, now: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        if fastrand::f64() < self.share {
            self.lost += 1;
        } else {
            self.link.send(now, vnet, parts);
        }
    }

    /// What is lost should be packets, not trains of them.
    fn takes_super_packets(&self) -> bool {
        false
    }

    fn dropped(&self) -> u64 {
        self.lost + self.link.dropped()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.link.fd()
    }

    fn fd_stays(&self) -> bool {
        self.link.fd_stays()
    }

    fn send_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.send_fd()
    }

    fn flush(&mut self, now: Instant) -> io::Result<()> {
        self.link.flush(now)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.link.poll_timeout()
    }

    fn has_guest(&self) -> bool {
        self.link.has_guest()
    }

    fn is_full(&self) -> bool {
        self.link.is_full()
    }
}

/// A link on which frames are under way for a while.
struct Delayed {
    link: Box<dyn Link>,
    delay: Duration,
    up: DelayQueue,
    down: DelayQueue,
    /// For which there was no room, of those to the guest.
    lost: u64,
}

impl Delayed {
    fn new(link: Box<dyn Link>, delay: Duration) -> Self {
        let (up, down) = (DelayQueue::default(), DelayQueue::default());
        Self { link, delay, up, down, lost: 0 }
    }
}

impl Link for Delayed {
    fn receive(
        &mut self,
        now: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        let (up, at) = (&mut self.up, now + self.delay);
        let event = self.link.receive(now, &mut |vnet, frame| {
            up.push(at, *vnet, frame.to_vec());
        })?;
        while let Some((vnet, frame)) = self.up.pop(now) {
            each(&vnet, &frame);
        }
        Ok(event)
    }

    fn send(&mut self, now: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        self.lost += u64::from(!self.down.push(now + self.delay, *vnet, parts.concat()));
    }

    fn flush(&mut self, now: Instant) -> io::Result<()> {
        while let Some((vnet, frame)) = self.down.pop(now) {
            self.link.send(now, &vnet, &[&frame]);
        }
        self.link.flush(now)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let all = [self.up.next(), self.down.next(), self.link.poll_timeout()];
        all.into_iter().flatten().min()
    }

    fn dropped(&self) -> u64 {
        self.lost + self.link.dropped()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.link.fd()
    }

    fn fd_stays(&self) -> bool {
        self.link.fd_stays()
    }

    fn send_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.send_fd()
    }

    fn has_guest(&self) -> bool {
        self.link.has_guest()
    }

    fn is_full(&self) -> bool {
        self.link.is_full()
    }

    fn takes_super_packets(&self) -> bool {
        self.link.takes_super_packets()
    }
}

/// Frames under way.
#[derive(Default)]
struct DelayQueue {
    frames: VecDeque<(Instant, VirtioHeader, Vec<u8>)>,
    bytes: usize,
}

impl DelayQueue {
    /// Whether there was room for one that arrives then.
    fn push(&mut self, at: Instant, vnet: VirtioHeader, frame: Vec<u8>) -> bool {
        let room = self.frames.len() < UNDER_WAY && self.bytes + frame.len() <= UNDER_WAY_BYTES;
        if room {
            self.bytes += frame.len();
            self.frames.push_back((at, vnet, frame));
        }
        room
    }

    /// The next that has arrived.
    fn pop(&mut self, now: Instant) -> Option<(VirtioHeader, Vec<u8>)> {
        self.next().filter(|at| *at <= now)?;
        let (_, vnet, frame) = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some((vnet, frame))
    }

    /// When the next arrives.
    fn next(&self) -> Option<Instant> {
        self.frames.front().map(|(at, ..)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Trains of segments are long: it is not enough to count them.
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

    /// A link of which both ends are here.
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

    /// Both ways, in order, no sooner and no later.
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
        let sent = down.borrow().len();
        assert!((650..950).contains(&up) && (650..950).contains(&sent), "{up} {sent}");
        assert_eq!(link.dropped(), 1000 - sent as u64);
        assert!(!link.takes_super_packets());
    }
}
