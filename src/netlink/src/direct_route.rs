// SPDX-License-Identifier: Apache-2.0

//! The IPv4 default route through an IPv6-only uplink itself, with an IPv6 next hop (Linux 5.2) and
//! a BPF program that sees each packet.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP};
use nix::errno::Errno;
use nix::libc;

use crate::request::{attribute, attribute_bytes, number, request, RawMessage};

/// linux/rtnetlink.h
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_ENCAP: u16 = 22;
const RTAX_MTU: u16 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
/// linux/lwtunnel.h
const LWTUNNEL_ENCAP_BPF: u16 = 6;
const LWT_BPF_XMIT: u16 = 3;
const LWT_BPF_PROG_FD: u16 = 1;
const LWT_BPF_PROG_NAME: u16 = 2;
/// linux/netlink.h
const NLA_F_NESTED: u16 = 1 << 15;
/// struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, and
/// flags of 32 bits; attributes follow.
const HEADER_LEN: usize = 12;
const SCOPE: usize = 6;
const TYPE: usize = 7;
/// Not the scope of [`crate::DefaultRoute`], so that the two are distinct.
const RT_SCOPE_UNIVERSE: u8 = 0;

/// 224.0.0.0/3, all but unicast: the kernel would send such packets by a default route without its
/// program. Includes class E for the limited broadcast.
const NOT_UNICAST: (Ipv4Addr, u8) = (Ipv4Addr::new(224, 0, 0, 0), 3);

/// A route of the main table for all of IPv4 by the uplink, and one that says "unreachable" of what
/// is no unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectRoute {
    /// Index of the uplink.
    pub oif: u32,
    /// The router on its link; `None` on a link without neighbours.
    pub gateway: Option<Ipv6Addr>,
    /// The source address. The kernel removes the routes when no interface has it any more.
    pub source: Ipv4Addr,
    /// As for [`crate::DefaultRoute`]; of equal routes the last one set has precedence.
    pub metric: u32,
    /// The MTU in bytes of an IPv4 packet.
    pub mtu: u32,
}

impl DirectRoute {
    /// Sets it and then removes similar ones, so that no packet passes without one. `guard` is a
    /// loaded program of `BPF_PROG_TYPE_LWT_XMIT`, which the route keeps.
    ///
    /// # Errors
    /// Those of netlink(7): `EOPNOTSUPP` where the kernel has no such programs on routes
    /// (`CONFIG_LWTUNNEL_BPF`), `EINVAL` where it has no IPv6 next hops for IPv4.
    pub fn set(&self, guard: BorrowedFd<'_>) -> io::Result<()> {
        let name = attribute_bytes(LWT_BPF_PROG_NAME, b"clat_guard\0");
        let program = [attribute_bytes(LWT_BPF_PROG_FD, &guard.as_raw_fd().to_ne_bytes()), name];
        let encap = attribute_bytes(LWT_BPF_XMIT | NLA_F_NESTED, &program.concat());
        let guarded = [
            attribute_bytes(RTA_ENCAP_TYPE, &LWTUNNEL_ENCAP_BPF.to_ne_bytes()),
            attribute_bytes(RTA_ENCAP | NLA_F_NESTED, &encap),
        ];
        add(self.unreachable(RTM_NEWROUTE))?;
        add(self.message(RTM_NEWROUTE, &guarded.concat()))?;
        for other in self.all()?.into_iter().filter(|other| other != self) {
            delete(other.message(RTM_DELROUTE, &[]))?;
        }
        Ok(())
    }

