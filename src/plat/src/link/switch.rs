// SPDX-License-Identifier: Apache-2.0

//! A switch for the TAP devices of nodes (`platd net`), which a socket serves.
//!
//! A node connects, says its name in a JSON message, is told how to make its device, and passes
//! the device (SCM_RIGHTS, unix(7)). It has left when its connection is closed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use clat_tun::{handover, Tun, VirtioHeader};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::SockType;
use serde::{Deserialize, Serialize};

use super::{Event, Link, Server, Tap};
use crate::frame::{Mac, ETHERNET};
use crate::settings::Label;

/// Most nodes, and most Ethernet addresses behind all of them.
const MOST: usize = 64;
const MOST_STATIONS: usize = 1024;
/// Bytes of the longest request.
const LONGEST: usize = 4096;

/// Tokens: of the listener, or twice a port's number, plus one for its device.
const LISTENER: u64 = 0;
/// The port of the router; nodes' ports have larger numbers.
const ROUTER: u64 = 0;

/// A node's, or another client's, request.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Join as a node, by this name or one of the network's choice. The device follows in another
    /// message.
    Join(Option<Label>),
    /// List the nodes.
    List,
}

/// The answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// How to make the device.
    Joined(Terms),
    /// The nodes by name.
    Nodes(Vec<Label>),
    /// One line for people.
    Error(String),
}

/// What a node has to know of the network before it has a device.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Terms {
    /// The device's name.
    pub ifname: String,
    /// Its MTU.
    pub mtu: u16,
    /// Whether it has no virtio headers.
    pub plain: bool,
    /// Whether to use the network's DNS server.
    pub dns: bool,
    /// Search domains; else the host's.
    pub search: Vec<String>,
}

/// A client, which becomes a node.
#[derive(Debug)]
struct Port {
    client: UnixStream,
    name: Option<Label>,
    tap: Option<Tap>,
    /// The node's Ethernet address, once heard.
    station: Option<Mac>,
}

/// The link.
#[derive(Debug)]
pub struct Switch {
    epoll: Epoll,
    server: Server,
    terms: Terms,
    ports: BTreeMap<u64, Port>,
    /// The number of the latest port.
    latest: u64,
    /// The port of each Ethernet address: the first that has used it, while that is there.
    stations: HashMap<Mac, u64>,
    /// Whether the nodes are others than reported.
    has_changed: bool,
    dropped: u64,
}

impl Switch {
    /// A switch for a router with this Ethernet address. Nodes connect to `path`, accessible to
    /// this user only.
    ///
    /// # Errors
    /// If the name is in use or too long, or the directory is missing.
    pub fn listen(path: &Path, terms: Terms, router: Mac) -> io::Result<Self> {
        let server = Server::listen(path, SockType::SeqPacket)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(server.fd(), EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let stations = HashMap::from([(router, ROUTER)]);
        let (ports, latest) = (BTreeMap::new(), ROUTER);
        let (has_changed, dropped) = (false, 0);
        Ok(Self { epoll, server, terms, ports, latest, stations, has_changed, dropped })
    }

    fn accept(&mut self) {
        if !self.server.accept().unwrap_or(false) {
            return;
        }
        let Some(client) = self.server.give() else { return };
        if self.ports.len() >= MOST {
            let why = format!("the network has {MOST} nodes, and takes no more");
            return answer(&client, &Answer::Error(why));
        }
        self.latest += 1;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, 2 * self.latest);
        if self.epoll.add(&client, event).is_ok() {
            let port = Port { client, name: None, tap: None, station: None };
            self.ports.insert(self.latest, port);
        }
    }

