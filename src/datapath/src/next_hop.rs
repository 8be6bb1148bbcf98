// SPDX-License-Identifier: Apache-2.0

//! Whom the uplink has as next hop towards the PLAT, and what link header a packet needs that is
//! sent past the kernel's IPv6.
//!
//! The kernel is asked when it has told of a change, and that is looked at only while there is
//! something to send: what changes on an idle link wakes nobody.

use std::io;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use clat_netlink::{Connection, NextHop, Subscription, Target, Topic};
use clat_xlat::Prefix;

use crate::batch::LINK_HEADER;
use crate::socket::PacketSocket;

/// The least MTU of an IPv6 link (RFC 8200 §5), which is what a path is believed to have when it
/// cannot be asked.
pub const MIN_MTU6: u32 = 1280;

/// What translation adds to an IPv4 packet at most: IPv6's longer header and a Fragment Header (RFC
/// 7915 §4.1).
const GROWTH: u32 = 28;

/// MTU of the TUN device for a path MTU of the uplink, both in bytes of IP.
#[must_use]
pub fn tun_mtu(mtu6: u32) -> u32 {
    // 65535 is what an IPv4 packet and a TUN device can have at most.
    mtu6.clamp(MIN_MTU6, 65535) - GROWTH
}

/// How old what is known of the next hop may be.
const FRESH: Duration = Duration::from_millis(50);

/// Whom IPv6 packets to the NAT64 prefix are sent to, as far as that can be done past the kernel.
pub struct NextHopCache {
    /// By which the kernel tells of changes, and answers; `None` where it does not. Made at the
    /// start: later, no socket can be.
    kernel: Option<(Subscription, Connection)>,
    source: Ipv6Addr,
    prefix: Prefix,
    looked: Option<Instant>,
    link: Option<Link>,
    /// Towards the prefix, as it was at the start; and now.
    path_mtu: u32,
    mtu6: u32,
}

/// What stands in front of each packet.
struct Link {
    header: [u8; LINK_HEADER],
    len: usize,
    /// The kernel is to send the next packet, which makes it see whether the neighbour is still
    /// there.
    confirm: bool,
}

impl NextHopCache {
    /// Subscribes to changes. `path_mtu` is that of the way to the prefix by now, in bytes.
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

    /// The link header of what is sent by `socket` now, empty on an uplink that has none, and
    /// whether the kernel is to send a packet first ([`Self::confirmed`]). `None` if it has to send
    /// all: without a route or a neighbour's address.
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

    /// The longest packet that may leave, in bytes: the path MTU that there was at the start, or
    /// less where the uplink's own has become smaller.
    #[must_use]
    pub fn mtu6(&self) -> u32 {
        self.mtu6
    }

    fn look(&mut self, socket: &PacketSocket) -> io::Result<()> {
        self.link = None;
        let Some((_, kernel)) = &self.kernel else { return Ok(()) };
        let (oif, own) = match socket.link_address() {
            Ok(found) => found,
            // The interface is gone: reading from it will say so.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => return Ok(()),
            Err(e) => return Err(e),
        };
        // With less than 1280 a link has no IPv6 (RFC 8200 §5).
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
            // Each destination is a neighbour of its own here: that is left to the kernel.
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
