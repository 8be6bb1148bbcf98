// SPDX-License-Identifier: Apache-2.0

//! A CLAT's translation in the kernel: its parts, and their order (docs/contract.md, "Maps and
//! programs").

use std::time::Instant;

use nix::errno::Errno;

use crate::ebpf_mode::EbpfMode;
use crate::errors::{Error, Step};
use crate::host::{
    AttachError, Detach, EgressEntry, Hook, IngressEntry, LinkKind, Place, Programs,
    RouteAttributes,
};
use crate::model::{Clat, PacketPath};
use crate::reconcile::{Limit, MOST_REPAIRS};

/// The attached parts of one CLAT. The fields are in the order of their removal: the map entries
/// last, so that a scan of the maps always shows what still needs cleaning.
pub(crate) struct Attached<P: Programs> {
    direct: Option<Direct<P>>,
    ingress_filter: P::Filter,
    egress_filter: P::Filter,
    ingress_entry: P::Entry,
    egress_entry: P::Entry,
    next_hop: Option<P::NextHop>,
    pub(crate) entries: (EgressEntry, IngressEntry),
    repairs: Limit,
    /// Whether both filters were attached when last looked at.
    is_whole: bool,
    /// Why packets may not reach its programs.
    hindrances: Vec<String>,
    /// Why the direct way is not used although wanted.
    not_direct: Option<String>,
}

/// The parts of the direct way on the uplink, in the order of their removal: first the route.
struct Direct<P: Programs> {
    route: P::Direct,
    filter: P::Filter,
    entry: P::Entry,
    /// The entry's value.
    value: EgressEntry,
    /// Whether the route is set.
    has_route: bool,
}

impl<P: Programs> Direct<P> {
    /// Attaches it beside the entries `egress` and `ingress`, without a route yet.
    fn attach(
        programs: &P,
        clat: &Clat,
        link: LinkKind,
        (egress, ingress): (&EgressEntry, &IngressEntry),
    ) -> Result<Self, Error> {
        let failed = |step| move |e: std::io::Error| Error::io(&e, &clat.iface, step);
        let route = programs.direct(egress, ingress).map_err(failed(Step::GoDirect))?;
        let value = EgressEntry { iif: clat.index, oif: clat.v4index, ..egress.clone() };
        let entry = programs.egress_entry(&value).map_err(failed(Step::GoDirect))?;
        let filter = programs.attach(clat.index, Hook::Direct, link).map_err(|e| match e {
            AttachError::Qdisc(e) | AttachError::Program(e) => failed(Step::GoDirect)(e),
        })?;
        Ok(Self { route, filter, entry, value, has_route: false })
    }
}

