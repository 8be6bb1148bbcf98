// SPDX-License-Identifier: Apache-2.0

//! The uplinks of a network namespace, and what is known of their networks.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use clat_discover::{Host, Message, Uplink, Verdict};
use clat_host::IfaceName;
use clat_netlink::{links, Subscription, Topic};
use clat_sys::wait_readable;

use super::facts;
use super::settings::Settings;
use super::sockets::{Dhcpv4, Question, Routers};

/// How long to gather further changes after one: they come in bursts.
const GATHERING: Duration = Duration::from_millis(5);
/// While no prefix is known, how often to read the lists of resolvers again.
const LOOKING: Duration = Duration::from_secs(10);
/// Most open questions to resolvers per uplink.
const QUESTIONS: usize = 8;

const TOPICS: [Topic; 5] =
    [Topic::Links, Topic::Addresses4, Topic::Addresses6, Topic::Routes4, Topic::Routes6];

/// All uplinks, and the sockets that serve them.
#[derive(Debug)]
pub(super) struct Network {
    settings: Settings,
    /// `None` without the permission to open it.
    routers: Option<Routers>,
    subscription: Subscription,
    pub(super) uplinks: BTreeMap<u32, Watched>,
    /// When to read the kernel's state again.
    due: Option<Instant>,
}

/// One uplink.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) name: IfaceName,
    pub(super) uplink: Uplink,
    dhcpv4: Option<Dhcpv4>,
    questions: Vec<Question>,
}

/// An interface that is no uplink any more, and whether it still exists.
pub(super) type Gone = (u32, IfaceName, bool);

impl Network {
    /// For the network namespace of this thread.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub(super) fn new(settings: Settings, routers: Option<Routers>) -> io::Result<Self> {
        let subscription = Subscription::new(&TOPICS)?;
        let due = Some(Instant::now());
        Ok(Self { settings, routers, subscription, uplinks: BTreeMap::new(), due })
    }

    /// Changes the settings.
    pub(super) fn set(&mut self, settings: Settings, now: Instant) {
        for watched in self.uplinks.values_mut() {
            watched.uplink.configure(settings.prefix(watched.name.as_str()), now);
        }
        self.settings = settings;
        self.due = Some(now);
    }

    /// Whether router advertisements can be received.
    pub(super) fn hears_routers(&self) -> bool {
        self.routers.is_some()
    }

    /// Waits until there is something to do here, `other` is readable, or `deadline` has come; true
    /// if it is `other`.
    pub(super) fn wait(&self, other: BorrowedFd<'_>, deadline: Option<Instant>) -> bool {
        let mut fds = vec![other, self.subscription.as_fd()];
        fds.extend(self.routers.iter().map(AsFd::as_fd));
        for watched in self.uplinks.values() {
            fds.extend(watched.dhcpv4.iter().map(AsFd::as_fd));
            fds.extend(watched.questions.iter().map(AsFd::as_fd));
        }
        let now = Instant::now();
        let timers = self.uplinks.values().filter_map(|watched| watched.uplink.poll_timeout(now));
        let next = timers.chain(self.due).chain(deadline).min();
        wait_readable(&fds, next.map(|next| next.saturating_duration_since(now))) == Some(0)
    }

    /// Handles received messages and changes, sends what is due, and returns interfaces that are no
    /// uplinks any more.
    pub(super) fn step(&mut self, now: Instant) -> Vec<Gone> {
        match self.subscription.read() {
            Ok(changes) if changes.is_empty() => {}
            Ok(_) => self.look_by(now + GATHERING),
            Err(e) => log::error!("CLATs no longer follow the network: {e}"),
        }
        let heard: Vec<_> = std::iter::from_fn(|| self.routers.as_ref()?.receive()).collect();
        // An advertisement may arrive before the kernel's report of the link.
        let is_new = heard.iter().any(|(index, ..)| !self.uplinks.contains_key(index));
        let due = self.due.is_some_and(|due| due <= now);
        let gone = if due || is_new { self.look(now) } else { Vec::new() };
        for (index, from, message) in heard {
            if let Some(watched) = self.uplinks.get_mut(&index) {
                watched.uplink.handle_icmp(from, 255, &message, now);
            }
        }
        for (index, watched) in &mut self.uplinks {
            watched.receive(now);
            watched.uplink.handle_timeout(now);
            while let Some(message) = watched.uplink.poll_transmit(now) {
                watched.send(self.routers.as_ref(), *index, message);
            }
        }
        let mut uplinks = self.uplinks.values();
        if uplinks.any(|watched| watched.uplink.verdict(now) == Verdict::NoPrefix) {
            self.look_by(now + LOOKING);
        }
        gone
    }

    /// Reads the kernel's state again by `latest`.
    fn look_by(&mut self, latest: Instant) {
        self.due = Some(self.due.map_or(latest, |due| due.min(latest)));
    }

    /// Reads the kernel's state of the network.
    fn look(&mut self, now: Instant) -> Vec<Gone> {
        self.due = None;
        let links = links().unwrap_or_else(|e| {
            log::error!("cannot list interfaces: {e}");
            Vec::new()
        });
        let found = facts::uplinks(&links, &self.settings);
        let is_there = |index| links.iter().any(|link| link.index == index);
        let has_other_clat = facts::has_other_clat(&links);
        let mut gone = Vec::new();
        self.uplinks.retain(|index, watched| {
            let stays = found.get(index) == Some(&watched.name);
            if !stays {
                gone.push((*index, watched.name.clone(), is_there(*index)));
            }
            stays
        });
        for link in &links {
            let Some(name) = found.get(&link.index) else { continue };
            let watched = self
                .uplinks
                .entry(link.index)
                .or_insert_with(|| Watched::new(link.index, name, &self.settings, now));
            let ours = watched.dhcpv4.as_ref().and_then(|dhcpv4| dhcpv4.inode().ok());
            match facts::host(link, ours, has_other_clat) {
                Ok(host) if self.settings.ignores_ipv4 => {
                    let host = Host { has_ipv4: false, has_dhcpv4: false, ..host };
                    watched.uplink.handle_host(host, now);
                }
                Ok(host) => watched.uplink.handle_host(host, now),
                Err(e) => log::debug!("{name}: cannot tell what it has: {e}"),
            }
        }
        gone
    }
}

