// SPDX-License-Identifier: Apache-2.0

//! poll(2), restarted after interruptions.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

/// Time until another try if poll(2) fails.
const RETRY: Duration = Duration::from_millis(100);

/// Waits until one of `fds` is readable or at its end, and returns the index of the first that is;
/// `None` after `timeout`.
pub fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Option<usize> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up; else the last millisecond would be a busy loop.
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
        });
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return None,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return polled.iter().position(|fd| fd.any().unwrap_or(true)),
            Err(e) => {
                // Only ENOMEM is possible. Do not retry in a busy loop.
                log::error!("poll: {e}");
                std::thread::sleep(RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn the_first_that_is_readable() {
        let events = [EventFd::new().expect("an event"), EventFd::new().expect("an event")];
        let fds = [events[0].as_fd(), events[1].as_fd()];
        assert_eq!(wait_readable(&fds, Some(Duration::ZERO)), None);
        events[1].write(1).expect("written");
        assert_eq!(wait_readable(&fds, None), Some(1));
        events[0].write(1).expect("written");
        assert_eq!(wait_readable(&fds, Some(Duration::MAX / 2)), Some(0));
    }
}
