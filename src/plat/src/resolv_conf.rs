// SPDX-License-Identifier: Apache-2.0

//! The resolvers in the host's resolv.conf(5), and its changes.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::Context;
use nix::net::if_::if_nametoindex;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Its path.
pub(crate) const PATH: &str = "/etc/resolv.conf";

/// Its resolvers.
pub(crate) fn resolvers() -> Vec<SocketAddr> {
    let text = fs::read_to_string(PATH).unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|server| resolver(server.trim())).collect()
}

/// Parses a resolver's address, with a zone index if link-local (RFC 4007 §11).
pub(crate) fn resolver(text: &str) -> Option<SocketAddr> {
    if let Some((address, interface)) = text.split_once('%') {
        let scope = interface.parse().ok().or_else(|| if_nametoindex(interface).ok())?;
        return Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into());
    }
    text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53))
}

/// A resolv.conf with this server, these search domains or else the host's, and the host's options.
pub(crate) fn with_server(server: Ipv6Addr, search: &[String]) -> String {
    replace_servers(&fs::read_to_string(PATH).unwrap_or_default(), server, search)
}

fn replace_servers(hosts: &str, server: Ipv6Addr, search: &[String]) -> String {
    let keep = |line: &&str| match line.split_whitespace().next() {
        Some("search" | "domain") => search.is_empty(),
        word => word == Some("options"),
    };
    let mut text = format!("nameserver {server}\n");
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    text.extend(hosts.lines().filter(keep).flat_map(|line| [line, "\n"]));
    text
}

/// A descriptor that becomes readable when some files have been replaced, changed or removed.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: Inotify,
    paths: &'static [&'static str],
}

impl Watch {
    /// Watches these files.
    ///
    /// # Errors
    /// The kernel's error.
    pub(crate) fn new(paths: &'static [&'static str]) -> anyhow::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .context("cannot watch files")?;
        let watch = Self { inotify, paths };
        watch.renew()?;
        Ok(watch)
    }

    /// Consumes the events, and watches the present folders. To be called before the files are
    /// read.
    ///
    /// # Errors
    /// The kernel's error.
    pub(crate) fn renew(&self) -> anyhow::Result<()> {
        while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE;
        for path in self.paths.iter().map(Path::new) {
            // Replacing a file changes its folder; for a symbolic link, also the target's folder.
            let target = fs::canonicalize(path).ok();
            for folder in [Some(path), target.as_deref()].into_iter().flatten() {
                let folder = folder.parent().unwrap_or(folder);
                let watched = self.inotify.add_watch(folder, changes);
                watched.with_context(|| format!("cannot watch {}", folder.display()))?;
            }
        }
        Ok(())
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_are_others() {
        let hosts =
            "# of the host\nnameserver 192.0.2.1\nsearch a.example b.example\noptions rotate\n";
        let server = "2001:db8::53".parse().unwrap();
        assert_eq!(
            replace_servers(hosts, server, &[]),
            "nameserver 2001:db8::53\nsearch a.example b.example\noptions rotate\n"
        );
        assert_eq!(
            replace_servers(hosts, server, &["c.example.".to_owned()]),
            "nameserver 2001:db8::53\nsearch c.example.\noptions rotate\n"
        );
    }
}
