// SPDX-License-Identifier: Apache-2.0

//! A CLAT's translation in the kernel: what is put in place for it, and in which order
//! (docs/contract.md, "Maps and programs").

use std::time::Instant;

use nix::errno::Errno;

use crate::ebpf_mode::EbpfMode;
use crate::errors::{Error, Step};
use crate::host::{
    AttachError, Detach, EgressEntry, Hook, IngressEntry, LinkKind, Place, Programs,
};
use crate::model::Clat;
use crate::reconcile::{Limit, MOST_REPAIRS};

/// What is in place for one CLAT. The fields are in the order in which they have to go: the map
/// entries last, so that a scan of the maps always shows what still needs cleaning.
pub(crate) struct Attached<P: Programs> {
    ingress_filter: P::Filter,
    egress_filter: P::Filter,
    ingress_entry: P::Entry,
    egress_entry: P::Entry,
    next_hop: Option<P::NextHop>,
    pub(crate) entries: (EgressEntry, IngressEntry),
    repairs: Limit,
    /// What keeps packets from its programs.
    pub(crate) hindrances: Vec<String>,
}

impl<P: Programs> Attached<P> {
    /// Puts it in place, or takes over what a former life has put there: entries and filters are
    /// replaced at one blow. Returning early is the rollback; only a clsact stays, until its
    /// interface goes.
    pub(crate) fn attach(programs: &P, clat: &Clat) -> Result<Self, Error> {
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
        Ok(Self {
            ingress_filter,
            egress_filter,
            ingress_entry,
            egress_entry,
            next_hop,
            entries: (entry, entry6),
            repairs: Limit::new(MOST_REPAIRS.0, MOST_REPAIRS.1),
            hindrances: Vec::new(),
        })
    }

    /// Whether it still works: nobody has taken a filter away.
    pub(crate) fn is_whole(&self, programs: &P) -> bool {
        let is_there = |filter| programs.place(filter).is_ok_and(|place| place != Place::Gone);
        [&self.ingress_filter, &self.egress_filter].into_iter().all(is_there)
    }

    /// Puts filters back that others have taken away, where their place is free, and notes what
    /// else keeps packets from the programs. What packets meet before may let them pass.
    pub(crate) fn reconcile(&mut self, programs: &P, clat: &Clat, now: Instant) {
        let Clat { iface, v4iface, .. } = clat;
        let mut hindrances = Vec::new();
        for (filter, place) in [
            (&self.egress_filter, format!("egress of {v4iface}")),
            (&self.ingress_filter, format!("ingress of {iface}")),
        ] {
            match programs.place(filter) {
                Ok(Place::First) => {}
                Ok(Place::Behind(others)) => {
                    hindrances.push(format!("{place}: packets meet a {others} first"));
                }
                Ok(Place::Gone) if self.repairs.free_at(now) > now => {
                    hindrances.push(format!("{place}: somebody else keeps taking the filter away"));
                }
                Ok(Place::Gone) => match programs.restore(filter) {
                    Ok(()) => {
                        log::warn!("{place}: put the filter back");
                        self.repairs.note(now);
                    }
                    // Its interface has gone, which others see to.
                    Err(AttachError::Qdisc(e))
                        if e.raw_os_error() == Some(Errno::ENODEV as i32) => {}
                    Err(AttachError::Qdisc(e) | AttachError::Program(e)) => {
                        hindrances.push(format!("{place}: cannot put the filter back: {e}"));
                    }
                },
                // As while its interface goes.
                Err(e) => log::debug!("{place}: cannot tell whether the filter is there: {e}"),
            }
        }
        if hindrances != self.hindrances {
            hindrances.iter().for_each(|hindrance| log::warn!("{hindrance}"));
            self.hindrances = hindrances;
        }
    }
}

impl<P: Programs> Detach for Attached<P> {
    fn detach(self) {
        self.ingress_filter.detach();
        self.egress_filter.detach();
        self.ingress_entry.detach();
        self.egress_entry.detach();
        self.next_hop.into_iter().for_each(Detach::detach);
    }
}

/// How bad it is that `error` leaves a CLAT without translation in the kernel: it works all the
/// same, but slower.
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