    /// Handles a message of a client, or its end.
    fn hear(&mut self, number: u64) {
        let Some(port) = self.ports.get_mut(&number) else { return };
        let mut message = [0; LONGEST];
        let (message, fd) = match handover::receive(&port.client, &mut message) {
            Ok((len @ 1.., fds)) => (&message[..len], fds.into_iter().next()),
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Ok(_) | Err(_) => return self.leave(number),
        };
        if port.name.is_some() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, 2 * number + 1);
            let device = fd.filter(|_| port.tap.is_none());
            let device = device.and_then(|fd| Tun::tap_from_fd_as(fd, !self.terms.plain).ok());
            match device.filter(|device| self.epoll.add(device, event).is_ok()) {
                Some(device) => port.tap = Some(Tap::new(device)),
                None => self.leave(number),
            }
            return;
        }
        let told = match serde_json::from_slice(message) {
            Ok(Request::Join(name)) => match self.choose(name) {
                Ok(name) => {
                    if let Some(port) = self.ports.get_mut(&number) {
                        port.name = Some(name);
                    }
                    Answer::Joined(self.terms.clone())
                }
                Err(why) => Answer::Error(why),
            },
            Ok(Request::List) => Answer::Nodes(self.names().cloned().collect()),
            Err(e) => Answer::Error(format!("that is no request: {e}")),
        };
        if let Some(port) = self.ports.get(&number) {
            answer(&port.client, &told);
        }
    }

    fn names(&self) -> impl Iterator<Item = &Label> {
        self.ports.values().filter_map(|port| port.name.as_ref())
    }

    /// The name for a node that wants this one, or any.
    fn choose(&self, wanted: Option<Label>) -> Result<Label, String> {
        let is_free = |name: &Label| self.names().all(|other| other != name);
        if let Some(name) = wanted {
            let taken = format!("the network has a node {name}; choose another name");
            return Some(name).filter(is_free).ok_or(taken);
        }
        let mut numbered = (1..=MOST + 1).filter_map(|n| format!("node{n}").parse().ok());
        numbered.find(is_free).ok_or_else(|| "give a --name".to_owned())
    }

    fn leave(&mut self, number: u64) {
        let Some(port) = self.ports.remove(&number) else { return };
        if let Some(tap) = port.tap {
            // The client may have kept it open.
            let _ = self.epoll.delete(tap.fd());
        }
        self.has_changed = true;
        self.stations.retain(|_, port| *port != number);
    }

    /// Passes the frames of a node to others, and to `each`.
    fn take(&mut self, number: u64, now: Instant, each: &mut dyn FnMut(&VirtioHeader, &[u8])) {
        let Some(mut tap) = self.ports.get_mut(&number).and_then(|port| port.tap.take()) else {
            return;
        };
        let mut first = None;
        let received = tap.receive(now, &mut |vnet, frame| {
            let Some((to, from)) = ends(frame) else { return };
            let known = self.stations.len();
            let owner = match self.stations.get(&from) {
                None if known < MOST_STATIONS && !from.is_multicast() => {
                    *self.stations.entry(from).or_insert(number)
                }
                owner => owner.copied().unwrap_or(ROUTER),
            };
            if owner != number {
                self.dropped += 1;
                return;
            }
            first.get_or_insert(from);
            if self.pass(to, now, vnet, &[frame]) {
                each(vnet, frame);
            }
        });
        if let Some(port) = self.ports.get_mut(&number) {
            port.tap = Some(tap);
            self.has_changed |= port.station.is_none() && first.is_some();
            port.station = port.station.or(first);
        }
        if let Err(e) = received {
            log::debug!("the device of a node is gone: {e}");
            self.leave(number);
        }
    }

    /// Sends a frame to the node that has this address, or else to all that are there. Whether it
    /// is also the router's.
    fn pass(&mut self, to: Mac, now: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) -> bool {
        let only = self.stations.get(&to);
        for (number, port) in &mut self.ports {
            if let Some(tap) = port.tap.as_mut().filter(|_| only.is_none_or(|only| only == number))
            {
                tap.send(now, vnet, parts);
            }
        }
        to.is_multicast() || only == Some(&ROUTER)
    }

    fn nodes(&self) -> Vec<(Label, Mac)> {
        let ports = self.ports.values();
        ports.filter_map(|port| port.name.clone().zip(port.station)).collect()
    }
}

/// The Ethernet addresses of a frame's receiver and sender.
fn ends(frame: &[u8]) -> Option<(Mac, Mac)> {
    let (to, rest) = frame.get(..ETHERNET)?.split_first_chunk()?;
    Some((Mac(*to), Mac(*rest.first_chunk()?)))
}

fn answer(client: &UnixStream, answer: &Answer) {
    // A client that does not read has left.
    if let Ok(json) = serde_json::to_vec(answer) {
        let _ = handover::send(client.as_raw_fd(), &json, &[]);
    }
}

impl Link for Switch {
    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    fn fd_stays(&self) -> bool {
        true
    }

    fn receive(
        &mut self,
        now: Instant,
        each: &mut dyn FnMut(&VirtioHeader, &[u8]),
    ) -> io::Result<Event> {
        let mut events = [EpollEvent::empty(); 2 * MOST + 1];
        let n = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Err(Errno::EINTR) => 0,
            n => n?,
        };
        for event in &events[..n] {
            match event.data() {
                LISTENER => self.accept(),
                token if token % 2 == 0 => self.hear(token / 2),
                token => self.take(token / 2, now, each),
            }
        }
        if std::mem::take(&mut self.has_changed) {
            return Ok(Event::Nodes(self.nodes()));
        }
        Ok(Event::Frames)
    }

    fn send(&mut self, now: Instant, vnet: &VirtioHeader, parts: &[&[u8]]) {
        if let Some((to, _)) = parts.first().and_then(|head| ends(head)) {
            self.pass(to, now, vnet, parts);
        }
    }

    fn has_guest(&self) -> bool {
        self.ports.values().any(|port| port.tap.is_some())
    }

    fn takes_super_packets(&self) -> bool {
        !self.terms.plain
    }

    fn dropped(&self) -> u64 {
        let taps = self.ports.values().filter_map(|port| port.tap.as_ref());
        self.dropped + taps.map(Link::dropped).sum::<u64>()
    }
}
