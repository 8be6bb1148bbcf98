// SPDX-License-Identifier: Apache-2.0

//! Filters of the clsact qdisc, by netlink. libbpf's own way to attach them lets nobody choose name
//! and protocol, which others look for.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use clat_netlink::request;
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
    index: u32,
    hook: Hook,
}

impl Filter {
    /// Attaches `program`, direct-action, under `name` and our priority; in place of one of ours
    /// that is there, so that every packet meets the one or the other.
    pub(crate) fn attach(
        index: u32,
        hook: Hook,
        program: Result<OwnedFd, AttachError>,
        name: &str,
    ) -> Result<Self, AttachError> {
        add_clsact(index).map_err(AttachError::Qdisc)?;
        Self::attach_to_clsact(index, hook, &program?, name).map_err(AttachError::Program)
    }

    fn attach_to_clsact(index: u32, hook: Hook, program: &OwnedFd, name: &str) -> io::Result<Self> {
        let old = ours(index, hook)?.first().copied();
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
        request(message, NLM_F_CREATE | how, |_| ())?;
        Ok(Self { index, hook })
    }
}

impl Filter {
    /// Whether it is still there: others can take it away, or all of the clsact.
    ///
    /// # Errors
    /// Those of netlink: ENODEV where its interface is gone.
    pub fn is_attached(&self) -> io::Result<bool> {
        Ok(!ours(self.index, self.hook)?.is_empty())
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

/// The handles of our filters on an interface.
fn ours(index: u32, hook: Hook) -> io::Result<Vec<u32>> {
    let mut handles = Vec::new();
    let filters = message(index, parent(hook))?;
    request(RouteNetlinkMessage::GetTrafficFilter(filters), NLM_F_DUMP, |found| {
        handles.extend(our_handle(found, hook));
    })?;
    Ok(handles)
}

/// Removes our filters from an interface, and says whether there were any. Others at the same place
/// stay.
fn remove(index: u32, hook: Hook) -> io::Result<bool> {
    let handles = ours(index, hook)?;
    let mut filter = message(index, parent(hook))?;
    filter.header.info = info(hook);
    for handle in &handles {
        filter.header.handle = TcHandle::from(*handle);
        filter.attributes = vec![TcAttribute::Kind(KIND.to_owned())];
        request(RouteNetlinkMessage::DelTrafficFilter(filter.clone()), 0, |_| ())?;
    }
    Ok(!handles.is_empty())
}

/// The handle of the filter that a message is about, if it is one of ours. Read by hand: others'
/// filters may have options that the library stumbles over.
fn our_handle(message: &[u8], hook: Hook) -> Option<u32> {
    let number = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let (handle, filter_info) = (number(8)?, number(16)?);
    let attribute = |bytes: &[u8], kind| {
        let found = NlasIterator::new(bytes).flatten().find(|nla| nla.kind() == kind)?;
        Some(found.value().to_vec())
    };
    let attributes = message.get(HEADER_LEN..)?;
    let is_bpf = attribute(attributes, TCA_KIND)?.strip_suffix(b"\0")? == KIND.as_bytes();
    let name = attribute(&attribute(attributes, TCA_OPTIONS)?, TCA_BPF_NAME)?;
    let is_ours = PROGRAMS.iter().filter(|(of, _)| *of == hook).any(|(hook, link)| {
        name.strip_suffix(b"\0")
            == Some(format!("{}{FROM_FILE}", program_name(*hook, *link)).as_bytes())
    });
    (handle != 0 && filter_info == info(hook) && is_bpf && is_ours).then_some(handle)
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
    let [.., high, low] = protocol.to_be_bytes();
    PRIORITY << 16 | u32::from(u16::from_ne_bytes([high, low]))
}
