// SPDX-License-Identifier: Apache-2.0

//! `platd forward`: ports of the host are given to the guest, taken back and listed while the
//! network runs (`--control`).
//!
//! A request is a message of JSON on a packet socket, and so is its answer. Whoever asks for a port
//! opens it, and hands the socket over (SCM_RIGHTS, unix(7)): platd has no right to that any more.

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

/// Bytes of the longest message: a list of all ports that there may be.
const LONGEST: usize = 1 << 16;

/// What is asked for.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// This port is the guest's from now on; its socket comes with the message.
    Add(Port),
    /// No longer.
    Remove(Port),
    /// Which ports are the guest's.
    List,
}

/// The answer: ports that were given, that were taken back, or that are given; or what went wrong.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Ports.
    Ports(Vec<Port>),
    /// One line for people.
    Error(String),
}

/// The socket, at which one after the other asks.
#[derive(Debug)]
pub(crate) struct Control(Server);

impl Control {
    pub(crate) fn listen(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(Server::listen(path, SockType::SeqPacket)?))
    }

    /// Who asks, else where the next one comes.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// Lets the next one in, or answers the one who is there by `answer`. `true` for the first of
    /// these: then there is another descriptor to be watched.
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

/// Has a platd give ports to its guest.
///
/// # Errors
/// What the kernel said of a port, or platd.
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

/// Has a platd take ports back.
///
/// # Errors
/// When one is not the guest's.
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
/// When there is no platd.
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
