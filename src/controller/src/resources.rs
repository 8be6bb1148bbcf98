// SPDX-License-Identifier: Apache-2.0

//! What all CLATs of a controller share: the host, addresses, programs, and whom to tell.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use clat_host::address::Pool;
use nix::sys::eventfd::EventFd;

use crate::ebpf_mode::EbpfMode;
use crate::host::{Hook, Host, LinkKind, Offload, ProbeTarget, Programs};
use crate::model::{Clat, Observer};
use crate::offload::{self, Attached};
use crate::original;

type ProgramsOf<H> = <H as Offload>::Programs;

/// See the module.
pub(crate) struct Resources<H: Host> {
    pub(crate) host: Arc<H>,
    pub(crate) observer: Observer,
    /// Whether every interface has a network, and default routes are ours.
    pub(crate) standalone: bool,
    pub(crate) mode: EbpfMode,
    /// Whether packets are to go by the uplink itself, where they can.
    pub(crate) direct: bool,
    /// Who is asked whether IPv4 works.
    pub(crate) probe_target: Option<ProbeTarget>,
    /// The IPv4 addresses that CLATs hold.
    pub(crate) pool: Arc<Pool>,
    /// Of the translation in the kernel, until the end of the controller.
    pub(crate) programs: Mutex<Option<Arc<ProgramsOf<H>>>>,
    /// Who reconciles, to be woken.
    pub(crate) follower: Arc<OnceLock<Arc<EventFd>>>,
}

impl<H: Host> Resources<H> {
    pub(crate) fn programs(&self) -> Option<Arc<ProgramsOf<H>>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the kernel translate for a CLAT; failing to leaves a working, slower one.
    pub(crate) fn offload(&self, clat: &Clat) -> Option<Attached<ProgramsOf<H>>> {
        let programs = self.programs()?;
        if clat.prefix.bits() != 96 {
            log::info!("{}: {} is no /96: clatd translates it all", clat.iface, clat.prefix);
            return None;
        }
        let attached = Attached::attach(programs.as_ref(), clat, self.direct);
        let told = attached.inspect_err(|e| {
            let level = offload::severity(self.mode, e);
            let is_ethernet =
                programs.link_kind(clat.index).is_ok_and(|kind| kind == LinkKind::Ethernet);
            if let Some(line) = original::no_offload(e, level, clat, is_ethernet) {
                log::log!(level, "{line}");
            }
            log::log!(level, "{e}");
        });
        told.ok()
    }

    /// Whether filters for a CLAT's translation in the kernel can be attached: no other's is in
    /// their place.
    pub(crate) fn has_room(&self, clat: &Clat) -> bool {
        let places = [(clat.v4index, Hook::Egress), (clat.index, Hook::Ingress)];
        let has_room = |programs: Arc<ProgramsOf<H>>| {
            // What cannot be asked, as of an interface that goes, is nobody's.
            places.into_iter().all(|(index, hook)| programs.has_room(index, hook).unwrap_or(true))
        };
        self.programs().map_or(true, has_room)
    }

    /// What has CLATs reconciled for a reason that the kernel does not tell of.
    pub(crate) fn waker(&self) -> impl Fn() + Send {
        let follower = Arc::clone(&self.follower);
        move || {
            if let Some(follower) = follower.get() {
                // A counter that is not full takes this.
                let _ = follower.write(1);
            }
        }
    }
}
