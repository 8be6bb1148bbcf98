// SPDX-License-Identifier: Apache-2.0

//! Filters of the clsact qdisc, by netlink. libbpf's functions cannot set the name and protocol, by
//! which other programs identify filters.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use clat_netlink::{attribute, attribute_bytes, link, number_at, request, LinkKind, RawMessage};
use clat_sys::{errno_of, HostError};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

use crate::model::{AttachError, Hook, Place};
use crate::pins::program_name;

/// The priority after that of tethering (AOSP, libnetdutils and TcUtils).
const PRIORITY: u32 = 4;
/// Android's suffix for the names of programs from pinned files.
const FROM_FILE: &str = ":[*fsobj]";
const KIND: &str = "bpf";
/// linux/pkt_cls.h
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// linux/rtnetlink.h
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
/// Length of struct tcmsg: family and padding, index, handle, parent and info, 4 bytes each.
const HEADER_LEN: usize = 20;
/// linux/pkt_sched.h: TC_H_CLSACT, the parent of the qdisc clsact; and its own handle.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// Adds the clsact qdisc if needed. It stays until its interface is removed.
fn add_clsact(index: u32) -> io::Result<()> {
    let kind = kind_bytes("clsact");
    let qdisc = message(RTM_NEWQDISC, [index, CLSACT_HANDLE, CLSACT, 0], &[kind]);
    match request(qdisc, NLM_F_CREATE | NLM_F_EXCL, |_| ()) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => done,
    }
}

/// A filter that is removed when dropped.
#[derive(Debug)]
pub struct Filter {
    pub(crate) index: u32,
    pub(crate) hook: Hook,
    pub(crate) link: LinkKind,
}

/// Attaches `program` in direct-action mode under `name` with our priority. It replaces our
/// existing filter atomically, so that no packet passes without one.
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
    let options = [
        attribute_bytes(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes()),
        attribute_bytes(TCA_BPF_NAME, format!("{name}{FROM_FILE}\0").as_bytes()),
        attribute_bytes(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()),
    ];
    let filter = message(
        RTM_NEWTFILTER,
        [index, old.unwrap_or(0), parent(hook), info(hook)],
        &[kind_bytes(KIND), attribute_bytes(TCA_OPTIONS, &options.concat())],
    );
    let how = if old.is_some() { 0 } else { NLM_F_EXCL };
    request(filter, NLM_F_CREATE | how, |_| ()).map_err(|e| {
        // Filters of a priority have the same kind and protocol.
        match there.iter().find(|filter| filter.takes_place(hook)) {
            Some(other) => HostError::during(format!("its place is taken by a {other}"), e),
            None => e,
        }
    })
}

/// Whether a filter of ours can be attached there: no filter of another kind or for another
/// protocol has its priority.
pub(crate) fn has_room(index: u32, hook: Hook) -> io::Result<bool> {
    Ok(!listed(index, hook)?.iter().any(|filter| filter.takes_place(hook)))
}

impl Filter {
    /// Its position now.
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
        // Some kinds list a filter several times.
        before.dedup();
        Ok(if before.is_empty() { Place::First } else { Place::Behind(before.join(", ")) })
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Err(e) = remove(self.index, self.hook) {
            let name = link(self.index).map_or_else(|_| "?".to_owned(), |link| link.name);
            log::error!("{}", not_removed(self.hook, self.index, &name, &e));
        }
    }
}

/// The message of AOSP's ClatdController.
fn not_removed(hook: Hook, index: u32, name: &str, error: &io::Error) -> String {
    let call = match hook {
        Hook::Ingress => "tcFilterDelDevIngressClatIpv6",
        Hook::Egress | Hook::Direct => "tcFilterDelDevEgressClatIpv4",
    };
    format!("{call}({index}[{name}]) failure: {}", errno_of(error).desc())
}

/// Removes our filters from every interface, except the `kept` ones.
///
/// # Errors
/// Those of netlink.
pub fn remove_leftovers(kept: &[(u32, Hook)]) -> io::Result<()> {
    // Every interface has a link-layer address here; nix has no if_nameindex(3) for Android.
    let names: BTreeSet<_> = getifaddrs()?.map(|address| address.interface_name).collect();
    for name in names {
        // An interface removed meanwhile has no filters.
        let Ok(index) = if_nametoindex(name.as_str()) else { continue };
        for hook in [Hook::Ingress, Hook::Egress, Hook::Direct] {
            if !kept.contains(&(index, hook)) && remove(index, hook)? {
                log::warn!("removed an {hook:?} filter of a previous controller from {name}");
            }
        }
    }
    Ok(())
}

