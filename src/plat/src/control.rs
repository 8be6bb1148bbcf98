// SPDX-License-Identifier: Apache-2.0

//! `platd forward`: gives ports of the host to the guest, takes them back and lists them while the
//! network runs (`--control`).
//!
//! A request is a JSON message on a packet socket, and so is its answer. The client opens the port
//! and passes the socket (SCM_RIGHTS, unix(7)), since platd's sandbox does not allow that.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{anyhow, ensure, Context};
use clat_tun::handover;
use nix::sys::socket::{
    connect, send, socket, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr,
};
use serde::{Deserialize, Serialize};

use crate::forward::{Forward, Open, Port};
use crate::link::Server;

/// Bytes of the longest message, a list of all ports.
const LONGEST: usize = 1 << 16;

/// A request.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Give this port to the guest; its socket comes with the message.
    Add(Port),
    /// Take it back.
    Remove(Port),
    /// List the guest's ports.
    List,
}

/// The answer: the ports given, taken back or listed; or an error.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Ports.
    Ports(Vec<Port>),
    /// One line for people.
    Error(String),
}

/// The control socket, which serves one client after another.
#[derive(Debug)]
pub(crate) struct Control(Server);

impl Control {
    pub(crate) fn listen(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(Server::listen(path, SockType::SeqPacket)?))
    }

    /// The client's socket, or else the listener.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// Accepts the next client, or answers the present one with `answer`. `true` for the former:
    /// then there is another descriptor to watch.
    pub(crate) fn event(
        &mut self,
        answer: impl FnOnce(Request, Option<OwnedFd>) -> anyhow::Result<Vec<Port>>,
    ) -> bool {
        let Some(client) = self.0.guest() else { return self.0.accept().unwrap_or(false) };
        let mut message = vec![0; LONGEST];
        if let Ok((len @ 1.., fds)) = handover::receive(client, &mut message) {
            let request = serde_json::from_slice(&message[..len]).context("that is no request");
            let answer = match request.and_then(|request| answer(request, fds.into_iter().next())) {
                Ok(ports) => Answer::Ports(ports),
                Err(e) => Answer::Error(format!("{e:#}")),
            };
            if let Ok(json) = serde_json::to_vec(&answer) {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let _ = send(client.as_raw_fd(), &json, flags);
            }
        }
        self.0.hang_up();
        false
    }
}

/// Makes a platd give ports to its guest.
///
/// # Errors
/// The kernel's error about a port, or platd's.
pub fn add(control: &Path, forward: &Forward) -> anyhow::Result<Vec<Port>> {
    let mut added = Vec::new();
    for (port, open) in forward.open()? {
        let socket = match &open {
            Open::Tcp(listener) => listener.as_fd(),
            Open::Udp(socket) => socket.as_fd(),
        };
        added.extend(ask(control, Request::Add(port), &[socket])?);
    }
    Ok(added)
}

/// Makes a platd take ports back.
///
/// # Errors
/// If one is not the guest's.
pub fn remove(control: &Path, forward: &Forward) -> anyhow::Result<Vec<Port>> {
    let given = ask(control, Request::List, &[])?;
    let mut removed = Vec::new();
    for wanted in forward.ports() {
        let found: Vec<_> = given.iter().filter(|port| wanted.iter().any(|w| w == *port)).collect();
        ensure!(!found.is_empty(), "{} is not the guest's", wanted[0]);
        for port in found {
            removed.extend(ask(control, Request::Remove(*port), &[])?);
        }
    }
    Ok(removed)
}

/// The ports that a platd's guest has.
///
/// # Errors
/// If there is no platd.
pub fn list(control: &Path) -> anyhow::Result<Vec<Port>> {
    ask(control, Request::List, &[])
}

fn ask(control: &Path, request: Request, fds: &[BorrowedFd<'_>]) -> anyhow::Result<Vec<Port>> {
    let address = UnixAddr::new(control).with_context(|| control.display().to_string())?;
    let client = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(client.as_raw_fd(), &address).with_context(|| {
        format!("cannot connect to {}; is a platd running with --control?", control.display())
    })?;
    handover::send(client.as_raw_fd(), &serde_json::to_vec(&request)?, fds)
        .context("cannot ask platd")?;
    let mut message = vec![0; LONGEST];
    let (len, _) = handover::receive(&client, &mut message).context("platd does not answer")?;
    match serde_json::from_slice(&message[..len]).context("platd's answer makes no sense")? {
        Answer::Ports(ports) => Ok(ports),
        Answer::Error(what) => Err(anyhow!(what)),
    }
}
