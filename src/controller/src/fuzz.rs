// SPDX-License-Identifier: Apache-2.0

//! For fuzz targets: the whole controller, behind its gate or without, on a host in memory.

use std::sync::Arc;

use crate::binder_adapter::{new_binder, say};
use crate::controller::Controller;
use crate::errors::Error;
use crate::host::fake::FakeHost;
use crate::listeners::Listeners;
use crate::service::ClatdService;
use crate::SERVICE_NAME;

/// Most characters of an error's text, which is logged and sent to the caller.
const MAX_ERROR: usize = 1000;

/// A controller, and a host with the uplink `wlan0`. Checks at the end that nothing of its CLATs is
/// left.
struct World {
    host: FakeHost,
    controller: Arc<Controller<FakeHost>>,
}

impl World {
    fn new() -> Self {
        let host = FakeHost::with_uplink("wlan0");
        let controller = Controller::new(Arc::new(host.clone()), true, Arc::new(drop));
        Self { host, controller: Arc::new(controller) }
    }

    fn end(self) {
        self.controller.shut_down();
        let left = &self.host.inner().live;
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// The answer to a caller that sends `bytes`.
///
/// # Panics
/// If anything is left behind, or no socket can be made.
#[must_use]
pub fn session(bytes: &[u8]) -> Vec<u8> {
    let world = World::new();
    let callers = vec![nix::unistd::geteuid().as_raw()];
    let controller = Arc::clone(&world.controller);
    let service = ClatdService::new(controller, Arc::<Listeners>::default(), callers, Vec::new());
    let answers = say(bytes, SERVICE_NAME, &new_binder(service)).expect("a socket");
    world.end();
    answers
}

/// Runs requests, each a byte that selects it, and its arguments: texts, each after a byte with its
/// length, and numbers of four bytes. Returns how many were granted.
///
/// # Panics
/// If anything is left behind, or an answer is not one line for people.
#[must_use]
pub fn requests(mut data: &[u8]) -> usize {
    let world = World::new();
    let controller = &world.controller;
    let mut granted = 0;
    while let Some(kind) = number(&mut data, 1) {
        let iface = text(&mut data);
        let outcome = match kind % 5 {
            0 => controller.start(&iface, &text(&mut data)).map(drop),
            1 => controller.stop(&iface),
            2 => controller.add_interface(number(&mut data, 4).unwrap_or(0), &iface),
            3 => controller.remove_interface(number(&mut data, 4).unwrap_or(0), &iface),
            _ => controller.destroy_network(number(&mut data, 4).unwrap_or(0)),
        };
        match outcome {
            Ok(()) => granted += 1,
            Err(error) => check(&error),
        }
    }
    assert!(controller.dump().lines().all(|line| !line.contains(char::is_control)));
    world.end();
    granted
}

fn check(error: &Error) {
    let words = error.to_string();
    assert!(!words.contains(char::is_control) && words.len() < MAX_ERROR, "{words:?}");
}

/// A number of `len` bytes; `None` at the end.
fn number(data: &mut &[u8], len: usize) -> Option<i32> {
    let (bytes, rest) = data.split_at_checked(len)?;
    *data = rest;
    Some(bytes.iter().fold(0, |number, byte| number << 8 | i32::from(*byte)))
}

fn text(data: &mut &[u8]) -> String {
    let len = number(data, 1).and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
    let (bytes, rest) = data.split_at(len.min(data.len()));
    *data = rest;
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_carried_out() {
        let start = b"\x00\x05wlan0\x0c64:ff9b::/96";
        let stop = b"\x01\x05wlan0";
        assert_eq!(requests(&[&start[..], start, stop, stop].concat()), 2);
        assert_eq!(requests(b"\x02\x05wlan0\x00\x00\x00\x07\x03\x05wlan0\x00\x00\x00\x07"), 2);
    }

    #[test]
    fn a_session_is_served() {
        assert!(session(b"GET / HTTP/1.1\r\n\r\n").len() < MAX_ERROR);
        let (mut begin, end) = (vec![2, 0, 0, 0], [0; 12]);
        begin.extend(end);
        begin.extend(b"cci\0\0\0\0\0");
        assert!(!session(&begin).is_empty(), "it is told of its session");
    }
}
