// SPDX-License-Identifier: Apache-2.0

//! Filters of the clsact qdisc, by netlink. libbpf's own way to attach them lets nobody choose name
//! and protocol, which others look for.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use clat_netlink::{request, LinkKind};
use clat_sys::HostError;
use netlink_packet_core::{DefaultNla, NlasIterator, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption};
use netlink_packet_route::RouteNetlinkMessage;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

use crate::model::Hook;
use crate::pins::{program_name, PROGRAMS};

/// After tethering's (AOSP, libnetdutils and TcUtils).
const PRIORITY: u32 = 4;
/// What Android puts behind the name of a program that comes from a file of the BPF file system.
const FROM_FILE: &str = ":[*fsobj]";
const KIND: &str = "bpf";
/// linux/pkt_cls.h
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// linux/rtnetlink.h
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
/// Of a message about filters: family and padding, ifindex, handle, parent, info; attributes
/// follow.
const HEADER_LEN: usize = 20;

/// Makes sure of the clsact qdisc, which goes with its interface.
fn add_clsact(index: u32) -> io::Result<()> {
    let mut qdisc = message(index, TcHandle::CLSACT)?;
    qdisc.header.handle = TcHandle { major: 0xffff, minor: 0 };
    qdisc.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc);
    match request(message, NLM_F_CREATE | NLM_F_EXCL, |_| ()) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => done,
    }
}

/// Why a program could not be attached.
#[derive(Debug)]
pub enum AttachError {
    /// What programs hang on could not be had: the clsact qdisc.
    Qdisc(io::Error),
    /// The program itself.
    Program(io::Error),
}

/// A filter that is removed when dropped.
#[derive(Debug)]
pub struct Filter {
    pub(crate) index: u32,
    pub(crate) hook: Hook,
    pub(crate) link: LinkKind,
}

/// How packets come to a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the first that they meet.
    First,
    /// Others meet them before, which may keep them to themselves.
    Behind(String),
    /// Not at all: somebody has taken it away.
    Gone,
}

/// Attaches `program`, direct-action, under `name` and our priority; in place of one of ours that
/// is there, so that every packet meets the one or the other.
pub(crate) fn attach(
    index: u32,
    hook: Hook,
    program: Result<OwnedFd, AttachError>,
    name: &str,
) -> Result<(), AttachError> {
    add_clsact(index).map_err(AttachError::Qdisc)?;
    attach_to_clsact(index, hook, &program?, name).map_err(AttachError::Program)
}

fn attach_to_clsact(index: u32, hook: Hook, program: &OwnedFd, name: &str) -> io::Result<()> {
    let there = listed(index, hook)?;
    let old = there.iter().find(|filter| filter.is_ours(hook)).map(|filter| filter.handle);
    let mut filter = message(index, parent(hook))?;
    filter.header.info = info(hook);
    filter.header.handle = TcHandle::from(old.unwrap_or(0));
    let option = |kind, value| TcOption::Other(DefaultNla::new(kind, value));
    filter.attributes = vec![
        TcAttribute::Kind(KIND.to_owned()),
        TcAttribute::Options(vec![
            option(TCA_BPF_FD, program.as_raw_fd().to_ne_bytes().to_vec()),
            option(TCA_BPF_NAME, format!("{name}{FROM_FILE}\0").into_bytes()),
            option(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes().to_vec()),
        ]),
    ];
    let message = RouteNetlinkMessage::NewTrafficFilter(filter);
    let how = if old.is_some() { 0 } else { NLM_F_EXCL };
    request(message, NLM_F_CREATE | how, |_| ()).map_err(|e| {
        // Of one priority are filters of one kind and one protocol.
        match there.iter().find(|filter| filter.priority() == PRIORITY && !filter.fits(hook)) {
            Some(other) => HostError::during(format!("its place is taken by a {other}"), e),
            None => e,
        }
    })
}

impl Filter {
    /// Whether it is still there, and first.
    ///
    /// # Errors
    /// Those of netlink: ENODEV where its interface is gone.
    pub fn place(&self) -> io::Result<Place> {
        let filters = listed(self.index, self.hook)?;
        let Some(at) = filters.iter().position(|filter| filter.is_ours(self.hook)) else {
            return Ok(Place::Gone);
        };
        let before = filters.iter().take(at).filter(|filter| filter.meets(self.hook));
        let mut before: Vec<_> = before.map(ToString::to_string).collect();
        // Some kinds have several to one.
        before.dedup();
        Ok(if before.is_empty() { Place::First } else { Place::Behind(before.join(", ")) })
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Err(e) = remove(self.index, self.hook) {
            log::error!(
                "cannot remove the {:?} filter of interface {}: {e}",
                self.hook,
                self.index
            );
        }
    }
}