impl<P: Programs> Attached<P> {
    /// Attaches the parts, or takes over those of a previous controller: entries and filters are
    /// replaced atomically. An early return rolls back, except for a clsact, which stays until its
    /// interface is removed. Includes the direct way if wanted and possible.
    pub(crate) fn attach(programs: &P, clat: &Clat, direct: bool) -> Result<Self, Error> {
        let failed = |step| move |e: std::io::Error| Error::io(&e, &clat.iface, step);
        let link = programs.link_kind(clat.index).map_err(failed(Step::FindLinkKind))?;
        let entry = EgressEntry {
            iif: clat.v4index,
            local4: clat.v4,
            oif: clat.index,
            local6: clat.v6,
            prefix: clat.prefix.addr(),
            oif_is_ethernet: link == LinkKind::Ethernet,
        };
        let next_hop = entry.oif_is_ethernet.then(|| programs.next_hop(&entry)).transpose();
        let next_hop = next_hop.map_err(failed(Step::FindNextHop))?;
        let egress_entry = programs.egress_entry(&entry).map_err(failed(Step::AddEgressEntry))?;
        let entry6 = IngressEntry {
            iif: clat.index,
            prefix: clat.prefix.addr(),
            local6: clat.v6,
            oif: clat.v4index,
            local4: clat.v4,
        };
        let ingress_entry =
            programs.ingress_entry(&entry6).map_err(failed(Step::AddIngressEntry))?;
        let attach = |index, hook, link, step| {
            programs.attach(index, hook, link).map_err(|e| match e {
                AttachError::Qdisc(e) => Error::io(&e, &clat.iface, Step::AddClsact),
                AttachError::Program(e) => Error::io(&e, &clat.iface, step),
            })
        };
        // A TUN device has no link header.
        let egress_filter =
            attach(clat.v4index, Hook::Egress, LinkKind::RawIp, Step::AddEgressFilter)?;
        let ingress_filter = attach(clat.index, Hook::Ingress, link, Step::AddIngressFilter)?;
        let direct = direct.then(|| Direct::attach(programs, clat, link, (&entry, &entry6)));
        let (direct, not_direct) = match direct.transpose() {
            Ok(direct) => (direct, None),
            Err(e) => {
                log::warn!("{e}");
                (None, Some(e.cause))
            }
        };
        Ok(Self {
            direct,
            ingress_filter,
            egress_filter,
            ingress_entry,
            egress_entry,
            next_hop,
            entries: (entry, entry6),
            repairs: Limit::new(MOST_REPAIRS.0, MOST_REPAIRS.1),
            is_whole: true,
            hindrances: Vec::new(),
            not_direct,
        })
    }

    /// The entries of the egress map.
    pub(crate) fn egress_entries(&self) -> impl Iterator<Item = &EgressEntry> {
        let direct = self.direct.iter().map(|direct| &direct.value);
        std::iter::once(&self.entries.0).chain(direct)
    }

    /// The interfaces and hooks of its filters.
    pub(crate) fn filters(&self) -> impl Iterator<Item = (u32, Hook)> + '_ {
        let (egress, ingress) = &self.entries;
        let direct = self.direct.iter().map(|direct| (direct.value.iif, Hook::Direct));
        [(egress.iif, Hook::Egress), (ingress.iif, Hook::Ingress)].into_iter().chain(direct)
    }

    /// Routes packets the direct way, if it is wanted and possible, by a route with these
    /// attributes.
    pub(crate) fn set_route(
        &mut self,
        programs: &P,
        clat: &Clat,
        route: Option<RouteAttributes>,
        now: Instant,
    ) {
        let Some(direct) = &mut self.direct else { return };
        let is_lost = programs.place(&direct.filter).is_ok_and(|place| place == Place::Gone);
        let is_fought = self.repairs.free_at(now) > now;
        let route = route.filter(|_| !is_lost && !is_fought);
        let result = programs.set_route(&mut direct.route, route);
        direct.has_route = route.is_some() && result.is_ok();
        let hindrance = match result {
            _ if is_fought => Some("somebody else keeps taking away what it needs".to_owned()),
            Ok(is_repair) => {
                if is_repair {
                    log::warn!("{}: put its direct route back", clat.iface);
                    self.repairs.note(now);
                }
                None
            }
            Err(e) => Some(e.to_string()),
        };
        if hindrance != self.not_direct {
            let said = hindrance.as_deref().unwrap_or("nothing any more");
            log::warn!("{}: what keeps packets from going directly: {said}", clat.iface);
            self.not_direct = hindrance;
        }
    }

    /// Why packets may not reach the programs, or the direct way.
    pub(crate) fn all_hindrances(&self) -> Vec<String> {
        let direct = self.not_direct.iter().map(|why| format!("the direct way: {why}"));
        self.hindrances.iter().cloned().chain(direct).collect()
    }

    /// The path of packets as of the last reconciliation: clatd's where a filter of the device's
    /// path is missing. The kernel is not asked: a caller would wait for whatever else changes
    /// interfaces, in any network namespace (RTNL).
    pub(crate) fn path(&self) -> PacketPath {
        match &self.direct {
            _ if !self.is_whole => PacketPath::Daemon,
            Some(direct) if direct.has_route => PacketPath::Direct,
            _ => PacketPath::Device,
        }
    }

    /// Restores filters that others have removed, if their place is free, and notes what else may
    /// keep packets from the programs. Filters in front may let packets pass.
    pub(crate) fn reconcile(&mut self, programs: &P, clat: &Clat, now: Instant) {
        let Clat { iface, v4iface, .. } = clat;
        let (mut hindrances, mut there) = (Vec::new(), Vec::new());
        let direct = self.direct.as_ref();
        let direct = direct.map(|direct| (&direct.filter, format!("egress of {iface}")));
        for (filter, place) in [
            (&self.egress_filter, format!("egress of {v4iface}")),
            (&self.ingress_filter, format!("ingress of {iface}")),
        ]
        .into_iter()
        .chain(direct)
        {
            let mut is_there = false;
            match programs.place(filter) {
                Ok(Place::First) => is_there = true,
                Ok(Place::Behind(others)) => {
                    is_there = true;
                    hindrances.push(format!("{place}: packets meet a {others} first"));
                }
                Ok(Place::Gone) if self.repairs.free_at(now) > now => {
                    hindrances.push(format!("{place}: somebody else keeps taking the filter away"));
                }
                Ok(Place::Gone) => match programs.restore(filter) {
                    Ok(()) => {
                        is_there = true;
                        log::warn!("{place}: put the filter back");
                        self.repairs.note(now);
                    }
                    // Its interface was removed, which is handled elsewhere.
                    Err(AttachError::Qdisc(e))
                        if e.raw_os_error() == Some(Errno::ENODEV as i32) => {}
                    Err(AttachError::Qdisc(e) | AttachError::Program(e)) => {
                        hindrances.push(format!("{place}: cannot put the filter back: {e}"));
                    }
                },
                // For example while its interface is being removed.
                Err(e) => log::debug!("{place}: cannot tell whether the filter is there: {e}"),
            }
            there.push(is_there);
        }
        // Without the filter of the direct way, packets take the device.
        self.is_whole = there.iter().take(2).all(|is_there| *is_there);
        if hindrances != self.hindrances {
            hindrances.iter().for_each(|hindrance| log::warn!("{hindrance}"));
            self.hindrances = hindrances;
        }
    }
}