/// A filter as listed by the kernel. Parsed here, since the library fails on some options of other
/// filters.
#[derive(Debug)]
struct Listed {
    handle: u32,
    /// Priority and protocol.
    info: u32,
    kind: String,
    /// The name of a BPF program.
    name: Option<String>,
}

impl Listed {
    fn parse(message: &[u8]) -> Option<Self> {
        let text =
            |bytes: &[u8]| Some(String::from_utf8_lossy(bytes.strip_suffix(b"\0")?).into_owned());
        let attributes = message.get(HEADER_LEN..)?;
        let chain = attribute(attributes, TCA_CHAIN);
        let name = attribute(attributes, TCA_OPTIONS)
            .and_then(|options| text(attribute(options, TCA_BPF_NAME)?));
        let kind = text(attribute(attributes, TCA_KIND)?)?;
        let name = name.filter(|_| kind == KIND);
        let (handle, info) = (number_at(message, 8)?, number_at(message, 16)?);
        // Handle 0 describes a priority without a filter; filters of other chains see packets only
        // if sent there.
        let is_met = handle != 0 && chain.map_or(true, |chain| chain == [0; 4]);
        is_met.then_some(Self { handle, info, kind, name })
    }

    fn is_ours(&self, hook: Hook) -> bool {
        let is_ours = |link| {
            let name = format!("{}{FROM_FILE}", program_name(hook, link));
            self.name.as_ref() == Some(&name)
        };
        self.info == info(hook) && [LinkKind::RawIp, LinkKind::Ethernet].into_iter().any(is_ours)
    }

    fn priority(&self) -> u32 {
        self.info >> 16
    }

    /// Whether it prevents one of ours.
    fn takes_place(&self, hook: Hook) -> bool {
        self.priority() == PRIORITY && (self.kind != KIND || self.info != info(hook))
    }

    /// Whether it sees packets meant for ours.
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

/// The filters of an interface, in the order of their use.
fn listed(index: u32, hook: Hook) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    let filters = message(RTM_GETTFILTER, [index, 0, parent(hook), 0], &[]);
    request(filters, NLM_F_DUMP, |filter| {
        found.extend(Listed::parse(filter));
    })?;
    Ok(found)
}

/// Removes our filters from an interface, and returns whether there were any. Other filters stay.
fn remove(index: u32, hook: Hook) -> io::Result<bool> {
    let mut ours = listed(index, hook)?;
    ours.retain(|filter| filter.is_ours(hook));
    for Listed { handle, .. } in &ours {
        let header = [index, *handle, parent(hook), info(hook)];
        request(message(RTM_DELTFILTER, header, &[kind_bytes(KIND)]), 0, |_| ())?;
    }
    Ok(!ours.is_empty())
}

/// A message with index, handle, parent and info.
fn message(kind: u16, header: [u32; 4], attributes: &[Vec<u8>]) -> RawMessage {
    // AF_UNSPEC
    let mut payload = vec![0; 4];
    payload.extend(header.iter().flat_map(|number| number.to_ne_bytes()));
    payload.extend(attributes.concat());
    RawMessage { kind, payload }
}

fn kind_bytes(kind: &str) -> Vec<u8> {
    attribute_bytes(TCA_KIND, format!("{kind}\0").as_bytes())
}

/// TC_H_MIN_INGRESS or TC_H_MIN_EGRESS of clsact.
fn parent(hook: Hook) -> u32 {
    match hook {
        Hook::Ingress => 0xffff_fff2,
        Hook::Egress | Hook::Direct => 0xffff_fff3,
    }
}

/// Priority and, in network byte order, protocol.
fn info(hook: Hook) -> u32 {
    let protocol = match hook {
        Hook::Egress | Hook::Direct => libc::ETH_P_IP,
        Hook::Ingress => libc::ETH_P_IPV6,
    };
    PRIORITY << 16 | in_network_order(protocol)
}

/// A protocol in network byte order, as filters have it.
fn in_network_order(protocol: i32) -> u32 {
    let [.., high, low] = protocol.to_be_bytes();
    u16::from_ne_bytes([high, low]).into()
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn what_is_said_is_the_original_s() {
        let gone = Errno::ENODEV.into();
        let line = "tcFilterDelDevIngressClatIpv6(21[wlan0]) failure: No such device";
        assert_eq!(not_removed(Hook::Ingress, 21, "wlan0", &gone), line);
        let line = "tcFilterDelDevEgressClatIpv4(34[v4-wlan0]) failure: No such device";
        assert_eq!(not_removed(Hook::Egress, 34, "v4-wlan0", &gone), line);
    }
}
