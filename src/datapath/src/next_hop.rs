// SPDX-License-Identifier: Apache-2.0

//! The uplink's next hop towards the PLAT, and the link header of packets that are sent past the
//! kernel's IPv6.
//!
//! The kernel is asked after it has reported a change, and reports are read only when there is
//! something to send: changes on an idle link cause no wake-up.

use std::io;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use clat_netlink::{Connection, NextHop, Subscription, Target, Topic};
use clat_xlat::Prefix;

use crate::batch::LINK_HEADER;
use crate::socket::PacketSocket;

/// The least MTU of an IPv6 link (RFC 8200 §5), and the path MTU assumed when it cannot be asked.
pub const MIN_MTU6: u32 = 1280;

/// Most bytes that translation adds to an IPv4 packet: IPv6's longer header and a Fragment Header
/// (RFC 7915 §4.1).
const GROWTH: u32 = 28;

/// MTU of the TUN device for a path MTU of the uplink, both in bytes of IP packet.
#[must_use]
pub fn tun_mtu(mtu6: u32) -> u32 {
    // 65,535 is the most for an IPv4 packet and for a TUN device.
    mtu6.clamp(MIN_MTU6, 65535) - GROWTH
}

/// How long a next hop is used before the kernel's reports are read again.
const FRESH: Duration = Duration::from_millis(50);

/// The next hop of IPv6 packets to the NAT64 prefix, where they can be sent past the kernel.
pub struct NextHopCache {
    /// Sockets for the kernel's reports and answers, opened at the start: the sandbox allows none
    /// later. `None` if that failed.
    kernel: Option<(Subscription, Connection)>,
    source: Ipv6Addr,
    prefix: Prefix,
    looked: Option<Instant>,
    link: Option<Link>,
    /// Path MTU towards the prefix, in bytes: at the start, and now.
    path_mtu: u32,
    mtu6: u32,
}

/// The link header in front of each packet.
struct Link {
    header: [u8; LINK_HEADER],
    len: usize,
    /// The neighbour's entry is STALE: the next packet goes through the kernel, which then probes
    /// whether the neighbour is reachable.
    confirm: bool,
}

impl NextHopCache {
    /// Subscribes to changes. `path_mtu` is the current path MTU towards the prefix, in bytes.
    #[must_use]
    pub fn new(source: Ipv6Addr, prefix: Prefix, path_mtu: u32) -> Self {
        let topics = [Topic::Links, Topic::Routes6, Topic::Neighbours];
        let kernel = Subscription::new(&topics)
            .and_then(|subscription| Ok((subscription, Connection::new()?)))
            .inspect_err(|e| {
                log::warn!("cannot follow routes and neighbours ({e}): sending is slower");
            })
            .ok();
        Self { kernel, source, prefix, looked: None, link: None, path_mtu, mtu6: path_mtu }
    }

    /// The link header for packets sent by `socket` now (empty if the uplink has none), and whether
    /// the kernel has to send a packet first ([`Self::confirmed`]). `None` if the kernel has to
    /// send all packets, without a route or the neighbour's link-layer address.
    pub fn link_header(&mut self, socket: &PacketSocket, now: Instant) -> Option<(&[u8], bool)> {
        let (subscription, _) = self.kernel.as_ref()?;
        if self.looked.map_or(true, |at| now.duration_since(at) >= FRESH) {
            let first = self.looked.replace(now).is_none();
            let found = subscription.read().and_then(|changes| {
                if first || !changes.is_empty() {
                    self.look(socket)?;
                }
                Ok(())
            });
            if let Err(e) = found {
                log::warn!("cannot ask for routes and neighbours ({e}): sending is slower");
                self.kernel = None;
                return None;
            }
        }
        let link = self.link.as_ref()?;
        Some((&link.header[..link.len], link.confirm))
    }

    /// Notes that the kernel has been given a packet to send.
    pub fn confirmed(&mut self) {
        if let Some(link) = &mut self.link {
            link.confirm = false;
        }
    }

    /// The longest packet that may be sent, in bytes: the path MTU at the start, or the uplink's
    /// MTU if that has become smaller.
    #[must_use]
    pub fn mtu6(&self) -> u32 {
        self.mtu6
    }

    fn look(&mut self, socket: &PacketSocket) -> io::Result<()> {
        self.link = None;
        let Some((_, kernel)) = &self.kernel else { return Ok(()) };
        let (oif, own) = match socket.link_address() {
            Ok(found) => found,
            // The interface no longer exists; reading from the socket will fail with it.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => return Ok(()),
            Err(e) => return Err(e),
        };
        // Below 1280 a link has no IPv6 (RFC 8200 §5).
        self.mtu6 = self.path_mtu.min(kernel.link(oif)?.mtu.max(MIN_MTU6));
        let target = Target {
            oif,
            source: self.source,
            prefix: self.prefix.addr(),
            prefix_len: self.prefix.bits(),
        };
        let Some(hop) = kernel.next_hop(&target)? else { return Ok(()) };
        let mut link = Link { header: [0; LINK_HEADER], len: 0, confirm: false };
        if socket.is_ethernet() {
            // Each destination is its own neighbour: the kernel sends these.
            let NextHop::Gateway(router) = hop else { return Ok(()) };
            let Some(router) = kernel.neighbour(oif, router)? else { return Ok(()) };
            link.header[..6].copy_from_slice(&router.address);
            link.header[6..12].copy_from_slice(&own);
            link.header[12..].copy_from_slice(&[0x86, 0xdd]);
            (link.len, link.confirm) = (LINK_HEADER, router.is_stale);
        }
        self.link = Some(link);
        Ok(())
    }
}

impl std::fmt::Debug for NextHopCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NextHopCache").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