    /// Whether the kernel has the route and uses it.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn is_set(&self) -> io::Result<bool> {
        let mut is_unreachable = false;
        each(|header, attributes| {
            is_unreachable |= header[1] == NOT_UNICAST.1
                && header[TYPE] == RTN_UNREACHABLE
                && number(attributes, RTA_PRIORITY) == Some(self.metric);
        })?;
        Ok(is_unreachable && self.all()?.first() == Some(self))
    }

    /// Removes it and similar ones, if they exist.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn delete(&self) -> io::Result<()> {
        for route in self.all()? {
            delete(route.message(RTM_DELROUTE, &[]))?;
        }
        delete(self.unreachable(RTM_DELROUTE))
    }

    /// The routes with this address and metric on any uplink, in the kernel's order.
    fn all(&self) -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        each(|header, attributes| {
            let source = attribute(attributes, RTA_PREFSRC);
            let is_one = header[1] == 0
                && header[SCOPE] == RT_SCOPE_UNIVERSE
                && source == Some(&self.source.octets()[..])
                && number(attributes, RTA_PRIORITY) == Some(self.metric);
            // struct rtvia: a family, then the address.
            let gateway = attribute(attributes, RTA_VIA)
                .and_then(|via| <[u8; 16]>::try_from(via.get(2..)?).ok())
                .map(Ipv6Addr::from);
            let metrics = attribute(attributes, RTA_METRICS).unwrap_or_default();
            let mtu = number(metrics, RTAX_MTU).unwrap_or(0);
            if let Some(oif) = number(attributes, RTA_OIF).filter(|_| is_one) {
                all.push(Self { oif, gateway, mtu, ..*self });
            }
        })?;
        Ok(all)
    }

    fn message(&self, kind: u16, more: &[u8]) -> RawMessage {
        let via = |router: Ipv6Addr| {
            let family = u16::try_from(libc::AF_INET6).unwrap_or_default();
            attribute_bytes(RTA_VIA, &[&family.to_ne_bytes()[..], &router.octets()].concat())
        };
        let mtu = attribute_bytes(RTAX_MTU, &self.mtu.to_ne_bytes());
        let attributes = [
            self.common(),
            attribute_bytes(RTA_OIF, &self.oif.to_ne_bytes()),
            attribute_bytes(RTA_METRICS | NLA_F_NESTED, &mtu),
            self.gateway.map(via).unwrap_or_default(),
            more.to_vec(),
        ];
        raw(kind, 0, RTN_UNICAST, &attributes.concat())
    }

    fn unreachable(&self, kind: u16) -> RawMessage {
        let (network, len) = NOT_UNICAST;
        let attributes = [self.common(), attribute_bytes(RTA_DST, &network.octets())];
        raw(kind, len, RTN_UNREACHABLE, &attributes.concat())
    }

    fn common(&self) -> Vec<u8> {
        let attributes = [
            attribute_bytes(RTA_PREFSRC, &self.source.octets()),
            attribute_bytes(RTA_PRIORITY, &self.metric.to_ne_bytes()),
        ];
        attributes.concat()
    }
}

/// Adds a route in front of similar ones; an equal one stays.
fn add(route: RawMessage) -> io::Result<()> {
    match request(route, NLM_F_CREATE, |_| ()) {
        Err(e) if e.raw_os_error() == Some(Errno::EEXIST as i32) => Ok(()),
        done => done,
    }
}

fn delete(route: RawMessage) -> io::Result<()> {
    const GONE: [i32; 2] = [Errno::ESRCH as i32, Errno::ENODEV as i32];
    match request(route, 0, |_| ()) {
        Err(e) if e.raw_os_error().is_some_and(|errno| GONE.contains(&errno)) => Ok(()),
        done => done,
    }
}

/// Calls `each` with the header and attributes of each IPv4 route.
fn each(mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let mut header = vec![0; HEADER_LEN];
    header[0] = u8::try_from(libc::AF_INET).unwrap_or_default();
    let routes = RawMessage { kind: RTM_GETROUTE, payload: header };
    request(routes, NLM_F_DUMP, |route| {
        if let Some((header, attributes)) = route.split_at_checked(HEADER_LEN) {
            each(header, attributes);
        }
    })
}

fn raw(kind: u16, destination_len: u8, of: u8, attributes: &[u8]) -> RawMessage {
    let family = u8::try_from(libc::AF_INET).unwrap_or_default();
    let (table, protocol, scope) = (RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE);
    let header = [family, destination_len, 0, 0, table, protocol, scope, of];
    RawMessage { kind, payload: [&header, &[0; 4][..], attributes].concat() }
}