/// Removes our filters from every interface, but not those that are `kept`.
///
/// # Errors
/// Those of netlink.
pub fn remove_leftovers(kept: &[(u32, Hook)]) -> io::Result<()> {
    // Each has a link address at least; nix has no if_nameindex(3) for Android.
    let names: BTreeSet<_> = getifaddrs()?.map(|address| address.interface_name).collect();
    for name in names {
        // One that has just gone has taken its filters along.
        let Ok(index) = if_nametoindex(name.as_str()) else { continue };
        for hook in [Hook::Ingress, Hook::Egress] {
            if !kept.contains(&(index, hook)) && remove(index, hook)? {
                log::warn!("removed an {hook:?} filter of a former life from {name}");
            }
        }
    }
    Ok(())
}

/// A filter as the kernel tells of it. Read by hand: others' filters may have options that the
/// library stumbles over.
#[derive(Debug)]
struct Listed {
    handle: u32,
    /// Priority and protocol.
    info: u32,
    kind: String,
    /// A program's.
    name: Option<String>,
}

impl Listed {
    fn parse(message: &[u8]) -> Option<Self> {
        let number = |at| Some(u32::from_ne_bytes(*message.get(at..)?.first_chunk()?));
        let attribute = |bytes: &[u8], kind| {
            let found = NlasIterator::new(bytes).flatten().find(|nla| nla.kind() == kind)?;
            Some(found.value().to_vec())
        };
        let text =
            |bytes: Vec<u8>| Some(String::from_utf8_lossy(bytes.strip_suffix(b"\0")?).into_owned());
        let attributes = message.get(HEADER_LEN..)?;
        let chain = attribute(attributes, TCA_CHAIN);
        let name = attribute(attributes, TCA_OPTIONS)
            .and_then(|options| text(attribute(&options, TCA_BPF_NAME)?));
        let kind = text(attribute(attributes, TCA_KIND)?)?;
        let name = name.filter(|_| kind == KIND);
        let (handle, info) = (number(8)?, number(16)?);
        // Where it has none it tells of a priority; and to other chains packets have to be sent.
        let is_met = handle != 0 && chain.map_or(true, |chain| chain == [0; 4]);
        is_met.then_some(Self { handle, info, kind, name })
    }

    fn is_ours(&self, hook: Hook) -> bool {
        let is_ours = |(of, link): &(Hook, LinkKind)| {
            let name = format!("{}{FROM_FILE}", program_name(*of, *link));
            *of == hook && self.name.as_ref() == Some(&name)
        };
        self.info == info(hook) && PROGRAMS.iter().any(is_ours)
    }

    fn priority(&self) -> u32 {
        self.info >> 16
    }

    /// Whether one of ours may be beside it.
    fn fits(&self, hook: Hook) -> bool {
        self.kind == KIND && self.info == info(hook)
    }

    /// Whether it meets packets that are for ours.
    fn meets(&self, hook: Hook) -> bool {
        const PROTOCOL: u32 = 0xffff;
        let all = in_network_order(libc::ETH_P_ALL);
        [info(hook) & PROTOCOL, all].contains(&(self.info & PROTOCOL))
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} filter of priority {}", self.kind, self.priority())?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " ({})", name.escape_debug()))
    }
}

/// The filters of an interface, in the order in which packets meet them.
fn listed(index: u32, hook: Hook) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    let filters = message(index, parent(hook))?;
    request(RouteNetlinkMessage::GetTrafficFilter(filters), NLM_F_DUMP, |filter| {
        found.extend(Listed::parse(filter));
    })?;
    Ok(found)
}

/// Removes our filters from an interface, and says whether there were any. Others at the same place
/// stay.
fn remove(index: u32, hook: Hook) -> io::Result<bool> {
    let mut ours = listed(index, hook)?;
    ours.retain(|filter| filter.is_ours(hook));
    let mut filter = message(index, parent(hook))?;
    filter.header.info = info(hook);
    for Listed { handle, .. } in &ours {
        filter.header.handle = TcHandle::from(*handle);
        filter.attributes = vec![TcAttribute::Kind(KIND.to_owned())];
        request(RouteNetlinkMessage::DelTrafficFilter(filter.clone()), 0, |_| ())?;
    }
    Ok(!ours.is_empty())
}

fn message(index: u32, parent: TcHandle) -> io::Result<TcMessage> {
    let index = i32::try_from(index).map_err(io::Error::other)?;
    Ok(TcMessage::from_parts(TcHeader { index, parent, ..TcHeader::default() }, Vec::new()))
}

fn parent(hook: Hook) -> TcHandle {
    // TC_H_MIN_INGRESS, TC_H_MIN_EGRESS
    let minor = match hook {
        Hook::Ingress => 0xfff2,
        Hook::Egress => 0xfff3,
    };
    TcHandle { major: 0xffff, minor }
}

/// Priority and, in network byte order, protocol.
fn info(hook: Hook) -> u32 {
    let protocol = match hook {
        Hook::Egress => libc::ETH_P_IP,
        Hook::Ingress => libc::ETH_P_IPV6,
    };
    PRIORITY << 16 | in_network_order(protocol)
}

/// A protocol as filters have it.
fn in_network_order(protocol: i32) -> u32 {
    let [.., high, low] = protocol.to_be_bytes();
    u16::from_ne_bytes([high, low]).into()
}
