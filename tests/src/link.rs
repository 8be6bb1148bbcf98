// SPDX-License-Identifier: Apache-2.0

//! A raw-IP link between two namespaces, like a modem's: two TUN devices (ARPHRD_NONE), and a
//! thread that carries packets from each to the other.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use clat_tun::{Options, Tun};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::pipe;

use crate::netns::Netns;

/// Most packets of one direction before the other is served.
const TURN: usize = 64;

/// Offloads of the links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// The devices' defaults: checksums and segmentation are left open.
    Default,
    /// None: every packet as on a wire.
    Off,
}

/// The devices and their thread, until dropped.
#[derive(Debug)]
pub(crate) struct RawLink {
    /// Closing it ends the thread.
    stop: Option<OwnedFd>,
    carrier: Option<JoinHandle<()>>,
}

impl RawLink {
    /// Connects device `a` of one namespace to device `b` of another; neither may exist. With
    /// default offloads, GSO packets pass as such and checksums are left open; else every packet is
    /// as on a wire.
    pub(crate) fn new(a: (&Netns, &str), b: (&Netns, &str), offloads: Offloads) -> Result<Self> {
        let vnet_header = offloads == Offloads::Default;
        let options = Options { packet_info: false, vnet_header };
        let end = |(ns, dev): (&Netns, &str)| -> Result<Tun> {
            let tun = ns.enter(|| Tun::create(dev, options).context("a raw-IP link"))?;
            // As for a network card.
            ns.run(&format!("ip link set {dev} txqueuelen 1000"))?;
            Ok(tun)
        };
        let ends = [end(a)?, end(b)?];
        let (wait, stop) = pipe()?;
        let carrier = std::thread::Builder::new()
            .name("raw-link".to_owned())
            .spawn(move || carry(&ends, &wait))
            .context("a thread")?;
        Ok(Self { stop: Some(stop), carrier: Some(carrier) })
    }
}

impl Drop for RawLink {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Carries packets until the other end of `stop` is closed.
fn carry(ends: &[Tun; 2], stop: &OwnedFd) {
    let mut buf = vec![0; 1 << 17];
    loop {
        let mut fds = [
            PollFd::new(ends[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(ends[1].as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::empty()),
        ];
        // Errors do not matter; the descriptors are read in any case.
        let _ = poll(&mut fds, PollTimeout::NONE);
        let [first, second, stop] = fds.map(|fd| fd.any().unwrap_or(false));
        if stop {
            return;
        }
        for (ready, from, to) in [(first, 0, 1), (second, 1, 0)] {
            if !ready {
                continue;
            }
            for _ in 0..TURN {
                let Ok((vnet, len)) = ends[from].recv(&mut buf) else { break };
                // A device that is down loses it, like any link.
                let _ = ends[to].send(&vnet, &buf[..len]);
            }
        }
    }
}