impl Watched {
    fn new(index: u32, name: &IfaceName, settings: &Settings, now: Instant) -> Self {
        log::info!("{name}: is an uplink");
        let dhcpv4 = Dhcpv4::open(index);
        let dhcpv4 = dhcpv4.inspect_err(|e| log::debug!("{name}: cannot hear DHCPv4: {e}")).ok();
        let uplink = Uplink::new(settings.prefix(name.as_str()), now);
        Self { name: name.clone(), uplink, dhcpv4, questions: Vec::new() }
    }

    fn receive(&mut self, now: Instant) {
        if let Some(dhcpv4) = &self.dhcpv4 {
            while let Some(packet) = dhcpv4.receive() {
                self.uplink.handle_ipv4(&packet, dhcpv4.address(), now);
            }
        }
        let mut answers: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
        self.questions.retain(|question| match question.receive() {
            Ok(answer) => {
                answers.push((question.resolver(), answer));
                true
            }
            // A resolver that refuses sends nothing more.
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        });
        for (resolver, answer) in answers {
            self.uplink.handle_dns(resolver, &answer, now);
        }
    }

    fn send(&mut self, routers: Option<&Routers>, index: u32, message: Message) {
        let sent = match message {
            Message::Solicitation => routers.map_or(Ok(()), |routers| routers.solicit(index)),
            Message::Question(resolver, question) => {
                if self.questions.len() >= QUESTIONS {
                    self.questions.remove(0);
                }
                let asked = Question::ask(&self.name, resolver, &question);
                asked.map(|question| self.questions.push(question))
            }
        };
        if let Err(e) = sent {
            log::debug!("{}: cannot ask the network: {e}", self.name);
        }
    }
}