impl<P: Programs> Detach for Attached<P> {
    fn detach(self) {
        if let Some(Direct { route, filter, entry, .. }) = self.direct {
            route.detach();
            filter.detach();
            entry.detach();
        }
        self.ingress_filter.detach();
        self.egress_filter.detach();
        self.ingress_entry.detach();
        self.egress_entry.detach();
        self.next_hop.into_iter().for_each(Detach::detach);
    }
}

/// The log level for an `error` that leaves a CLAT without translation in the kernel: it works, but
/// slower.
pub(crate) fn severity(mode: EbpfMode, error: &Error) -> log::Level {
    let is_filter = matches!(error.step, Step::AddEgressFilter | Step::AddIngressFilter);
    if mode == EbpfMode::Maybe && is_filter && error.errno == Errno::ENOENT {
        log::Level::Info
    } else {
        log::Level::Error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_without_net_cls_bpf_is_excused() {
        let severity =
            |mode, step, errno| severity(mode, &Error::new(errno, "wlan0", step, "no reason"));
        for step in [Step::AddEgressFilter, Step::AddIngressFilter] {
            assert_eq!(severity(EbpfMode::Maybe, step, Errno::ENOENT), log::Level::Info);
            assert_eq!(severity(EbpfMode::Maybe, step, Errno::EPERM), log::Level::Error);
            assert_eq!(severity(EbpfMode::Enabled, step, Errno::ENOENT), log::Level::Error);
        }
        for step in [Step::FindLinkKind, Step::AddEgressEntry, Step::AddClsact] {
            assert_eq!(severity(EbpfMode::Maybe, step, Errno::ENOENT), log::Level::Error);
        }
    }
}
